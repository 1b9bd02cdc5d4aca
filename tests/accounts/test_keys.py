"""API keys: kept as hashes, recognised, restricted, revoked; read at most once a second, and once for all who ask."""

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.accounts import keys
from serving.accounts.keys import KEY_PREFIX, Keyring, Recent
from serving.core import Caller
from serving.errors import Forbidden, NotFound, Overloaded, Unauthenticated
from serving.ledger.base import account_tag
from tests.accounts.shelf import PLANS, Clock, Radio, Shelf, opens, process, refusal

# ---- who calls -------------------------------------------------------------------------------------------------------


async def test_a_key_opens_its_account(keyring: Keyring) -> None:
    text, key = await keyring.create("laptop", "alice")
    caller = await opens(keyring, text)
    assert caller == Caller("alice", key.id, PLANS["free"])
    assert caller.may_use("any model")


async def test_texts_and_ids_carry_the_accounts_tag(keyring: Keyring) -> None:
    text, key = await keyring.create("laptop", "alice")
    tag = account_tag("alice")
    assert re.fullmatch(f"{KEY_PREFIX}{tag}[a-z2-7]{{32}}", text)
    assert re.fullmatch(f"key_{tag}_[0-9a-f]{{10}}", key.id)
    assert key.shown == text[: len(KEY_PREFIX) + 6] + "..."


async def test_every_key_is_another(keyring: Keyring, shelf: Shelf) -> None:
    made = [await keyring.create(name, "alice") for name in "abc"]
    assert len({text for text, _ in made} | {key.id for _, key in made} | {key.digest for _, key in made}) == 9
    assert {key.id for key in await shelf.keys("alice")} == {key.id for _, key in made}


async def test_the_books_hold_no_key_and_open_nothing(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    text, key = await keyring.create("laptop", "alice")
    assert text[len(KEY_PREFIX) + 6 :] not in repr(await shelf.keys("alice"))
    other = process(shelf, clock, Radio(), b"another pepper")
    for rubbish in (text, key.digest):
        assert isinstance(await refusal(other, rubbish), Unauthenticated)
    assert isinstance(await refusal(keyring, key.digest), Unauthenticated)


async def test_restricted_models(keyring: Keyring) -> None:
    text, _ = await keyring.create("laptop", "alice", ("opus-v1-sm",), 5_000_000)
    caller = await opens(keyring, text)
    assert caller.may_use("opus-v1-sm")
    assert not caller.may_use("opus-v1-xl")


async def test_a_key_of_no_account_cannot_be_made(keyring: Keyring) -> None:
    with pytest.raises(NotFound):
        await keyring.create("laptop", "nobody")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic x", "x", "Bearer é\xff"])
async def test_headers_that_are_no_key(keyring: Keyring, shelf: Shelf, header: str | None) -> None:
    with pytest.raises(Unauthenticated) as error:
        await keyring.authenticate(header)
    assert "é" not in error.value.message
    assert shelf.searches == 0


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=255), min_size=1))
async def test_what_has_not_the_form_of_a_key_is_not_looked_for(text: str) -> None:
    clock = Clock()
    shelf = Shelf(clock)
    with pytest.raises(Unauthenticated):
        await process(shelf, clock, Radio()).authenticate(f"Bearer {text}")
    assert shelf.searches == 0


async def test_an_expired_key_is_refused_from_its_time_on(keyring: Keyring, clock: Clock) -> None:
    text, _ = await keyring.create("laptop", "alice", expires_ms=clock.unix_ms() + 500)
    clock.now_s += 0.499
    await opens(keyring, text)
    clock.now_s += 0.001
    error = await refusal(keyring, text)
    assert isinstance(error, Unauthenticated)
    assert "expired" in error.message


async def test_a_suspended_account_is_forbidden(keyring: Keyring, shelf: Shelf) -> None:
    text, _ = await keyring.create("laptop", "alice")
    await shelf.change_account("alice", state="suspended")
    error = await refusal(keyring, text)
    assert isinstance(error, Forbidden)
    assert "suspended" in error.message


async def test_a_plan_without_the_api_is_forbidden(keyring: Keyring) -> None:
    text, _ = await keyring.create("laptop", "rita")
    error = await refusal(keyring, text)
    assert isinstance(error, Forbidden)
    assert "reader" in error.message


