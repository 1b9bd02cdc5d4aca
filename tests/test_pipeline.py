"""The laws of the one path: what is held is settled or released, once; nothing runs without a hold."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import telemetry
from serving.admission import Admission
from serving.core import (
    Caller,
    Delta,
    Dry,
    Event,
    Finished,
    GenerationRequest,
    Hold,
    Plan,
    PreparedRequest,
    Price,
    RawPrompt,
    Receipt,
    Rules,
    Sampling,
    Started,
    Stopping,
    Usage,
)
from serving.engine.base import Engine
from serving.engine.scripted import Chunk, ScriptedEngine
from serving.errors import EngineFailed, InsufficientCredit, InvalidRequest, Overloaded, ServingError, UnknownModel
from serving.ledger.memory import MemoryLedger
from serving.pipeline import Pipeline, ServedModel, uncancelled
from serving.prompting.prepare import Prompting
from tests.service import LLAMA3, PRICE, until

CALLER = Caller("alice", "key_1")
PROMPTING = Prompting.load(str(LLAMA3), template="llama3-writer")
PROMPT_TOKENS = 5
"""Of `request()`: BOS and a token for each letter of its prompt."""


@dataclass
class SlowLedger:
    """The ledger in memory, as far away as a store: each call waits before it acts, and after. It notes every call."""

    inner: MemoryLedger = field(default_factory=MemoryLedger)
    calls: list[str] = field(default_factory=list)
    settled: list[Usage] = field(default_factory=list)

    async def hold(self, caller: Caller, request_id: str, price: Price, worst_case: Usage) -> Hold:
        await asyncio.sleep(0)
        hold = await self.inner.hold(caller, request_id, price, worst_case)
        self.calls.append("hold")
        return hold

    async def settle(self, hold: Hold, usage: Usage) -> Receipt:
        await asyncio.sleep(0)
        self.calls.append("settle")
        self.settled.append(usage)
        receipt = await self.inner.settle(hold, usage)
        await asyncio.sleep(0)
        return receipt

    async def release(self, hold: Hold) -> None:
        await asyncio.sleep(0)
        self.calls.append("release")
        await self.inner.release(hold)
        await asyncio.sleep(0)

    @property
    def is_resolved(self) -> bool:
        """Every hold was settled or released, once."""
        ends = len(self.calls) - self.calls.count("hold")
        return not self.inner._open and ends == self.calls.count("hold")


@dataclass
class Path:
    """A pipeline over a scripted engine, and what stands around it."""

    engine: ScriptedEngine
    ledger: SlowLedger = field(default_factory=SlowLedger)
    admission: Admission = field(default_factory=lambda: Admission(100))

    def get(self, model: str) -> Engine:
        return self.engine

    @property
    def pipeline(self) -> Pipeline:
        models = {"m": ServedModel("m", PROMPTING, PRICE)}
        return Pipeline(models, self, self.ledger, self.admission)

    async def run(self, asked: GenerationRequest, caller: Caller = CALLER) -> list[Event | Receipt]:
        async with aclosing(self.pipeline.generate(caller, asked)) as events:
            return [event async for event in events]

    def assert_at_rest(self) -> None:
        assert self.ledger.is_resolved
        assert self.admission.running_choices == 0
        assert self.engine.unfinished == 0


def path(*chunks: Chunk, **kwargs: Any) -> Path:  # noqa: ANN401  # those of ScriptedEngine
    return Path(ScriptedEngine(lambda request: chunks, vocab_size=832, **kwargs))


def request(n: int = 1, max_tokens: int | None = None, **fields: Any) -> GenerationRequest:  # noqa: ANN401  # its own
    stopping = Stopping(max_tokens=max_tokens)
    return GenerationRequest("r", "m", (RawPrompt("Once"),), n=n, stopping=stopping, **fields)


# ---- what is counted -------------------------------------------------------------------------------------------------


async def test_a_request_counts_once_for_each_sampler_it_uses() -> None:
    def counted() -> dict[str, float]:
        samples = next(iter(telemetry.SAMPLER_REQUESTS.collect())).samples
        own = [sample for sample in samples if sample.name.endswith("_total") and sample.labels["model"] == "m"]
        return {sample.labels["sampler"]: sample.value for sample in own}

    before = counted()
    await path("a").run(request(n=3))
    assert counted() == before
    await path("a").run(request(n=3, rules=Rules(dry=Dry())))
    await path("a").run(request(rules=Rules(dry=Dry(), minimum_message_content_tokens=1)))
    after = counted()
    assert (after["dry"] - before.get("dry", 0), after["roles"] - before.get("roles", 0)) == (2, 1)


# ---- what is charged -------------------------------------------------------------------------------------------------

CHUNKS = st.lists(st.tuples(st.text(max_size=3), st.lists(st.integers(10, 800), max_size=3).map(tuple)), max_size=8)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts=st.lists(CHUNKS, min_size=1, max_size=4), cached=st.integers(0, 4), prompts=st.integers(1, 3))
async def test_what_the_engine_counted_is_charged_once(scripts: list[list[Chunk]], cached: int, prompts: int) -> None:
    n = len(scripts)
    made = Path(ScriptedEngine(lambda choice: scripts[choice.index % n], vocab_size=832, cached_tokens=cached))
    asked = GenerationRequest("r", "m", (RawPrompt("Once"),) * prompts, n=n)
    events = await made.run(asked)
    *told, receipt = events
    tokens = prompts * sum(len(chunk[1]) for script in scripts for chunk in script)
    usage = Usage(prompts * PROMPT_TOKENS, prompts * cached, tokens)
    assert receipt == Receipt("r", usage, PRICE.cost(usage))
    assert made.ledger.calls == ["hold", "settle"]
    assert sum(len(event.token_ids) for event in told if isinstance(event, Delta)) == tokens
    finished = [event.usage for event in told if isinstance(event, Finished)]
    assert sum(usage.completion_tokens for usage in finished) == tokens
    assert len(finished) == n * prompts
    made.assert_at_rest()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("error", [EngineFailed("It broke."), RuntimeError("a mistake")], ids=repr)
async def test_an_error_in_mid_stream_settles_what_was_made(n: int, error: Exception) -> None:
    def script(choice: PreparedRequest) -> Iterator[Chunk]:
        yield "a"
        yield "b"
        if choice.index == n - 1:
            raise error

    made = Path(ScriptedEngine(script, vocab_size=832))
    with pytest.raises(type(error)):
        await made.run(request(n))
    assert made.ledger.calls == ["hold", "settle"]
    (usage,) = made.ledger.settled
    assert usage.prompt_tokens == PROMPT_TOKENS
    assert n + 1 <= usage.completion_tokens <= 2 * n
    made.assert_at_rest()


async def test_an_engine_that_refuses_costs_nothing() -> None:
    made = path("a", refuse=lambda choice: InvalidRequest("No."))
    with pytest.raises(InvalidRequest):
        await made.run(request())
    assert made.ledger.calls == ["hold", "release"]
    made.assert_at_rest()


async def test_an_echo_is_told_first_and_costs_its_prompt() -> None:
    made = path()
    asked = GenerationRequest("r", "m", (RawPrompt("Once"),), stopping=Stopping(max_tokens=0), echo=True)
    started, echo, finished, receipt = await made.run(asked)
    assert isinstance(started, Started)
    assert echo == Delta(0, "Once", ())
    assert isinstance(finished, Finished)
    assert receipt == Receipt("r", Usage(PROMPT_TOKENS), PRICE.cost(Usage(PROMPT_TOKENS)))


# ---- callers that go away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
async def test_closing_after_any_event_aborts_and_settles(n: int) -> None:
    whole = len(await path("a", "b", "c").run(request(n)))
    for taken in range(whole):
        made = path("a", "b", "c")
        events = made.pipeline.generate(CALLER, request(n))
        for _ in range(taken):
            await anext(events)
        await events.aclose()
        assert made.ledger.calls == (["hold", "settle"] if taken else [])
        if n == 1 and taken:
            assert made.ledger.settled == [Usage(PROMPT_TOKENS, 0, min(taken - 1, 3))]
        made.assert_at_rest()


@pytest.mark.parametrize("n", [1, 3])
async def test_a_cancel_at_any_step_resolves_the_hold(n: int) -> None:
    """The task is cancelled before its first step, then after one, two, ...: until it ends before the cancel comes."""
    endings = set()
    for steps in range(1000):
        made = path("a", "b")
        task = asyncio.create_task(made.run(request(n)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        made.assert_at_rest()
        endings.add(tuple(made.ledger.calls))
        if not isinstance(result, BaseException):
            break
    else:
        pytest.fail("it never ended")
    assert {(), ("hold", "settle")} <= endings <= {(), ("hold", "release"), ("hold", "settle")}
    assert steps > 5


async def test_cancelling_again_and_again_does_not_stop_the_settling() -> None:
    done = asyncio.Event()

    async def work() -> str:
        for _ in range(20):
            await asyncio.sleep(0)
        done.set()
        return "settled"

    task = asyncio.create_task(uncancelled(work()))
    for _ in range(10):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
    assert await uncancelled(work()) == "settled"


async def test_an_error_of_the_work_itself_is_raised() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError):
        await uncancelled(work())


# ---- before the engine -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def refused(made: Path, error: type[ServingError], calls: list[str]) -> AsyncIterator[None]:
    with pytest.raises(error):
        yield
    assert made.engine.asked == []
    assert made.ledger.calls == calls
    made.assert_at_rest()


async def test_a_refused_slot_releases_the_hold() -> None:
    made = path("a")
    made.admission.draining = True
    async with refused(made, Overloaded, ["hold", "release"]):
        await made.run(request())


async def test_nothing_runs_that_cannot_be_paid() -> None:
    made = path("a")
    made.ledger.inner.grant("alice", PRICE.cost(Usage(PROMPT_TOKENS, 0, 1)) - 1)
    async with refused(made, InsufficientCredit, []):
        await made.run(request())


async def test_credit_for_less_than_a_token_of_each_choice_is_given_back() -> None:
    made = path("a")
    made.ledger.inner.grant("alice", PRICE.cost(Usage(PROMPT_TOKENS, 0, 2)))
    async with refused(made, InsufficientCredit, ["hold", "release"]):
        await made.run(request(n=3))


async def test_an_impossible_prompt_is_never_held() -> None:
    made = path("a", context_tokens=PROMPT_TOKENS)
    async with refused(made, InvalidRequest, []):
        await made.run(request())


async def test_a_model_that_is_not_there_and_one_that_is_not_allowed_are_the_same() -> None:
    made = path("a")
    told = []
    restricted = Caller("alice", "key_1", Plan(models=frozenset({"other"})))
    for caller, model in ((CALLER, "nope"), (restricted, "m")):
        with pytest.raises(UnknownModel) as error:
            await made.run(GenerationRequest("r", model, (RawPrompt("x"),)), caller)
        told.append(error.value.message)
    assert told[0] == told[1]
    assert made.ledger.calls == []


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens_paid", "n", "asked", "each"),
    [(10, 1, None, 10), (10, 1, 4, 4), (10, 3, None, 3), (10, 3, 2, 2), (2, 2, 9, 1)],
)
async def test_a_hold_cuts_max_tokens(tokens_paid: int, n: int, asked: int | None, each: int) -> None:
    made = path(*["a"] * 50)
    made.ledger.inner.grant("alice", PRICE.cost(Usage(PROMPT_TOKENS, 0, tokens_paid)))
    sampling = Sampling(min_tokens=50)
    events = await made.run(request(n, asked, sampling=sampling))
    assert [choice.max_tokens for choice in made.engine.asked] == [each] * n
    assert all(choice.sampling.min_tokens <= each for choice in made.engine.asked)
    assert {event.reason for event in events if isinstance(event, Finished)} == {"length"}
    balance = made.ledger.inner.balances["alice"]
    assert (balance.used, balance.held) == (PRICE.cost(Usage(PROMPT_TOKENS, 0, n * each)), 0)


@pytest.mark.parametrize(("limit", "asked", "given"), [(5, None, 5), (5, 9, 5), (5, 3, 3), (None, 3, 3)])
async def test_a_plan_limits_the_output(limit: int | None, asked: int | None, given: int) -> None:
    made = path(*["a"] * 50)
    await made.run(request(1, asked), Caller("alice", "key_1", Plan(max_output_tokens=limit)))
    assert made.engine.asked[0].max_tokens == given


async def test_a_choice_occupies_the_engine_while_it_runs() -> None:
    opened = asyncio.Event()
    made = path("a", gate=lambda choice, number: _wait(opened))
    task = asyncio.create_task(made.run(request(n=3)))
    await until(lambda: made.admission.running_choices == 3)
    opened.set()
    await task
    made.assert_at_rest()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_dying_engine_settles_what_it_made(lost: int) -> None:
    made = path("a", "b", "c", die_after=lost + 1)
    with pytest.raises(EngineFailed):
        await made.run(request())
    assert made.ledger.settled == [Usage(PROMPT_TOKENS, 0, lost)]
    made.assert_at_rest()
