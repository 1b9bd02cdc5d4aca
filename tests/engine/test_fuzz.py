"""No request may be able to kill or stall an engine: every field at its extremes, alone, mixed and in bursts.

Each batch must end (answered or refused, never failed), and after it the engine must still give the right answer to a
plain request. What was found this way is closed in serving/engine/limits.py and kept below as a regression.
"""

import asyncio
import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving.core import Dry, Finished, JsonFormat, LogitsRules, Markers, PreparedRequest, RoleRule, Started
from serving.engine.limits import INT64_MAX, INT64_MIN
from serving.engine.local import LocalEngine
from serving.errors import InvalidRequest
from tests.engine.harness import VOCAB_SIZE, answer, ask, forced, saying

BATCH_S = 60
"""What a batch may take on two cores that others use as well. An idle machine needs less than a second."""

TINY, HUGE = 5e-324, 1.7976931348623157e308
odd_numbers: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([-0.0, TINY, 1e30, -1e30, HUGE, math.inf, -math.inf, math.nan, 10**400, True, None, "1"]),
    st.floats(),
)
odd_integers: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([-1, 2**31, 2**63, 2**64, 2**70, INT64_MIN, True, False, 1.5, "1", math.nan]), st.integers()
)
odd_ids = st.lists(st.sampled_from([-1, VOCAB_SIZE, 2**31, 2**70, True, 1.0, 5]), max_size=5)
odd_texts = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["", "\ud800", "a" * 1025])), max_size=4)
odd_samplings: dict[str, st.SearchStrategy[Any]] = {
    "temperature": odd_numbers,
    "top_p": odd_numbers,
    "top_k": odd_integers,
    "min_p": odd_numbers,
    "presence_penalty": odd_numbers,
    "frequency_penalty": odd_numbers,
    "repetition_penalty": odd_numbers,
    "seed": odd_integers,
    "logit_bias": st.dictionaries(st.sampled_from([-1, VOCAB_SIZE, True, "5", 5]), odd_numbers, max_size=3),
    "min_tokens": odd_integers,
}
odd_fields: dict[str, st.SearchStrategy[Any]] = {
    "token_ids": odd_ids.map(tuple),
    "max_tokens": odd_integers,
    "stop": odd_texts.map(tuple),
    "stop_token_ids": odd_ids.map(tuple),
    "logprobs": odd_integers,
}
"""One field of a request in four is one of these; nearly all of them are to be refused, and none may do harm."""

odd_runs = st.one_of(odd_ids.map(tuple), st.lists(odd_ids.map(tuple), max_size=40).map(tuple), odd_integers)
odd_rules: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "markers": {
        "start": odd_integers,
        "end": odd_integers,
        "header_end": odd_integers,
        "header_tail": odd_runs,
        "line_breaks": odd_numbers,
        "after_end": odd_runs,
        "eos": odd_runs,
    },
    "dry": {
        "multiplier": odd_numbers,
        "base": odd_numbers,
        "allowed_length": odd_integers,
        "sequence_breakers": odd_texts.map(tuple) | odd_runs,
        "range": odd_integers,
    },
    "roles": {
        "headers": odd_runs,
        "open_names": odd_runs,
        "forbid_end": odd_numbers,
        "minimum_content": odd_integers,
        "ignore_eos": odd_numbers,
    },
}
"""The same for the rules of the samplers."""

