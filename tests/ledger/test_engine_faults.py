"""Engines that fail, and a client that falls silent: what was emitted is billed once, and nothing is held."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.fault_proxy import FaultProxy
from loadtests.ledger_chaos import PLENTY
from loadtests.ledger_world import Answer, Audit, Front, World, world
from serving.core import Delta, Event, Finished, PreparedRequest, Usage
from serving.engine.base import Engine
from serving.engine.scripted import ScriptedEngine
from tests.ledger.test_faults import pace, served, streams
from tests.service import until

STREAMS, TOKENS, TOLD = 10, 60, 5


def speech(request: PreparedRequest) -> list[str]:
    return ["word "] * TOKENS


async def pace_and_stop(request: PreparedRequest, number: int) -> None:
    """It hangs for good when it has said so many words."""
    await (asyncio.Event().wait() if number == TOLD else pace(request, number))


class Unruly(ScriptedEngine):
    """Breaks a promise of the Engine port in every generation: `rule` changes its events."""

    def __init__(self, rule: Callable[[AsyncGenerator[Event, None]], AsyncGenerator[Event, None]]) -> None:
        super().__init__(speech, gate=pace, vocab_size=3000)
        self._rule = rule

    def generate(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        return self._rule(super().generate(request))


async def deaf(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """An abort is ignored: it goes on."""
    try:
        async for event in events:
            yield event
    except GeneratorExit:
        yield Delta(0, "more", (1,))
    finally:
        await events.aclose()


async def never_finished(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    async for event in events:
        if not isinstance(event, Finished):
            yield event


async def counts_nothing(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """What it says it used is nothing at all."""
    async for event in events:
        yield replace(event, usage=Usage()) if isinstance(event, Finished) else event


async def says_nothing(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    async for event in events:
        if not isinstance(event, Delta):
            yield event


@asynccontextmanager
async def playing(folder: Path, engine: Engine) -> AsyncIterator[tuple[World, Front]]:
    async with world(folder) as stage:
        await stage.furnish(PLENTY)
        async with served(stage, stage.redis.url, engine) as front:
            yield stage, front


async def all_streams(stage: World, front: Front, leave_after: int | None = None) -> list[Answer]:
    asked = (stage.generate(front, f"Stream {n}", TOKENS, leave_after=leave_after) for n in range(STREAMS))
    return await asyncio.gather(*asked)


def adds_up(told: Audit) -> None:
    assert (told.held, told.running, told.drift, told.duplicates, told.unapplied, told.difference) == (0,) * 6
    assert told.requests == STREAMS
    assert told.spent > 0


async def test_an_engine_that_crashes_in_mid_stream(tmp_path: Path) -> None:
    engine = ScriptedEngine(speech, gate=pace_and_stop, vocab_size=3000)
    async with playing(tmp_path, engine) as (stage, front):
        asking = await streams(stage, front, STREAMS)
        engine.die()
        answers = await asking
        told = await stage.audit()
    assert all(answer.status == 200 and not answer.whole for answer in answers)
    adds_up(told)


async def test_an_engine_that_hangs_until_the_client_leaves(tmp_path: Path) -> None:
    async with playing(tmp_path, ScriptedEngine(speech, gate=pace_and_stop, vocab_size=3000)) as (stage, front):
        await all_streams(stage, front, leave_after=TOLD)
        told = await stage.audit()
    adds_up(told)
    assert told.emitted == STREAMS * TOLD


@pytest.mark.parametrize(
    ("rule", "leave_after", "emitted"),
    [
        (deaf, TOLD, None),
        (never_finished, None, STREAMS * TOKENS),
        (counts_nothing, None, STREAMS * TOKENS),
        (says_nothing, None, 0),
    ],
)
async def test_an_engine_that_breaks_its_promises(
    rule: Callable[[AsyncGenerator[Event, None]], AsyncGenerator[Event, None]],
    leave_after: int | None,
    emitted: int | None,
    tmp_path: Path,
) -> None:
    """Billed is what came out of it, whatever it says of that."""
    async with playing(tmp_path, Unruly(rule)) as (stage, front):
        await all_streams(stage, front, leave_after)
        told = await stage.audit()
    adds_up(told)
    assert emitted is None or told.emitted == emitted


async def test_a_client_that_is_gone_without_a_word(tmp_path: Path) -> None:
    """Its machine lost power: the connection stays, and nobody reads. The generation ends, and is paid."""
    engine = ScriptedEngine(speech, gate=pace, vocab_size=3000)
    async with playing(tmp_path, engine) as (stage, front), FaultProxy(f"redis://127.0.0.1:{front.port}") as proxy:
        far = replace(front, port=int(proxy.url.rpartition(":")[2]))
        asking = asyncio.create_task(all_streams(stage, far))
        await until(lambda: engine.unfinished == STREAMS)
        proxy.hang()
        told = await stage.audit()
        adds_up(told)
        assert told.emitted == STREAMS * TOKENS
        asking.cancel()
