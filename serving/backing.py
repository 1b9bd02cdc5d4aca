"""The books while the app runs: opened in the background, kept in touch with other processes, closed last of all.

A server whose books are not open yet answers its health checks, and every request with 503. It decides nothing about
keys, credits or requests, and does not know which store there is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from serving.accounts.keys import Keyring, nobody
from serving.core import Plan
from serving.dialects.base import Backend
from serving.errors import Overloaded
from serving.ledger.base import CHANGES, STOP, Ledger
from serving.ledger.open import Opened
from serving.ledger.store import Store
from serving.pipeline import Pipeline
from serving.tasks import Tasks

log = logging.getLogger(__name__)

State: TypeAlias = Literal["opening", "open", "failed", "closed"]

_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class ConfiguredKey:
    """A key that is not made but configured: its text, the account it opens, and the plan that one is made with."""

    text: str
    account: str
    plan: str


class Backing:
    """What stands behind the endpoints. `opening` opens a store's two sides, and closes them; `away_s`: see
    `Keyring`."""

    def __init__(
        self,
        opening: Callable[[], AbstractAsyncContextManager[Opened]],
        pipeline_of: Callable[[Ledger], Pipeline],
        tasks_of: Callable[[Ledger], Tasks],
        plans: Mapping[str, Plan],
        pepper: bytes,
        key: ConfiguredKey | None,
        *,
        away_s: float = 0.0,
    ) -> None:
        self._opening = opening
        self._pipeline_of = pipeline_of
        self._tasks_of = tasks_of
        self._plans = plans
        self._pepper = pepper
        self._key = key
        self._away_s = away_s
        self._backend: Backend | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._tried = asyncio.Event()
        self._decided = asyncio.Event()
        self.state: State = "opening"
        self.opened: Opened | None = None
        self.reason = ""

    def backend(self) -> Backend:
        """What answers requests. Raises Overloaded while the books are not open."""
        if self._backend is None:
            raise Overloaded("The server is starting or stopping. Try again in a moment.", retry_after_s=1)
        return self._backend

    @property
    def settles_waiting(self) -> int:
        """How many settles and releases the store has not acknowledged; 0 while no books are open."""
        return self.opened.ledger.waiting if self.opened else 0

    def start(self) -> None:
        """Begin to open."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def wait_tried(self) -> None:
        """Returns when opening was tried once. It may start a process, and what is forked meanwhile would hold open the
        pipes that this one waits on."""
        await self._tried.wait()

    async def wait_open(self) -> None:
        """Returns when the books are open, or cannot be."""
        await self._decided.wait()

    async def wait_failed(self) -> str:
        """Returns, with the reason, when the books cannot be opened; never otherwise."""
        await self._decided.wait()
        if self.state != "failed":
            await asyncio.Event().wait()
        return self.reason

    async def close(self) -> None:
        """Close the books, once the store has all that was settled. May be called twice."""
        self._closing.set()
        if self._task is not None:
            if self.state == "opening":
                self._task.cancel()
            await asyncio.wait({self._task})
        self.state = "closed"

    async def _run(self) -> None:
        while not self._closing.is_set():
            try:
                async with self._opening() as opened:
                    await self._stay_open(opened)
            except Overloaded as error:
                log.warning("the books cannot be opened yet: %s", error.message)
                self._tried.set()
                await asyncio.sleep(_AGAIN_S)
            except Exception as error:
                self.state, self.reason = "failed", f"the books cannot be kept: {error}"
                log.error("the books cannot be kept", exc_info=error)
                break
        self._tried.set()
        self._decided.set()

    async def _stay_open(self, opened: Opened) -> None:
        store = opened.store
        publish = partial(store.publish, CHANGES) if store else nobody
        keys = Keyring(opened.books, self._plans, self._pepper, publish=publish, away_s=self._away_s)
        if self._key is not None:
            with contextlib.suppress(Overloaded):  # it is done when the key is first used
                await keys.adopt(self._key.text, self._key.account, self._key.plan)
        ledger = opened.ledger
        backend = Backend(keys, opened.books, self._pipeline_of(ledger), self._tasks_of(ledger))
        works = [asyncio.create_task(_always(keys.patrol))]
        if store is not None:
            works.append(asyncio.create_task(_always(partial(_hear, store, backend))))
        self.opened, self._backend = opened, backend
        self.state = "open"
        self._tried.set()
        self._decided.set()
        try:
            await self._closing.wait()
        finally:
            self._backend = None
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)


async def _hear(store: Store, backend: Backend) -> None:
    async for message in store.listen(CHANGES):
        if message.startswith(STOP):
            backend.pipeline.stop(message.removeprefix(STOP))
        else:
            backend.keys.forget(message)


async def _always(work: Callable[[], Awaitable[None]]) -> None:
    """Do what must not end, again when it does: a revoked key would go on otherwise."""
    while True:
        try:
            await work()
        except Exception as error:
            log.error("what keeps the keys true failed, and begins again", exc_info=error)
        await asyncio.sleep(_AGAIN_S)
