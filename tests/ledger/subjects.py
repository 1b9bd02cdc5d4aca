"""What the laws are run over: a ledger with its books and a clock; what it is asked, what it answers, how it stands."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from hypothesis import strategies as st

from serving.core import Hold, Price, Usage
from serving.errors import ServingError
from serving.ledger.base import Books, DayUsage, Ledger, account_tag
from serving.ledger.memory import MemoryLedger
from tests.ledger.snapshots import Snapshot

T = TypeVar("T")
ACCOUNTS = ("ann", "bob", "cy")
LEASE_S = 30.0
START_US = 1_769_817_540_000_000  # 2026-01-30T23:59:00Z: a day and a month end soon
REMEMBER_S = 1e9
"""The machine moves time by months, and a store forgets by its own clock: nothing is forgotten here."""


COUNTS = st.integers(0, 3_000)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """A cached token never costs more than a fresh one: settings refuse it."""
    input_per_1k = draw(st.integers(0, 5_000))
    return Price(input_per_1k, draw(st.integers(0, input_per_1k)), draw(st.integers(0, 5_000)))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(COUNTS)
    return Usage(prompt, draw(st.integers(0, prompt)), draw(COUNTS))


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now_us: int = START_US

    def __call__(self) -> int:
        return self.now_us

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000


async def nothing() -> None:
    """What there is to close in memory."""


@dataclass(frozen=True)
class Subject:
    """A ledger and its books. `note`: the store hears at once of this hold, and of no other; `close`: at the end."""

    ledger: Ledger
    books: Books
    note: Callable[[Hold, Usage], Awaitable[None]]
    reap: Callable[[], Awaitable[int]]
    close: Callable[[], Awaitable[None]] = nothing


@dataclass(frozen=True)
class Refused:
    """An answer: that there is none."""

    kind: type[ServingError]


def in_memory(clock: Clock) -> Subject:
    ledger = MemoryLedger(clock, LEASE_S, REMEMBER_S)

    async def note(hold: Hold, usage: Usage) -> None:
        ledger.note(hold, usage)

    return Subject(ledger, ledger, note, ledger.reap)


async def awaited(work: Awaitable[T]) -> T:
    return await work


async def answer(work: Awaitable[T]) -> T | Refused:
    try:
        return await work
    except ServingError as error:
        return Refused(type(error))


async def without_rates(work: Awaitable[Hold]) -> Hold:
    """A hold asked for again tells how the rates stand, or stood: that is not what is compared."""
    return replace(await work, requests=None, tokens=None)


async def look(side: Subject) -> dict[str, Snapshot]:
    """How the accounts stand that there are."""
    snapshots = {}
    for name in ACCOUNTS:
        account = await side.books.account(name)
        if account is None:
            continue
        keys = {key.id: key for key in await side.books.keys(name)}
        for key in keys.values():
            found = await side.books.find_key(account_tag(name), key.digest)
            assert found == (key, replace(account, grants=(), free=0))
        postings = [posting async for posting in side.books.postings(name)]
        days: list[DayUsage] = []
        for day in sorted({datetime.fromtimestamp(posting.at_ms / 1000, UTC).date() for posting in postings}):
            days += await side.books.usage(name, str(day), str(day + timedelta(days=1)))
        snapshots[name] = Snapshot(account, keys, days, postings)
    return snapshots
