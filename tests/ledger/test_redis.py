"""The ledger on real Redis servers: the laws, step by step beside the ledger in memory, and what crashes leave."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from serving.core import Caller, Hold, Plan, Price, Usage
from serving.errors import Conflict, InsufficientCredit, Overloaded, RateLimited
from serving.ledger.base import Account, Grant, Key
from serving.ledger.books import RedisBooks
from serving.ledger.outbox import Outbox
from serving.ledger.reconcile import reconcile
from serving.ledger.redis import RedisLedger, tag_of
from serving.ledger.store import NeverSent, Store
from tests.ledger.laws import LedgerLaws
from tests.ledger.servers import DEADLINE_S, VERSIONS, RedisServer, binary, cluster_url, running, running_cluster
from tests.ledger.subjects import LEASE_S, Clock, Subject

T = TypeVar("T")
FREE = Plan("free", monthly_credits=1_000_000)
PRICE = Price(40_000, 10_000, 40_000)
KEY = Key("key_1", "alice", "test", "sk-...", "digest")
CALLER = Caller("alice", "key_1", FREE)


@pytest.fixture(scope="module", params=[*VERSIONS, *(f"cluster of {version}" for version in VERSIONS)])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    folder = tmp_path_factory.mktemp("redis")
    of, _, version = request.param.rpartition(" ")
    if of:
        with running_cluster(binary(version), folder) as nodes:
            yield nodes
    else:
        with running(binary(version), folder) as server:
            yield [server]


def url_of(servers: list[RedisServer]) -> str:
    return servers[0].url if len(servers) == 1 else cluster_url(servers)


def empty(servers: list[RedisServer]) -> None:
    for server in servers:
        server.command("FLUSHALL")


def test_the_laws_hold_and_all_answers_are_those_of_the_ledger_in_memory(
    servers: list[RedisServer], tmp_path: Path
) -> None:
    # What an example leaves in its outbox is not for the next one, whose accounts have the same names.
    folders = (tmp_path / str(number) for number in itertools.count())

    class RedisLaws(LedgerLaws):
        async def subject(self, clock: Clock) -> Subject:
            empty(servers)
            store = await Store.open(url_of(servers))
            ledger = RedisLedger(store, Outbox(next(folders)), lease_s=LEASE_S, clock=clock)

            async def note(hold: Hold, usage: Usage) -> None:
                ledger.note(hold, usage)
                await ledger.extend([hold])

            async def close() -> None:
                await ledger.close()
                await store.aclose()

            return Subject(ledger, RedisBooks(store, clock=clock), note, ledger.reap, close)

    run_state_machine_as_test(
        RedisLaws, settings=settings(max_examples=15, stateful_step_count=40, deadline=None, database=None)
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of one test alone, which may kill it."""
    with running(binary("6.2"), tmp_path / "redis") as started:
        yield started


@asynccontextmanager
async def opened(
    server: RedisServer, folder: Path, *, lease_s: float = LEASE_S, timeout_s: float = 2.0
) -> AsyncIterator[tuple[RedisLedger, RedisBooks]]:
    """One process's ledger, and the books, on a server with one account."""
    async with AsyncExitStack() as stack:
        store = await Store.open(server.url, timeout_s=timeout_s)
        stack.push_async_callback(store.aclose)
        ledger = RedisLedger(store, Outbox(folder), lease_s=lease_s)
        stack.push_async_callback(ledger.close)
        yield ledger, RedisBooks(store)


async def furnish(books: RedisBooks, credit: int = 1_000_000) -> None:
    """An account on a plan whose monthly grant is 0 here, a grant and a key."""
    await books.open_account("alice", "free")
    await books.grant("alice", Grant("g", credit))
    await books.add_key(KEY)


GRANTED = replace(CALLER, plan=replace(FREE, monthly_credits=0))


async def test_a_thousand_at_once_spend_what_there_is_and_no_more(server: RedisServer, tmp_path: Path) -> None:
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)

        async def request(number: int) -> int:
            try:
                hold = await ledger.hold(GRANTED, f"r{number}", "m", PRICE, Usage(50, 0, 50))
            except InsufficientCredit:
                return 0
            return (await ledger.settle(hold, Usage(50, 0, hold.usage.completion_tokens), "finish")).cost

        costs = await asyncio.gather(*(request(number) for number in range(1000)))
        account = await books.account("alice")
        assert account is not None
        assert sum(costs) == account.used == 1_000_000
        assert (account.held, account.running, account.free) == (0, 0, 0)
        assert (await reconcile(books, "alice")).adds_up


