"""Months, rates, grants, keys and accounts by example, on the ledger in memory."""

import asyncio
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import Plan, Usage
from serving.errors import Conflict, InsufficientCredit, InvalidRequest, NotFound, RateLimited
from serving.ledger.base import Grant, Key, account_tag
from tests.ledger.shop import BOUGHT, OPEN, SECOND_US, Shop

FREE = Plan("free", monthly_credits=1000)
DAY_MS, FEB_1_MS = 86_400_000, 1_769_904_000_000


@pytest.fixture
def shop() -> Shop:
    return Shop()


# ---- months and days ----


async def test_each_month_has_one_grant_whoever_comes_first(shop: Shop) -> None:
    """A hundred at once before and at the moment that the month begins."""
    ann = await shop.open("ann", FREE)
    for month, now_ms in (("2026-01", FEB_1_MS - 1), ("2026-02", FEB_1_MS)):
        shop.clock.now_us = now_ms * 1000
        await asyncio.gather(*(shop.hold(ann, f"{month} {number}", 1, 1) for number in range(100)))
        account = await shop.account()
        assert (account.free, account.grants[-1].id) == (800, f"plan:{month}:free")
    postings = [one async for one in shop.books.postings("ann")]
    assert [(one.kind, one.grant, one.amount) for one in postings] == [
        ("grant", "plan:2026-01:free", 1000),
        ("expire", "plan:2026-01:free", -800),
        ("grant", "plan:2026-02:free", 1000),
    ]


async def test_a_hold_over_the_end_of_a_month_is_charged_to_the_month_it_began_in(shop: Shop) -> None:
    shop.clock.now_us = FEB_1_MS * 1000 - 1
    hold = await shop.hold(await shop.open("ann", FREE), prompt=10, completion=90)
    shop.wait(0.000001)
    account = await shop.books.account("ann", FREE)
    assert account is not None
    assert (account.free, account.held) == (1000, 100)
    await shop.books.settle(hold, Usage(10, 0, 20), "finish")
    assert (await shop.account()).free == 1000
    postings = [(one.kind, one.amount) async for one in shop.books.postings("ann")]
    assert postings == [("grant", 1000), ("expire", -900), ("grant", 1000), ("expire", -70), ("charge", -30)]
    assert [line.day for line in await shop.books.usage("ann", "2026-01-01", "2027-01-01")] == ["2026-02-01"]


async def test_a_plan_gives_its_month_once_however_often_plans_change(shop: Shop) -> None:
    await shop.open("ann", FREE)
    paid = Plan("paid", monthly_credits=5000)
    for plan in (FREE, paid, FREE, paid):
        await shop.books.change_account("ann", plan=plan.id)
        for own_or_not in (FREE, paid):
            await shop.books.account("ann", own_or_not)
    assert [grant.id for grant in (await shop.account()).grants] == ["plan:2026-01:free", "plan:2026-01:paid"]
    assert (await shop.account()).free == 6000
    assert await shop.books.void("ann", "plan:2026-01:paid") == 5000
    assert await shop.books.account("ann", paid) == await shop.account()


async def test_two_half_periods_are_one_period(shop: Shop) -> None:
    ann = await shop.open("ann", OPEN)
    for number in range(12):
        hold = await shop.hold(ann, str(number), completion=number)
        await shop.books.settle(hold, hold.usage, "finish")
        shop.wait(20_000)
    days = ("2026-01-30", "2026-02-01", "2026-03-01")
    halves = [await shop.books.usage("ann", *days[at : at + 2]) for at in (0, 1)]
    whole = await shop.books.usage("ann", days[0], days[2])
    assert all(halves)
    assert halves[0] + halves[1] == whole
    assert sum(line.cost for line in whole) == (await shop.account()).used == 12 * 10 + sum(range(12))
    assert [line.day for line in whole] == ["2026-01-30", "2026-01-31", "2026-02-01", "2026-02-02"]
    assert await shop.books.usage("ann", "2026-02-01", "2026-02-01") == []


# ---- rates ----


async def test_requests_of_a_minute_may_come_at_once_and_then_one_by_one(shop: Shop) -> None:
    ann = await shop.open("ann", replace(OPEN, requests_per_minute=4))
    rates = [(await shop.hold(ann, str(number))).requests for number in range(4)]
    assert [rate.remaining for rate in rates if rate] == [3, 2, 1, 0]
    for number in range(4, 7):
        with pytest.raises(RateLimited) as refused:
            await shop.hold(ann, str(number))
        assert refused.value.retry_after_s == 15
        assert refused.value.requests is not None
        assert (refused.value.requests.remaining, refused.value.requests.reset_s) == (0, 60)
        shop.wait(14.999999)
        with pytest.raises(RateLimited):
            await shop.hold(ann, str(number))
        shop.wait(0.000001)
        await shop.hold(ann, str(number))


