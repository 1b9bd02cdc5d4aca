"""The books open beside everything else: late, never, or again; and they are closed last."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serving.accounts.keys import DEMO_ACCOUNT
from serving.app import Service, build
from serving.engine.base import Engine
from serving.engine.scripted import ScriptedEngine
from serving.errors import Overloaded
from serving.ledger.memory import MemoryLedger
from serving.ledger.open import Opened
from serving.settings import Settings, SettingsError
from tests.service import DEADLINE_S, KEY, Door, bearer, client_of, settings

Opening = Callable[[], Awaitable[None]]


class Books:
    """Books in memory that do `first` before they open. `history`: what became of them."""

    def __init__(self, first: Opening) -> None:
        self.first = first
        self.history: list[str] = []

    @asynccontextmanager
    async def open(self, _: Settings) -> AsyncIterator[Opened]:
        await self.first()
        ledger = MemoryLedger()
        self.history.append("opened")
        try:
            yield Opened(ledger, ledger, None)
        finally:
            self.history.append("closed")


async def at_once() -> None:
    """Opens without waiting."""


async def load() -> Engine:
    return ScriptedEngine()


@asynccontextmanager
async def backed(tmp_path: Path, books: Books) -> AsyncIterator[tuple[Service, Callable[[str], Awaitable[int]]]]:
    """The service, and what an address answers."""
    configured = settings(tmp_path)
    service = build(configured, {model.id: load for model in configured.models}, open_books=books.open)
    async with client_of(service) as client:

        async def status(path: str) -> int:
            return (await client.get(path, headers=bearer(KEY))).status_code

        async with service.app.router.lifespan_context(service.app), asyncio.timeout(DEADLINE_S):
            yield service, status


async def test_health_is_answered_while_the_books_open(tmp_path: Path) -> None:
    door = Door()
    books = Books(door.wait)
    async with backed(tmp_path, books) as (service, status):
        await door.knocked.wait()
        asked = [await status(path) for path in ("/health/live", "/health/ready", "/v1/models", "/api/v1/key")]
        assert asked == [200, 503, 503, 503]
        assert {service.engines.state(model) for model in service.engines.models} == {"loading"}
        door.opened.set()
        await service.backing.wait_open()
        await service.engines.wait_loaded()
        asked = [await status(path) for path in ("/health/live", "/health/ready", "/v1/models", "/api/v1/key")]
        assert asked == [200, 200, 200, 200]
    assert books.history == ["opened", "closed"]
    assert service.backing.state == "closed"


async def test_the_configured_key_has_its_account_at_the_start(tmp_path: Path) -> None:
    async with backed(tmp_path, Books(at_once)) as (service, _):
        backing = service.backing
        await backing.wait_open()
        assert backing.opened is not None
        account = await backing.opened.books.account(DEMO_ACCOUNT)
        assert account is not None
        assert account.plan == "unlimited"


async def test_a_store_that_is_away_is_asked_again(tmp_path: Path) -> None:
    asked = 0

    async def away_once() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Overloaded("The store is away.")

    async with backed(tmp_path, Books(away_once)) as (service, status):
        backing = service.backing
        await backing.wait_open()
        assert (asked, backing.state, await status("/v1/models")) == (2, "open", 200)


async def test_books_that_cannot_be_opened_are_said_to_have_failed(tmp_path: Path) -> None:
    async def broken() -> None:
        raise ValueError("the address is wrong")

    async with backed(tmp_path, Books(broken)) as (service, status):
        backing = service.backing
        assert "the address is wrong" in await backing.wait_failed()
        assert backing.state == "failed"
        assert [await status(path) for path in ("/health/live", "/health/ready", "/v1/models")] == [200, 503, 503]


async def test_a_server_that_stops_does_not_wait_for_books(tmp_path: Path) -> None:
    door = Door()
    books = Books(door.wait)
    async with backed(tmp_path, books) as (service, _):
        backing = service.backing
        await door.knocked.wait()
        await backing.close()
    assert (books.history, backing.state) == ([], "closed")


async def test_open_books_do_not_fail_by_themselves(tmp_path: Path) -> None:
    async with backed(tmp_path, Books(at_once)) as (service, _):
        backing = service.backing
        failing = asyncio.create_task(backing.wait_failed())
        await backing.wait_open()
        await asyncio.sleep(0)
        assert not failing.done()
        failing.cancel()


@pytest.mark.parametrize("plans", [None, "nonsense ="])
def test_plans_that_cannot_be_used_are_told_at_once(tmp_path: Path, plans: str | None) -> None:
    path = tmp_path / "plans.toml"
    if plans:
        path.write_text(plans)
    with pytest.raises(SettingsError, match=r"plans\.toml"):
        build(settings(tmp_path, plans=path), {})


def test_a_plan_of_the_demo_account_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="golden"):
        build(settings(tmp_path, demo_plan="golden"), {})
    build(settings(tmp_path, demo_plan="golden", demo_account=False), {})
