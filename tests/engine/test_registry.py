"""The registry, over scripted engines."""

import asyncio

import pytest

from serving.engine.base import Engine
from serving.engine.registry import EngineRegistry, Loader, State, local
from serving.engine.scripted import ScriptedEngine
from serving.errors import Conflict, EngineFailed, Overloaded, UnknownModel
from tests.engine.harness import answer, ask


def loads(engine: Engine) -> Loader:
    async def load() -> Engine:
        return engine

    return load


def nothing() -> None:
    """For a change of which nobody is told."""


async def fails() -> Engine:
    raise OSError("no such folder: /models/x")


async def test_engines_are_loaded_one_after_another_and_told_of() -> None:
    told: list[tuple[str, State]] = []
    gate, first, second = asyncio.Event(), ScriptedEngine(), ScriptedEngine()

    async def load() -> Engine:
        await gate.wait()
        return first

    registry = EngineRegistry({"a": load, "b": loads(second)}, lambda model, state: told.append((model, state)))
    with pytest.raises(Overloaded) as loading:
        registry.get("a")
    assert loading.value.retry_after_s
    registry.start()
    registry.start()
    await asyncio.sleep(0)
    assert (registry.state("b"), registry.ready) == ("loading", False)
    gate.set()
    await registry.wait_loaded()
    assert told == [("a", "ready"), ("b", "ready")]
    assert (registry.get("a"), registry.get("b"), registry.ready) == (first, second, True)
    assert list(registry.models) == ["a", "b"]
    with pytest.raises(UnknownModel):
        registry.get("c")
    await registry.shutdown()
    await registry.shutdown()
    assert registry.state("a") == "closed"
    with pytest.raises(Overloaded):
        registry.get("a")
    with pytest.raises(EngineFailed):
        await first.check_health()


async def test_a_model_that_cannot_be_loaded_does_not_keep_the_others_from_it() -> None:
    registry = EngineRegistry({"a": fails, "b": loads(ScriptedEngine())})
    registry.start()
    assert await asyncio.wait_for(registry.wait_failed(), 5) == (
        "model a: it could not be loaded: no such folder: /models/x"
    )
    await registry.wait_loaded()
    assert not registry.ready
    with pytest.raises(EngineFailed) as failed:
        registry.get("a")
    assert "/models" not in failed.value.message
    await answer(registry.get("b"), ask())
    await registry.shutdown()


async def test_a_death_is_told_without_a_request() -> None:
    engine = ScriptedEngine()
    registry = EngineRegistry({"a": loads(engine)})
    registry.start()
    await registry.wait_loaded()
    failed = asyncio.create_task(registry.wait_failed())
    await asyncio.sleep(0)
    assert not failed.done()
    engine.die()
    assert await asyncio.wait_for(failed, 5) == "model a: its engine died"
    assert not registry.ready
    with pytest.raises(EngineFailed):
        registry.get("a")
    await registry.shutdown()


async def test_shutdown_ends_loading() -> None:
    cancelled = asyncio.Event()

    async def load() -> Engine:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    registry = EngineRegistry({"a": load})
    failed = asyncio.create_task(registry.wait_failed())
    registry.start()
    await asyncio.sleep(0)
    await registry.shutdown()
    assert cancelled.is_set()
    assert not failed.done()
    failed.cancel()


async def test_a_wrong_engine_table_is_a_failed_model() -> None:
    registry = EngineRegistry({"a": local("anything", engine={"tensor_paralel_size": 2})})
    registry.start()
    reason = await registry.wait_failed()
    assert "engine.tensor_paralel_size" in reason
    assert "tensor_parallel_size" in reason
    await registry.shutdown()


# ---- one in the place of another -------------------------------------------------------------------------------------


async def loaded(**engines: ScriptedEngine) -> tuple[EngineRegistry, list[tuple[str, State]]]:
    told: list[tuple[str, State]] = []
    registry = EngineRegistry(
        {model: loads(engine) for model, engine in engines.items()}, lambda model, state: told.append((model, state))
    )
    registry.start()
    await registry.wait_loaded()
    told.clear()
    return registry, told