async def test_tokens_of_a_minute_may_be_overdrawn_once(shop: Shop) -> None:
    ann = await shop.open("ann", replace(OPEN, tokens_per_minute=600))
    hold = await shop.hold(ann, "1", prompt=500)
    assert hold.tokens is not None
    assert hold.tokens.remaining == 100
    await shop.books.settle(hold, Usage(500, 0, 400), "finish")
    with pytest.raises(RateLimited) as refused:
        await shop.hold(ann, "2", prompt=1)
    assert refused.value.retry_after_s == 30.000001
    assert refused.value.tokens is not None
    assert (refused.value.tokens.remaining, refused.value.tokens.reset_s) == (0, 90)
    shop.wait(30)
    with pytest.raises(RateLimited):
        await shop.hold(ann, "2", prompt=1)
    shop.wait(0.000001)
    await shop.hold(ann, "2", prompt=6000)
    with pytest.raises(RateLimited):
        await shop.hold(ann, "3", prompt=1)


async def test_what_is_refused_costs_nothing(shop: Shop) -> None:
    plan = replace(BOUGHT, requests_per_minute=2, tokens_per_minute=1000, max_concurrent=1)
    ann = await shop.open("ann", plan, credit=100)
    for number in range(5):
        with pytest.raises(InsufficientCredit):
            await shop.hold(ann, f"dear {number}", prompt=200)
    hold = await shop.hold(ann)
    for number in range(5):
        with pytest.raises(RateLimited) as refused:
            await shop.hold(ann, f"busy {number}")
        assert refused.value.retry_after_s == 1
    await shop.books.release(hold)
    second = await shop.hold(ann, "second")
    assert second.requests is not None
    assert second.tokens is not None
    assert (second.requests.remaining, second.tokens.remaining) == (0, 980)


@settings(deadline=None)
@given(st.integers(1, 7), st.lists(st.sampled_from((0, 1, 5 * SECOND_US, 61 * SECOND_US)), max_size=60))
async def test_no_minute_has_more_than_a_full_rate_and_what_wore_off(limit: int, waits_us: list[int]) -> None:
    """And who waits as long as was told is let in."""
    shop = Shop()
    ann = await shop.open("ann", replace(OPEN, requests_per_minute=limit))
    times: deque[int] = deque()
    for number, wait_us in enumerate(waits_us):
        shop.clock.now_us += wait_us
        try:
            await shop.hold(ann, str(number))
        except RateLimited as refused:
            shop.wait(refused.retry_after_s or 0)
            await shop.hold(ann, str(number))
        times.append(shop.clock.now_us)
        while times[0] <= shop.clock.now_us - 60 * SECOND_US:
            times.popleft()
        assert len(times) <= 2 * limit


# ---- grants ----


async def test_credit_is_consumed_in_order_and_returned_to_where_it_came_from(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT)
    soon_ms = shop.clock.now_ms + 1000
    for grant in (
        Grant("c", 5),
        Grant("b", 5, expires_ms=soon_ms + DAY_MS),
        Grant("a", 5, expires_ms=soon_ms),
        Grant("later", 5, priority=1, effective_ms=soon_ms),
    ):
        await shop.books.grant("ann", grant)
    hold = await shop.hold(ann, prompt=12, completion=0)
    taken = {grant.id: grant.held for grant in (await shop.account()).grants}
    assert taken == {"a": 5, "b": 5, "c": 2, "later": 0}
    assert (await shop.account()).free == 3
    shop.wait(1)
    await shop.books.settle(hold, Usage(7, 0, 0), "finish")
    assert [(grant.id, grant.used, grant.free) for grant in (await shop.account()).grants] == [
        ("later", 0, 5),
        ("b", 2, 3),
        ("c", 0, 5),
    ]


async def test_what_is_free_and_what_returns_later_expire_each_by_itself(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT)
    await shop.books.grant("ann", Grant("g", 50, expires_ms=shop.clock.now_ms + 1000))
    hold = await shop.hold(ann)
    shop.wait(1)
    await shop.books.settle(hold, Usage(10, 0, 0), "finish")
    assert await shop.posted() == [("grant", 50, 0), ("expire", -30, 0), ("expire", -10, 0), ("charge", -10, 10)]


async def test_a_grant_is_given_once(shop: Shop) -> None:
    await shop.open("ann", BOUGHT)
    given = await shop.books.grant("ann", Grant("g", 50))
    assert await shop.books.grant("ann", Grant("g", 50, used=7)) == given == Grant("g", 50)
    assert await shop.books.debit("ann", "d", 20) == 30
    assert await shop.books.grant("ann", Grant("g", 50)) == Grant("g", 50, used=20)
    for other in (Grant("g", 51), Grant("g", 50, kind="gift"), Grant("g", 50, expires_ms=shop.clock.now_ms)):
        with pytest.raises(Conflict):
            await shop.books.grant("ann", other)
    await shop.books.void("ann", "g")
    assert (await shop.books.grant("ann", Grant("g", 50))).expired == 30
    await shop.books.account("ann", FREE)
    over = await shop.books.grant("ann", Grant("over", 5, expires_ms=shop.clock.now_ms))
    assert over.expired == 5
    assert (await shop.account()).free == 0