async def test_a_hundred_first_requests_of_a_month_make_one_grant(server: RedisServer, tmp_path: Path) -> None:
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await books.open_account("alice", "free")
        await books.add_key(KEY)
        await asyncio.gather(*(ledger.hold(CALLER, f"r{n}", "m", PRICE, Usage(1, 0, 1)) for n in range(100)))
        postings = [posting async for posting in books.postings("alice")]
        assert [posting.kind for posting in postings] == ["grant"]


async def test_a_killed_process_is_settled_by_another_and_its_late_settle_corrects(
    server: RedisServer, tmp_path: Path
) -> None:
    """The first ledger goes on not extending, as a process that is stopped does; then it wakes up."""
    async with (
        opened(server, tmp_path / "one", lease_s=0.2) as (stopped, books),
        opened(server, tmp_path / "two") as (other, _),
    ):
        await furnish(books)
        hold = await stopped.hold(GRANTED, "r", "m", PRICE, Usage(100, 0, 100))
        stopped.note(hold, Usage(100, 0, 40))
        await stopped.extend()
        await until(other.reap)
        account = await books.account("alice")
        assert account is not None
        assert (account.used, account.held, account.running) == (5_600, 0, 0)
        receipt = await stopped.settle(hold, Usage(100, 20, 90), "finish")
        assert receipt.cost == PRICE.cost(Usage(100, 20, 90))
        kinds = [(posting.kind, posting.amount, posting.cost) async for posting in books.postings("alice")]
        assert kinds[1:] == [("charge", -5_600, 5_600), ("correction", -1_400, 1_400)]
        assert (await reconcile(books, "alice")).adds_up


async def test_settles_wait_in_the_outbox_while_the_store_is_away(server: RedisServer, tmp_path: Path) -> None:
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        holds = [await ledger.hold(GRANTED, f"r{n}", "m", PRICE, Usage(10, 0, 10)) for n in range(20)]
        server.kill()
        receipts = await asyncio.gather(*(ledger.settle(hold, Usage(10, 0, 5), "finish") for hold in holds))
        assert {receipt.cost for receipt in receipts} == {600}
        with pytest.raises(Overloaded):
            await ledger.hold(GRANTED, "another", "m", PRICE, Usage(1, 0, 1))
        server.start()
        ledger.start()
        account = await settled(books)
        assert (account.used, account.held, account.running) == (20 * 600, 0, 0)
        assert (await reconcile(books, "alice")).adds_up


async def test_what_a_dead_process_could_not_send_is_sent_by_the_next_one(server: RedisServer, tmp_path: Path) -> None:
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        hold = await ledger.hold(GRANTED, "r", "m", PRICE, Usage(10, 0, 10))
        server.pause()
        assert (await ledger.settle(hold, Usage(10, 0, 7), "disconnect")).cost == 680
        await ledger.close(timeout_s=0)
    server.resume()
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        ledger.start()
        account = await settled(books)
        assert (account.used, account.held, account.running) == (680, 0, 0)
        assert (await reconcile(books, "alice")).adds_up


async def test_a_store_that_lost_its_last_seconds_hears_of_them_again(server: RedisServer, tmp_path: Path) -> None:
    """As after a failover to a replica that lagged: what it never heard of is charged, and nothing twice."""
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        kept = await ledger.hold(GRANTED, "kept", "m", PRICE, Usage(10, 0, 10))
        await ledger.settle(kept, Usage(10, 0, 10), "finish")
        server.stop()
        replica = {path: path.read_bytes() for path in server.folder.rglob("*.aof*") if path.is_file()}
        server.start()
        await until(lambda: books.account("alice"))
        lost = await ledger.hold(GRANTED, "lost", "m", PRICE, Usage(10, 0, 10))
        await ledger.settle(lost, Usage(10, 0, 10), "finish")
        half = await ledger.hold(GRANTED, "half", "m", PRICE, Usage(10, 0, 10))
        server.stop()
        for path, content in replica.items():
            path.write_bytes(content)
        server.start()
        ledger.start()
        await account_once(books, lambda account: account.used == 1_600)
        await ledger.settle(half, Usage(10, 0, 10), "finish")
        account = await settled(books)
        assert (account.used, account.held, account.free) == (2_400, 0, 1_000_000 - 2_400)
        assert (await reconcile(books, "alice")).adds_up


