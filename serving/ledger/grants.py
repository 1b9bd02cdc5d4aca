"""What happens to grants, as pure functions: when they may be used, in which order, by how much.

The ledger in memory is made of these, and the Redis scripts are compared with it. Amounts are whole microcredits, times
Unix times in milliseconds. Nothing here knows a clock or keeps anything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from serving.core import Plan, Price, Usage
from serving.ledger.base import PLAN_PRIORITY, Grant, month_of


class Share(NamedTuple):
    """A part of an amount, and the grant it is taken from."""

    grant: str
    amount: int


def is_over(grant: Grant, now_ms: int) -> bool:
    return grant.expires_ms != 0 and grant.expires_ms <= now_ms


def usable(grant: Grant, now_ms: int) -> int:
    """What may be taken of a grant now."""
    return grant.free if grant.effective_ms <= now_ms and not is_over(grant, now_ms) else 0


def order_of_consumption(grant: Grant) -> tuple[int, bool, int, str]:
    """To sort by: priority, then what expires first, then the id."""
    return grant.priority, grant.expires_ms == 0, grant.expires_ms, grant.id


def allocate(grants: Iterable[Grant], amount: int, now_ms: int) -> tuple[Share, ...]:
    """`amount`, as far as the grants reach, taken from what is usable in the order of consumption."""
    shares = []
    for grant in sorted(grants, key=order_of_consumption):
        part = min(usable(grant, now_ms), amount)
        if part > 0:
            shares.append(Share(grant.id, part))
            amount -= part
    return tuple(shares)


def first_of(shares: Sequence[Share], amount: int) -> tuple[Share, ...]:
    """The first `amount` microcredits of the shares: of each as much as there still is to take, 0 too."""
    taken = []
    for share in shares:
        part = min(share.amount, amount)
        taken.append(Share(share.grant, part))
        amount -= part
    return tuple(taken)


def total(shares: Iterable[Share]) -> int:
    return sum(share.amount for share in shares)


def expired(grant: Grant, now_ms: int) -> Grant:
    """The grant without what is free of it, if it is over."""
    return replace(grant, expired=grant.expired + grant.free) if is_over(grant, now_ms) else grant


def month_grant(plan: Plan, now_ms: int) -> Grant | None:
    """What a metered plan gives for the calendar month (UTC) of a time."""
    if not plan.monthly_credits:
        return None
    month, start_ms, end_ms = month_of(now_ms)
    return Grant(f"plan:{month}:{plan.id}", plan.monthly_credits, "plan", PLAN_PRIORITY, start_ms, end_ms)


def affordable(price: Price, worst_case: Usage, left: int) -> Usage | None:
    """`worst_case` with as many completion tokens as `left` microcredits pay for: at least one, or None."""
    if price.cost(worst_case) <= left:
        return worst_case
    # The prompt is reserved uncached, so what is left pays for whole completion tokens.
    left_thousandths = left * 1000 - worst_case.prompt_tokens * price.input_per_1k
    tokens = left_thousandths // price.output_per_1k if price.output_per_1k and left_thousandths > 0 else 0
    if tokens < 1:
        return None
    return replace(worst_case, completion_tokens=min(tokens, worst_case.completion_tokens))