token_ids = st.integers(0, VOCAB_SIZE - 1)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(["\0", "e\u0301", "\U0001f98a\u200d", "\u202e", "\ufffd", "a" * 1024, " ", "e", "<|eot_id|>"]),
)
samplings = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.one_of(st.sampled_from([0, 0.0, TINY, 1e-5, 0.01, 2.0, 5.0]), st.floats(0.0, 5.0)),
        "top_p": st.sampled_from([TINY, 1e-9, 0.5, 1.0]),
        "top_k": st.sampled_from([0, 1, 5, VOCAB_SIZE - 1, VOCAB_SIZE, VOCAB_SIZE + 1, 2**31 - 1, 2**31, INT64_MAX]),
        "min_p": st.sampled_from([0.0, TINY, 0.5, 1.0]),
        "presence_penalty": st.sampled_from([-2.0, TINY, 2.0]),
        "frequency_penalty": st.sampled_from([-2.0, TINY, 2.0]),
        "repetition_penalty": st.sampled_from([0.01, 1.0, 100.0]),
        "seed": st.one_of(st.none(), st.integers(INT64_MIN, INT64_MAX), st.sampled_from([INT64_MIN, -1, 0, INT64_MAX])),
        "logit_bias": st.dictionaries(token_ids, st.sampled_from([-100.0, -TINY, 0, 100.0]), max_size=40),
        "min_tokens": st.integers(0, 4),
    },
)
own_or_beyond = st.one_of(st.sampled_from([1, 2, 3, 4, 20]), token_ids, st.sampled_from([VOCAB_SIZE, 2**31 - 1]))
integers = st.sampled_from([0, 1, 2, 30, 2**31 - 1])


def runs(most: int, least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(own_or_beyond, min_size=least, max_size=most).map(tuple)


logits_rules = st.builds(
    LogitsRules,
    st.builds(Markers, own_or_beyond, own_or_beyond, own_or_beyond, runs(4), st.booleans(), runs(4), runs(8)),
    st.none()
    | st.builds(
        Dry,
        st.sampled_from([0, TINY, 0.8, 1000.0]),
        st.sampled_from([1, 1.75, 100.0]),
        integers,
        st.lists(texts.map(lambda text: text[:64]), max_size=4).map(tuple),
        integers,
    ),
    st.none()
    | st.builds(
        RoleRule,
        st.lists(runs(8, least=1), max_size=4).map(tuple),
        st.lists(runs(3, least=1), max_size=1).map(tuple),
        st.booleans(),
        integers,
        st.booleans(),
    ),
)
schemas = st.recursive(
    st.sampled_from(
        [
            {},
            {"type": "string", "pattern": "^(a+)+$"},
            {"type": "string", "pattern": "(.*a){20}b"},
            {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
            {"type": "string", "pattern": "("},
            {"type": "string", "minLength": 10**6},
            {"type": "string", "maxLength": 10**12},
            {"type": "integer", "minimum": -(10**40), "maximum": 10**40},
            {"type": "number", "minimum": 3, "maximum": 2},
            {"enum": []},
            {"enum": [None, True, 1e300, "\ud800", {"a": []}]},
            {"$ref": "#"},
            {"$ref": "#/$defs/none"},
            {"$ref": "http://127.0.0.1:9/schema"},
            {"type": ["string", "null", "banana"]},
            {"type": "array", "minItems": 10**6},
            {"x-guidance": {"item_separator": "("}, "type": "array"},
            {"%lark": "start: start start"},
            {"const": "\x00"},
        ]
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(texts, inner, max_size=3)}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"allOf": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$defs": st.fixed_dictionaries({"none": inner}), "$ref": st.just("#/$defs/none")}),
    ),
    max_leaves=4,
)
formats = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.just(JsonFormat()),
    st.builds(JsonFormat, st.one_of(schemas.map(json.dumps), st.sampled_from(["", "{", "[]", "null", "[" * 5000]))),
)


@st.composite
def requests(draw: st.DrawFn) -> PreparedRequest:
    """A request with every field at an extreme that is allowed, or with one at one that is not."""
    fields: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "token_ids": st.lists(token_ids, min_size=1, max_size=60).map(tuple),
                "stop": st.lists(texts, max_size=4).map(tuple),
                "include_stop": st.booleans(),
                "stop_token_ids": st.lists(token_ids, max_size=40).map(tuple),
                "ignore_eos": st.booleans(),
                "logprobs": st.sampled_from([None, 0, 1, 20]),
                "prompt_logprobs": st.booleans(),
                "request_id": st.sampled_from(["", "\ud800", "x" * 300]),
                "max_tokens": st.integers(4, 24),
                "rules": logits_rules,
            },
        )
    )
    sampling: dict[str, Any] = draw(samplings)
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from([*odd_samplings, *odd_fields]))
        if name in odd_samplings:
            sampling[name] = draw(odd_samplings[name])
        else:
            fields[name] = draw(odd_fields[name])
    return ask(**{"sampling": sampling, "answer_format": draw(formats), **fields})


