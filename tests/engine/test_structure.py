"""Schemas and grammars of strangers: what the engine could not compile in time is refused before it, and what it
follows is cheap before every token."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import llguidance
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving.core import Grammar, JsonFormat
from serving.engine import structure
from serving.engine.structure import Structures
from serving.errors import InvalidRequest, Overloaded
from serving.settings import DEMO_MODEL_DIR


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    # The limits of the process decide, however busy the machine is.
    monkeypatch.setattr(structure._CHILD, "wall_s", 60.0)


def matching(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def doubled(depth: int) -> dict[str, Any]:
    """Each definition holds the one before three times: 3 to the `depth`."""
    found: dict[str, Any] = {"a0": {"type": "object", "properties": {"x": {"type": "string"}}}}
    for number in range(1, depth):
        before = {"$ref": f"#/$defs/a{number - 1}"}
        found[f"a{number}"] = {"anyOf": [before, before], "properties": {f"p{number}": before}}
    return {"$defs": found, "$ref": f"#/$defs/a{depth - 1}"}


def strings(many: int) -> dict[str, Any]:
    return {f"p{number}": {"type": "string"} for number in range(many)}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


# What each did to the compiler, or to an engine before a token, before it was refused.
REFUSED = {
    "90 s and more": {"type": "integer", "multipleOf": 999983},
    "90 s and more, by patterns": {"allOf": [matching(f".*a.{{{count}}}b.*") for count in range(1, 20)]},
    "7 s": {"allOf": [matching(f"^(.*[a-{chr(98 + i)}].{{{i * 3}}}.*)$") for i in range(1, 20)]},
    "all memory": {"type": "array", "minItems": 10**9},
    "all memory, at most": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
    "26 s": {"type": "array", "maxItems": 10**6},
    "a panic": {"type": "array", "maxItems": 10**5},
    "3 s, and 1.5 s for a token": doubled(10),
    "no answer": {"allOf": [matching(f"^(a{{{prime}}})*$") for prime in (2, 3, 5, 7, 11, 13, 17, 19, 23)]},
    "no answer either": {"$ref": "#"},
    "an answer broken off": {"type": "object", "properties": strings(700)},
    "a stack": nested(65),
}


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED)
async def test_what_the_engine_could_not_do_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as error:
        await Structures().grammar(JsonFormat(json.dumps(schema)))
    assert error.value.param == "response_format"
    assert "cannot be used" in error.value.message
    assert "llguidance" not in error.value.message


TAKEN = {
    "properties": {"type": "object", "properties": (properties := strings(700)), "required": list(properties)},
    "a text as long as a schema may be": {"const": "x" * 30_000},
    "texts that follow one another": {
        "type": "array",
        "minItems": 1000,
        "maxItems": 1000,
        "items": {"const": "x" * 999},
    },
    "a count": matching("^a{1000000}$"),
    "nested counts": matching("^((a{1000}){1000}){1000}$"),
    "nested counts of any": matching("((a{1,1000}){1,1000}){1,1000}"),
    "the same twice": matching("^(a|a)*b$"),
    "look back": matching("^[ab]*a[ab]{1000}$"),
    "many": {"enum": list(range(5000))},
    "at least": {"type": "string", "minLength": 10**9},
    "at most": {"type": "string", "maxLength": 10**9},
    "a step": {"type": "number", "multipleOf": 0.01},
    "refers to itself": {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "integer"}]},
    "nested": nested(63),
    "separators of a stranger": {"type": "array", "x-guidance": {"item_separator": "("}},
}


@pytest.mark.parametrize("schema", TAKEN.values(), ids=TAKEN)
async def test_what_is_taken_is_cheap(schema: dict[str, Any]) -> None:
    follow(await Structures().grammar(JsonFormat(json.dumps(schema))), 40)


async def test_a_grammar_is_taken_as_it_is() -> None:
    grammar = await Structures().grammar(Grammar('root ::= "yes" | "no"'))
    assert follow(grammar, 4) in ("yes", "no")


GRAMMARS = {
    "names none": "root ::= b",
    "options": '%llguidance {"no_forcing": false}\nstart: "a"',
}


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
async def test_a_grammar_that_cannot_be_used(grammar: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        await Structures().grammar(Grammar(grammar))
    assert error.value.param == "grammar_string"


async def test_the_same_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure._CHILD, "most_waiting", 1)
    structures, text = Structures(), JsonFormat('{"type": "integer"}')
    told = await asyncio.gather(*(structures.grammar(text) for _ in range(64)))
    assert len(set(told)) == 1
    monkeypatch.setattr(structure._CHILD, "most_waiting", 0)
    assert await structures.grammar(text) == told[0]
    with pytest.raises(Overloaded):
        await structures.grammar(JsonFormat('{"type": "string"}'))
    monkeypatch.setattr(structure._CHILD, "most_waiting", 1)
    assert await structures.grammar(JsonFormat('{"type": "string"}'))


async def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MOST_KNOWN", 2)
    structures = Structures()
    one, two, three = (JsonFormat(f'{{"const": {number}}}') for number in range(3))
    for wanted in (one, two, one, three):
        await structures.grammar(wanted)
    assert list(structures._known) == [one, three]


counts = st.sampled_from([0, 1, 3, 30, 1000, 99_991, 10**6, 10**9])
letters = st.sampled_from(["a", "b", ".", "[a-f]", "\\w", "\\p{L}", "[^x]", "(a|ab)", "(?=a)", "\\1", "é"])
patterns = st.recursive(
    letters,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, counts, counts).map(lambda part: f"({part[0]}){{{min(part[1:])},{max(part[1:])}}}"),
        inner.map(lambda part: f"({part})*"),
    ),
    max_leaves=5,
)
leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    patterns.map(matching),
    st.fixed_dictionaries({"type": st.just("string"), "minLength": counts}, optional={"maxLength": counts}),
    st.builds(lambda step: {"type": "integer", "multipleOf": step}, counts),
    st.builds(lambda low, high: {"type": "integer", "minimum": -low, "maximum": high}, counts, counts),
    st.builds(lambda many: {"enum": [f"v{i}" for i in range(many)]}, st.sampled_from([0, 3, 1500])),
    st.builds(lambda length: {"const": "c" * length}, st.sampled_from([0, 9, 5000])),
    st.builds(lambda form: {"type": "string", "format": form}, st.sampled_from(["uri", "email", "date-time", "ipv6"])),
    st.sampled_from([{}, {"$ref": "#"}, {"not": {}}]),
)
schemas: st.SearchStrategy[dict[str, Any]] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda kind, parts: {kind: parts}, st.sampled_from(["anyOf", "oneOf", "allOf"]), st.lists(inner)),
        st.builds(
            lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
            *(inner, counts, counts),
        ),
        st.builds(
            lambda one, rest, many: {
                "type": "object",
                "properties": {f"p{i}": one for i in range(many)},
                "additionalProperties": rest,
            },
            *(inner, inner | st.booleans(), st.sampled_from([0, 2, 40])),
        ),
        st.builds(lambda parts: {"type": "object", "patternProperties": parts}, st.dictionaries(patterns, inner)),
    ),
    max_leaves=6,
)


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(schema=schemas, seed=st.integers(0, 9))
async def test_any_schema_is_refused_or_cheap(schema: dict[str, Any], seed: int) -> None:
    with contextlib.suppress(InvalidRequest):
        follow(await Structures().grammar(JsonFormat(json.dumps(schema))), 25, seed)


TOKENIZER = llguidance.LLTokenizer(Path(DEMO_MODEL_DIR, "tokenizer.json").read_text(encoding="utf-8"))


def follow(grammar: str, tokens: int, seed: int = 0) -> str:
    """So many tokens as the engine's compiler allows them. Each step must cost less than a second of this process."""
    spent = time.process_time()
    matcher = llguidance.LLMatcher(TOKENIZER, llguidance.grammar_from("grammar", grammar), log_level=0)
    written: list[int] = []
    while len(written) < tokens and not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(TOKENIZER.vocab_size) if mask[i >> 3] >> (i & 7) & 1]
        written.append(allowed[(seed + len(written) * 7919) % len(allowed)])
        matcher.consume_token(written[-1])
        before, spent = spent, time.process_time()
        assert spent - before < 1.0
    return TOKENIZER.decode_str(written)
