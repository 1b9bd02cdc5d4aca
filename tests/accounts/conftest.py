"""One clock, its books with four accounts, the channel of changes, and the keys of one process."""

import pytest

from serving.accounts.keys import Keyring
from tests.accounts.shelf import Clock, Radio, Shelf, process


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def shelf(clock: Clock) -> Shelf:
    books = Shelf(clock)
    for account, plan in (("alice", "free"), ("bob", "unlimited"), ("rita", "reader"), ("olaf", "of old")):
        await books.open_account(account, plan)
    return books


@pytest.fixture
def radio() -> Radio:
    return Radio()


@pytest.fixture
def keyring(shelf: Shelf, clock: Clock, radio: Radio) -> Keyring:
    """The keys of one process."""
    return process(shelf, clock, radio)
