"""What serving/engine/base.py promises, over the scripted engine and a real one."""

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest

from serving.core import Delta, Grammar, JsonFormat, PreparedRequest, Started
from serving.errors import InvalidRequest, PromptTooLong
from tests.engine.harness import (
    EOS,
    PROMPT,
    SPECIAL,
    SPELLED,
    Counting,
    answer,
    ask,
    forced,
    nothing_left,
    saying,
    scripted,
    streaming,
)


@pytest.fixture(scope="session", params=["scripted", "local"])
def engine(request: pytest.FixtureRequest) -> Counting:
    found: Counting = scripted() if request.param == "scripted" else request.getfixturevalue("local_engine")
    return found


async def test_an_answer_begins_with_started_and_ends_with_finished(engine: Counting) -> None:
    told = await answer(engine, ask(max_tokens=8, sampling={"seed": 1}, index=3, ignore_eos=True))
    assert told.started == Started(3, len(PROMPT), told.started.cached_tokens)
    assert told.finished.reason == "length"
    assert told.finished.usage.completion_tokens == 8
    assert told.finished.stop is None


async def test_the_text_is_the_concatenation_and_characters_come_whole(engine: Counting) -> None:
    text = "naïve café — 狐狸 🦊🏽 «ß»  two  spaces\tand é"
    told = await answer(engine, saying(text))
    # A real engine may write the tab as it likes.
    assert json.loads(told.text) == text
    assert told.finished.reason == "stop"
    assert any(not delta.text for delta in told.deltas), "no character was split over tokens: choose another text"
    assert all("\ufffd" not in delta.text for delta in told.deltas)


async def test_max_tokens_is_exact(engine: Counting) -> None:
    for max_tokens in (1, 2, 7):
        told = await answer(engine, forced(99, max_tokens=max_tokens))
        assert told.token_ids == (99,) * max_tokens
        assert told.finished.reason == "length"


async def test_no_tokens_are_the_prompt_alone(engine: Counting) -> None:
    told = await answer(engine, forced(EOS, max_tokens=0, prompt_logprobs=True, logprobs=1))
    assert not told.deltas
    assert told.finished.reason == "length"
    assert len(told.started.prompt_logprobs) == len(PROMPT)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stop", ["狐", "the fox", "x jumps over the lazy d", '"', "é 🦊"])
async def test_a_stop_string_ends_the_text(engine: Counting, stop: str, include: bool) -> None:
    text = "see the fox jumps over the lazy dog, é 🦊 狐 end"
    told = await answer(engine, saying(text, stop=("never seen", stop, "dog, é 🦊 狐 end"), include_stop=include))
    whole = f'"{text}"'
    assert told.text == whole[: whole.index(stop) + (len(stop) if include else 0)]
    assert told.finished.reason == "stop"
    assert told.finished.stop == stop


async def test_the_stop_string_that_ends_first_wins(engine: Counting) -> None:
    told = await answer(engine, saying("one two three", stop=("two three", "wo")))
    assert (told.text, told.finished.stop) == ('"one t', "wo")


async def test_text_held_back_for_a_stop_string_is_told_in_the_end(engine: Counting) -> None:
    told = await answer(engine, saying("almost a sto", stop=("stop it, stop it now",)))
    assert told.text == '"almost a sto"'
    assert told.finished.stop is None


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_token_is_counted_and_has_no_text(engine: Counting, include: bool) -> None:
    told = await answer(engine, forced(99, stop_token_ids=(99,), include_stop=include, stop=("zzz",)))
    assert (told.text, told.token_ids) == ("", (99,))
    assert (told.finished.reason, told.finished.stop) == ("stop", None)


@pytest.mark.parametrize("include", [False, True])
async def test_the_engines_own_end_is_counted_and_has_no_text(engine: Counting, include: bool) -> None:
    told = await answer(engine, forced(EOS, include_stop=include))
    assert (told.text, told.token_ids, told.finished.reason) == ("", (EOS,), "stop")