async def end(engine: LocalEngine, request: PreparedRequest) -> str:
    """How the request ended. A failure of the engine is the test's."""
    last: object = None
    try:
        # Long answers are cut: what is looked for happens early.
        stream = engine.generate(request)
        try:
            async for event in stream:
                last = event
                if isinstance(event, Started):
                    assert event.prompt_tokens == len(request.token_ids)
                elif not isinstance(event, Finished) and len(event.token_ids) > 64:
                    break
        finally:
            await stream.aclose()
    except InvalidRequest as error:
        assert last is None, "refused after the first event"
        return f"refused {error.param}"
    return "answered"


async def still_right(engine: LocalEngine) -> None:
    """The engine is alive and answers as it should, exactly."""
    await engine.check_health()
    assert (await answer(engine, forced(99, max_tokens=3))).token_ids == (99, 99, 99)
    assert (await answer(engine, saying("still right 🦊"))).text == '"still right 🦊"'
    assert engine.unfinished == 0


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        # No shrinking: an engine that is dead cannot be asked again.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


async def batch(engine: LocalEngine, requests: list[PreparedRequest]) -> list[str]:
    async with asyncio.timeout(BATCH_S):
        endings = await asyncio.gather(*(end(engine, request) for request in requests))
        await still_right(engine)
    return endings


@fuzz(examples=50)
@given(asked=st.lists(requests(), min_size=1, max_size=8))
async def test_any_requests_at_once(local_engine: LocalEngine, asked: list[PreparedRequest]) -> None:
    await batch(local_engine, asked)


@fuzz(examples=25)
@given(sampling=samplings, logprobs=st.sampled_from([None, 0, 20]))
async def test_any_sampling(local_engine: LocalEngine, sampling: dict[str, Any], logprobs: int | None) -> None:
    await batch(local_engine, [ask(sampling=sampling, logprobs=logprobs, index=index) for index in range(3)])


@fuzz(examples=30)
@given(schema=schemas, others=st.integers(0, 3))
async def test_any_schema_beside_others(local_engine: LocalEngine, schema: dict[str, Any], others: int) -> None:
    asked = ask(answer_format=JsonFormat(json.dumps(schema)), max_tokens=24)
    await batch(local_engine, [asked, *(ask(sampling={"seed": number}) for number in range(others))])


@st.composite
def ruled(draw: st.DrawFn) -> PreparedRequest:
    """A request with rules, of which one part may be impossible, and a prompt that ends anywhere."""
    rules: LogitsRules = draw(logits_rules)
    if draw(st.booleans()):
        part = draw(st.sampled_from(sorted(odd_rules)))
        name = draw(st.sampled_from(sorted(odd_rules[part])))
        sound: Any = getattr(rules, part) or (Dry() if part == "dry" else RoleRule())
        odd: dict[str, Any] = {part: replace(sound, **{name: draw(odd_rules[part][name])})}
        rules = replace(rules, **odd)
    prompt = draw(st.lists(token_ids | st.sampled_from([2, 3, 4, 20, rules.markers.start]), min_size=1, max_size=60))
    sound_ids = tuple(token for token in prompt if type(token) is int and 0 <= token < VOCAB_SIZE)
    sampling: dict[str, Any] = draw(
        st.sampled_from([{}, {"seed": 1}, {"temperature": 0.0}, {"logit_bias": {2: 100.0, 4: 99.0}}])
    )
    return ask(rules=rules, token_ids=sound_ids or (5,), sampling=sampling, ignore_eos=draw(st.booleans()))


@fuzz(examples=50)
@given(asked=st.lists(ruled(), min_size=1, max_size=8))
async def test_any_rules_at_once(local_engine: LocalEngine, asked: list[PreparedRequest]) -> None:
    await batch(local_engine, asked)


def edge(**sampling: Any) -> PreparedRequest:  # noqa: ANN401
    return ask(sampling=sampling)


