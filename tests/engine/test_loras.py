"""Which adapters an engine holds, over something that stands for vLLM: the real one is in `test_adapted.py`."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.engine.exceptions import EngineDeadError

from serving.engine.loras import Loras
from serving.errors import InvalidRequest, Overloaded
from tests.peft import make_adapter, weights

MOST = 3
NAMES = ("a", "b", "c", "d", "e")


class Vllm:
    """What an AsyncLLM holds of adapters. `opened`: what reading one waits for; `dead`: set when it dies."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(lora_config=SimpleNamespace(max_lora_rank=8))
        self.model_config = SimpleNamespace(get_hidden_size=lambda: 256)
        self.held: dict[int, str] = {}
        self.failing: set[str] = set()
        self.opened = asyncio.Event()
        self.opened.set()
        self.reading = asyncio.Event()
        self.dead = asyncio.Event()
        self.reads: list[str] = []

    async def add_lora(self, request: Any) -> bool:  # noqa: ANN401  # LoRARequest
        self.reading.set()
        await self.opened.wait()
        name, _, number = request.lora_name.partition(":")
        assert (int(number), Path(request.lora_path).name) == (request.lora_int_id, name)
        assert len(self.held) < MOST, "vLLM would drop one of its own choice"
        self.held[request.lora_int_id] = name
        self.reads.append(name)
        if name in self.failing:
            raise Exception("Worker failed with error 'Too wide.', please check the stack trace above")
        return True

    async def remove_lora(self, number: int) -> bool:
        del self.held[number]
        return True

    async def wait_dead(self) -> None:
        await self.dead.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        make_adapter(made / name, weights(seed, layers=1))
    make_adapter(made / "big", weights(9, rank=9, layers=1))
    return made


@pytest.fixture
def vllm() -> Vllm:
    return Vllm()


@pytest.fixture
def loras(vllm: Vllm, folder: Path) -> Iterator[Loras]:
    found = Loras(lambda: vllm, folder, MOST, vllm.wait_dead)
    yield found
    assert vllm.held.keys() == {held.request.lora_int_id for held in (*found._held.values(), *found._former)}


async def test_none_is_none(loras: Loras) -> None:
    async with loras.use(None) as told:
        assert told is None


async def test_one_is_read_once_for_all_who_ask(vllm: Vllm, loras: Loras) -> None:
    async def number() -> object:
        async with loras.use("a") as told:
            assert told is not None
            return told.lora_int_id

    assert await asyncio.gather(*(number() for _ in range(5))) == [1] * 5
    assert vllm.reads == ["a"]


async def test_what_is_read_again_is_another_one_and_users_keep_theirs(vllm: Vllm, loras: Loras) -> None:
    async with loras.use("a") as old:
        await loras.load("a")
        async with loras.use("a") as new:
            assert old is not None
            assert new is not None
            assert (old.lora_name, new.lora_name) == ("a:1", "a:2")
            assert vllm.held == {1: "a", 2: "a"}
    await loras.load("b")
    assert vllm.held == {2: "a", 3: "b"}


async def test_the_one_that_nobody_used_for_longest_makes_room(vllm: Vllm, loras: Loras) -> None:
    for name in ("a", "b", "c", "a", "d"):
        async with loras.use(name):
            pass
    assert list(vllm.held.values()) == ["a", "c", "d"]


async def test_what_is_in_use_stays_and_others_wait(vllm: Vllm, loras: Loras) -> None:
    async with loras.use("a"), loras.use("b"), loras.use("c"):
        with pytest.raises(Overloaded) as full:
            await loras.load("d")
        assert full.value.retry_after_s
        with pytest.raises(Overloaded):
            await loras.load("a")
    await loras.load("d")
    assert list(vllm.held.values()) == ["b", "c", "d"]


async def test_one_that_fails_is_told_and_leaves_nothing(vllm: Vllm, loras: Loras) -> None:
    vllm.failing.add("a")
    with pytest.raises(InvalidRequest, match=r"^The adapter a cannot be loaded: Too wide\.$"):
        await loras.load("a")
    assert vllm.held == {}
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="log of the server") as refused:
            async with loras.use("a"):
                pass
        assert refused.value.param == "model"
    assert vllm.reads == ["a"]  # requests do not try again
    vllm.failing.clear()
    await loras.load("a")
    async with loras.use("a"):
        pass


async def test_a_new_one_that_fails_leaves_the_old_one(vllm: Vllm, loras: Loras) -> None:
    await loras.load("a")
    vllm.failing.add("a")
    with pytest.raises(InvalidRequest):
        await loras.load("a")
    async with loras.use("a") as told:
        assert told is not None
        assert told.lora_int_id == 1


@pytest.mark.parametrize("name", ["none", "..", "../adapters/a", "a/../a", "", "/", "a\0"])
async def test_names_that_are_none(loras: Loras, name: str) -> None:
    with pytest.raises(InvalidRequest, match="there is none of this name"):
        await loras.load(name)


async def test_a_rank_over_the_engines_is_told_with_both(loras: Loras) -> None:
    with pytest.raises(InvalidRequest, match=r"its rank is 9, and the engine takes 8"):
        await loras.load("big")


async def test_who_goes_away_does_not_end_the_reading(vllm: Vllm, loras: Loras) -> None:
    async def hold() -> None:
        async with loras.use("a"):
            pass

    vllm.opened.clear()
    first, second = asyncio.create_task(hold()), asyncio.create_task(hold())
    await vllm.reading.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    vllm.opened.set()
    await second
    assert vllm.reads == ["a"]


async def test_the_engines_death_ends_the_waiting(vllm: Vllm, loras: Loras) -> None:
    vllm.opened.clear()
    waiting = asyncio.create_task(loras.load("a"))
    await vllm.reading.wait()
    vllm.dead.set()
    with pytest.raises(EngineDeadError):
        await waiting


Act = tuple[str, str]


@given(st.lists(st.tuples(st.sampled_from(("begin", "end", "load", "break", "mend")), st.sampled_from(NAMES))))
async def test_vllm_always_holds_what_is_in_use(folder: Path, acts: list[Act]) -> None:
    """Whatever comes in whatever order: `Vllm.add_lora` asserts that there is room."""
    vllm = Vllm()
    loras = Loras(lambda: vllm, folder, MOST, vllm.wait_dead)
    running: list[tuple[str, int, AsyncExitStack]] = []
    for act, name in acts:
        if act == "begin":
            stack = AsyncExitStack()
            try:
                told = await stack.enter_async_context(loras.use(name))
            except (InvalidRequest, Overloaded):
                assert name in vllm.failing or len(running) >= MOST or name in loras._broken
            else:
                assert told is not None
                running.append((name, told.lora_int_id, stack))
        elif act == "end" and running:
            await running.pop(0)[2].aclose()
        elif act == "load":
            before = vllm.held.copy()
            try:
                await loras.load(name)
            except (InvalidRequest, Overloaded):
                assert name not in before.values() or name in vllm.held.values()
        elif act == "break":
            vllm.failing.add(name)
        elif act == "mend":
            vllm.failing.discard(name)
        assert all(vllm.held.get(number) == name for name, number, _ in running)
        assert len(vllm.held) <= MOST
    for _, _, stack in running:
        await stack.aclose()
