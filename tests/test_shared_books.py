"""Two of our processes on one Redis: what one changes, the other keeps, and neither loses what the other began."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.accounts.admin import Admin
from serving.accounts.keys import DEMO_ACCOUNT
from serving.accounts.plans import load_plans
from serving.app import Service, build
from serving.core import Usage
from serving.dialects.base import Backend
from serving.engine.scripted import ScriptedEngine
from serving.ledger.base import Key
from tests.dialects.adapters import ADAPTERS
from tests.dialects.test_connections import Gate, endless
from tests.ledger.servers import VERSIONS, RedisServer, binary
from tests.ledger.servers import running as running_redis
from tests.service import DEADLINE_S, KEY, PLANS, PRICE, SM, Stage, bearer, client_of, settings, until

CHAT = ADAPTERS["openai chat.completions"]


@dataclass
class Process:
    """One of several processes that share a store."""

    service: Service
    client: httpx.AsyncClient
    stage: Stage

    @property
    def backend(self) -> Backend:
        return self.service.backing.backend()

    @property
    def admin(self) -> Admin:
        return Admin(self.backend.books, self.backend.keys, load_plans(PLANS))

    async def ask(self, key: str, *, stream: bool = False) -> httpx.Response:
        return await self.client.post(CHAT.path, json=CHAT.body(stream=stream), headers=bearer(key))

    async def held(self, key: Key) -> tuple[int, int]:
        """Microcredits held, and requests running, of the key's account."""
        account = await self.backend.books.account(key.account)
        assert account is not None
        return account.held, account.running


@asynccontextmanager
async def process(data_dir: Path, url: str) -> AsyncIterator[Process]:
    configured = settings(data_dir, redis_url=url, key_pepper="pepper")
    stage = Stage()

    async def load() -> Stage:
        return stage

    service = build(configured, {model.id: load for model in configured.models})
    async with service.app.router.lifespan_context(service.app), client_of(service) as client:
        async with asyncio.timeout(DEADLINE_S):
            await service.engines.wait_loaded()
            await service.backing.wait_open()
        yield Process(service, client, stage)


