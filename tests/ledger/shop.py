"""A ledger in memory as the example tests use it: accounts with one key each, and time that stands until moved."""

from dataclasses import dataclass, field

from serving.core import Caller, Hold, Plan, Price, Usage
from serving.ledger.base import Account, Grant, Key
from serving.ledger.memory import MemoryLedger
from tests.ledger.subjects import LEASE_S, Clock

EACH = Price(1000, 500, 1000)
"""A token costs a microcredit, a cached one half of it."""
BOUGHT, OPEN = Plan("bought", monthly_credits=0), Plan("open")
SECOND_US = 1_000_000


@dataclass
class Shop:
    """A ledger in memory, with a clock that stands, and what a test does with it."""

    clock: Clock = field(default_factory=Clock)
    remember_s: float = 86_400.0

    def __post_init__(self) -> None:
        self.books = MemoryLedger(self.clock, LEASE_S, self.remember_s)

    async def open(self, name: str, plan: Plan, *, credit: int = 0, cap: int | None = None) -> Caller:
        await self.books.open_account(name, plan.id)
        if credit:
            await self.books.grant(name, Grant("bought", credit))
        await self.books.add_key(Key(f"key_{name}", name, "a key", "sk-", f"digest of {name}", cap=cap))
        return Caller(name, f"key_{name}", plan)

    async def hold(self, caller: Caller, request_id: str = "r", prompt: int = 10, completion: int = 10) -> Hold:
        return await self.books.hold(caller, request_id, "m", EACH, Usage(prompt, 0, completion))

    async def account(self, name: str = "ann") -> Account:
        account = await self.books.account(name)
        assert account is not None
        return account

    async def posted(self, name: str = "ann") -> list[tuple[str, int, int]]:
        return [(one.kind, one.amount, one.cost) async for one in self.books.postings(name)]

    def wait(self, seconds: float) -> None:
        self.clock.now_us += round(seconds * SECOND_US)
