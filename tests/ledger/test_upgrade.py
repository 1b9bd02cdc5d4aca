"""A store that was filled when its records were hashes says the same of all that is in it, and goes on from there.

`tests/fixtures/ledger-of-hashes.json` was written by that version on Redis 6.2: DUMP of each key, what its books told,
and its time. In it are two accounts; grants of all kinds and states; keys with a cap, an end and models, one of them
revoked; requests that were settled, reaped, released, charged without a hold, and open.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from serving.core import Caller, Hold, Plan, Price, Usage
from serving.errors import Conflict, Overloaded
from serving.ledger.base import Account, Books, Grant, account_tag
from serving.ledger.books import RedisBooks
from serving.ledger.open import open_ledger
from serving.ledger.outbox import Outbox
from serving.ledger.reconcile import reconcile
from serving.ledger.redis import RedisLedger
from serving.ledger.store import Store, StoreError
from serving.ledger.upgrade import upgrade
from tests.ledger.servers import DEADLINE_S, VERSIONS, RedisServer, binary, running
from tests.ledger.subjects import Clock

FORMER = json.loads((Path(__file__).parents[1] / "fixtures/ledger-of-hashes.json").read_text())
FREE = Plan("free", monthly_credits=1_000_000, requests_per_minute=60, tokens_per_minute=100_000)
OPEN = Plan("open")
ALICE, BOB = Caller("alice", "key_1", FREE), Caller("bob", "key_3", OPEN)
PRICE = Price(40_000, 10_000, 40_000)
ASKED, USED = Usage(100, 0, 50), Usage(100, 40, 30)


def fill(server: RedisServer) -> None:
    client = redis.Redis(unix_socket_path=str(server.socket))
    for name, dumped in FORMER["dumps"].items():
        client.restore(name, 86_400_000 if ":hold:" in name else 0, bytes.fromhex(dumped))
    client.close()


@dataclass(frozen=True)
class Subject:
    store: Store
    ledger: RedisLedger
    books: RedisBooks
    clock: Clock


@pytest.fixture(params=VERSIONS)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    with running(binary(request.param), tmp_path / "redis") as server:
        fill(server)
        store, clock = await Store.open(server.url), Clock(FORMER["now_us"])
        assert await upgrade(store) == 2
        ledger = RedisLedger(store, Outbox(tmp_path / "outbox"), clock=clock)
        yield Subject(store, ledger, RedisBooks(store, clock=clock), clock)
        await ledger.close()
        await store.aclose()


def told(value: object) -> Any:  # noqa: ANN401  # as it stands in the file
    return json.loads(json.dumps(value))


async def test_its_books_tell_what_they_told(subject: Subject) -> None:
    for name, before in FORMER["books"].items():
        account = await subject.books.account(name)
        assert account is not None
        assert told(asdict(account)) == before["account"]
        assert [told(asdict(key)) for key in await subject.books.keys(name)] == before["keys"]
        assert [told(asdict(posting)) async for posting in subject.books.postings(name)] == before["postings"]
        usage = await subject.books.usage(name, "2025-12-01", "2026-12-31")
        assert [told(asdict(day)) for day in usage] == before["usage"]
        assert (await reconcile(subject.books, name)).adds_up
        for key in before["keys"]:
            found = await subject.books.find_key(account_tag(name), key["digest"])
            assert found is not None
            assert told(asdict(found[0])) == key


async def test_what_was_open_is_settled_as_it_was_held(subject: Subject) -> None:
    for caller, request, model in ((ALICE, "open", "m"), (BOB, "bobs open", "n|o")):
        held = await subject.ledger.hold(caller, request, model, PRICE, ASKED)  # it is open already
        assert (held.usage, held.bound) == (ASKED, PRICE.cost(ASKED))
        receipt = await subject.ledger.settle(held, USED, "finish")
        assert receipt.cost == PRICE.cost(USED)
        account = await subject.books.account(caller.account)
        assert account is not None
        assert (account.held, account.running) == (0, 0)
        assert (await reconcile(subject.books, caller.account)).adds_up


async def test_what_was_resolved_stays_so(subject: Subject) -> None:
    used = FORMER["books"]["alice"]["account"]["used"]
    for request, late in (("settled", 0), ("lost", 0), ("released", 0), ("overtaken", 0), ("reaped", 1)):
        hold = Hold(request, "alice", "key_1", "m", PRICE, ASKED, PRICE.cost(ASKED), PRICE.cost(ASKED))
        await subject.ledger.settle(hold, USED, "finish")
        used += late * (PRICE.cost(USED) - PRICE.cost(Usage(100, 0, 7)))
        account = await subject.books.account("alice")
        assert account is not None
        assert account.used == used
    assert (await reconcile(subject.books, "alice")).adds_up


async def test_it_goes_on(subject: Subject) -> None:
    """The month's grant is not made again, ids stay known, open holds are reaped, and a second look changes nothing."""
    assert await upgrade(subject.store) == 0
    await subject.ledger.settle(await subject.ledger.hold(ALICE, "new", "m", PRICE, ASKED), USED, "finish")
    with pytest.raises(Conflict):
        await subject.ledger.hold(ALICE, "settled", "m", PRICE, Usage(101, 0, 50))
    assert (await subject.books.grant("alice", Grant("bought", 500_000))).used == 0
    assert await subject.books.debit("alice", "fee", 1_234) > 0
    subject.clock.now_us += 31_000_000
    assert await subject.ledger.reap() == 2
    account = await subject.books.account("alice")
    assert account is not None
    assert [grant.id for grant in account.grants] == ["plan:2026-01:free", "bought"]
    for name in ("alice", "bob"):
        assert (await reconcile(subject.books, name)).adds_up


async def test_a_server_upgrades_a_store_that_comes_late(tmp_path: Path) -> None:
    with running(binary("7"), tmp_path / "redis") as server:
        fill(server)
        server.kill()
        async with open_ledger(server.url, tmp_path / "data") as opened:
            server.start()
            async with asyncio.timeout(DEADLINE_S):
                while (account := await asked(opened.books)) is None:  # noqa: ASYNC110  # a store sets no event of ours
                    await asyncio.sleep(0.01)
        assert account.used == FORMER["books"]["alice"]["account"]["used"]


async def asked(books: Books) -> Account | None:
    """None while the store is away, or as it was."""
    try:
        return await books.account("alice")
    except (Overloaded, StoreError):
        return None
