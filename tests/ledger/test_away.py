"""What begins while the store does not answer: requests that are not metered, so many at once, each in the books once
when it is back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.fault_proxy import FaultProxy
from loadtests.ledger_chaos import PLENTY
from loadtests.ledger_world import ACCOUNT, world
from serving import telemetry
from serving.core import Caller, Hold, Plan, Price, Receipt, Usage
from serving.errors import Overloaded
from serving.ledger.base import DayUsage
from serving.ledger.books import RedisBooks
from serving.ledger.outbox import Outbox
from serving.ledger.reconcile import reconcile
from serving.ledger.redis import RedisLedger
from serving.ledger.store import Store
from tests.ledger.servers import RedisServer
from tests.ledger.test_faults import MAX_TOKENS, served, streams
from tests.ledger.test_redis import KEY, PRICE, until
from tests.service import until as happens

OPEN = Caller("alice", KEY.id, Plan("open"))
ASKED = Usage(10, 0, 10)
MOST = 3


@asynccontextmanager
async def opened(server: RedisServer, folder: Path) -> AsyncIterator[tuple[RedisLedger, RedisBooks]]:
    """A ledger that may let in `MOST`, and the books with one account."""
    async with AsyncExitStack() as stack:
        store = await Store.open(server.url, timeout_s=0.3)
        stack.push_async_callback(store.aclose)
        ledger, books = RedisLedger(store, Outbox(folder / "outbox"), away_requests=MOST), RedisBooks(store)
        stack.push_async_callback(ledger.close)
        await books.open_account("alice", "open")
        await books.add_key(KEY)
        yield ledger, books


async def begin(ledger: RedisLedger, request_id: str, caller: Caller = OPEN) -> Hold:
    return await ledger.hold(caller, request_id, "m", PRICE, ASKED)


async def delivered(ledger: RedisLedger) -> None:
    """The store is back, and has all that was settled."""
    ledger.start()
    await happens(lambda: ledger.waiting == 0)


async def days(books: RedisBooks) -> list[DayUsage]:
    return await books.usage("alice", "2020-01-01", "2099-12-31")


async def test_it_is_in_the_books_once_when_the_store_is_back(redis_server: RedisServer, tmp_path: Path) -> None:
    async with opened(redis_server, tmp_path) as (ledger, books):
        redis_server.kill()
        hold = await begin(ledger, "r")
        assert (hold.recorded, hold.usage, hold.bound, hold.amount) == (False, ASKED, PRICE.cost(ASKED), 0)
        ledger.note(hold, Usage(10, 0, 4))
        used = Usage(10, 4, 7)
        assert await ledger.settle(hold, used, "finish") == Receipt("r", used, PRICE.cost(used))
        redis_server.start()
        await delivered(ledger)
        await ledger.settle(hold, used, "finish")
        (charge,) = [one async for one in books.postings("alice")]
        assert (charge.kind, charge.amount, charge.cost, charge.usage) == ("charge", 0, PRICE.cost(used), used)
        (day,) = await days(books)
        assert (day.requests, day.usage, day.cost) == (1, used, PRICE.cost(used))
        assert (await reconcile(books, "alice")).adds_up


async def test_one_of_which_nothing_was_used_leaves_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    async with opened(redis_server, tmp_path) as (ledger, books):
        redis_server.kill()
        await ledger.release(await begin(ledger, "r"))
        redis_server.start()
        await delivered(ledger)
        assert [one async for one in books.postings("alice")] == []
        account = await books.account("alice")
        assert account is not None
        assert (account.used, account.held, account.running) == (0, 0, 0)


async def test_a_hold_that_the_store_has_all_the_same_is_settled_as_any(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """It hung, and carried out later what it had been sent."""
    async with opened(redis_server, tmp_path) as (ledger, books):
        redis_server.pause()
        hold = await begin(ledger, "r")
        assert not hold.recorded
        redis_server.resume()
        ledger.start()
        await until(lambda: books.account("alice"))
        await ledger.settle(hold, ASKED, "finish")
        account = await books.account("alice")
        assert account is not None
        assert (account.used, account.held, account.running) == (PRICE.cost(ASKED), 0, 0)
        assert [one.kind async for one in books.postings("alice")] == ["charge"]
        assert [day.requests for day in await days(books)] == [1]


async def test_so_many_at_once_and_no_more(redis_server: RedisServer, tmp_path: Path) -> None:
    async with opened(redis_server, tmp_path) as (ledger, _):
        redis_server.kill()
        holds = [await begin(ledger, f"r{number}") for number in range(MOST)]
        with pytest.raises(Overloaded):
            await begin(ledger, "one too many")
        await ledger.settle(holds[0], ASKED, "finish")
        await ledger.release(holds[1])
        for number in range(2):
            await begin(ledger, f"again {number}")
        with pytest.raises(Overloaded):
            await begin(ledger, "one too many")
        redis_server.start()
        await delivered(ledger)


async def test_an_account_has_no_more_at_once_than_its_plan_allows(redis_server: RedisServer, tmp_path: Path) -> None:
    narrow = replace(OPEN, plan=Plan("open", max_concurrent=2))
    async with opened(redis_server, tmp_path) as (ledger, _):
        recorded = await begin(ledger, "before", narrow)
        redis_server.kill()
        await begin(ledger, "r", narrow)
        with pytest.raises(Overloaded):
            await begin(ledger, "third", narrow)
        assert not (await begin(ledger, "another's", replace(narrow, account="bob"))).recorded
        await ledger.settle(recorded, ASKED, "finish")
        redis_server.start()


async def test_a_hold_that_was_not_begun_is_given_back(redis_server: RedisServer, tmp_path: Path) -> None:
    """The store hangs, knows nothing of the other request of the account, and carries out the hold that nobody runs."""
    narrow = replace(OPEN, plan=Plan("open", max_concurrent=1))
    async with opened(redis_server, tmp_path) as (ledger, books):
        redis_server.kill()
        running = await begin(ledger, "runs", narrow)
        redis_server.start()
        await until(lambda: books.account("alice"))
        await ledger.release(await begin(ledger, "so that the store knows the script", narrow))
        redis_server.pause()
        with pytest.raises(Overloaded):
            await begin(ledger, "does not", narrow)
        redis_server.resume()
        await ledger.settle(running, ASKED, "finish")
        await delivered(ledger)
        account = await books.account("alice")
        assert account is not None
        assert (account.held, account.running) == (0, 0)
        assert [one.request_id async for one in books.postings("alice")] == ["runs"]


@pytest.mark.parametrize(
    "caller", [replace(OPEN, plan=Plan("metered", monthly_credits=10**9)), replace(OPEN, capped=True)]
)
async def test_what_is_metered_does_not_begin(redis_server: RedisServer, tmp_path: Path, caller: Caller) -> None:
    async with opened(redis_server, tmp_path) as (ledger, _):
        redis_server.kill()
        with pytest.raises(Overloaded):
            await begin(ledger, "r", caller)
        redis_server.start()


async def test_the_plans_percentage_applies(redis_server: RedisServer, tmp_path: Path) -> None:
    half = replace(OPEN, plan=Plan("open", price_percent=50))
    async with opened(redis_server, tmp_path) as (ledger, _):
        redis_server.kill()
        hold = await begin(ledger, "r", half)
        assert (hold.price, hold.bound) == (Price(20_000, 5_000, 20_000), PRICE.cost(ASKED) // 2)
        await ledger.release(hold)
        redis_server.start()


async def test_clients_notice_nothing_and_the_books_lack_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole service: the connection to its store is cut, and refused for a while, between and during requests."""
    monkeypatch.setenv("LEDGER_WORDS", "24")
    async with world(tmp_path) as stage:
        await stage.furnish(PLENTY)
        await stage.books.change_account(ACCOUNT, plan="open")
        async with FaultProxy(stage.redis.url) as proxy, served(stage, proxy.url, away_requests=8) as front:
            before = _unrecorded()

            async def requests(count: int) -> None:
                asked = (stage.generate(front, f"Request {number}", MAX_TOKENS) for number in range(count))
                answers = await asyncio.gather(*asked)
                assert {(answer.status, answer.whole) for answer in answers} == {(200, True)}

            for _ in range(2):  # what is read while a listener comes is not remembered
                await requests(4)
            answers = await streams(stage, front, 4)
            await proxy.refuse()
            await requests(8)
            assert _unrecorded() == before + 8
            await stage.books.change_account(ACCOUNT, plan="metered")  # elsewhere, and not heard of here
            await requests(8)
            assert all(answer.whole for answer in await answers)
            await proxy.accept()
            await front.delivered()
            told = await stage.audit()
            (day,) = await stage.books.usage(ACCOUNT, "2020-01-01", "2099-12-31")
    assert (told.held, told.running, told.drift, told.duplicates, told.unapplied, told.difference) == (0,) * 6
    assert (told.requests, day.requests, told.paid) == (28, 28, 0)
    assert told.spent > 0


def _unrecorded() -> float:
    (family,) = telemetry.UNRECORDED.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_total"))