@pytest.mark.parametrize("beside", [True, False])
async def test_an_engine_is_ended_when_nobody_uses_it(beside: bool) -> None:
    old, other, new = ScriptedEngine(), ScriptedEngine(), ScriptedEngine()
    registry, told = await loaded(a=old, b=other)
    swapped: list[str] = []
    with registry.use("a") as used, registry.use("a"):
        change = asyncio.create_task(registry.replace("a", "c", loads(new), lambda: swapped.append("c"), beside=beside))
        await asyncio.sleep(0.01)
        assert used is old
        assert change.done() == bool(swapped) == beside
        await answer(old, ask())
        with pytest.raises(UnknownModel if beside else Overloaded):
            registry.get("a")
        for refused in (registry.replace("b", "d", fails, nothing), registry.unload("b", nothing)):
            with pytest.raises(Conflict):
                await refused
    await change
    await asyncio.wait_for(old.wait_dead(), 5)
    assert (list(registry.models), registry.get("c"), registry.get("b")) == (["c", "b"], new, other)
    assert told == [*([] if beside else [("a", "loading")]), ("a", "unloaded"), ("c", "ready")]
    assert registry.ready
    # What was replaced is not missed, and what replaced it is watched.
    failed = asyncio.create_task(registry.wait_failed())
    new.die()
    assert await asyncio.wait_for(failed, 5) == "model c: its engine died"
    await registry.shutdown()


@pytest.mark.parametrize("beside", [True, False])
async def test_an_engine_that_cannot_be_loaded_replaces_nothing(beside: bool) -> None:
    old = ScriptedEngine()
    again = [old, ScriptedEngine()]

    async def load() -> Engine:
        return again.pop(0)

    registry = EngineRegistry({"a": load})
    registry.start()
    await registry.wait_loaded()
    with pytest.raises(OSError, match="/models/x"):
        await registry.replace("a", "b", fails, nothing, beside=beside)
    assert registry.state("a") == "ready"
    assert (registry.get("a") is old) == beside
    await answer(registry.get("a"), ask())
    await registry.unload("a", nothing)
    assert (list(registry.models), registry.ready) == ([], True)
    await registry.replace(None, "c", loads(ScriptedEngine()), nothing, beside=beside)
    assert list(registry.models) == ["c"]
    await registry.shutdown()


async def test_where_neither_can_be_loaded_the_process_is_told() -> None:
    again: list[Engine] = [ScriptedEngine()]

    async def load() -> Engine:
        return again.pop()

    registry = EngineRegistry({"a": load})
    registry.start()
    await registry.wait_loaded()
    with pytest.raises(OSError, match="/models/x"):
        await registry.replace("a", "b", fails, nothing, beside=False)
    assert "model a" in await asyncio.wait_for(registry.wait_failed(), 5)
    await registry.shutdown()


@pytest.mark.parametrize("beside", [True, False])
async def test_shutdown_ends_a_change_and_what_it_was_to_end(beside: bool) -> None:
    old, begun = ScriptedEngine(), asyncio.Event()
    registry, _ = await loaded(a=old)

    async def load() -> Engine:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    change = asyncio.create_task(registry.replace("a", "b", load, nothing, beside=beside))
    await begun.wait()
    await registry.shutdown()
    with pytest.raises(asyncio.CancelledError):
        await change
    assert registry.state("a") == "closed"
    with pytest.raises(EngineFailed):
        await old.check_health()


async def test_shutdown_ends_an_engine_that_is_still_used() -> None:
    old, new = ScriptedEngine(), ScriptedEngine()
    registry, _ = await loaded(a=old)
    with registry.use("a"):
        await registry.replace("a", "b", loads(new), nothing)
        await old.check_health()
        await registry.shutdown()
    for engine in (old, new):
        with pytest.raises(EngineFailed):
            await engine.check_health()
