"""Opens the ledger and the books: on a Redis elsewhere, on one of our own, or in this process's memory."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serving.ledger.base import CHANGES, Books, Ledger, Publish
from serving.ledger.books import RedisBooks
from serving.ledger.child import own_server
from serving.ledger.memory import MemoryLedger
from serving.ledger.outbox import Outbox
from serving.ledger.redis import RedisLedger
from serving.ledger.store import Store
from serving.ledger.upgrade import upgrade, upgrade_when_there

log = logging.getLogger(__name__)


class NoStore(Exception):
    """There is no redis-server to be had, or its URL makes no sense."""


@dataclass(frozen=True)
class Opened:
    """The two sides of one store. `store` None: memory."""

    ledger: Ledger
    books: Books
    store: Store | None


@asynccontextmanager
async def open_ledger(
    url: str | None, data_dir: Path, *, lease_s: float = 30.0, extend_s: float = 5.0, away_requests: int = 0
) -> AsyncIterator[Opened]:
    """What a server needs: the store at `url`, by default a redis-server of our own in `data_dir`, and its outbox. The
    rest as `RedisLedger`'s."""
    async with _open_store(url, data_dir) as store:
        if store is None:
            log.warning("No redis-server was found: keys and credits are kept in memory, and LOST when this ends.")
            memory = MemoryLedger(lease_s=lease_s)
            yield Opened(memory, memory, None)
            return
        upgrading = asyncio.create_task(upgrade_when_there(store, tried := asyncio.Event()))
        try:
            await tried.wait()
            for problem in await store.problems():
                log.warning("%s", problem)
            ledger = RedisLedger(
                store,
                Outbox(data_dir / "outbox"),
                lease_s=lease_s,
                extend_s=extend_s,
                away_requests=away_requests,
            )
            ledger.start()
            try:
                yield Opened(ledger, RedisBooks(store), store)
            finally:
                await ledger.close()
        finally:
            upgrading.cancel()
            await asyncio.gather(upgrading, return_exceptions=True)


@asynccontextmanager
async def open_books(url: str | None, data_dir: Path) -> AsyncIterator[tuple[RedisBooks, Publish]]:
    """What a command beside a server needs: the books, and how to tell servers of a change. Raises NoStore,
    ServerFailed, Overloaded."""
    async with _open_store(url, data_dir) as store:
        if store is None:
            raise NoStore("No redis-server was found: install one, or set SERVING_REDIS_URL.")
        await upgrade(store)
        yield RedisBooks(store), partial(store.publish, CHANGES)


@asynccontextmanager
async def _open_store(url: str | None, data_dir: Path) -> AsyncIterator[Store | None]:
    async with AsyncExitStack() as stack:
        if url is None:
            url = await stack.enter_async_context(own_server(data_dir))
        if url is None:
            yield None
            return
        try:
            store = await Store.open(url)
        except ValueError as error:
            raise NoStore(f"The URL of the credit store cannot be used: {error}.") from error
        stack.push_async_callback(store.aclose)
        yield store
