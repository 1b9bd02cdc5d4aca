"""Grants are used in their order, as far as they reach; prices are rounded once; what is affordable is the most."""

from dataclasses import replace
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from serving.core import Plan, Price, Usage
from serving.ledger.base import Grant
from serving.ledger.grants import (
    Share,
    affordable,
    allocate,
    expired,
    first_of,
    is_over,
    month_grant,
    order_of_consumption,
    total,
    usable,
)
from tests.ledger.subjects import COUNTS, prices, usages

NOW_MS = 1_000
TIMES = st.sampled_from((0, 1, NOW_MS - 1, NOW_MS, NOW_MS + 1, 5_000))


@st.composite
def grants(draw: st.DrawFn, number: int = 0) -> Grant:
    parts = [draw(st.integers(0, 100)) for _ in range(4)]
    terms = draw(st.sampled_from((5, 10))), draw(TIMES), draw(TIMES)
    return Grant(f"g{number}", sum(parts), "gift", *terms, *parts[:3])


SEVERAL = st.integers(0, 5).flatmap(lambda count: st.tuples(*(grants(number) for number in range(count))))


def test_the_order_is_priority_then_expiry_then_id() -> None:
    ordered = (
        Grant("z", 1, priority=5),
        Grant("y", 1, priority=10, expires_ms=1),
        Grant("x", 1, priority=10, expires_ms=2),
        Grant("a", 1, priority=10),
        Grant("b", 1, priority=10),
    )
    for shuffled in permutations(ordered):
        assert tuple(sorted(shuffled, key=order_of_consumption)) == ordered


def test_a_grant_is_usable_from_its_first_moment_until_before_its_last() -> None:
    grant = Grant("g", 10, effective_ms=5, expires_ms=8, used=1, held=2, expired=3)
    assert [usable(grant, now_ms) for now_ms in (4, 5, 7, 8)] == [0, 4, 4, 0]
    assert [is_over(grant, now_ms) for now_ms in (7, 8)] == [False, True]
    assert not is_over(replace(grant, expires_ms=0), 10**15)


@given(SEVERAL, st.integers(0, 600))
def test_an_allocation_reaches_as_far_as_there_is_credit_and_skips_none(
    several: tuple[Grant, ...], amount: int
) -> None:
    shares = allocate(several, amount, NOW_MS)
    free = {grant.id: usable(grant, NOW_MS) for grant in several}
    assert total(shares) == min(amount, sum(free.values()))
    assert all(0 < share.amount <= free[share.grant] for share in shares)
    in_order = [grant.id for grant in sorted(several, key=order_of_consumption) if free[grant.id]]
    assert [share.grant for share in shares] == in_order[: len(shares)]
    assert all(share.amount == free[share.grant] for share in shares[:-1])


@given(st.lists(st.integers(0, 50)), st.integers(0, 300))
def test_the_first_shares_are_taken_first(amounts: list[int], amount: int) -> None:
    shares = [Share(str(number), part) for number, part in enumerate(amounts)]
    taken = first_of(shares, amount)
    assert total(taken) == min(amount, sum(amounts))
    assert [share.grant for share in taken] == [share.grant for share in shares]
    assert all(taken[at] == share or total(taken[at + 1 :]) == 0 for at, share in enumerate(shares))


@given(grants())
def test_what_is_free_expires_and_nothing_else(grant: Grant) -> None:
    after = expired(grant, NOW_MS)
    assert (after.used, after.held, after.amount) == (grant.used, grant.held, grant.amount)
    assert after.free == (0 if is_over(grant, NOW_MS) else grant.free)
    assert expired(after, NOW_MS) == after


def test_a_plan_gives_each_calendar_month_its_own_grant() -> None:
    plan = Plan("free", monthly_credits=7)
    december, january = month_grant(plan, 1_798_761_599_999), month_grant(plan, 1_798_761_600_000)
    assert december is not None
    assert january is not None
    assert (december.id, january.id) == ("plan:2026-12:free", "plan:2027-01:free")
    assert december.expires_ms == january.effective_ms == 1_798_761_600_000
    assert (december.amount, december.kind) == (7, "plan")
    assert month_grant(Plan("bought", monthly_credits=0), 0) is month_grant(Plan("open"), 0) is None


@given(price=prices(), prompt=COUNTS, completion=COUNTS, left=st.integers(0, 10_000))
def test_what_is_affordable_is_the_most_that_is(price: Price, prompt: int, completion: int, left: int) -> None:
    worst = Usage(prompt, 0, completion)
    granted = affordable(price, worst, left)
    if granted is None:
        assert price.cost(Usage(prompt, 0, min(1, completion))) > left
    else:
        assert price.cost(granted) <= left
        assert granted == worst or (granted.completion_tokens and price.cost(granted + Usage(0, 0, 1)) > left)


@given(price=prices(), usage=usages())
def test_a_cost_is_rounded_up_once(price: Price, usage: Usage) -> None:
    fresh = usage.prompt_tokens - usage.cached_tokens
    exact = (
        fresh * price.input_per_1k
        + usage.cached_tokens * price.cached_per_1k
        + usage.completion_tokens * price.output_per_1k
    )
    assert exact <= 1000 * price.cost(usage) < exact + 1000


@given(price=prices(), percent=st.integers(0, 300))
def test_a_plans_percentage_is_rounded_up(price: Price, percent: int) -> None:
    scaled = price.at(percent)
    for per_1k, before in (
        (scaled.input_per_1k, price.input_per_1k),
        (scaled.cached_per_1k, price.cached_per_1k),
        (scaled.output_per_1k, price.output_per_1k),
    ):
        assert before * percent <= 100 * per_1k < before * percent + 100
