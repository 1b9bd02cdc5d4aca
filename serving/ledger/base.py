"""The credit ledger: its protocols and its laws.

    hold     reserve the worst case before work      -> Hold, maybe for fewer completion tokens than asked
    note     how far a request is, now and then      -> a later lease, and what a crash would be charged at
    settle   charge what was used, return the rest   -> Receipt
    release  give a hold back untouched

- Every amount is an int of microcredits; rounding happens once, at settle, up.
- Metered accounts: used + held <= granted, at every step. A charge never exceeds its hold's bound. Plans that are not
  metered hold 0, are never refused for credit, and are recorded all the same.
- A hold resolves at most once. Every operation is idempotent by its id: with the same payload it returns the same
  answer again, with another one it is a Conflict.
- A hold that nobody notes or settles within its lease is reaped: settled at its prompt and the completion tokens noted
  last. A settle that comes later posts one correction, the difference.
- Grants: amount = used + held + free + expired. They are consumed by priority, then expiry, then id; what is free when
  one expires is gone, and what a hold returns to an expired grant, too. The plan's monthly grant has the id
  `plan:YYYY-MM:PLAN` and is made when the account is first looked at in a month (UTC).
- Postings are only ever appended; balances, day totals and the usage page are folds over them.
- The clock is the store's.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias

from serving.core import Caller, Hold, Plan, Price, Rate, Receipt, Usage

GrantKind: TypeAlias = Literal["plan", "purchase", "gift", "adjustment"]
KeyState: TypeAlias = Literal["active", "revoked", "expired"]
AccountState: TypeAlias = Literal["active", "suspended"]
PostingKind: TypeAlias = Literal["grant", "expire", "void", "debit", "charge", "correction"]

CHANGES = "story:changes"
"""The channel on which processes tell each other of a changed account (`account:ID`) or key (`key:ID`), and of a key
whose generations are to end (`stop:ID`)."""

STOP = "stop:"

Publish: TypeAlias = Callable[[str], Awaitable[None]]
"""Tells all processes, on that channel."""

PLAN_PRIORITY, PURCHASE_PRIORITY = 10, 20
"""What is gone soon is consumed first: a month's credits before bought ones."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Credit given to an account. Times are Unix times in milliseconds; `expires_ms` 0 is never."""

    id: str
    amount: int
    kind: GrantKind = "purchase"
    priority: int = PURCHASE_PRIORITY
    effective_ms: int = 0
    expires_ms: int = 0
    used: int = 0
    held: int = 0
    expired: int = 0

    @property
    def free(self) -> int:
        return self.amount - self.used - self.held - self.expired


@dataclass(frozen=True, slots=True)
class Key:
    """A key as stored: never its text, but a keyed hash of it, and `shown`, its beginning.

    `models` None allows every model of the plan. `cap` is the most it may ever spend, in microcredits.
    """

    id: str
    account: str
    name: str
    shown: str
    digest: str
    created_ms: int = 0
    models: tuple[str, ...] | None = None
    cap: int | None = None
    expires_ms: int = 0
    revoked_ms: int = 0
    last_used_ms: int = 0
    used: int = 0
    held: int = 0

    def state(self, now_ms: int) -> KeyState:
        if self.revoked_ms:
            return "revoked"
        return "expired" if self.expires_ms and self.expires_ms <= now_ms else "active"


@dataclass(frozen=True, slots=True)
class Account:
    """An account as it stands. `used` is the cost of all it ever used, `held` that of its open holds' amounts."""

    id: str
    plan: str
    state: AccountState = "active"
    created_ms: int = 0
    used: int = 0
    held: int = 0
    running: int = 0
    grants: tuple[Grant, ...] = ()
    free: int = 0


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of an account's books. `amount` is what its credit changed by, `cost` what a request cost.

    On a plan that is not metered a charge has a cost and the amount 0.
    """

    id: str
    at_ms: int
    kind: PostingKind
    amount: int
    grant: str = ""
    request_id: str = ""
    key_id: str = ""
    model: str = ""
    cost: int = 0
    usage: Usage = field(default=Usage())
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What one key used of one model on one day (UTC, `YYYY-MM-DD`)."""

    day: str
    key_id: str
    model: str
    requests: int
    usage: Usage
    cost: int


