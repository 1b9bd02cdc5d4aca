"""API keys: made, kept as keyed hashes in the books, recognised, and watched while their requests run.

A key's text is shown once, when it is made. The books hold HMAC-SHA256 of it under a pepper that lies elsewhere (the
environment, or a file only its owner can read), so the books alone open nothing. A key is looked for by that hash and
compared in constant time, so the time an answer takes tells nothing of the keys there are. The text begins with the
tag of its account, which says where to look.

A change made anywhere is seen by every process within a second: what was read is used for at most so long, and
dropped at once when a message tells of the change. Books that cannot be read open nothing, unless this process is told
to let in callers it knows (`away_s`).
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

from serving.accounts.plans import plan_of
from serving.core import Caller, Plan
from serving.errors import Conflict, Forbidden, Overloaded, ServingError, Unauthenticated
from serving.ledger import refusals
from serving.ledger.base import Account, Books, Key, Publish, account_tag

log = logging.getLogger(__name__)

KEY_PREFIX = "sk-story-"
DEMO_ACCOUNT = "demo"

_TEXT = re.compile(KEY_PREFIX + "([0-9a-f]{2})[a-z2-7]{32}")
_SHOWN_CHARACTERS = len(KEY_PREFIX) + 2 + 4
_OWN = "own:"
_CACHED_S = 1.0
_PATROL_S = 0.5
_RECHECKED_S = 0.25
"""A patrol does not read again what is younger. With its period this is less than the second that is promised."""

_MOST_HITS, _MOST_MISSES = 16_384, 4_096

Found: TypeAlias = tuple[Key, Account]
V = TypeVar("V")


async def nobody(message: str) -> None:
    """Publishes to nobody: for a process whose books no other process reads."""


class Recent(dict[str, V]):
    """The entries set last, at most so many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, name: str, value: V) -> None:
        self.pop(name, None)
        super().__setitem__(name, value)
        if len(self) > self._most:
            del self[next(iter(self))]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the books said of a digest, asked at `asked_s`. `era`: how often an empty message had come by then; after
    another one the answer may be old."""

    found: Found | None
    asked_s: float
    era: int


@dataclass(frozen=True, slots=True)
class _Watched:
    """A key with running requests: each has a future that is told when it must end."""

    account: str
    futures: set[asyncio.Future[ServingError]] = field(default_factory=set)


class Keyring:
    """The keys of `books`, as this process knows them.

    `publish` tells all processes a message for `forget`. `away_s`: for how long what the books said last of a caller
    who is not metered counts while they cannot be read. `clock` is monotonic, in seconds; `now_ms` is the Unix time
    that expiries are compared with (a hold compares again, by the store's clock).
    """

    def __init__(
        self,
        books: Books,
        plans: Mapping[str, Plan],
        pepper: bytes,
        *,
        publish: Publish = nobody,
        away_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._books = books
        self._plans = plans
        self._pepper = pepper
        self._publish = publish
        self._away_s = away_s
        self._clock = clock
        self._now_ms = now_ms
        self._own: dict[str, tuple[Key, str]] = {}
        self._hits: Recent[_Answer] = Recent(_MOST_HITS)
        # Apart, so that rubbish does not push out what is in use.
        self._misses: Recent[_Answer] = Recent(_MOST_MISSES)
        self._digests: Recent[str] = Recent(_MOST_HITS)
        self._reading: dict[str, asyncio.Task[Found | None]] = {}
        self._changes = self._era = 0
        self._watched: dict[str, _Watched] = {}
        self._news = asyncio.Event()

    # ---- who calls ---------------------------------------------------------------------------------------------------

    async def authenticate(self, authorization: str | None) -> Caller:
        """The caller behind an `Authorization: Bearer` header.

        Raises Unauthenticated (no key, or one that is unknown, revoked or expired), Forbidden (its account is
        suspended or may not use the API), Overloaded (the books cannot be read).
        """
        text = _bearer(authorization)
        digest = self._digest(text)
        own = self._own.get(_OWN + digest)
        if own is not None:
            return await self._known(account_tag(own[0].account), own[0].digest)
        match = _TEXT.fullmatch(text)
        return await self._known(match[1], digest) if match else self._caller(None)

    async def fresh(self, caller: Caller) -> Caller:
        """The same caller as the books know it now: for when the ledger says that its plan changed. Raises as
        `authenticate` does."""
        digest = await self._digest_of(caller.account, caller.key_id)
        return self._caller(await self._read(account_tag(caller.account), digest) if digest else None)

    async def _known(self, tag: str, digest: str) -> Caller:
        try:
            return self._caller(await self._find(tag, digest))
        except Overloaded:
            answer = self._hits.get(digest)
            if answer is None or self._clock() - answer.asked_s >= self._away_s:
                raise
            caller = self._caller(answer.found)
            if caller.metered:
                raise
            return caller

    def _caller(self, found: Found | None) -> Caller:
        key, account = self._usable(found)
        plan = self._plans.get(account.plan)
        if plan is None:
            raise Forbidden("The plan of this account is not known to this server. Ask whoever runs it.")
        if not plan.api:
            raise Forbidden(f"The plan {plan.id} does not include the API. Choose another plan.")
        models = None if key.models is None else frozenset(key.models)
        return Caller(account.id, key.id, plan, models, capped=key.cap is not None)

    def _usable(self, found: Found | None) -> Found:
        """A key that may still be used, and its account. Raises Unauthenticated, Forbidden."""
        if found is None:
            raise Unauthenticated("This API key is not valid. Check that it was copied whole and was not revoked.")
        key, account = found
        state = key.state(self._now_ms())
        if state == "revoked":
            raise refusals.key_revoked()
        if state == "expired":
            raise refusals.key_expired()
        if account.state == "suspended":
            raise refusals.suspended()
        return found

    # ---- reading -----------------------------------------------------------------------------------------------------

    async def _find(self, tag: str, digest: str, *, within_s: float = _CACHED_S) -> Found | None:
        """The key with this digest, as the books said within the last `within_s`. Those who ask at once share a
        reading, which goes on when one of them leaves."""
        answer = self._hits.get(digest) or self._misses.get(digest)
        if answer is not None and answer.era == self._era and self._clock() - answer.asked_s < within_s:
            return answer.found
        reading = self._reading.get(digest)
        if reading is None:
            reading = self._reading[digest] = asyncio.create_task(self._read(tag, digest))
            reading.add_done_callback(lambda done: self._end_reading(digest, done))
        return await asyncio.shield(reading)

    def _end_reading(self, digest: str, reading: asyncio.Task[Found | None]) -> None:
        if self._reading.get(digest) is reading:
            del self._reading[digest]
        if not reading.cancelled():
            reading.exception()  # Whoever still waits is told; nobody need wait.

    async def _read(self, tag: str, digest: str) -> Found | None:
        asked_s, changes = self._clock(), self._changes
        found = await self._books.find_key(tag, digest)
        if found is None and digest in self._own:
            found = await self._install(*self._own[digest])
        if found is not None and not hmac.compare_digest(found[0].digest, digest):
            found = None
        if found is not None and found[1].plan not in self._plans:
            log.error("account %s has the plan %s, which this process does not know", found[1].id, found[1].plan)
        # What was asked before a change may tell of the time before it.
        if changes == self._changes:
            self._remember(digest, _Answer(found, asked_s, self._era))
        else:
            self._hits.pop(digest, None)  # nor does what is older count any more
        return found

    def _remember(self, digest: str, answer: _Answer) -> None:
        self._hits.pop(digest, None)
        self._misses.pop(digest, None)
        if answer.found is None:
            self._misses[digest] = answer
        else:
            self._hits[digest] = answer
            self._digests[answer.found[0].id] = digest

    async def _digest_of(self, account: str, key_id: str) -> str | None:
        known = self._digests.get(key_id)
        if known is not None:
            return known
        key = await self._books.key(account_tag(account), key_id)
        return None if key is None else key.digest

    # ---- changes -----------------------------------------------------------------------------------------------------

    async def adopt(self, text: str, account: str, plan: str) -> None:
        """Accept a key of the configuration, in this process, for an account that is made (with `plan`) when it is
        absent. Its record in the books is found again by the next process.

        With books that cannot be read this raises Overloaded, and is done when the key is first used. Raises PlanError.
        """
        plan_of(self._plans, plan)
        # Marked, so that it opens nothing in a process that was not configured with it.
        digest = _OWN + self._digest(text)
        shown = text[: min(_SHOWN_CHARACTERS, len(text) // 4)] + "..."
        self._own[digest] = (Key(_key_id(account), account, "configured", shown, digest, self._now_ms()), plan)
        found = await self._read(account_tag(account), digest)
        if found is not None and found[1].plan != plan:
            log.warning(
                "account %s has the plan %s, not %s: it was changed, and stays so", account, found[1].plan, plan
            )
        if found is not None and found[0].revoked_ms:
            log.warning("the configured key of the account %s was revoked, and stays so", account)

    async def _install(self, key: Key, plan: str) -> Found | None:
        # Another process may do the same at the same time, or have made the account with another plan long ago.
        with contextlib.suppress(Conflict):
            await self._books.open_account(key.account, plan)
        with contextlib.suppress(Conflict):
            await self._books.add_key(key)
        return await self._books.find_key(account_tag(key.account), key.digest)

    async def create(
        self,
        name: str,
        account: str,
        models: tuple[str, ...] | None = None,
        cap: int | None = None,
        expires_ms: int = 0,
    ) -> tuple[str, Key]:
        """Make a key and store its hash. Returns its text, which nothing can show again, and its record. `cap` is in
        microcredits, `expires_ms` a Unix time or 0 for never. Raises NotFound (no such account)."""
        text = KEY_PREFIX + account_tag(account) + base64.b32encode(secrets.token_bytes(20)).decode().lower()
        shown = text[:_SHOWN_CHARACTERS] + "..."
        key = Key(_key_id(account), account, name, shown, self._digest(text), self._now_ms(), models, cap, expires_ms)
        await self._books.add_key(key)
        return text, key

    async def revoke(self, account: str, key_id: str) -> Key:
        """Refuse a key from now on, everywhere, and end its running requests. Raises NotFound."""
        key = await self._books.revoke_key(account, key_id)
        await self.tell(f"key:{key_id}")
        return key

    async def tell(self, message: str) -> None:
        """Say to every process, this one too, that something in the books changed: a message for `forget`."""
        self.forget(message)
        await self._publish(message)

    def forget(self, message: str) -> None:
        """Read again what a message of the channel is about: `key:ID`, `account:A`, or all when it is empty (messages
        may have been missed). Others are none of ours."""
        kind, _, name = message.partition(":")
        self._changes += 1
        self._reading.clear()
        if kind == "key":
            self._hits.pop(self._digests.get(name, ""), None)
            affected = name in self._watched
        elif kind == "account":
            for digest in [digest for digest, answer in self._hits.items() if _account_of(answer) == name]:
                del self._hits[digest]
            affected = any(watched.account == name for watched in self._watched.values())
        else:
            affected = not message
        if not message:
            self._era += 1
        if affected:
            self._news.set()

    # ---- running requests --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watch(self, caller: Caller) -> Iterator[asyncio.Future[ServingError]]:
        """For as long as a request of the caller runs: a future whose result is the error to end it with, once its key
        is revoked or expired, or its account suspended."""
        future: asyncio.Future[ServingError] = asyncio.get_running_loop().create_future()
        watched = self._watched.setdefault(caller.key_id, _Watched(caller.account))
        watched.futures.add(future)
        try:
            yield future
        finally:
            future.cancel()
            watched.futures.discard(future)
            if not watched.futures:
                self._watched.pop(caller.key_id, None)

    async def patrol(self, period_s: float = _PATROL_S) -> None:
        """Keep `watch` true, for ever: by messages, and without any within `period_s` and a reading."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await self._news.wait()
            self._news.clear()
            await asyncio.gather(*(self._recheck(key_id, watched) for key_id, watched in self._watched.items()))

    async def _recheck(self, key_id: str, watched: _Watched) -> None:
        try:
            digest = await self._digest_of(watched.account, key_id)
            found = await self._find(account_tag(watched.account), digest, within_s=_RECHECKED_S) if digest else None
        except ServingError:
            return  # The books are away: what runs goes on, on its hold.
        for future in watched.futures:
            try:
                self._usable(found)
            except ServingError as error:
                if not future.done():
                    future.set_result(error)

    def _digest(self, text: str) -> str:
        # Header bytes arrive as latin-1 text; surrogates cannot occur in it.
        return hmac.new(self._pepper, text.encode(), hashlib.sha256).hexdigest()


def _bearer(authorization: str | None) -> str:
    if not authorization:
        raise Unauthenticated("No API key was sent. Send the header `Authorization: Bearer YOUR_KEY`.")
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthenticated("The Authorization header must read `Bearer YOUR_KEY`.")
    return text.strip()


def _key_id(account: str) -> str:
    return f"key_{account_tag(account)}_{secrets.token_hex(5)}"


def _account_of(answer: _Answer) -> str | None:
    return answer.found[1].id if answer.found else None


def load_pepper(data_dir: Path, configured: str | None) -> bytes:
    """The configured pepper, else that of `data_dir/pepper`, which is made (mode 0600) when it is not there."""
    if configured:
        return configured.encode()
    path = data_dir / "pepper"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        _make_private(path, secrets.token_hex(32))
    return path.read_text().strip().encode()


def demo_key(pepper: bytes) -> str:
    """The demo account's key: derived from the pepper, so that it survives a restart and is stored nowhere."""
    digest = hmac.digest(pepper, b"the key of the demo account", "sha256")
    return KEY_PREFIX + base64.b32encode(digest[:20]).decode().lower()


def _make_private(path: Path, text: str) -> None:
    """Make `path` with this text in one step, readable by its owner alone. One that is there stays: of processes that
    start at the same time all must read the same."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(scratch, path)
    scratch.unlink()
