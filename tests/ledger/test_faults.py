"""What may happen to the store and the accounts while requests run, and what the books show when it is over.

Clients ask, and some leave, until the credit is spent; meanwhile something breaks. Then all of the credit must be spent
and no more, nothing held, everything billed that the engine emitted, and nothing twice. What other tests show is not
repeated here: a Redis that is late or killed, killed processes (`loadtests/ledger_chaos.py`, `test_chaos.py`,
`test_kill_points.py`), engines that fail (`test_engine_faults.py`), revoked keys (`tests/test_shared_books.py`), and
clients that leave (`tests/dialects/test_connections.py`).
"""

import asyncio
import itertools
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from loadtests.fault_proxy import FaultProxy
from loadtests.ledger_app import Tallied, Tally, words
from loadtests.ledger_chaos import PLENTY
from loadtests.ledger_world import ACCOUNT, PEPPER, PLANS, Answer, Front, Redis, World, world
from serving.app import Service, build
from serving.core import Hold, PreparedRequest, Price, Usage
from serving.engine.base import Engine
from serving.engine.scripted import ScriptedEngine
from serving.errors import InsufficientCredit
from serving.ledger.base import Account
from serving.ledger.books import RedisBooks
from serving.ledger.outbox import Outbox
from serving.ledger.reconcile import reconcile
from serving.ledger.redis import RedisLedger
from serving.ledger.store import Store
from tests.ledger.servers import VERSIONS, RedisServer, binary, running, running_sentinel
from tests.ledger.subjects import START_US, Clock
from tests.ledger.test_redis import CALLER, FREE, GRANTED, KEY, furnish, opened
from tests.service import DEADLINE_S, PRICE, listening, settings, until

MAX_TOKENS = 16
CAP = 300 * PRICE.cost(Usage(5, 0, MAX_TOKENS))
"""For 300 requests and more: many end before their limit."""
CLIENTS = 8
HANG_S = 5.0
MONTH_END_US = 1_769_904_000_000_000
"""2026-02-01T00:00:00Z."""


async def pace(request: PreparedRequest, number: int) -> None:
    await asyncio.sleep(0.002)


@dataclass
class Served(Front):
    """A service in this process."""

    service: Service

    async def delivered(self) -> None:
        """Returns when the store has all that was settled."""
        await until(lambda: self.service.backing.settles_waiting == 0)


class Traffic:
    """Clients that ask until the credit is spent. `statuses`: what they were answered; 0, since they left."""

    def __init__(self, stage: World, front: Front) -> None:
        self._stage = stage
        self._front = front
        self._numbers = itertools.count()
        self.statuses: list[int] = []

    async def client(self) -> None:
        while (status := await self.ask()) != 402:
            if status == 503:
                await asyncio.sleep(0.02)

    async def ask(self) -> int:
        number = next(self._numbers)
        leaves = number // CLIENTS % 3 if number % 4 == 0 else None
        answer = await self._stage.generate(self._front, f"Request {number}", MAX_TOKENS, leave_after=leaves)
        self.statuses.append(answer.status if leaves is None else 0)
        return self.statuses[-1]

    async def see(self, status: int, times: int = 1) -> None:
        """Until so many more were answered so."""
        before = self.statuses.count(status)
        await until(lambda: self.statuses.count(status) >= before + times, seconds=60)


@asynccontextmanager
async def served(
    stage: World, url: str, engine: Engine | None = None, *, away_requests: int = 0
) -> AsyncIterator[Served]:
    """The service in this process, on a store at `url`."""
    folder = stage.folder / "app"
    folder.mkdir()
    tally = Tally(folder / "tally")

    async def load() -> Engine:
        return Tallied(engine or ScriptedEngine(words, gate=pace, vocab_size=3000), tally)

    places = {"plans": stage.folder / "plans.toml", "demo_plan": "metered", "demo_account": False, "api_key": None}
    times = {"lease_s": 2.0, "extend_s": 0.2}
    configured = settings(folder, redis_url=url, key_pepper=PEPPER, away_requests=away_requests, **places, **times)
    service = build(configured, {model.id: load for model in configured.models})
    async with service.app.router.lifespan_context(service.app), listening(service) as (_, port):
        async with asyncio.timeout(DEADLINE_S):
            await service.engines.wait_loaded()
            await service.backing.wait_open()
        front = Served(port, folder, folder / "tally", service)
        stage.fronts.append(front)
        yield front


# ---- the store -------------------------------------------------------------------------------------------------------

Fault = Callable[[World, FaultProxy, Traffic], Awaitable[None]]


