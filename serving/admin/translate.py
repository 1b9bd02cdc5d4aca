"""Amounts, days and records of the books -> how the admin API tells them, and back. Pure."""

from datetime import date, datetime

from serving.accounts.admin import expiry_ms
from serving.accounts.credits import MOST_CREDITS, format_credits, parse_credits
from serving.admin import wire
from serving.core import Plan, Usage
from serving.errors import InvalidRequest
from serving.ledger.base import Account, DayUsage, Grant, Key
from serving.ledger.reconcile import Reconciliation


def microcredits(text: str, param: str) -> int:
    """Of an amount that was sent in the field `param`. Raises InvalidRequest."""
    try:
        return parse_credits(text)
    except ValueError:
        message = f'{param}: must be credits as a text like "12.5", with at most six decimals, up to {MOST_CREDITS:,}.'
        raise InvalidRequest(message, param=param) from None


def end_ms(last_day: date | None, now: datetime) -> int:
    """When something ends whose last day this is; 0 is never. Raises InvalidRequest."""
    if last_day is None:
        return 0
    try:
        return expiry_ms(last_day.isoformat(), now)
    except ValueError as error:
        raise InvalidRequest(f"expires: {error}", param="expires") from None


def tell_account(account: Account, plan: Plan | None) -> wire.AccountTold:
    """`plan`: the account's, None where this server does not know it."""
    return wire.AccountTold(
        account.id,
        account.plan,
        account.state,
        plan is None or plan.metered,
        account.created_ms,
        account.running,
        *_both(account.free),
        *_both(account.held),
        *_both(account.used),
        [tell_grant(grant) for grant in account.grants],
    )


def tell_grant(grant: Grant) -> wire.GrantTold:
    return wire.GrantTold(
        grant.id,
        grant.kind,
        *_both(grant.amount),
        *_both(grant.free),
        *_both(grant.held),
        *_both(grant.used),
        *_both(grant.expired),
        grant.effective_ms,
        grant.expires_ms,
    )


def tell_key(key: Key, now: datetime) -> wire.KeyTold:
    return wire.KeyTold(**_key(key, now))  # type: ignore[arg-type]  # of the fields' types


def tell_new_key(text: str, key: Key, now: datetime) -> wire.NewKeyTold:
    return wire.NewKeyTold(key=text, **_key(key, now))  # type: ignore[arg-type]  # of the fields' types


def _key(key: Key, now: datetime) -> dict[str, object]:
    return {
        "id": key.id,
        "account": key.account,
        "name": key.name,
        "shown": key.shown,
        "state": key.state(round(now.timestamp() * 1000)),
        "models": None if key.models is None else list(key.models),
        "cap": None if key.cap is None else format_credits(key.cap),
        "cap_microcredits": key.cap,
        "used": format_credits(key.used),
        "used_microcredits": key.used,
        "held": format_credits(key.held),
        "held_microcredits": key.held,
        "created_ms": key.created_ms,
        "expires_ms": key.expires_ms,
        "revoked_ms": key.revoked_ms,
        "last_used_ms": key.last_used_ms,
    }


def tell_plan(plan: Plan) -> wire.PlanTold:
    return wire.PlanTold(
        plan.id,
        plan.metered,
        None if plan.monthly_credits is None else format_credits(plan.monthly_credits),
        plan.monthly_credits,
        plan.price_percent,
        None if plan.models is None else sorted(plan.models),
        plan.max_concurrent,
        plan.requests_per_minute,
        plan.tokens_per_minute,
        plan.max_context_tokens,
        plan.max_output_tokens,
        plan.api,
    )


def tell_void(grant_id: str, taken: int) -> wire.VoidTold:
    return wire.VoidTold(grant_id, *_both(taken))


def tell_adjustment(adjust_id: str, amount: int) -> wire.AdjustmentTold:
    return wire.AdjustmentTold(adjust_id, *_both(amount))


def tell_usage(account: str, first: date, last: date, lines: list[DayUsage]) -> wire.UsageTold:
    usage = sum((line.usage for line in lines), Usage())
    total = wire.Used(*_used(sum(line.requests for line in lines), usage, sum(line.cost for line in lines)))
    days = [
        wire.DayUsed(*_used(line.requests, line.usage, line.cost), line.day, line.key_id, line.model) for line in lines
    ]
    return wire.UsageTold(account, first.isoformat(), last.isoformat(), total, days)


def _used(requests: int, usage: Usage, cost: int) -> tuple[int, int, int, int, str, int]:
    return requests, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, *_both(cost)


def tell_reconciliation(found: Reconciliation) -> wire.ReconciliationTold:
    return wire.ReconciliationTold(
        found.account,
        found.adds_up,
        *_both(found.credit),
        *_both(found.used),
        *_both(found.days),
        *_both(found.held),
        found.duplicates,
    )


def _both(amount: int) -> tuple[str, int]:
    """An amount as it is told: in credits, and in microcredits."""
    return format_credits(amount), amount