class Ledger(Protocol):
    """What the path of a request needs. Safe to call from any number of tasks."""

    @property
    def waiting(self) -> int:
        """How many settles and releases the store has not acknowledged."""
        ...

    async def hold(self, caller: Caller, request_id: str, model: str, price: Price, worst_case: Usage) -> Hold:
        """Reserve credit for at most `worst_case`; fewer completion tokens are granted when credit is short.

        `price` is the model's; the plan's percentage is applied here. Checks, in this order and in one step: the
        account and its plan, the key, how much runs at once, the rates, the key's cap and the credit. Rates: a request
        counts as one, its prompt when it is held and its completion when it is settled; a minute's tokens may be
        overdrawn once, and then the next request waits.

        Raises Conflict (the id was used for something else), Unauthenticated (the key was revoked or expired),
        Forbidden (the account is suspended), RateLimited, InsufficientCredit (not even the prompt and one token can be
        paid), Overloaded (the store is away; a ledger may be set to let in who is not metered all the same).
        """
        ...

    def note(self, hold: Hold, usage: Usage) -> None:
        """Tell how far a request is. Never waits; the store hears of it every few seconds."""
        ...

    async def settle(self, hold: Hold, usage: Usage, reason: str) -> Receipt:
        """Charge `usage` against the hold. `reason`: finish, disconnect, error, revoked."""
        ...

    async def release(self, hold: Hold) -> None:
        """Return a hold of which nothing was used. After a settle it does nothing."""
        ...


class Books(Protocol):
    """What people and pages need: accounts, keys and grants, and what was used. Ids are the caller's choice."""

    async def open_account(self, account: str, plan: str) -> Account:
        """Make an account. Conflict when it exists with another plan."""
        ...

    async def account(self, account: str, plan: Plan | None = None) -> Account | None:
        """The account as it stands; with `plan` (its own) the month's grant is made first when it is due."""
        ...

    async def accounts(self) -> list[str]: ...

    async def change_account(
        self, account: str, *, plan: str | None = None, state: AccountState | None = None
    ) -> Account:
        """Raises NotFound."""
        ...

    async def grant(self, account: str, grant: Grant) -> Grant:
        """Raises NotFound, Conflict."""
        ...

    async def void(self, account: str, grant_id: str) -> int:
        """Take back what is free of a grant, now and in future. Returns the microcredits taken. Raises NotFound."""
        ...

    async def debit(self, account: str, debit_id: str, amount: int) -> int:
        """Take `amount` microcredits of the free credit, in the order of consumption. Returns the credit left.

        Raises NotFound, Conflict, InsufficientCredit (nothing is taken then).
        """
        ...

    async def add_key(self, key: Key) -> None:
        """Raises NotFound (no such account), Conflict (an id or a digest that is there)."""
        ...

    async def revoke_key(self, account: str, key_id: str) -> Key:
        """Raises NotFound. Revoking again changes nothing."""
        ...

    async def keys(self, account: str) -> list[Key]:
        """Its keys, oldest first, revoked ones too."""
        ...

    async def key(self, account_tag: str, key_id: str) -> Key | None:
        """The key with this id, of an account with this tag."""
        ...

    async def find_key(self, account_tag: str, digest: str) -> tuple[Key, Account] | None:
        """The key with this digest and its account (without grants), in one round trip. Revoked ones are found, too."""
        ...

    async def usage(self, account: str, first_day: str, end_day: str) -> list[DayUsage]:
        """Totals of the days from `first_day` until before `end_day`, by day, key and model."""
        ...

    def postings(self, account: str) -> AsyncIterator[Posting]:
        """All postings, oldest first."""
        ...


@lru_cache(maxsize=4096)
def account_tag(account: str) -> str:
    """The two hex digits that say where an account's books lie: they stand in its keys' texts and ids, too."""
    return hashlib.sha256(account.encode()).hexdigest()[:2]


def month_of(at_ms: int) -> tuple[str, int, int]:
    """The calendar month (UTC) that holds a time: `YYYY-MM`, its start and the next one's start, in ms."""
    start = datetime.fromtimestamp(at_ms / 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return start.strftime("%Y-%m"), round(start.timestamp() * 1000), round(after.timestamp() * 1000)


MINUTE_US = 60_000_000


def rate_of(limit: int, full_at_us: int, now_us: int) -> Rate:
    """What is left of a rate whose use is worn off at `full_at_us`.

    A rate of `limit` a minute is kept as one time: each use moves it on by 60 s / limit (GCRA).
    """
    used_us = max(full_at_us - now_us, 0)
    remaining = max(MINUTE_US - used_us, 0) * limit // MINUTE_US
    return Rate(limit, remaining, used_us / 1_000_000)
