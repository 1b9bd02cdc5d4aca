"""How a real engine is started, dies and ends. Every engine here is a disposable one, forked for speed."""

import asyncio
import gc
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from serving.engine.local import LocalEngine
from serving.errors import EngineFailed
from tests.conftest import ENGINE, MODEL
from tests.engine.harness import answer, ask, forced, nothing_left


def engine_processes() -> set[int]:
    """Every process below this one, but multiprocessing's resource tracker, which lives as long as we do."""
    return {
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline())
    }


@asynccontextmanager
async def disposable(**engine_table: int) -> AsyncIterator[tuple[LocalEngine, dict[str, int]]]:
    """An engine, and the process ids of its parts by name."""
    before = engine_processes()
    engine = await LocalEngine.load(str(MODEL), engine=ENGINE | engine_table)
    started = [psutil.Process(pid) for pid in engine_processes() - before]
    try:
        yield engine, {process.name().removeprefix("VLLM::"): process.pid for process in started}
    finally:
        await engine.shutdown()
    assert engine_processes() == before
    await engine.shutdown()


async def consume(engine: LocalEngine, begun: asyncio.Event) -> float:
    """Read a long answer until it fails; returns when that was."""
    with pytest.raises(EngineFailed):  # noqa: PT012  # the failure may come anywhere in the stream
        async for _ in engine.generate(forced(99, max_tokens=2000)):
            begun.set()
    return time.monotonic()


@pytest.mark.parametrize("part", ["EngineCore", "Worker"])
async def test_death_fails_everything_at_once(part: str) -> None:
    async with disposable() as (engine, processes):
        begun = [asyncio.Event() for _ in range(4)]
        streams = [asyncio.create_task(consume(engine, event)) for event in begun]
        dead = asyncio.create_task(engine.wait_dead())
        await asyncio.gather(*(event.wait() for event in begun))
        killed = time.monotonic()
        os.kill(processes[part], signal.SIGKILL)
        failed = await asyncio.wait_for(asyncio.gather(*streams), 10)
        assert max(failed) - killed < 1.0
        await asyncio.wait_for(dead, 10)
        with pytest.raises(EngineFailed):
            await engine.check_health()
        with pytest.raises(EngineFailed):
            await anext(engine.generate(ask()))


async def test_ctrl_c_does_not_reach_the_engine_and_death_is_told_while_idle() -> None:
    """A terminal's Ctrl-C goes to every process of the group: ours alone decides what ends, and when."""
    async with disposable() as (engine, processes):
        for pid in processes.values():
            os.kill(pid, signal.SIGINT)
        assert (await answer(engine, forced(99, max_tokens=300))).finished.reason == "length"
        dead = asyncio.create_task(engine.wait_dead())
        await asyncio.sleep(0)
        os.kill(processes["EngineCore"], signal.SIGKILL)
        await asyncio.wait_for(dead, 5)


async def test_shutdown_lets_what_runs_finish_and_refuses_what_comes() -> None:
    async with disposable(shutdown_timeout=120) as (engine, _):
        running = asyncio.create_task(answer(engine, forced(99, max_tokens=200)))
        while not engine.unfinished:  # noqa: ASYNC110  # nothing else tells that the engine has the request
            await asyncio.sleep(0)
        ending = asyncio.create_task(engine.shutdown())
        assert (await running).finished.usage.completion_tokens == 200
        with pytest.raises(EngineFailed):
            await anext(engine.generate(ask()))
        await ending


async def test_shutdown_ends_what_nobody_reads() -> None:
    """A reader who stopped reading holds the end up for `shutdown_timeout` and no longer."""
    before = engine_processes()
    engine = await LocalEngine.load(str(MODEL), engine=ENGINE | {"shutdown_timeout": 1})
    # So many that they cannot be over within the timeout.
    streams = [engine.generate(forced(99, max_tokens=2000)) for _ in range(32)]
    await asyncio.gather(*map(anext, streams))
    await engine.shutdown()
    assert engine_processes() == before
    for stream in streams:
        with pytest.raises(EngineFailed):  # what was generated until then may still be read
            async for _ in stream:
                pass


async def test_a_cancelled_load_leaves_nothing() -> None:
    before = engine_processes()
    loading = asyncio.create_task(LocalEngine.load(str(MODEL), engine=ENGINE))
    async with asyncio.timeout(60):
        while engine_processes() == before:  # noqa: ASYNC110  # nothing else tells that a process was started
            await asyncio.sleep(0.01)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert engine_processes() == before
    gc.collect()  # vLLM leaves the sockets' context of a failed start to the collector, which warns of it


async def test_a_model_that_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    before = engine_processes()
    broken = tmp_path / "broken"
    shutil.copytree(MODEL, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200_000])
    with pytest.raises(RuntimeError):
        await LocalEngine.load(str(broken), engine=ENGINE)
    assert engine_processes() == before
    gc.collect()


async def test_a_model_that_does_not_exist_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["No"]}))
    with pytest.raises(ValueError, match="No"):
        await LocalEngine.load(str(tmp_path))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"max_model_length": 512}, r"engine\.max_model_length .* max_model_len"),
        ({"model": "other"}, r"engine\.model cannot be set here"),
        ({"structured_outputs_config": {"backend": "auto"}}, r"engine\.structured_outputs_config needs"),
        ({"enable_chunked_prefill": True}, r"engine\.enable_chunked_prefill cannot be on"),
    ],
)
async def test_an_impossible_engine_table_names_its_key(engine: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await LocalEngine.load(str(MODEL), engine=engine)


async def test_the_shared_engine_has_nothing_left(local_engine: LocalEngine) -> None:
    await nothing_left(local_engine)
