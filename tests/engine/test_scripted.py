"""What the scripted engine can do beyond the contract: fail, refuse, wait, remember."""

import asyncio

import pytest

from serving.core import Delta, Finished, PreparedRequest, Started
from serving.engine.scripted import ScriptedEngine
from serving.errors import EngineFailed, InvalidRequest, Overloaded
from tests.engine.harness import answer, ask


async def test_prose_depends_on_the_prompt_alone() -> None:
    first, again, other = [
        (await answer(ScriptedEngine(), ask(max_tokens=500, token_ids=ids))).text for ids in [(1, 2), (1, 2), (1, 3)]
    ]
    assert first == again != other
    assert first.endswith(".")


async def test_an_adapter_changes_what_is_said() -> None:
    engine = ScriptedEngine(adapters={"mara"})
    plain, adapted = [(await answer(engine, ask(max_tokens=500, adapter=name))).text for name in (None, "mara")]
    assert plain != adapted
    await engine.load_adapter("mara")
    with pytest.raises(InvalidRequest, match="The adapter none cannot be loaded"):
        await engine.load_adapter("none")
    assert engine.read == ["mara"]
    engine.die()
    with pytest.raises(EngineFailed):
        await engine.load_adapter("mara")


async def test_what_was_asked_and_how_it_ended_is_remembered() -> None:
    engine = ScriptedEngine(refuse=lambda request: Overloaded("full") if request.index == 2 else None)
    await answer(engine, ask())
    stream = engine.generate(ask(index=1))
    await anext(stream)
    await stream.aclose()
    with pytest.raises(Overloaded):
        await answer(engine, ask(index=2))
    with pytest.raises(InvalidRequest):
        await answer(engine, ask(index=3, token_ids=()))
    engine.die()
    with pytest.raises(EngineFailed):
        await answer(engine, ask(index=4))
    assert engine.endings == ["finished", "aborted", "refused", "refused", "failed"]
    assert [request.index for request in engine.asked] == [0, 1, 2, 3, 4]


async def test_a_gate_holds_the_stream_and_death_passes_it() -> None:
    gate = asyncio.Event()

    async def hold(request: PreparedRequest, number: int) -> None:
        if number == 1:
            await gate.wait()

    engine = ScriptedEngine(lambda request: ["a", "b"], gate=hold)
    stream = engine.generate(ask())
    assert [type(await anext(stream)) for _ in range(2)] == [Started, Delta]
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    gate.set()
    assert isinstance(await waiting, Delta)
    assert isinstance(await anext(stream), Finished)

    gate.clear()
    stream = engine.generate(ask())
    await anext(stream)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    engine.die()
    with pytest.raises(EngineFailed):
        await waiting
    await engine.wait_dead()


async def test_it_dies_where_it_is_told_to() -> None:
    engine = ScriptedEngine(lambda request: ["a"] * 9, die_after=3)
    stream = engine.generate(ask())
    assert [type(await anext(stream)) for _ in range(3)] == [Started, Delta, Delta]
    with pytest.raises(EngineFailed):
        await anext(stream)
    with pytest.raises(EngineFailed):
        await engine.check_health()


async def test_cached_tokens_are_part_of_the_prompt() -> None:
    told = await answer(ScriptedEngine(cached_tokens=16), ask())
    assert told.started.cached_tokens == told.finished.usage.cached_tokens == 16
    told = await answer(ScriptedEngine(cached_tokens=16), ask(token_ids=(5,)))
    assert told.started.cached_tokens == 0


async def test_a_merged_delta_is_cut_at_max_tokens() -> None:
    engine = ScriptedEngine(lambda request: [("abcdef", (1, 2, 3))])
    told = await answer(engine, ask(max_tokens=2))
    assert (told.text, told.token_ids, told.finished.reason) == ("abcd", (1, 2), "length")
