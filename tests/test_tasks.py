"""The path of a task: what is held, charged and given back, whatever happens after the hold."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from serving.admission import Admission
from serving.core import Caller, Plan, Price, Receipt, Usage
from serving.core.tasks import (
    Embed,
    Embedded,
    Heard,
    Outcome,
    PreparedTask,
    Result,
    Segment,
    TaskRequest,
    TokenLists,
    Transcribed,
)
from serving.engine.base import TaskEngine
from serving.engine.scripted_tasks import ScriptedTaskEngine
from serving.errors import EngineFailed, InsufficientCredit, Overloaded, PromptTooLong, ServingError, UnknownModel
from serving.pipeline import Granted
from serving.tasks import TaskModel, Tasks
from tests.paths import CALLER, SlowLedger, with_credit
from tests.service import PRICE, Door

UNITS = 7
REQUEST = TaskRequest("r", "m", Embed(((1, 2, 3), (4, 5, 6, 7))))
SEGMENTS = tuple(Segment(second, second + 1, f" {second}", (second,)) for second in range(UNITS))
"""A second of sound for each, and what they say."""
PREPARED = PreparedTask("r", TokenLists(((1, 2, 3), (4, 5, 6, 7))), UNITS, longest_tokens=4)


@dataclass
class Path:
    """Tasks over a scripted engine, and what stands around them."""

    engine: ScriptedTaskEngine = field(default_factory=ScriptedTaskEngine)
    prepared: PreparedTask[TokenLists] = PREPARED
    ledger: SlowLedger = field(default_factory=SlowLedger)
    admission: Admission = field(default_factory=lambda: Admission(100))
    granted: list[Granted] = field(default_factory=list)

    def task(self, model: str) -> TaskEngine:
        return self.engine

    async def prepare(self, request: TaskRequest[Embed]) -> PreparedTask[TokenLists]:
        return self.prepared

    async def run(self, caller: Caller = CALLER, **kwargs: Any) -> tuple[Result, Receipt]:  # noqa: ANN401  # of perform
        tasks = Tasks({"m": TaskModel("m", PRICE, self.prepare)}, self, self.ledger, self.admission)
        return await tasks.perform(caller, REQUEST, on_hold=self.granted.append, **kwargs)

    def assert_at_rest(self) -> None:
        assert self.ledger.is_resolved
        assert self.admission.running_choices == 0
        assert len(self.engine.endings) == len(self.engine.asked)


async def test_a_task_is_charged_the_units_of_its_outcome() -> None:
    path = Path()
    result, receipt = await path.run()
    assert isinstance(result, Embedded)
    assert receipt == Receipt("r", Usage(UNITS), PRICE.cost(Usage(UNITS)))
    assert (path.ledger.settled, path.ledger.reasons) == ([Usage(UNITS)], ["finish"])
    assert path.granted[0].hold.usage == Usage(UNITS)
    path.assert_at_rest()


async def test_fewer_units_than_were_held_are_charged_alone() -> None:
    path = Path(ScriptedTaskEngine(lambda task: Outcome(Embedded(()), 2)))
    _, receipt = await path.run(with_credit(PRICE.cost(Usage(UNITS))))
    assert receipt.cost == PRICE.cost(Usage(2))
    path.assert_at_rest()


async def test_a_task_may_have_a_price_of_its_own() -> None:
    path = Path(prepared=replace(PREPARED, price=Price(input_per_1k=5_000_000)))
    _, receipt = await path.run()
    assert receipt.cost == 5_000 * UNITS


@pytest.mark.parametrize("error", [EngineFailed("It broke."), Overloaded("Full."), ValueError("a mistake of ours")])
async def test_a_task_that_fails_costs_nothing(error: Exception) -> None:
    def fail(task: PreparedTask[TokenLists]) -> Outcome:
        raise error

    path = Path(ScriptedTaskEngine(fail))
    with pytest.raises(type(error)):
        await path.run()
    assert path.ledger.calls == ["hold", "release"]
    path.assert_at_rest()


async def test_a_caller_who_goes_ends_the_work_and_pays_nothing() -> None:
    door = Door()
    path = Path(ScriptedTaskEngine(gate=door.wait))
    running = asyncio.create_task(path.run())
    await door.knocked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert path.ledger.calls == ["hold", "release"]
    assert path.engine.endings == ["aborted"]
    path.assert_at_rest()


async def test_what_is_done_is_charged_though_the_caller_goes_while_it_is() -> None:
    """Cancelled at each step of a task: resolved once, and charged where there was an outcome."""
    charged = 0
    for steps in range(40):
        path = Path()
        running = asyncio.create_task(path.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
        path.assert_at_rest()
        assert path.ledger.settled == [Usage(UNITS)] * path.engine.endings.count("finished")
        charged += len(path.ledger.settled)
    assert charged > 0


@pytest.mark.parametrize(
    ("caller", "error"),
    [
        (with_credit(PRICE.cost(Usage(UNITS)) - 1), InsufficientCredit),
        (Caller("alice", "key_1", Plan(max_context_tokens=3)), PromptTooLong),
        (Caller("alice", "key_1", models=frozenset({"another"})), UnknownModel),
    ],
)
async def test_what_a_caller_may_not_have_never_reaches_the_engine(caller: Caller, error: type[ServingError]) -> None:
    path = Path()
    with pytest.raises(error):
        await path.run(caller)
    assert path.engine.asked == []
    path.assert_at_rest()


async def test_a_plan_allows_as_long_a_text_as_its_context() -> None:
    await Path().run(Caller("alice", "key_1", Plan(max_context_tokens=4)))


async def test_a_full_server_gives_the_hold_back() -> None:
    path = Path(admission=Admission(0))
    with pytest.raises(Overloaded):
        await path.run()
    assert path.ledger.calls == ["hold", "release"]
    assert path.engine.asked == []


# ---- what is told as it is heard -------------------------------------------------------------------------------------


def hear(task: PreparedTask[TokenLists]) -> Outcome:
    return Outcome(Transcribed("en", UNITS, SEGMENTS), task.units)


async def test_what_is_heard_is_told_in_order_and_charged_once() -> None:
    path, heard = Path(ScriptedTaskEngine(hear)), list[Heard]()

    async def on_heard(part: Heard) -> None:
        heard.append(part)

    _, receipt = await path.run(on_heard=on_heard)
    assert heard == [Heard(segment.text, units) for units, segment in enumerate(SEGMENTS, 1)]
    assert (receipt.usage, path.ledger.calls) == (Usage(UNITS), ["hold", "settle"])
    path.assert_at_rest()


@pytest.mark.parametrize("pieces", range(UNITS + 1))
async def test_who_goes_pays_what_was_told(pieces: int) -> None:
    """The engine waits before the first piece, and behind each."""
    door, told = Door(), 0

    async def gate() -> None:
        if told == pieces:
            await door.wait()

    async def on_heard(part: Heard) -> None:
        nonlocal told
        told += 1

    path = Path(ScriptedTaskEngine(hear, gate=gate))
    running = asyncio.create_task(path.run(on_heard=on_heard))
    await door.knocked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert path.ledger.settled == [Usage(pieces)] * bool(pieces)
    assert path.ledger.reasons == ["disconnect"] * bool(pieces)
    assert path.engine.endings == ["aborted"]
    path.assert_at_rest()


async def test_an_engine_that_fails_later_is_paid_for_what_was_told() -> None:
    path = Path(ScriptedTaskEngine(hear))

    async def on_heard(part: Heard) -> None:
        if part.units == 2:
            await path.engine.shutdown()

    with pytest.raises(EngineFailed):
        await path.run(on_heard=on_heard)
    assert (path.ledger.settled, path.ledger.reasons) == ([Usage(2)], ["error"])
    path.assert_at_rest()