async def test_the_engines_own_end_can_be_ignored(engine: Counting) -> None:
    told = await answer(engine, forced(EOS, ignore_eos=True, max_tokens=3))
    assert (told.text, told.finished.reason) == (SPELLED[EOS] * 3, "length")
    told = await answer(engine, forced(EOS, ignore_eos=True, stop_token_ids=(EOS,)))
    assert (told.text, told.token_ids) == ("", (EOS,))


async def test_special_tokens_stand_in_the_text_as_they_are_spelled(engine: Counting) -> None:
    told = await answer(engine, forced(SPECIAL, max_tokens=4))
    assert told.text == SPELLED[SPECIAL] * 4
    told = await answer(engine, forced(SPECIAL, max_tokens=4, stop=("header_id|><|start",), include_stop=True))
    assert told.text == "<|start_header_id|><|start"


@pytest.mark.parametrize("count", [0, 1, 5, 20])
async def test_logprobs_are_of_the_chosen_token_and_the_best_ones(engine: Counting, count: int) -> None:
    told = await answer(engine, ask(logprobs=count, sampling={"seed": 7}, ignore_eos=True))
    for delta in told.deltas:
        assert tuple(logprob.token_id for logprob in delta.logprobs) == delta.token_ids
        for logprob in delta.logprobs:
            assert logprob.logprob is not None
            assert len(logprob.top) == count
            values = [other.logprob for other in logprob.top if other.logprob is not None]
            assert values == sorted(values, reverse=True)
            assert all(not other.top for other in logprob.top)


async def test_logprobs_are_absent_unless_asked_for(engine: Counting) -> None:
    told = await answer(engine, ask())
    assert not any(delta.logprobs for delta in told.deltas)
    assert not told.started.prompt_logprobs


async def test_prompt_logprobs_are_of_every_prompt_token(engine: Counting) -> None:
    told = await answer(engine, ask(prompt_logprobs=True, logprobs=2, max_tokens=1))
    first, *rest = told.started.prompt_logprobs
    assert tuple(logprob.token_id for logprob in told.started.prompt_logprobs) == PROMPT
    assert first.logprob is None
    assert all(logprob.logprob is not None and len(logprob.top) == 2 for logprob in rest)


IMPOSSIBLE: list[tuple[str, PreparedRequest]] = [
    ("model", ask(adapter="none")),
    ("prompt", ask(token_ids=())),
    ("prompt", ask(token_ids=(1, -1))),
    ("prompt", ask(token_ids=(1, 832))),
    ("prompt", ask(token_ids=(True, 5))),
    ("prompt", ask(token_ids=(1.5, 5))),
    ("prompt", ask(token_ids=(2**70,))),
    ("prompt", ask(token_ids=(5,) * 2049)),
    ("max_tokens", ask(max_tokens=2048)),
    ("max_tokens", ask(max_tokens=-1)),
    ("max_tokens", ask(max_tokens=True)),
    ("temperature", ask(sampling={"temperature": float("nan")})),
    ("temperature", ask(sampling={"temperature": 10**400})),
    ("temperature", ask(sampling={"temperature": True})),
    ("temperature", ask(sampling={"temperature": "1"})),
    ("top_p", ask(sampling={"top_p": 0.0})),
    ("top_k", ask(sampling={"top_k": -1})),
    ("min_p", ask(sampling={"min_p": 1.1})),
    ("presence_penalty", ask(sampling={"presence_penalty": float("inf")})),
    ("frequency_penalty", ask(sampling={"frequency_penalty": -3.0})),
    ("repetition_penalty", ask(sampling={"repetition_penalty": 0.0})),
    ("seed", ask(sampling={"seed": 2**63})),
    ("logit_bias", ask(sampling={"logit_bias": {832: 1.0}})),
    ("logit_bias", ask(sampling={"logit_bias": {5: float("nan")}})),
    ("min_tokens", ask(sampling={"min_tokens": 13})),
    ("stop", ask(stop=("",))),
    ("stop", ask(stop=("\ud800",))),
    ("stop", ask(stop=("x" * 1025,))),
    ("stop", ask(stop=("x",) * 257)),
    ("stop_token_ids", ask(stop_token_ids=(832,))),
    ("logprobs", ask(logprobs=21)),
    ("logprobs", ask(logprobs=True)),
    ("response_format", ask(answer_format=JsonFormat(""))),
    ("response_format", ask(answer_format=JsonFormat('{"const": "\ud800"}'))),
    ("response_format", ask(answer_format=JsonFormat('"' + "x" * (64 * 1024) + '"'))),
    ("grammar_string", ask(answer_format=Grammar(" "))),
    ("grammar_string", ask(answer_format=Grammar('root ::= "\ud800"'))),
    ("grammar_string", ask(answer_format=Grammar("x" * (64 * 1024 + 1)))),
]