@pytest.fixture(params=VERSIONS)
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(binary(request.param), tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def two(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        opening = [process(tmp_path / name, redis_server.url) for name in ("one", "other")]
        yield list(await asyncio.gather(*(stack.enter_async_context(each) for each in opening)))


async def new_key(of: Process, plan: str, account: str = "mara") -> tuple[str, Key]:
    await of.admin.create_account(account, plan)
    return await of.admin.create_key("a key", account)


async def charges(of: Process, key: Key) -> list[tuple[str, int]]:
    found = [posting async for posting in of.backend.books.postings(key.account)]
    return [(posting.reason, posting.usage.completion_tokens) for posting in found if posting.kind == "charge"]


async def test_the_configured_key_opens_both(two: list[Process]) -> None:
    answers = [CHAT.read((await each.ask(KEY)).text) for each in two]
    assert all(answer.done for answer in answers)
    cost = sum(PRICE.cost(Usage(answer.prompt_tokens, 0, answer.completion_tokens)) for answer in answers)
    for each in two:
        account = await each.backend.books.account(DEMO_ACCOUNT)
        assert account is not None
        assert (account.used, account.held, account.running) == (cost, 0, 0)


@pytest.mark.parametrize("end", ["revoke", "suspend"])
async def test_what_one_process_ends_the_other_ends_within_a_second(two: list[Process], end: str) -> None:
    one, other = two
    gate = Gate(2)
    other.stage.engine = ScriptedEngine(endless, gate=gate)
    key, record = await new_key(one, "metered")
    asking = asyncio.create_task(other.ask(key, stream=True))
    await gate.door.knocked.wait()
    assert (await one.held(record))[1] == 1
    async with asyncio.timeout(1):
        if end == "revoke":
            await one.backend.keys.revoke(record.account, record.id)
        else:
            await one.admin.set_state(record.account, "suspended")
        answer = CHAT.read((await asking).text)
    assert answer.text == "word word "
    assert answer.error is not None
    assert not answer.done
    assert await one.held(record) == (0, 0)
    assert await charges(one, record) == [("revoked", 2)]
    refused = await other.ask(key)
    assert refused.status_code == (401 if end == "revoke" else 403)


async def test_a_key_stops_its_generations_in_both(two: list[Process]) -> None:
    one, other = two
    gate = Gate(2)
    other.stage.engine = ScriptedEngine(endless, gate=gate)
    key, record = await new_key(one, "metered")
    asking = asyncio.create_task(other.ask(key, stream=True))
    await gate.door.knocked.wait()
    await one.client.post("/v1/internal/stop-generation", headers=bearer(key))
    await until(lambda: all(running.stopped for running in other.backend.pipeline._running[record.id]))
    gate.door.opened.set()
    answer = CHAT.read((await asking).text)
    assert (answer.text, answer.reason, answer.done) == ("word word word ", "stop", True)
    assert await charges(one, record) == [("finish", 3)]


async def test_a_new_plan_holds_in_both_at_once(two: list[Process]) -> None:
    one = two[0]
    key, record = await new_key(one, "broke")
    assert [(await each.ask(key)).status_code for each in two] == [402, 402]
    await one.backend.books.change_account(record.account, plan="short")  # and nobody is told
    for each in two:
        each.stage.engine = ScriptedEngine(endless)
        assert CHAT.read((await each.ask(key)).text).completion_tokens == 3


async def test_the_pages_tell_the_same_in_both(two: list[Process]) -> None:
    one, other = two
    key, _ = await new_key(one, "metered")
    told = CHAT.read((await one.ask(key)).text)
    tokens = told.prompt_tokens + told.completion_tokens
    cost = PRICE.cost(Usage(told.prompt_tokens, 0, told.completion_tokens)) / 1_000_000
    for each in (one, other):

        async def get(path: str, of: Process = each) -> dict[str, Any]:
            found: dict[str, Any] = (await of.client.get(path, headers=bearer(key))).json()
            return found

        page = await get("/api/v1/key")
        assert (page["remaining"], page["usage"]["today"], page["key"]["used"]) == (1 - cost, cost, cost)
        assert (await get("/v1/billing/usage"))["total_usage"] == tokens
        costs = await get("/v1/dashboard/billing/usage")
        assert costs["total_usage"] == pytest.approx(100 * cost)
        assert [item["name"] for item in costs["daily_costs"][0]["line_items"]] == [SM]
        assert (await get("/v1/dashboard/billing/subscription"))["hard_limit_usd"] == 1


async def test_a_store_that_goes_away_costs_nobody_anything(two: list[Process], redis_server: RedisServer) -> None:
    """New work is refused at once, what runs is finished, and is charged when the store is back."""
    one, _ = two
    gate = Gate(1)
    one.stage.engine = ScriptedEngine(lambda request: ["Once", " upon"], gate=gate)
    key, record = await new_key(one, "metered")
    running = asyncio.create_task(one.ask(key))
    await gate.door.knocked.wait()
    redis_server.kill()
    refused = await one.ask(key)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (await one.client.get("/health/live")).status_code == 200
    gate.door.opened.set()
    assert CHAT.read((await running).text).text == "Once upon"
    redis_server.start()

    await until_answered(one, key)
    await until_charged(one, record, [("finish", 2)])
    assert await one.held(record) == (0, 0)


async def until_answered(of: Process, key: str) -> None:
    """Ask for the key's page until the store is back."""
    async with asyncio.timeout(DEADLINE_S):
        while (await of.client.get("/api/v1/key", headers=bearer(key))).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_charged(of: Process, key: Key, expected: list[tuple[str, int]]) -> None:
    """Look until the outbox was sent: nothing of ours tells of it."""
    async with asyncio.timeout(DEADLINE_S):
        while await charges(of, key) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_what_runs_when_a_process_stops_is_charged(redis_server: RedisServer, tmp_path: Path) -> None:
    gate = Gate(3)
    async with process(tmp_path / "one", redis_server.url) as one:
        one.stage.engine = ScriptedEngine(endless, gate=gate)
        key, record = await new_key(one, "metered")
        running = asyncio.create_task(one.ask(key))
        await gate.door.knocked.wait()
        await until(lambda: one.service.admission.running_choices == 1)
        running.cancel()
        await asyncio.wait({running})
    async with process(tmp_path / "other", redis_server.url) as other:
        assert await charges(other, record) == [("disconnect", 3)]
        assert await other.held(record) == (0, 0)
