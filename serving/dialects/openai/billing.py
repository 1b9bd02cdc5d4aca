"""What an account used and may use, in the shapes of OpenAI's billing pages.

Source: the undocumented `dashboard/billing` addresses of OpenAI's API as of 2023, which many clients still read; they
take `hard_limit_usd` less a hundredth of `total_usage` for what is left, and 100,000,000 for no limit, as one-api says
it. `billing/usage` counts tokens, as text-generation-webui's API has it, and beside them what is no tokens.
"""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, date, datetime

import msgspec

from serving.accounts.credits import MICROCREDITS
from serving.core import Usage
from serving.core.tasks import ModelKind
from serving.dialects.base import Standing
from serving.dialects.lines import encode
from serving.dialects.openai import wire
from serving.errors import InvalidRequest
from serving.ledger.base import DayUsage, month_of

_NO_LIMIT_USD = 100_000_000
_MICROCREDITS_PER_CENT = MICROCREDITS // 100
_MOST_DAYS = 366


async def usage(query: wire.UsageQuery, standing: Standing) -> bytes:
    lines = await standing.usage(*days(query, standing.now))
    return encode(by_unit(lines, {model.id: model.kind for model in standing.models.infos}))


async def dashboard_usage(query: wire.UsageQuery, standing: Standing) -> bytes:
    lines = await standing.usage(*days(query, standing.now))
    return encode(in_cents(lines))


async def subscription(query: msgspec.Struct, standing: Standing) -> bytes:
    """The limit is what is left and what this month's requests cost, so that clients compute what is left."""
    key, limit = await standing.key(), float(_NO_LIMIT_USD)
    plan = standing.caller.plan
    if plan.metered:
        account = await standing.account()
        lines = await standing.usage(*days(wire.UsageQuery(), standing.now))
        limit = (account.free + sum(line.cost for line in lines)) / MICROCREDITS
    told = wire.SubscriptionPlan(plan.id, plan.id)
    return encode(wire.Subscription(True, key.expires_ms // 1000, limit, limit, limit, told))


def days(query: wire.UsageQuery, now: datetime) -> tuple[date, date]:
    """The first day asked for, and the day after the last one. Raises InvalidRequest."""
    _, first_ms, end_ms = month_of(round(now.timestamp() * 1000))
    first, end = (datetime.fromtimestamp(at_ms / 1000, UTC).date() for at_ms in (first_ms, end_ms))
    start = first if isinstance(query.start_date, msgspec.UnsetType) else query.start_date
    end = end if isinstance(query.end_date, msgspec.UnsetType) else query.end_date
    if start > end:
        raise InvalidRequest(f"start_date ({start}) must not be after end_date ({end}).", param="start_date")
    if (end - start).days > _MOST_DAYS:
        message = f"start_date and end_date may be {_MOST_DAYS} days apart at most, and are {(end - start).days}."
        raise InvalidRequest(message, param="start_date")
    return start, end


def by_unit(lines: list[DayUsage], kinds: Mapping[str, ModelKind]) -> wire.BillingUsage:
    """Usage of each day; a model that is not among `kinds`, since it is not served any more, counts tokens."""
    by_day: defaultdict[str, list[DayUsage]] = defaultdict(list)
    for line in lines:
        by_day[line.day].append(line)
    daily = [_day(day, used, kinds) for day, used in sorted(by_day.items())]
    return wire.BillingUsage(sum(line.total_tokens for line in daily), daily)


def _day(day: str, lines: list[DayUsage], kinds: Mapping[str, ModelKind]) -> wire.DayUnits:
    tokens, others = Usage(), {"transcription": 0, "image": 0}
    for line in lines:
        kind = kinds.get(line.model, "generation")
        if kind in others:
            others[kind] += line.usage.total_tokens
        else:
            tokens += line.usage
    return wire.DayUnits(
        date.fromisoformat(day),
        sum(line.requests for line in lines),
        tokens.prompt_tokens,
        tokens.cached_tokens,
        tokens.completion_tokens,
        tokens.total_tokens,
        others["transcription"],
        others["image"],
    )


def in_cents(lines: list[DayUsage]) -> wire.DashboardUsage:
    """Cost of each day and model."""
    by_day: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line in lines:
        by_day[line.day][line.model] += line.cost
    daily = [
        wire.DailyCost(
            datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp(),
            [wire.LineItem(model, cost / _MICROCREDITS_PER_CENT) for model, cost in sorted(by_model.items())],
        )
        for day, by_model in sorted(by_day.items())
    ]
    return wire.DashboardUsage(sum(line.cost for line in lines) / _MICROCREDITS_PER_CENT, daily)
