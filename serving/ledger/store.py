"""The store that all processes share: scripts, plain commands and messages, on Redis.

What concurrent callers ask for travels together: whatever waits goes out as one pipeline, and a few of these are on
their way at once, in any order. A caller that is cancelled disturbs nobody, and an error that answers one command is
its caller's alone.

Nothing is decided at the start: a store that is away is Overloaded for its callers, at once or within the timeout,
while one probe knocks until it is back. A command whose answer was lost is never sent again from here: it may have been
carried out, and only its caller knows whether that is harmless. Nothing here knows of credits and keys.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving.errors import Overloaded
from serving.ledger.line import Command, Exchange, Refusal
from serving.ledger.links import open_link
from serving.ledger.scripts import SCRIPTS, read_scripts

log = logging.getLogger(__name__)

COMMANDS_AT_ONCE = 64
BATCHES_AT_ONCE = 4
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
_PARTS_OF_A_TIMEOUT = 4
_LAST_LOOK_S = 0.001

_OLDEST_VERSION = (6, 2)
_WANTED = {
    "appendonly": ("yes", "a restart would lose all credits and keys"),
    "appendfsync": ("always", "a crash would lose what was charged last"),
    "maxmemory-policy": ("noeviction", "credits and keys would be thrown away when memory is short"),
}

_UNABLE = re.compile(r"(?:^|[ -])(LOADING|READONLY|CLUSTERDOWN|MASTERDOWN|BUSY|OOM|MISCONF|TRYAGAIN)(?: |$)")
"""Who answers so cannot do now what was asked. Redis 6.2 has it in the middle of what a script failed with."""
_FOR_ALL = ("LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "BUSY")
"""Answers of these that say the same of all other commands."""


class NeverSent(Overloaded):
    """The store is known to be away: the command was not even sent."""


class StoreError(Exception):
    """Redis refused a command: a script is wrong, or our user may not do it. What a script did before that stays."""


class _Lost:
    """Stands where an answer should be: none came."""


_LOST = _Lost()


@dataclass(slots=True)
class _Call:
    command: Command
    answer: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class _Batch:
    """Calls that travel together: what carries them, how many of them have no answer yet, and for how many more ticks
    that is waited for."""

    calls: Sequence[_Call]
    left: int
    patience: int = _PARTS_OF_A_TIMEOUT + 1
    exchange: Exchange | None = None


class Store:
    """See the module. Made by `open`; for any number of tasks of one event loop."""

    def __init__(self, url: str, timeout_s: float, scripts: Path) -> None:
        self._scripts = read_scripts(scripts)
        self._timeout_s = timeout_s
        self._waiting: deque[_Call] = deque()
        self._batches: set[_Batch] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._gathering = False
        self._probing: asyncio.Task[None] | None = None
        self._closed = False
        self._servers: set[str] = set()
        self._on_restart: list[Callable[[], None]] = []
        self._link = open_link(url, timeout_s, self._meet)

    @classmethod
    async def open(cls, url: str, *, timeout_s: float = 2.0, scripts: Path = SCRIPTS) -> "Store":
        """A store that connects when it is first used: whether a server is there does not matter yet.

        URLs: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `unix://PATH`, `redis+cluster://[...@]HOST[:PORT],...`,
        `redis+sentinel://[...@]HOST[:PORT],.../SERVICE[/DB]`; connections are TLS with `rediss` for `redis`. After `?`
        stand redis-py's settings of a connection, such as `ssl_ca_certs=FILE`, and `sentinel_username` and
        `sentinel_password`. `timeout_s` is what a batch of commands may take, and a quarter more at most; a call may
        have to wait for one before its own, and for more of them when hundreds are waiting.
        Raises ValueError when the URL cannot be used; its text repeats no secret.
        """
        return cls(url, timeout_s, scripts)

    async def run(self, script: str, tag: str, *arguments: str | int) -> list[Any]:
        """Run a script on the slot of `tag`, such as `{s3a}`. Returns what it answers: str, int, None, lists of these.

        Raises Overloaded (the store is away: the script ran, runs later, or never does, surely so with NeverSent),
        StoreError, UnicodeError.
        """
        known = self._scripts[script]
        rest = ("1", f"{tag}:due", *arguments)
        answer = await self._ask("EVALSHA", known.sha, *rest)
        if isinstance(answer, Refusal) and answer.code == "NOSCRIPT":
            answer = await self._ask("EVAL", known.text, *rest)
        answered: list[Any] = _checked(answer)
        return answered

    async def command(self, name: str, *arguments: str | int) -> Any:  # noqa: ANN401  # of as many kinds as commands
        """What a plain command answers, as it came: a hash is a flat list. Raises as `run`."""
        return _checked(await self._ask(name, *arguments))

    async def publish(self, channel: str, message: str) -> None:
        """Tell all who listen now. Raises as `run`."""
        await self.command("PUBLISH", channel, message)

    async def listen(self, channel: str) -> AsyncGenerator[str, None]:
        """The messages of a channel, until the store is closed. An empty one comes after each (re)connection: something
        may have been missed before it."""
        wait_s = _FIRST_WAIT_S
        while not self._closed:
            try:
                async with aclosing(self._listen_once(channel)) as messages:
                    async for message in messages:
                        wait_s = _FIRST_WAIT_S
                        yield message
            except Exception as error:  # noqa: BLE001  # whatever it was, a listener goes on
                log.debug("listening to %s ended: %s", channel, _told(error))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _listen_once(self, channel: str) -> AsyncGenerator[str, None]:
        async with asyncio.timeout(self._timeout_s):
            pubsub = await self._link.subscribed(channel)
        try:
            silent = False
            while True:
                message = await pubsub.get_message(timeout=self._timeout_s)
                if message is None and silent:
                    raise TimeoutError  # not even the PING was answered
                silent = message is None
                if message is None:
                    await pubsub.ping()
                elif message["type"] == "subscribe":
                    yield ""
                elif message["type"] == "message":
                    yield message["data"]
        finally:
            await pubsub.aclose()

    def on_restart(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when a server was started anew, or another one has taken its place."""
        self._on_restart.append(callback)

    def _meet(self, servers: set[str]) -> None:
        is_new = not servers <= self._servers
        known_before = bool(self._servers)
        self._servers |= servers
        if is_new and known_before:
            log.warning("the credit store was restarted, or another server took its place")
            self._tell_restart()

    def _tell_restart(self) -> None:
        for callback in self._on_restart:
            callback()

    async def problems(self) -> list[str]:
        """What is wrong with the server for money, in sentences; none when all is well."""
        try:
            async with asyncio.timeout(self._timeout_s):
                settings = await self._settings()
        except Exception as error:  # noqa: BLE001  # whatever it was, it is a problem
            return [f"The credit store does not answer: {_told(error)}."]
        return [sentence for node, known in settings.items() for sentence in _problems(f"Redis {node}".strip(), known)]

    async def _settings(self) -> dict[str, dict[str, str]]:
        """By server: what its INFO says, and the settings that matter, as far as our user may read them."""
        found: dict[str, dict[str, str]] = {}
        for section in ("server", "persistence", "memory"):
            for node, text in (await self._link.ask_all("INFO", section)).items():
                lines = [] if isinstance(text, Refusal) else text.splitlines()
                found.setdefault(node, {}).update(line.split(":", 1) for line in lines if ":" in line)
        for known in found.values():
            if "aof_enabled" in known:
                known["appendonly"] = "no" if known["aof_enabled"] == "0" else "yes"
            if "maxmemory_policy" in known:
                known["maxmemory-policy"] = known["maxmemory_policy"]
        for name in _WANTED:
            for node, pair in (await self._link.ask_all("CONFIG", "GET", name)).items():
                if not isinstance(pair, Refusal) and pair:
                    found[node][name] = pair[1]
        return found

    async def aclose(self) -> None:
        """Close all connections; calls that wait get Overloaded."""
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        _lose(self._waiting)
        self._waiting.clear()
        for batch in [*self._batches]:
            self._end(batch, ConnectionError("closed"))
        if self._ticking is not None:
            self._ticking.cancel()
        await self._link.aclose()

    # ---- batches, and what happens when one fails --------------------------------------------------------------------

    async def _ask(self, name: str, *arguments: str | int) -> Any:  # noqa: ANN401  # of as many kinds as commands
        """The answer, maybe a Refusal."""
        if self._probing is not None or self._closed:
            raise _away(NeverSent)
        loop = asyncio.get_running_loop()
        # Made here, so that what cannot be encoded fails for its caller alone.
        call = _Call(Command.of(name, *arguments), loop.create_future())
        self._waiting.append(call)
        if not self._gathering and len(self._batches) < BATCHES_AT_ONCE:
            self._gathering = True
            loop.call_soon(self._send_waiting)  # after all tasks that are ready have called
        answer = await call.answer
        if isinstance(answer, _Lost):
            raise _away()
        return answer

    def _send_waiting(self) -> None:
        self._gathering = False
        while self._waiting and len(self._batches) < BATCHES_AT_ONCE:
            calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), COMMANDS_AT_ONCE))]
            if calls := [call for call in calls if not call.answer.cancelled()]:
                self._send(calls)

    def _send(self, calls: Sequence[_Call]) -> None:
        batch = _Batch(calls, len(calls))
        self._batches.add(batch)
        self._tick_later()
        commands = [call.command for call in calls]
        batch.exchange = self._link.exchange(commands, partial(self._tell, batch), partial(self._end, batch))

    def _tell(self, batch: _Batch, position: int, answer: Any) -> None:  # noqa: ANN401  # of as many kinds as commands
        batch.left -= 1
        call = batch.calls[position]
        if not call.answer.done():
            call.answer.set_result(answer)
        if isinstance(answer, Refusal) and (unable := _UNABLE.search(str(answer))) and unable[1] in _FOR_ALL:
            self._lose_all(str(answer))

    def _end(self, batch: _Batch, error: Exception | None) -> None:
        """No more of its answers come; others may go."""
        self._batches.discard(batch)
        if error is not None:
            if batch.exchange is not None:
                batch.exchange.cancel()
            self._lose_all(_told(error))
        _lose(batch.calls)
        self._send_waiting()

    def _tick_later(self) -> None:
        if self._batches and self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(self._timeout_s / _PARTS_OF_A_TIMEOUT, self._tick)

    def _tick(self) -> None:
        """Have an end with batches that take too long. Of the time in which our own event loop stood still only a part
        counts: answers that came meanwhile are read before anybody gives up."""
        self._ticking = None
        for batch in self._batches:
            batch.patience -= 1
            if not batch.patience:
                # Not at once: what has come is read before.
                asyncio.get_running_loop().call_later(_LAST_LOOK_S, self._give_up, batch)
        self._tick_later()

    def _give_up(self, batch: _Batch) -> None:
        if batch in self._batches and batch.left:
            self._end(batch, TimeoutError())

    def _lose_all(self, why: str) -> None:
        """From now on calls fail at once, until the probe succeeds."""
        if self._probing is None and not self._closed:
            log.warning("the credit store does not answer: %s", why)
            self._probing = asyncio.create_task(self._probe())
            _lose(self._waiting)
            self._waiting.clear()

    async def _probe(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._link.probe()
                break
            except Exception as error:  # noqa: BLE001  # nothing but success ends it
                log.debug("the credit store still does not answer: %s", _told(error))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        self._probing = None
        log.warning("the credit store answers again")
        if not self._servers:
            self._tell_restart()  # who answers is kept from us: it may well be another


def _checked(answer: Any) -> Any:  # noqa: ANN401  # of as many kinds as commands
    if not isinstance(answer, Refusal):
        return answer
    raise _away() if _UNABLE.search(str(answer)) else StoreError(str(answer))


def _away(kind: type[Overloaded] = Overloaded) -> Overloaded:
    return kind("The credit store does not answer. Try again in a moment.", retry_after_s=1)


def _lose(calls: Iterable[_Call]) -> None:
    for call in calls:
        if not call.answer.done():
            call.answer.set_result(_LOST)


def _told(error: Exception) -> str:
    return str(error) or "no answer in time"


def _problems(server: str, known: dict[str, str]) -> list[str]:
    found = []
    version = known.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if not version:
        found.append(f"{server} does not let us read INFO: a restart is noticed only when calls fail meanwhile.")
    elif numbers < _OLDEST_VERSION:
        found.append(f"{server} has version {version}: 6.2 is the oldest that can be used.")
    for name, (wanted, why) in _WANTED.items():
        if name not in known:
            found.append(f"{server} does not let us read the setting {name}: make sure it is {wanted}, else {why}.")
        elif known[name] != wanted:
            found.append(f"{server} has {name} {known[name]}, not {wanted}: {why}.")
    return found