EDGES = [
    # Allowed, at their edges, and each was seen to answer.
    edge(temperature=TINY),
    edge(temperature=2.0, top_p=TINY),
    edge(min_p=1.0, top_k=1, top_p=TINY, logit_bias={3: 100.0}),
    edge(top_k=INT64_MAX),
    edge(repetition_penalty=0.01, temperature=0.0),
    edge(repetition_penalty=100.0, presence_penalty=-2.0, frequency_penalty=2.0),
    edge(seed=INT64_MIN),
    edge(seed=INT64_MAX),
    edge(seed=-1),
    edge(logit_bias=dict.fromkeys(range(VOCAB_SIZE), -100.0)),
    edge(min_tokens=12),
    replace(edge(min_tokens=5), stop_token_ids=tuple(range(VOCAB_SIZE))),
    replace(edge(temperature=0.0), logprobs=20, prompt_logprobs=True),
    ask(stop=("\0", "\u202e", "\U0001f98a")),
    ask(request_id="\ud800" * 500),
    # Before each token the compiler went through all text that can follow in one way only: 0.3 s for this list.
    ask(
        answer_format=JsonFormat(
            json.dumps({"type": "array", "minItems": 1000, "maxItems": 1000, "items": {"const": "x" * 999}})
        )
    ),
    # The separator is not the caller's to choose; as a pattern it made the compiler panic, which is no Exception.
    ask(answer_format=JsonFormat('{"type": "array", "x-guidance": {"item_separator": "("}}')),
]
FATAL = [
    # The engine core's reading thread ends, and everything hangs from then on (vLLM 0.32, msgspec.ValidationError).
    ask(token_ids=(True, 5)),
    edge(seed=True),
    edge(temperature=True),
    edge(logit_bias={5: True}),
    ask(max_tokens=True),
    edge(min_tokens=False),
    # All memory, of this process and of the engine's.
    ask(answer_format=JsonFormat('{"type": "array", "minItems": 1000000000}')),
    # Not serialisable on the way to the engine.
    edge(seed=2**70),
    ask(max_tokens=2**70),
    ask(stop=("\ud800",)),
]


@pytest.mark.parametrize("request_", EDGES, ids=range(len(EDGES)))
async def test_edges_are_answered(local_engine: LocalEngine, request_: PreparedRequest) -> None:
    assert await batch(local_engine, [request_]) == ["answered"]


@pytest.mark.parametrize("request_", FATAL, ids=range(len(FATAL)))
async def test_what_was_fatal_is_refused(local_engine: LocalEngine, request_: PreparedRequest) -> None:
    (ending,) = await batch(local_engine, [request_])
    assert ending.startswith("refused")
    assert ending != "refused None"


async def test_a_burst_of_seeded_prompts_is_not_split(local_engine: LocalEngine) -> None:
    """A prefill in parts with a seed ends vLLM's CPU worker: more prompt tokens than one step holds, all seeded."""
    long = [ask(token_ids=tuple(range(10, 800)) * 2, sampling={"seed": seed}) for seed in range(12)]
    assert await batch(local_engine, long) == ["answered"] * 12


async def test_a_burst_of_everything(local_engine: LocalEngine) -> None:
    assert set(await batch(local_engine, EDGES * 8)) == {"answered"}


async def test_requests_at_the_limits_do_not_hold_the_loop(local_engine: LocalEngine) -> None:
    """In CPU seconds of this thread, so that a busy machine does not matter."""
    properties = {f"p{number}": {"type": "string"} for number in range(1_000)}
    schema = json.dumps({"type": "object", "properties": properties, "required": list(properties)})
    worst = asyncio.create_task(worst_turn_s())
    await batch(
        local_engine,
        [
            ask(stop=tuple(f"{number:01024}" for number in range(256)), max_tokens=200),
            edge(logit_bias=dict.fromkeys(range(VOCAB_SIZE), 1.0)),
            ask(stop_token_ids=tuple(range(500, VOCAB_SIZE))),
            ask(answer_format=JsonFormat(schema)),
        ],
    )
    worst.cancel()
    assert await worst < 0.1


async def worst_turn_s() -> float:
    """Until cancelled: the most that one turn of the loop cost."""
    worst, last = 0.0, time.thread_time()
    try:
        while True:
            await asyncio.sleep(0.002)
            now = time.thread_time()
            worst, last = max(worst, now - last), now
    except asyncio.CancelledError:
        return worst