async def test_a_plan_nobody_knows_is_forbidden_and_logged(keyring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    text, _ = await keyring.create("laptop", "olaf")
    assert isinstance(await refusal(keyring, text), Forbidden)
    assert "of old" in caplog.text
    assert text not in caplog.text


# ---- reading ---------------------------------------------------------------------------------------------------------


async def test_an_answer_is_used_for_less_than_a_second(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    text, key = await keyring.create("laptop", "alice")
    await opens(keyring, text)
    await shelf.revoke_key("alice", key.id)  # and nobody tells
    clock.now_s += 0.999
    await opens(keyring, text)
    assert shelf.searches == 1
    clock.now_s += 0.001
    assert "revoked" in (await refusal(keyring, text)).message
    assert shelf.searches == 2


async def test_a_second_begins_when_the_books_are_asked(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    text, key = await keyring.create("laptop", "alice")
    shelf.door.clear()
    asking = asyncio.create_task(opens(keyring, text))
    while not shelf.searches:  # noqa: ASYNC110  # until it stands before the door
        await asyncio.sleep(0)
    await shelf.revoke_key("alice", key.id)
    clock.now_s += 0.6
    shelf.door.set()
    await asking
    clock.now_s += 0.4
    await refusal(keyring, text)


async def test_a_key_that_is_none_is_remembered_as_long(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    text = f"{KEY_PREFIX}00{'a' * 32}"
    for searches, later_s in ((1, 0.999), (1, 0.001), (2, 0.0)):
        assert "not valid" in (await refusal(keyring, text)).message
        assert shelf.searches == searches
        clock.now_s += later_s


async def test_a_key_made_elsewhere_is_known_within_a_second(
    keyring: Keyring, shelf: Shelf, clock: Clock, radio: Radio
) -> None:
    there = process(shelf, clock, radio)
    text, _ = await there.create("laptop", "alice")
    await shelf.revoke_key("alice", (await opens(keyring, text)).key_id)
    text, _ = await there.create("phone", "alice")
    await opens(keyring, text)


async def test_rubbish_fills_no_memory_and_pushes_no_key_out(
    keyring: Keyring, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = await keyring.create("laptop", "alice")
    await opens(keyring, text)
    for number in range(keys._MOST_MISSES + 10):
        digits = "".join("abcdefghijklmnopqrstuvwxyz234567"[(number >> shift) & 31] for shift in (15, 10, 5, 0))
        await refusal(keyring, f"{KEY_PREFIX}00{digits * 8}")
    assert len(keyring._misses) == keys._MOST_MISSES
    searches = shelf.searches
    await opens(keyring, text)
    assert shelf.searches == searches


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers())), st.integers(1, 4))
def test_recent_entries_are_those_set_last(entries: list[tuple[str, int]], most: int) -> None:
    recent: Recent[int] = Recent(most)
    for name, value in entries:
        recent[name] = value
    last = dict(entries)
    by_last_set = sorted(last, key=lambda name: max(i for i, entry in enumerate(entries) if entry[0] == name))
    assert list(recent) == by_last_set[-most:]
    assert all(recent[name] == last[name] for name in recent)


async def test_those_who_ask_at_once_share_one_search(keyring: Keyring, shelf: Shelf) -> None:
    text, key = await keyring.create("laptop", "alice")
    callers = await asyncio.gather(*(opens(keyring, text) for _ in range(50)))
    assert {caller.key_id for caller in callers} == {key.id}
    assert shelf.searches == 1
    assert not keyring._reading


async def test_who_leaves_takes_nobody_along(keyring: Keyring, shelf: Shelf) -> None:
    text, _ = await keyring.create("laptop", "alice")
    shelf.door.clear()
    first, second = (asyncio.create_task(opens(keyring, text)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    shelf.door.set()
    assert (await second).account == "alice"
    assert shelf.searches == 1


async def test_books_that_are_away_are_told_and_not_remembered(keyring: Keyring, shelf: Shelf) -> None:
    text, _ = await keyring.create("laptop", "alice")
    shelf.away = True
    told = await asyncio.gather(*(opens(keyring, text) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [Overloaded] * 3
    shelf.away = False
    assert (await opens(keyring, text)).account == "alice"


async def test_a_failure_that_nobody_waits_for_is_no_warning(keyring: Keyring, shelf: Shelf) -> None:
    text, _ = await keyring.create("laptop", "alice")
    shelf.away = True
    shelf.door.clear()
    asking = asyncio.create_task(opens(keyring, text))
    await asyncio.sleep(0)
    asking.cancel()
    shelf.door.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    while keyring._reading:  # noqa: ASYNC110  # until the search itself has failed
        await asyncio.sleep(0)


# ---- changes ---------------------------------------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_at_once_where_it_is_heard(
    keyring: Keyring, shelf: Shelf, clock: Clock, radio: Radio
) -> None:
    there = process(shelf, clock, radio)
    radio.listeners = [there]
    text, key = await keyring.create("laptop", "alice")
    other, _ = await keyring.create("phone", "alice")
    for ring in (keyring, there):
        await opens(ring, text)
        await opens(ring, other)
    searches = shelf.searches
    assert (await keyring.revoke("alice", key.id)).revoked_ms
    assert radio.said == [f"key:{key.id}"]
    for ring in (keyring, there):
        assert "revoked" in (await refusal(ring, text)).message
        await opens(ring, other)
    assert shelf.searches == searches + 2


async def test_a_changed_account_is_read_again(keyring: Keyring, shelf: Shelf) -> None:
    alice, _ = await keyring.create("laptop", "alice")
    bob, _ = await keyring.create("laptop", "bob")
    await opens(keyring, alice)
    await opens(keyring, bob)
    await shelf.change_account("alice", plan="unlimited")
    assert (await opens(keyring, alice)).plan.id == "free"
    keyring.forget("account:alice")
    assert (await opens(keyring, alice)).plan.id == "unlimited"
    await opens(keyring, bob)
    assert shelf.searches == 3


@pytest.mark.parametrize("message", ["", "key:{}", "account:alice"])
@pytest.mark.parametrize("others", [0, 1])
async def test_what_was_asked_before_a_change_is_not_remembered(
    keyring: Keyring, shelf: Shelf, message: str, others: int
) -> None:
    text, key = await keyring.create("laptop", "alice")
    shelf.door.clear()
    early = asyncio.create_task(opens(keyring, text))
    while not shelf.searches:  # noqa: ASYNC110  # until it stands before the door
        await asyncio.sleep(0)
    await shelf.revoke_key("alice", key.id)
    keyring.forget(message.format(key.id))
    late = [asyncio.create_task(refusal(keyring, text)) for _ in range(others)]
    shelf.door.set()
    await asyncio.gather(early, *late)
    await refusal(keyring, text)


async def test_an_empty_message_forgets_all_and_others_nothing(keyring: Keyring, shelf: Shelf) -> None:
    text, _ = await keyring.create("laptop", "alice")
    rubbish = f"{KEY_PREFIX}00{'a' * 32}"
    for message, searches in (("plan:free", 2), ("key:", 2), ("key:key_00_none", 2), ("account:", 2), ("", 4)):
        await opens(keyring, text)
        await refusal(keyring, rubbish)
        keyring.forget(message)
        await opens(keyring, text)
        await refusal(keyring, rubbish)
        assert shelf.searches == searches


async def test_fresh_is_what_the_books_say_now(keyring: Keyring, shelf: Shelf) -> None:
    text, key = await keyring.create("laptop", "alice")
    caller = await opens(keyring, text)
    await shelf.change_account("alice", plan="unlimited")
    changed = await keyring.fresh(caller)
    assert changed == Caller("alice", key.id, PLANS["unlimited"])
    assert await opens(keyring, text) == changed
    assert shelf.searches == 2
    await shelf.change_account("alice", state="suspended")
    with pytest.raises(Forbidden):
        await keyring.fresh(changed)


async def test_fresh_finds_a_key_it_has_forgotten(keyring: Keyring, shelf: Shelf, clock: Clock, radio: Radio) -> None:
    text, _ = await keyring.create("laptop", "alice")
    caller = await opens(keyring, text)
    there = process(shelf, clock, radio)
    assert await there.fresh(caller) == caller
    with pytest.raises(Unauthenticated):
        await there.fresh(Caller("alice", "key_00_none"))