async def test_a_hold_whose_answer_was_lost_is_given_back(server: RedisServer, tmp_path: Path) -> None:
    async with opened(server, tmp_path / "outbox", timeout_s=0.3) as (ledger, books):
        await furnish(books)
        server.pause()
        with pytest.raises(Overloaded):
            await ledger.hold(GRANTED, "r", "m", PRICE, Usage(10, 0, 10))
        server.resume()
        ledger.start()
        account = await settled(books)
        assert (account.used, account.held, account.running) == (0, 0, 0)


async def test_what_was_never_sent_leaves_nothing_to_release(server: RedisServer, tmp_path: Path) -> None:
    """However many ask while the store is away, the outbox stays as small as it is."""
    outbox = tmp_path / "outbox"
    async with opened(server, outbox) as (ledger, books):
        await furnish(books)
        server.kill()
        with pytest.raises(Overloaded):
            await ledger.hold(GRANTED, "first", "m", PRICE, Usage(10, 0, 10))
        for number in range(50):
            with pytest.raises(NeverSent):
                await ledger.hold(GRANTED, f"r{number}", "m", PRICE, Usage(10, 0, 10))
        await ledger.close(timeout_s=0)
    (file,) = outbox.glob("*.jsonl")  # as quick as can be
    assert {json.loads(line)[-1] for line in file.read_text().splitlines()} <= {"first"}


async def test_an_entry_that_cannot_be_carried_out_keeps_no_other_back(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox/old.jsonl").write_text(  # as quick as can be
        "".join(json.dumps([n, now, "settle", tag_of("alice"), "alice", f"bad{n}"]) + "\n" for n in range(300))
    )
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        hold = await ledger.hold(GRANTED, "r", "m", PRICE, Usage(10, 0, 10))
        server.pause()
        await ledger.settle(hold, Usage(10, 0, 10), "finish")
        server.resume()
        ledger.start()
        assert (await settled(books)).used == 800
        await ledger.close(timeout_s=0)
    assert "request bad7 cannot be settled" in caplog.text


async def test_a_hold_that_comes_after_its_release_is_refused(server: RedisServer, tmp_path: Path) -> None:
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        await ledger.release(Hold("r", "alice", "key_1", "m", PRICE, Usage(), 0, 0))
        with pytest.raises(Conflict):
            await ledger.hold(GRANTED, "r", "m", PRICE, Usage(10, 0, 10))


async def test_a_cancelled_hold_is_given_back(server: RedisServer, tmp_path: Path) -> None:
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        task = asyncio.create_task(ledger.hold(GRANTED, "r", "m", PRICE, Usage(10, 0, 10)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ledger.start()
        account = await settled(books)
        assert (account.used, account.held, account.running) == (0, 0, 0)


async def test_a_refusal_tells_how_the_rates_stand(server: RedisServer, tmp_path: Path) -> None:
    limited = replace(GRANTED, plan=replace(GRANTED.plan, requests_per_minute=2, tokens_per_minute=60))
    async with opened(server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        hold = await ledger.hold(limited, "r1", "m", PRICE, Usage(10, 0, 10))
        assert hold.requests is not None
        assert hold.tokens is not None
        assert (hold.requests.remaining, hold.tokens.remaining) == (1, 50)
        await ledger.hold(limited, "r2", "m", PRICE, Usage(10, 0, 10))
        with pytest.raises(RateLimited) as refused:
            await ledger.hold(limited, "r3", "m", PRICE, Usage(10, 0, 10))
        assert refused.value.retry_after_s is not None
        assert 25 < refused.value.retry_after_s <= 30
        assert refused.value.requests is not None
        assert refused.value.requests.remaining == 0


def test_every_account_has_one_of_256_slots() -> None:
    tags = {tag_of(f"account-{number}") for number in range(10_000)}
    assert len(tags) == 256
    assert {"{s00}", "{sff}"} <= tags


async def until(ask: Callable[[], Awaitable[T | None]]) -> T:
    """What is answered in the end by a store that may be away at first."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(Overloaded):
                if found := await ask():
                    return found
            await asyncio.sleep(0.02)


async def account_once(books: RedisBooks, holds: Callable[[Account], bool]) -> Account:
    async def ask() -> Account | None:
        found = await books.account("alice")
        return found if found and holds(found) else None

    return await until(ask)


async def settled(books: RedisBooks) -> Account:
    """The account, when nothing is held of it any more."""
    return await account_once(books, lambda account: not account.held and not account.running)
