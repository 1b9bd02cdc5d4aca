"""Keys and accounts in a memory that counts how often it is asked, under a clock moved by hand."""

import asyncio

import pytest

from serving.accounts.keys import Keyring
from serving.core import Caller, Plan
from serving.errors import Overloaded, ServingError
from serving.ledger.base import Account, Key
from serving.ledger.memory import MemoryLedger

PLANS = {
    "free": Plan("free", monthly_credits=20_000_000),
    "unlimited": Plan("unlimited"),
    "reader": Plan("reader", api=False),
}


class Clock:
    """One time for all: seconds since some start for caches, Unix time for the books."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s

    def unix_ms(self) -> int:
        return 1_795_000_000_000 + round(self.now_s * 1000)

    def unix_us(self) -> int:
        return self.unix_ms() * 1000


class Shelf(MemoryLedger):
    """Books that count the searches for keys. They wait before a closed `door`, and can be `away`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock.unix_us)
        self.searches = 0
        self.away = False
        self.door = asyncio.Event()
        self.door.set()

    async def find_key(self, account_tag: str, digest: str) -> tuple[Key, Account] | None:
        self.searches += 1
        found = await super().find_key(account_tag, digest)
        await self.door.wait()
        if self.away:
            raise Overloaded("The books are away.", retry_after_s=1)
        return found


class Radio:
    """The channel of changes: hands each message to all who listen, and keeps it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.listeners: list[Keyring] = []

    async def publish(self, message: str) -> None:
        self.said.append(message)
        for listener in self.listeners:
            listener.forget(message)


def process(shelf: Shelf, clock: Clock, radio: Radio, pepper: bytes = b"pepper", *, away_s: float = 0.0) -> Keyring:
    """The keys of another process on the same books, which does not hear the radio until it is put on."""
    return Keyring(
        shelf, PLANS, pepper, publish=radio.publish, away_s=away_s, clock=clock.monotonic, now_ms=clock.unix_ms
    )


async def opens(keyring: Keyring, text: str) -> Caller:
    return await keyring.authenticate(f"Bearer {text}")


async def refusal(keyring: Keyring, text: str) -> ServingError:
    with pytest.raises(ServingError) as error:
        await opens(keyring, text)
    return error.value