async def scripts_are_forgotten(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    for _ in range(5):
        await stage.store.command("SCRIPT", "FLUSH")
        await traffic.see(200, 5)
    assert 503 not in traffic.statuses


async def everything_takes_200_ms(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    proxy.delay_ms = 200.0
    await traffic.see(200, 2 * CLIENTS)
    proxy.delay_ms = 0.0
    assert 503 not in traffic.statuses


async def the_store_hangs(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    proxy.hang()
    await asyncio.gather(traffic.see(503, CLIENTS), asyncio.sleep(HANG_S))
    proxy.resume()


async def no_connection_is_to_be_had(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    """Others have taken all that the server gives, when the process needs new ones."""
    before = await stage.store.command("CONFIG", "GET", "maxclients")
    await stage.store.command("CONFIG", "SET", "maxclients", 1)
    proxy.cut()
    await traffic.see(503, 3 * CLIENTS)
    await stage.store.command("CONFIG", "SET", *before)


async def connections_are_cut_in_an_answer(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    for bytes_left in (0, 1, 30, 200):
        await cut_in_an_answer(proxy, bytes_left)
        await traffic.see(200, 5)


async def cut_in_an_answer(proxy: FaultProxy, bytes_left: int) -> None:
    """Returns when they are there again."""
    before = proxy.accepted
    proxy.cut_replies(bytes_left)
    await until(lambda: proxy.accepted > before)


async def memory_is_full(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    await stage.store.command("CONFIG", "SET", "maxmemory", 1)
    await traffic.see(503, 3 * CLIENTS)
    await stage.store.command("CONFIG", "SET", "maxmemory", 0)


async def the_end_of_the_file_is_lost(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    """In a crash of the machine whose disk lied: some of what was acknowledged is gone."""
    stage.redis.kill()
    log = max(stage.redis.folder.rglob("*.aof"), key=lambda path: path.stat().st_size)
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 3000)
    stage.redis.start()


async def the_disk_is_full(stage: World, proxy: FaultProxy, traffic: Traffic) -> None:
    """The server's file may not grow any more. With `appendfsync always` the server ends then, and a supervisor starts
    it again when there is room."""
    process = stage.redis.process
    assert process is not None
    log = max(stage.redis.folder.rglob("*.aof"), key=lambda path: path.stat().st_size)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 2000,) * 2)
    assert await asyncio.to_thread(process.wait) != 0
    await traffic.see(503, CLIENTS)
    stage.redis.start()


FAULTS: list[Fault] = [
    scripts_are_forgotten,
    everything_takes_200_ms,
    the_store_hangs,
    no_connection_is_to_be_had,
    connections_are_cut_in_an_answer,
    memory_is_full,
    the_disk_is_full,
    the_end_of_the_file_is_lost,
]
DIFFER = {memory_is_full, the_disk_is_full, the_end_of_the_file_is_lost}
"""In which the versions of Redis do."""


@pytest.mark.parametrize(
    ("fault", "version"),
    [(fault, version) for fault in FAULTS for version in VERSIONS if version == "7" or fault in DIFFER],
)
async def test_all_is_spent_and_billed_whatever_breaks(
    fault: Fault, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_WORDS", "24")
    async with world(tmp_path, binary=str(binary(version))) as stage:
        await stage.furnish(CAP)
        async with FaultProxy(stage.redis.url) as proxy, served(stage, proxy.url) as front:
            traffic = Traffic(stage, front)
            async with asyncio.TaskGroup() as group:
                asking = [group.create_task(traffic.client()) for _ in range(CLIENTS)]
                await traffic.see(200, CLIENTS)
                await fault(stage, proxy, traffic)
                assert not any(client.done() for client in asking), "the credit was spent before the fault was over"
            await front.delivered()
            await stage.at_rest()
            await traffic.client()  # what came back when the others had been refused
            told = await stage.audit()
    assert (told.held, told.running, told.drift, told.duplicates, told.unapplied) == (0, 0, 0, 0, 0)
    assert told.difference == 0
    assert told.cap - told.most < told.spent <= told.cap
    assert set(traffic.statuses) <= {0, 200, 402, 503}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_failover_to_a_replica_that_lagged(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the primary had acknowledged and the replica never heard is sent again, and lost holds are charged."""
    monkeypatch.setenv("LEDGER_WORDS", "24")
    (tmp_path / "plans.toml").write_text(PLANS)
    with running_sentinel(binary(version), tmp_path / "redis") as servers:
        store = await Store.open(servers.url)
        stage = World(tmp_path, {}, Redis(tmp_path, ""), store, RedisBooks(store))
        await stage.furnish(PLENTY)
        async with served(stage, servers.url) as front:
            traffic, over = Traffic(stage, front), asyncio.Event()

            async def client() -> None:
                while not over.is_set():
                    await traffic.ask()

            asking = asyncio.gather(*(client() for _ in range(CLIENTS)))
            await traffic.see(200, CLIENTS)
            await until(lambda: servers.replica.command("DBSIZE") == servers.primary.command("DBSIZE"))
            servers.replica.pause()  # so that it cannot connect again
            servers.primary.command("CLIENT", "KILL", "TYPE", "replica")
            await traffic.see(200, 5 * CLIENTS)
            servers.primary.kill()
            servers.replica.resume()
            await traffic.see(503)
            await traffic.see(200, 5 * CLIENTS)
            over.set()
            await asking
            await front.delivered()
            told = await stage.audit()
        await store.aclose()
    assert (told.held, told.running, told.drift, told.duplicates, told.unapplied, told.difference) == (0,) * 6
    assert told.emitted > 0
    assert "they were charged without" in caplog.text


# ---- the account -----------------------------------------------------------------------------------------------------


async def streams(stage: World, front: Front, count: int) -> "asyncio.Future[list[Answer]]":
    """Returns the answers to come, when the first chunk of each is there."""
    begun = 0

    def seen(answer: Answer) -> None:
        nonlocal begun
        begun += answer.chunks == 1

    asks = [stage.generate(front, f"Stream {number}", 150, seen=seen) for number in range(count)]
    asking = asyncio.gather(*asks)
    await until(lambda: begun == count)
    return asking


async def test_a_plan_that_changes_in_mid_stream_strands_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is charged as it was held: of the credit, or beside it."""
    monkeypatch.setenv("LEDGER_WORDS", "0")
    async with world(tmp_path) as stage:
        await stage.furnish(PLENTY)
        async with served(stage, stage.redis.url) as front:
            metered = await streams(stage, front, 10)
            await stage.books.change_account(ACCOUNT, plan="open")
            unmetered = await streams(stage, front, 10)
            await stage.books.change_account(ACCOUNT, plan="metered")
            answers = await metered + await unmetered
            told = await stage.audit()
    assert all(answer.whole for answer in answers)
    assert (told.held, told.running, told.drift, told.duplicates, told.unapplied, told.difference) == (0,) * 6
    assert told.spent == 2 * told.paid > 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(binary("7"), tmp_path / "redis") as started:
        yield started


async def test_a_price_that_changes_is_for_new_requests(server: RedisServer, tmp_path: Path) -> None:
    """The process with the old price is gone before it settled half of its requests; the other one reaps them."""
    old, new, usage = Price(1000, 0, 1000), Price(3000, 0, 3000), Usage(10, 0, 10)
    async with opened(server, tmp_path / "two") as (other, books):
        await furnish(books)
        async with opened(server, tmp_path / "one", lease_s=0.1) as (gone, _):
            holds = [await gone.hold(GRANTED, f"old{number}", "m", old, usage) for number in range(10)]
            dear = [await other.hold(GRANTED, f"new{number}", "m", new, usage) for number in range(10)]
            receipts = await asyncio.gather(*(gone.settle(hold, usage, "finish") for hold in holds[:5]))
        receipts += await asyncio.gather(*(other.settle(hold, usage, "finish") for hold in dear))
        assert [receipt.cost for receipt in receipts] == 5 * [20] + 10 * [60]
        async with asyncio.timeout(DEADLINE_S):
            while (account := await account_of(books)).held:
                await other.reap()
        assert (account.used, account.running) == (5 * 20 + 10 * 60 + 5 * 10, 0)
        assert (await reconcile(books, "alice")).adds_up


async def account_of(books: RedisBooks) -> Account:
    account = await books.account("alice")
    assert account is not None
    return account


async def test_a_month_that_ends_under_load(server: RedisServer, tmp_path: Path) -> None:
    """Requests of both months and such as are held in one and settled in the other; each month asks for too much."""
    clock = Clock(START_US)
    plan = replace(FREE, monthly_credits=100_000)
    caller = replace(CALLER, plan=plan)
    store = await Store.open(server.url)
    ledger, books = RedisLedger(store, Outbox(tmp_path), clock=clock), RedisBooks(store, clock=clock)
    await books.open_account("alice", plan.id)
    await books.add_key(KEY)
    refused: list[int] = []

    async def hold(number: int) -> Hold | None:
        try:
            return await ledger.hold(caller, f"r{number}", "m", PRICE, Usage(500, 0, 500))
        except InsufficientCredit:
            refused.append(number)
            return None

    running: list[Hold] = []
    for wave in range(-20, 20):  # the month ends between -1 and 0
        clock.now_us = MONTH_END_US + wave * 1_000_000
        settling = [ledger.settle(one, Usage(500, 0, 100), "finish") for one in running]
        holds, _ = await asyncio.gather(
            asyncio.gather(*(hold(10 * wave + number) for number in range(10))), asyncio.gather(*settling)
        )
        running = [one for one in holds if one is not None]
    await asyncio.gather(*(ledger.settle(one, Usage(500, 0, 100), "finish") for one in running))
    account = await account_of(books)
    postings = [posting async for posting in books.postings("alice")]
    assert [posting.grant for posting in postings if posting.kind == "grant"] == [
        "plan:2026-01:free",
        "plan:2026-02:free",
    ]
    assert (account.held, account.running) == (0, 0)
    assert min(refused) < 0 < max(refused)
    assert 0 not in refused
    assert account.used == sum(posting.cost for posting in postings) <= 200_000
    assert (await reconcile(books, "alice")).adds_up
    await ledger.close()
    await store.aclose()
