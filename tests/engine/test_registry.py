"""The registry, over scripted engines."""

import asyncio

import pytest

from serving.engine.base import Engine
from serving.engine.registry import EngineRegistry, Loader, State, local
from serving.engine.scripted import ScriptedEngine
from serving.errors import EngineFailed, Overloaded, UnknownModel
from tests.engine.harness import answer, ask


def loads(engine: Engine) -> Loader:
    async def load() -> Engine:
        return engine

    return load


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
