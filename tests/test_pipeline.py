"""The laws of the one path: what is held is settled or released, once; nothing runs without a hold."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import telemetry
from serving.core import (
    Delta,
    Dry,
    Finished,
    GenerationRequest,
    PreparedRequest,
    RawPrompt,
    Receipt,
    Rules,
    Started,
    Stopping,
    Usage,
)
from serving.engine.scripted import Chunk, ScriptedEngine
from serving.errors import (
    EngineFailed,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unauthenticated,
)
from serving.pipeline import uncancelled
from tests.paths import CALLER, PROMPT_TOKENS, Path, counted, path, request
from tests.service import PRICE

# ---- what is counted -------------------------------------------------------------------------------------------------


async def test_a_request_counts_once_for_each_sampler_it_uses() -> None:
    before = counted(telemetry.SAMPLER_REQUESTS)
    await path("a").run(request(n=3))
    assert counted(telemetry.SAMPLER_REQUESTS) == before
    await path("a").run(request(n=3, rules=Rules(dry=Dry())))
    await path("a").run(request(rules=Rules(dry=Dry(), minimum_message_content_tokens=1)))
    after = counted(telemetry.SAMPLER_REQUESTS)
    assert [after["m", name] - before.get(("m", name), 0) for name in ("dry", "roles")] == [2, 1]


async def test_the_ledger_is_told_how_far_a_request_is() -> None:
    made = path(("ab", (10, 11)), "c")
    await made.run(request())
    counts = [usage.completion_tokens for usage in made.ledger.noted]
    assert counts == [0, 2, 3, 3]
    assert {usage.prompt_tokens for usage in made.ledger.noted} == {PROMPT_TOKENS}


@pytest.mark.parametrize("ending", ["finish", "error", "disconnect", "revoked", "release"])
async def test_a_settle_says_why_the_request_ended(ending: str) -> None:
    def script(choice: PreparedRequest) -> Iterator[Chunk]:
        yield "a"
        if ending == "error":
            raise EngineFailed("It broke.")

    before = counted(telemetry.SETTLES), counted(telemetry.HOLDS)[()]
    made = Path(ScriptedEngine(script, vocab_size=832))
    if ending == "release":
        made.admission.draining = True
    revoked: asyncio.Future[ServingError] = asyncio.get_running_loop().create_future()
    events = made.pipeline.generate(CALLER, request(), revoked=revoked)
    with contextlib.suppress(EngineFailed, Overloaded):
        await anext(events)
        if ending == "revoked":
            revoked.set_result(Unauthenticated("Gone."))
        if ending in ("finish", "error"):
            [_ async for _ in events]
    await events.aclose()
    assert made.ledger.reasons == ([] if ending == "release" else [ending])
    assert counted(telemetry.SETTLES)[ending,] == before[0].get((ending,), 0) + 1
    assert counted(telemetry.HOLDS)[()] == before[1] + 1
    made.assert_at_rest()


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


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_dying_engine_settles_what_it_made(lost: int) -> None:
    made = path("a", "b", "c", die_after=lost + 1)
    with pytest.raises(EngineFailed):
        await made.run(request())
    assert made.ledger.settled == [Usage(PROMPT_TOKENS, 0, lost)]
    made.assert_at_rest()