async def test_a_voided_grant_gives_no_more_and_what_returns_to_it_is_gone(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=50)
    hold = await shop.hold(ann)
    assert [await shop.books.void("ann", "bought") for _ in range(2)] == [30, 30]
    await shop.books.settle(hold, Usage(10, 0, 3), "finish")
    assert await shop.books.void("ann", "bought") == 30
    assert (await shop.account()).free == 0
    assert await shop.posted() == [("grant", 50, 0), ("void", -30, 0), ("expire", -7, 0), ("charge", -13, 13)]
    await shop.books.grant("ann", Grant("short", 5, expires_ms=shop.clock.now_ms + 1))
    shop.wait(1)
    assert await shop.books.void("ann", "short") == 0


async def test_a_debit_takes_all_or_nothing_once(shop: Shop) -> None:
    await shop.open("ann", BOUGHT, credit=50)
    assert [await shop.books.debit("ann", "d", 20) for _ in range(2)] == [30, 30]
    with pytest.raises(Conflict):
        await shop.books.debit("ann", "d", 21)
    with pytest.raises(InsufficientCredit):
        await shop.books.debit("ann", "e", 31)
    assert await shop.books.debit("ann", "e", 30) == 0
    account = await shop.account()
    assert (account.free, account.used, account.grants) == (0, 0, ())


async def test_amounts_are_greater_than_0(shop: Shop) -> None:
    await shop.open("ann", BOUGHT, credit=50)
    for amount in (0, -5):
        with pytest.raises(InvalidRequest):
            await shop.books.grant("ann", Grant("g", amount))
        with pytest.raises(InvalidRequest):
            await shop.books.debit("ann", "d", amount)


# ---- accounts and keys ----


async def test_an_account_is_opened_once(shop: Shop) -> None:
    opened = await shop.books.open_account("ann", "free")
    shop.wait(5)
    assert await shop.books.open_account("ann", "free") == opened
    with pytest.raises(Conflict):
        await shop.books.open_account("ann", "paid")
    await shop.books.open_account("a", "free")
    assert await shop.books.accounts() == ["a", "ann"]
    changed = await shop.books.change_account("ann", plan="paid", state="suspended")
    assert changed == replace(opened, plan="paid", state="suspended")


async def test_what_is_not_there_is_said_to_be_not_there(shop: Shop) -> None:
    books = shop.books
    for work in (
        books.change_account("nobody", plan="free"),
        books.grant("nobody", Grant("g", 1)),
        books.void("nobody", "g"),
        books.debit("nobody", "d", 1),
        books.add_key(Key("k", "nobody", "", "", "")),
        books.revoke_key("nobody", "k"),
    ):
        with pytest.raises(NotFound):
            await work
    await shop.open("ann", BOUGHT)
    await shop.open("bob", BOUGHT)
    for work in (books.void("ann", "g"), books.revoke_key("ann", "key_bob")):
        with pytest.raises(NotFound):
            await work
    assert await books.account("nobody") is None
    assert await books.keys("nobody") == []
    assert await books.usage("nobody", "2026-01-01", "2027-01-01") == []
    assert [one async for one in books.postings("nobody")] == []
    assert await books.find_key("00", "no digest") is None


async def test_a_key_is_found_by_its_digest_and_listed_with_its_use(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=100)
    shop.wait(1)
    key = Key("a later one", "ann", "phone", "sk-", "another", models=("m",), cap=50, expires_ms=FEB_1_MS)
    await shop.books.add_key(replace(key, used=7, last_used_ms=7))
    for other in (replace(key, digest="new"), replace(key, id="new")):
        with pytest.raises(Conflict):
            await shop.books.add_key(other)
    added_ms = shop.clock.now_ms
    shop.wait(1)
    hold = await shop.hold(replace(ann, key_id=key.id))
    assert (await shop.books.keys("ann"))[1] == replace(
        key, created_ms=added_ms, held=20, last_used_ms=shop.clock.now_ms
    )
    shop.wait(1)
    await shop.books.settle(hold, Usage(10, 0, 1), "finish")
    first, second = await shop.books.keys("ann")
    assert (first.id, first.last_used_ms) == ("key_ann", 0)
    assert second == replace(key, created_ms=added_ms, used=11, last_used_ms=shop.clock.now_ms)
    found = await shop.books.find_key(account_tag("ann"), "another")
    assert found == (second, replace(await shop.account(), grants=(), free=0))
