"""What a key may ask about itself and its account: an addition of this project to the native API."""

from datetime import UTC, datetime, timedelta

from serving.accounts.credits import MICROCREDITS
from serving.core import Plan
from serving.dialects.base import Standing
from serving.dialects.dreamgen import wire
from serving.dialects.lines import encode
from serving.ledger.base import Account, DayUsage, Key, month_of


async def tell_key(query: wire.NoQuery, standing: Standing) -> bytes:
    key, account = await standing.key(), await standing.account()
    today = standing.now.date()
    first = min(today - timedelta(today.weekday()), today.replace(day=1))
    lines = await standing.usage(first, today + timedelta(1))
    return encode(key_info(key, account, standing.caller.plan, lines, standing.now))


def key_info(key: Key, account: Account, plan: Plan, lines: list[DayUsage], now: datetime) -> wire.KeyInfo:
    """`lines`: what the account used, at least since this week and this month began."""
    _, _, resets_ms = month_of(round(now.timestamp() * 1000))
    today = now.date()
    usage = wire.UsedCredits(
        _since(today.isoformat(), lines),
        _since((today - timedelta(today.weekday())).isoformat(), lines),
        _since(today.replace(day=1).isoformat(), lines),
    )
    left_of_key = None if key.cap is None else max(key.cap - key.used - key.held, 0)
    return wire.KeyInfo(
        success=True,
        label=key.name,
        plan=plan.id,
        limit=_credits(plan.monthly_credits),
        remaining=_credits(account.free) if plan.metered else None,
        resets_at=datetime.fromtimestamp(resets_ms / 1000, UTC) if plan.metered else None,
        usage=usage,
        key=wire.KeyLimits(_credits(key.cap), _credits(left_of_key), key.used / MICROCREDITS),
    )


def _since(first_day: str, lines: list[DayUsage]) -> float:
    return sum(line.cost for line in lines if line.day >= first_day) / MICROCREDITS


def _credits(amount: int | None) -> float | None:
    return None if amount is None else amount / MICROCREDITS
