"""The laws of `ledger/base.py` by example, on the ledger in memory, and under any order of operations."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import Hold, Plan, Price, Receipt, Usage
from serving.errors import (
    Conflict,
    Forbidden,
    InsufficientCredit,
    PlanChanged,
    Unauthenticated,
)
from serving.ledger.base import Grant, Key, Posting
from tests.ledger.laws import LedgerLaws
from tests.ledger.shop import BOUGHT, EACH, OPEN, Shop
from tests.ledger.subjects import LEASE_S, Clock, Subject, in_memory


class MemoryLaws(LedgerLaws):
    compared = False

    async def subject(self, clock: Clock) -> Subject:
        return in_memory(clock)


TestLaws = MemoryLaws.TestCase
TestLaws.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def shop() -> Shop:
    return Shop()


# ---- hold, settle, release ----


async def test_a_settle_charges_what_was_used_and_returns_the_rest(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=100)
    hold = await shop.hold(ann)
    assert (hold.bound, hold.amount, hold.usage) == (20, 20, Usage(10, 0, 10))
    account = await shop.account()
    assert (account.free, account.held, account.running) == (80, 20, 1)
    assert await shop.books.settle(hold, Usage(10, 4, 5), "finish") == Receipt("r", Usage(10, 4, 5), 13)
    account = await shop.account()
    assert (account.free, account.held, account.running, account.used) == (87, 0, 0, 13)
    assert await shop.posted() == [("grant", 100, 0), ("charge", -13, 13)]


async def test_the_first_settle_decides(shop: Shop) -> None:
    hold = await shop.hold(await shop.open("ann", BOUGHT, credit=100))
    first = await shop.books.settle(hold, Usage(10, 0, 1), "finish")
    assert await shop.books.settle(hold, Usage(10, 0, 9), "error") == first
    await shop.books.release(hold)
    assert (await shop.account()).used == first.cost == 11


async def test_a_release_returns_all_and_posts_nothing(shop: Shop) -> None:
    hold = await shop.hold(await shop.open("ann", BOUGHT, credit=100))
    await shop.books.release(hold)
    assert await shop.books.settle(hold, Usage(10, 0, 9), "finish") == Receipt("r", Usage(), 0)
    account = await shop.account()
    assert (account.free, account.running) == (100, 0)
    assert await shop.posted() == [("grant", 100, 0)]


async def test_a_miscounting_engine_is_recorded_and_not_charged_beyond_the_hold(shop: Shop) -> None:
    hold = await shop.hold(await shop.open("ann", BOUGHT, credit=100))
    assert await shop.books.settle(hold, Usage(50, 0, 50), "finish") == Receipt("r", Usage(50, 0, 50), 20)


async def test_fewer_tokens_are_granted_when_credit_is_short(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=14)
    hold = await shop.hold(ann)
    assert (hold.usage, hold.bound) == (Usage(10, 0, 4), 14)
    with pytest.raises(InsufficientCredit, match="credit"):
        await shop.hold(ann, "another", prompt=0, completion=1)
    await shop.books.release(hold)
    with pytest.raises(InsufficientCredit):
        await shop.hold(ann, "longer", prompt=14)
    with pytest.raises(InsufficientCredit):
        await shop.hold(ann, "prompt alone", prompt=15, completion=0)


async def test_a_key_spends_no_more_than_its_cap_on_any_plan(shop: Shop) -> None:
    for name, plan in (("ann", BOUGHT), ("bob", OPEN)):
        caller = await shop.open(name, plan, credit=100, cap=15)
        assert (await shop.hold(caller)).usage == Usage(10, 0, 5)
        with pytest.raises(InsufficientCredit, match="cap"):
            await shop.hold(caller, "another", prompt=0, completion=1)


async def test_a_plan_that_is_not_metered_holds_nothing_and_is_recorded(shop: Shop) -> None:
    hold = await shop.hold(await shop.open("ann", OPEN), completion=10**9)
    assert (hold.amount, hold.bound) == (0, 10**9 + 10)
    await shop.books.settle(hold, Usage(10, 0, 7), "finish")
    assert await shop.posted() == [("charge", 0, 17)]
    assert (await shop.account()).used == 17


async def test_a_plan_has_its_own_prices(shop: Shop) -> None:
    hold = await shop.hold(await shop.open("ann", replace(OPEN, price_percent=250)))
    assert (hold.price, hold.bound) == (Price(2500, 1250, 2500), 50)


async def test_a_plan_that_changes_while_a_request_runs_strands_nothing(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=100)
    hold = await shop.hold(ann)
    await shop.books.change_account("ann", plan="open")
    with pytest.raises(PlanChanged):
        await shop.hold(ann, "another")
    unmetered = await shop.hold(replace(ann, plan=OPEN), "another")
    await shop.books.change_account("ann", plan="bought")
    await shop.books.settle(unmetered, Usage(10, 0, 10), "finish")
    await shop.books.settle(hold, Usage(10, 0, 5), "finish")
    account = await shop.account()
    assert (account.free, account.held, account.running, account.used) == (85, 0, 0, 35)


async def test_who_may_not_is_refused(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=100)
    await shop.books.add_key(Key("short", "ann", "", "", "other", expires_ms=shop.clock.now_ms + 1))
    await shop.hold(replace(ann, key_id="short"))
    shop.wait(0.001)
    for key_id in ("short", "nowhere"):
        with pytest.raises(Unauthenticated):
            await shop.hold(replace(ann, key_id=key_id), "r2")
    bob = await shop.open("bob", BOUGHT, credit=100)
    with pytest.raises(Unauthenticated):
        await shop.hold(replace(ann, key_id=bob.key_id), "r2")
    with pytest.raises(Forbidden):
        await shop.hold(replace(ann, account="nobody"), "r2")
    await shop.books.change_account("ann", state="suspended")
    with pytest.raises(Forbidden, match="suspended"):
        await shop.hold(ann, "r2")
    await shop.books.change_account("ann", state="active")
    revoked = await shop.books.revoke_key("ann", ann.key_id)
    shop.wait(5)
    assert await shop.books.revoke_key("ann", ann.key_id) == revoked
    with pytest.raises(Unauthenticated, match="revoked"):
        await shop.hold(ann, "r2")


async def test_a_request_id_belongs_to_its_account_and_stands_for_one_request(shop: Shop) -> None:
    ann, bob = await shop.open("ann", BOUGHT, credit=20), await shop.open("bob", BOUGHT, credit=20)
    hold = await shop.hold(ann)
    assert await shop.hold(ann) == hold
    assert (await shop.hold(bob)).account == "bob"
    with pytest.raises(Conflict):
        await shop.hold(ann, completion=9)
    await shop.books.settle(hold, Usage(10, 0, 10), "finish")
    assert await shop.hold(ann) == hold
    assert (await shop.account()).used == 20


async def test_what_ended_is_forgotten_after_a_while() -> None:
    shop = Shop(remember_s=100)
    ann = await shop.open("ann", BOUGHT, credit=100)
    hold = await shop.hold(ann)
    shop.wait(1000)
    await shop.books.settle(hold, Usage(10, 0, 0), "finish")
    shop.wait(99.999999)
    with pytest.raises(Conflict):
        await shop.hold(ann, completion=1)
    shop.wait(0.000001)
    assert (await shop.hold(ann, completion=1)).bound == 11


async def test_a_late_settle_is_remembered_from_then_on() -> None:
    shop = Shop(remember_s=100)
    ann = await shop.open("ann", BOUGHT, credit=100)
    late, _ = await shop.hold(ann, "late"), await shop.hold(ann, "never")
    shop.wait(LEASE_S)
    await shop.books.reap()
    shop.wait(50)
    await shop.books.settle(late, Usage(10, 0, 5), "finish")
    shop.wait(50)
    await shop.hold(ann, "never", completion=1)
    with pytest.raises(Conflict):
        await shop.hold(ann, "late", completion=1)
    shop.wait(50)
    await shop.hold(ann, "late", completion=1)


async def test_a_hold_that_was_lost_is_charged_once_as_far_as_the_credit_reaches(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=15)
    lost = Hold("lost", "ann", ann.key_id, "m", EACH, Usage(10, 0, 10), 20, 20)
    receipt = Receipt("lost", Usage(10, 0, 10), 15)
    for _ in range(2):
        assert await shop.books.settle(lost, Usage(10, 0, 10), "finish") == receipt
    assert await shop.posted() == [("grant", 15, 0), ("charge", -15, 15)]
    elsewhere = replace(lost, account="nobody")
    assert await shop.books.settle(elsewhere, Usage(10, 0, 10), "finish") == Receipt("lost", Usage(), 0)


async def test_a_hold_that_comes_after_its_release_is_refused(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=100)
    await shop.books.release(Hold("r", "ann", ann.key_id, "m", EACH, Usage(), 0, 0))
    with pytest.raises(Conflict):
        await shop.hold(ann)


# ---- leases ----


async def test_a_hold_lives_while_it_is_noted_and_is_reaped_at_what_was_noted(shop: Shop) -> None:
    hold = await shop.hold(await shop.open("ann", BOUGHT, credit=100))
    shop.wait(LEASE_S - 1)
    shop.books.note(hold, Usage(10, 0, 7))
    shop.books.note(hold, Usage(10, 0, 3))
    shop.wait(LEASE_S - 0.000001)
    assert await shop.books.reap() == 0
    shop.wait(0.000001)
    assert await shop.books.reap() == 1
    assert await shop.books.reap() == 0
    account = await shop.account()
    assert (account.free, account.held, account.running) == (83, 0, 0)
    assert [one.reason async for one in shop.books.postings("ann")] == ["", "reaped"]


@pytest.mark.parametrize(
    ("plan", "credit", "late", "correction", "receipt"),
    [
        (BOUGHT, 100, Usage(10, 0, 9), (-4, 4), 19),
        (BOUGHT, 100, Usage(10, 8, 1), (8, -8), 7),
        (BOUGHT, 22, Usage(10, 0, 9), (-2, 2), 17),
        (OPEN, 0, Usage(10, 0, 9), (0, 4), 19),
        (OPEN, 0, Usage(10, 0, 0), (0, -5), 10),
    ],
)
async def test_a_late_settle_posts_one_correction(
    shop: Shop, plan: Plan, credit: int, late: Usage, correction: tuple[int, int], receipt: int
) -> None:
    """More is charged as far as credit is still free: with 22 a debit leaves 2 of them."""
    ann = await shop.open("ann", plan, credit=credit)
    hold = await shop.hold(ann)
    shop.books.note(hold, Usage(10, 0, 5))
    shop.wait(LEASE_S)
    await shop.books.reap()
    if credit == 22:
        await shop.books.debit("ann", "d", 5)
    for usage in (late, Usage(10, 0, 10)):
        assert await shop.books.settle(hold, usage, "finish") == Receipt("r", late, receipt)
    await shop.books.release(hold)
    *_, charge, last = [one async for one in shop.books.postings("ann") if one.kind != "debit"]
    assert (last.kind, last.amount, last.cost) == ("correction", *correction)
    assert (charge.usage + last.usage, charge.cost + last.cost) == (late, receipt)
    assert (await shop.account()).used == receipt


async def test_a_correction_goes_back_to_what_was_charged_last(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=100)
    expires_ms = shop.clock.now_ms + 40_000
    await shop.books.grant("ann", Grant("first", 8, priority=1, expires_ms=expires_ms))
    hold = await shop.hold(ann)
    shop.wait(LEASE_S)
    await shop.books.reap()
    await shop.books.settle(hold, Usage(9, 0, 0), "finish")
    assert [(grant.id, grant.used) for grant in (await shop.account()).grants] == [("bought", 1)]
    late = await shop.hold(ann, "late")
    shop.wait(LEASE_S)
    await shop.books.reap()
    await shop.books.release(late)
    assert (await shop.account()).free == 99


async def test_a_release_after_a_reap_charges_nothing_and_what_returns_to_what_is_over_expires(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT)
    await shop.books.grant("ann", Grant("g", 50, expires_ms=shop.clock.now_ms + 31_000))
    hold = await shop.hold(ann)
    shop.wait(LEASE_S)
    await shop.books.reap()
    shop.wait(1)
    await shop.books.release(hold)
    posted = [("grant", 50, 0), ("charge", -10, 10), ("expire", -40, 0), ("correction", 10, -10), ("expire", -10, 0)]
    assert sorted(await shop.posted()) == sorted(posted)
    account = await shop.account()
    assert (account.free, account.used, account.grants) == (0, 0, ())


# ---- totals ----


def flat(posting: Posting) -> Posting:
    return replace(posting, id="", at_ms=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("ann", "bob")), st.integers(0, 8), st.integers(0, 8)), max_size=12))
async def test_independent_accounts_commute(steps: list[tuple[str, int, int]]) -> None:
    """Interleaved or one after the other: each account ends the same."""
    ends = []
    for order in (steps, sorted(steps, key=lambda step: step[0])):
        shop = Shop()
        callers = {name: await shop.open(name, BOUGHT, credit=40) for name in ("ann", "bob")}
        counts = Counter[str]()
        for name, prompt, completion in order:
            counts[name] += 1
            try:
                hold = await shop.hold(callers[name], str(counts[name]), prompt, completion)
            except InsufficientCredit:
                continue
            if completion % 3:
                await shop.books.settle(hold, hold.usage, "finish")
        postings = {name: [flat(one) async for one in shop.books.postings(name)] for name in callers}
        ends.append(({name: await shop.account(name) for name in callers}, postings))
    assert ends[0] == ends[1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.randoms(use_true_random=False))
async def test_the_order_of_settles_does_not_change_totals(used: list[int], chance: random.Random) -> None:
    shuffled = list(enumerate(used))
    chance.shuffle(shuffled)
    ends = []
    for order in (list(enumerate(used)), shuffled):
        shop = Shop()
        ann = await shop.open("ann", BOUGHT, credit=150)
        await shop.books.grant("ann", Grant("first", 33, priority=1))
        holds = [await shop.hold(ann, str(number)) for number in range(len(used))]
        for number, completion in order:
            await shop.books.settle(holds[number], Usage(10, 0, completion), "finish")
        account = await shop.account()
        days = await shop.books.usage("ann", "2026-01-30", "2026-01-31")
        ends.append((account.used, account.free, account.held, days))
    assert ends[0] == ends[1]


async def test_a_thousand_at_once_spend_what_there_is_and_no_more(shop: Shop) -> None:
    ann = await shop.open("ann", BOUGHT, credit=1000)

    async def ask(number: int) -> int:
        try:
            hold = await shop.hold(ann, str(number), 5, 15)
        except InsufficientCredit:
            return 0
        await asyncio.sleep(0)
        return (await shop.books.settle(hold, hold.usage, "finish")).cost

    charged = sum(await asyncio.gather(*(ask(number) for number in range(1000))))
    assert charged == (await shop.account()).used == 1000
