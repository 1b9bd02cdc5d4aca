"""Running requests end within a second once their key is revoked or expired, or their account suspended."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from serving.accounts.keys import Keyring
from serving.core import Caller
from serving.errors import Forbidden, ServingError, Unauthenticated
from tests.accounts.shelf import Clock, Radio, Shelf, process

DEADLINE_S = 10.0
NEVER_S = 3600.0

Change = Callable[[Shelf, Caller], Awaitable[object]]


async def revoke(shelf: Shelf, caller: Caller) -> None:
    await shelf.revoke_key(caller.account, caller.key_id)


async def suspend(shelf: Shelf, caller: Caller) -> None:
    await shelf.change_account(caller.account, state="suspended")


@asynccontextmanager
async def patrolling(keyring: Keyring, period_s: float) -> AsyncIterator[None]:
    patrol = asyncio.create_task(keyring.patrol(period_s))
    try:
        yield
    finally:
        patrol.cancel()
        with suppress(asyncio.CancelledError):
            await patrol


async def called(keyring: Keyring, account: str = "alice", expires_ms: int = 0) -> Caller:
    text, _ = await keyring.create("laptop", account, expires_ms=expires_ms)
    return await keyring.authenticate(f"Bearer {text}")


async def end_of(future: "asyncio.Future[ServingError]") -> ServingError:
    return await asyncio.wait_for(asyncio.shield(future), DEADLINE_S)


async def rounds(shelf: Shelf, clock: Clock, count: int = 3) -> None:
    """Let the patrol read so many times more; each time it must find its last answer old."""
    for _ in range(count):
        before = shelf.searches
        clock.now_s += 1
        while shelf.searches == before:  # noqa: ASYNC110  # until it has read again
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.mark.parametrize(("change", "error"), [(revoke, Unauthenticated), (suspend, Forbidden)])
@pytest.mark.parametrize("message", ["", "key:{0.key_id}", "account:{0.account}"])
async def test_a_message_ends_what_runs(
    keyring: Keyring, shelf: Shelf, change: Change, error: type[ServingError], message: str
) -> None:
    caller, other = await called(keyring), await called(keyring, "bob")
    async with patrolling(keyring, NEVER_S):
        with keyring.watch(caller) as one, keyring.watch(caller) as two, keyring.watch(other) as spared:
            await change(shelf, caller)
            keyring.forget(message.format(caller))
            for future in (one, two):
                assert isinstance(await end_of(future), error)
            assert one.result() is not two.result()
            assert not spared.done()


@pytest.mark.parametrize(("change", "error"), [(revoke, Unauthenticated), (suspend, Forbidden)])
async def test_it_ends_without_a_message(
    keyring: Keyring, shelf: Shelf, clock: Clock, change: Change, error: type[ServingError]
) -> None:
    caller = await called(keyring)
    async with patrolling(keyring, 0):
        with keyring.watch(caller) as ended:
            await rounds(shelf, clock)
            assert not ended.done()
            await change(shelf, caller)
            clock.now_s += 0.25
            assert isinstance(await end_of(ended), error)


async def test_it_ends_when_its_key_expires(keyring: Keyring, clock: Clock) -> None:
    caller = await called(keyring, expires_ms=clock.unix_ms() + 5_000)
    async with patrolling(keyring, 0):
        with keyring.watch(caller) as ended:
            clock.now_s += 5
            assert "expired" in (await end_of(ended)).message


async def test_a_key_that_is_not_there_any_more_ends_it(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    caller = await called(keyring)
    lost = process(Shelf(clock), clock, Radio())
    async with patrolling(lost, 0):
        with lost.watch(caller) as ended:
            assert isinstance(await end_of(ended), Unauthenticated)


async def test_a_change_of_the_plan_lets_it_go_on(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    caller = await called(keyring)
    async with patrolling(keyring, 0):
        with keyring.watch(caller) as ended:
            await shelf.change_account("alice", plan="reader")
            keyring.forget("account:alice")
            await rounds(shelf, clock)
            assert not ended.done()


async def test_while_the_books_are_away_it_goes_on(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    caller = await called(keyring)
    async with patrolling(keyring, 0):
        with keyring.watch(caller) as ended:
            await revoke(shelf, caller)
            shelf.away = True
            await rounds(shelf, clock)
            assert not ended.done()
            shelf.away = False
            await end_of(ended)


async def test_nothing_is_read_for_keys_that_run_nothing(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    idle, busy = await called(keyring), await called(keyring)
    with keyring.watch(idle) as over:
        pass
    assert over.cancelled()
    searches = shelf.searches
    async with patrolling(keyring, 0):
        with keyring.watch(busy):
            await rounds(shelf, clock)
        assert shelf.searches == searches + 3
    assert not keyring._watched


async def test_many_requests_of_a_key_are_one_reading(keyring: Keyring, shelf: Shelf, clock: Clock) -> None:
    caller = await called(keyring)
    searches = shelf.searches
    async with patrolling(keyring, 0):
        with keyring.watch(caller), keyring.watch(caller), keyring.watch(caller):
            await rounds(shelf, clock, 1)
    assert shelf.searches == searches + 1


async def test_a_patrol_spares_the_requests_of_a_busy_key_a_reading(
    keyring: Keyring, shelf: Shelf, clock: Clock
) -> None:
    text, _ = await keyring.create("laptop", "alice")
    caller = await keyring.authenticate(f"Bearer {text}")
    async with patrolling(keyring, 0):
        with keyring.watch(caller):
            await rounds(shelf, clock)
            searches = shelf.searches
            await keyring.authenticate(f"Bearer {text}")
            assert shelf.searches == searches