@pytest.mark.parametrize(("param", "request_"), IMPOSSIBLE, ids=lambda value: value if isinstance(value, str) else "")
async def test_an_impossible_request_fails_before_the_first_event(
    engine: Counting, param: str, request_: PreparedRequest
) -> None:
    async with streaming(engine, request_) as stream:
        with pytest.raises(InvalidRequest) as refused:
            await anext(stream)
    assert refused.value.param == param
    assert engine.unfinished == 0


async def test_a_prompt_over_the_context_says_both_numbers(engine: Counting) -> None:
    async with streaming(engine, ask(max_tokens=2019)) as stream:
        with pytest.raises(PromptTooLong, match=r"30 tokens and 2019 more .* 2048 in all"):
            await anext(stream)
    assert (await answer(engine, forced(99, token_ids=(5,) * 2046, max_tokens=2))).finished.reason == "length"


@pytest.mark.parametrize("events", [0, 1, 2, 3, 9])
async def test_closing_aborts_at_any_moment(engine: Counting, events: int) -> None:
    stream = engine.generate(forced(99, max_tokens=2000))
    with contextlib.suppress(StopAsyncIteration):  # on a busy machine few events tell of all tokens
        for _ in range(events):
            await anext(stream)
    await stream.aclose()
    await nothing_left(engine)
    await answer(engine, ask())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_cancelling_while_the_engine_works_aborts(engine: Counting, turns: int) -> None:
    """The loop is left at every early moment: before the engine has the choice, and while it computes the prompt."""
    long = replace(forced(99, max_tokens=900), token_ids=tuple(range(20, 820)))

    async def consume() -> None:
        async with streaming(engine, long) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(consume())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_left(engine)


async def test_a_slow_reader_loses_nothing(engine: Counting) -> None:
    """vLLM merges what it could not hand over: counts and logprobs still agree."""
    slow, quick = forced(99, max_tokens=60, logprobs=1), forced(98, max_tokens=200)
    async with streaming(engine, slow) as stream:
        told = [await anext(stream)]
        await answer(engine, quick)
        told += [event async for event in stream]
    deltas = [event for event in told if isinstance(event, Delta)]
    assert sum(len(delta.token_ids) for delta in deltas) == 60
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)


async def test_choices_of_many_requests_are_not_mixed_up(engine: Counting) -> None:
    requests = [saying(f"story {number} 🦊", index=number) for number in range(12)]
    answers = await asyncio.gather(*(answer(engine, request) for request in requests))
    assert [told.text for told in answers] == [f'"story {number} 🦊"' for number in range(12)]
    assert engine.unfinished == 0


async def test_the_same_request_id_may_be_used_twice(engine: Counting) -> None:
    first = engine.generate(forced(99, max_tokens=100))
    await anext(first)
    second = await asyncio.create_task(_first_two(engine))
    assert second == 2
    rest = [event async for event in first]
    assert rest[-1].usage.completion_tokens == 100  # type: ignore[union-attr]


async def _first_two(engine: Counting) -> int:
    """Reads two events of a request with the same id, and closes it: only that one may be aborted."""
    async with streaming(engine, forced(98, max_tokens=100)) as stream:
        return len([await anext(stream) for _ in range(2)])


async def test_a_healthy_engine_says_so(engine: Counting) -> None:
    await engine.check_health()
    dead: Any = asyncio.ensure_future(engine.wait_dead())
    await answer(engine, ask())
    assert not dead.done()
    dead.cancel()
