"""Books that cannot be read: who is known and not metered may be let in, for as long as this process is told."""

import asyncio

import pytest

from serving.accounts.keys import Keyring
from serving.core import Caller
from serving.errors import Overloaded, Unauthenticated
from tests.accounts.shelf import PLANS, Clock, Radio, Shelf, opens, process, refusal
from tests.service import until

AWAY_S = 60.0


@pytest.fixture
def keyring(shelf: Shelf, clock: Clock, radio: Radio) -> Keyring:
    return process(shelf, clock, radio, away_s=AWAY_S)


async def known(keyring: Keyring, shelf: Shelf, account: str = "bob", cap: int | None = None) -> str:
    """A key that has been used."""
    await shelf.open_account(account, "free" if account == "alice" else "unlimited")
    text, _ = await keyring.create("laptop", account, cap=cap)
    await opens(keyring, text)
    return text


async def test_who_is_known_is_let_in_until_the_time_is_over(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    text = await known(keyring, shelf)
    shelf.away = True
    clock.now_s += AWAY_S - 0.1
    caller = await opens(keyring, text)
    assert caller == Caller("bob", caller.key_id, PLANS["unlimited"])
    clock.now_s += 0.1
    assert isinstance(await refusal(keyring, text), Overloaded)


async def test_the_time_begins_with_the_books_last_word(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    text = await known(keyring, shelf)
    for _ in range(2):
        shelf.away = True
        clock.now_s += AWAY_S - 0.1
        await opens(keyring, text)
        shelf.away = False
        await opens(keyring, text)


async def test_the_others_are_not(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    metered, capped = await known(keyring, shelf, "alice"), await known(keyring, shelf, cap=1_000_000)
    unknown, _ = await keyring.create("laptop", "bob")
    shelf.away = True
    clock.now_s += 1.0
    for text in (metered, capped, unknown):
        assert isinstance(await refusal(keyring, text), Overloaded)


async def test_nobody_is_unless_it_is_told(shelf: Shelf, clock: Clock, radio: Radio) -> None:
    keyring = process(shelf, clock, radio)
    text = await known(keyring, shelf)
    shelf.away = True
    clock.now_s += 1.0
    assert isinstance(await refusal(keyring, text), Overloaded)


async def test_a_change_that_was_heard_of_counts_for_more(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    revoked, changed, other = [await known(keyring, shelf, account) for account in ("bob", "zoe", "eve")]
    key_id = (await opens(keyring, revoked)).key_id
    shelf.away = True
    keyring.forget(f"key:{key_id}")
    keyring.forget("account:zoe")
    assert isinstance(await refusal(keyring, revoked), Overloaded)
    assert isinstance(await refusal(keyring, changed), Overloaded)
    assert (await opens(keyring, other)).account == "eve"


async def test_messages_that_may_have_been_missed_change_nothing(keyring: Keyring, shelf: Shelf) -> None:
    """A store that loads its data takes listeners already."""
    text = await known(keyring, shelf)
    shelf.away = True
    keyring.forget("")
    assert (await opens(keyring, text)).account == "bob"
    shelf.away = False
    await shelf.revoke_key("bob", (await shelf.keys("bob"))[0].id)
    assert isinstance(await refusal(keyring, text), Unauthenticated), "the books are read as soon as they can be"


@pytest.mark.parametrize("message", ["", "account:another"])
async def test_what_the_books_said_last_counts_even_when_it_is_not_remembered(
    keyring: Keyring, shelf: Shelf, clock: Clock, message: str
) -> None:
    """A message came while they were read: what they said may be older than that, and what they had said before is."""
    text = await known(keyring, shelf)
    await shelf.revoke_key("bob", (await shelf.keys("bob"))[0].id)
    clock.now_s += 1.0
    shelf.door.clear()
    searches = shelf.searches
    asking = asyncio.create_task(refusal(keyring, text))
    await until(lambda: shelf.searches > searches)
    keyring.forget(message)
    shelf.door.set()
    assert isinstance(await asking, Unauthenticated)
    shelf.away = True
    assert isinstance(await refusal(keyring, text), Overloaded)


async def test_a_key_expires_all_the_same(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    text, _ = await keyring.create("laptop", "bob", expires_ms=clock.unix_ms() + 10_000)
    await opens(keyring, text)
    shelf.away = True
    clock.now_s += 10
    assert isinstance(await refusal(keyring, text), Unauthenticated)


async def test_a_configured_key_is_let_in_as_well(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    await keyring.adopt("sk-chosen-by-the-operator", "bob", "unlimited")
    shelf.away = True
    clock.now_s += 1.0
    assert (await opens(keyring, "sk-chosen-by-the-operator")).account == "bob"
