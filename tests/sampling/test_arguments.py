"""How rules travel to the process that samples: there and back again, and nothing impossible arrives."""

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core import Dry, LogitsRules, Markers, RoleRule
from serving.sampling.arguments import KEY, MOST_EOS, MOST_TAIL, from_extra_args, to_extra_args
from serving.sampling.dry.params import MOST_BASE, MOST_BREAKER_CHARACTERS, MOST_BREAKERS, MOST_INTEGER, MOST_MULTIPLIER
from serving.sampling.roles.params import LONGEST_PATH, MOST_PATH_TOKENS, MOST_PATHS

tokens = st.integers(0, 2**31 - 1)


def runs(most: int, least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(tokens, min_size=least, max_size=most).map(tuple)


markers = st.builds(
    Markers,
    start=tokens,
    end=tokens,
    header_end=tokens,
    header_tail=runs(MOST_TAIL),
    line_breaks=st.booleans(),
    after_end=runs(MOST_TAIL),
    eos=runs(MOST_EOS),
).filter(lambda made: made.header_end not in (made.start, made.end, *made.eos))
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MOST_BREAKER_CHARACTERS)
dries = st.builds(
    Dry,
    multiplier=st.floats(0, MOST_MULTIPLIER) | st.sampled_from([0, 1, 5e-324, MOST_MULTIPLIER]),
    base=st.floats(1, MOST_BASE) | st.sampled_from([1, MOST_BASE]),
    allowed_length=st.integers(0, MOST_INTEGER),
    sequence_breakers=st.lists(texts, max_size=8).map(tuple) | st.just(("x",) * MOST_BREAKERS),
    range=st.integers(0, MOST_INTEGER),
)


@st.composite
def role_rules(draw: st.DrawFn) -> RoleRule:
    headers = draw(st.lists(runs(8, least=1), max_size=6))
    # None of these begins another path.
    opened = [(2**31 - 1 - number, *draw(runs(4))) for number in range(draw(st.integers(0, 3)))]
    headers = [path for path in headers if path[0] < 2**31 - 4]
    minimum = draw(st.integers(0, 2**31 - 1))
    return RoleRule(tuple(headers), tuple(opened), draw(st.booleans()), minimum, draw(st.booleans()))


rules = st.builds(LogitsRules, markers, dry=st.none() | dries, roles=st.none() | role_rules())


@given(rules)
def test_there_and_back_again(told: LogitsRules) -> None:
    assert from_extra_args(to_extra_args(told)) == told
    assert from_extra_args(json.loads(json.dumps(to_extra_args(told), allow_nan=False))) == told


def test_no_rules() -> None:
    assert from_extra_args(None) is None
    assert from_extra_args({}) is None
    assert from_extra_args({"other": 1, KEY: None}) is None


def test_what_is_left_out_is_the_default() -> None:
    least = {"start": 1, "end": 2, "header_end": 3}
    told = from_extra_args({KEY: {"markers": least, "dry": {}, "roles": {}}, "other": [1]})
    assert told == LogitsRules(Markers(1, 2, 3), Dry(), RoleRule())
    assert from_extra_args({KEY: {"markers": least}}) == LogitsRules(Markers(1, 2, 3))


WHOLE = to_extra_args(
    LogitsRules(
        Markers(0, 1, 2, header_tail=(3,), line_breaks=True, after_end=(3,), eos=(4,)),
        Dry(),
        RoleRule(headers=((5, 2),), open_names=((6,),), minimum_content=3),
    )
)


@pytest.mark.parametrize("other", ["start", "end", "eos"])
def test_a_header_ends_with_a_token_of_its_own(other: str) -> None:
    """Else it would be both allowed and forbidden in a name."""
    told = WHOLE[KEY]["markers"] | {other: [2] if other == "eos" else 2}
    with pytest.raises(ValueError, match="header_end"):
        from_extra_args({KEY: WHOLE[KEY] | {"markers": told}})


NOT_NUMBERS: list[Any] = ["1", "", [], {}, [1], True, False, math.nan, math.inf, -math.inf, 10**400, -1, -(10**400)]
NOT_INTEGERS: list[Any] = [*NOT_NUMBERS, 1.0, 0.5, 2**31, 2**63, 2**70]
NOT_TOKENS: list[Any] = [
    *([bad] for bad in NOT_INTEGERS),
    1,
    "1",
    "",
    {},
    {"0": 1},
    True,
    None,
    math.nan,
    [None],
    [[1]],
]
NOT_FLAGS: list[Any] = ["false", "", 0, 1, 2, [], {}, math.nan, None]
NOT_OBJECTS: list[Any] = [1, "x", "", [], [1], True, False, math.nan]
BAD: dict[tuple[str, ...], list[Any]] = {
    (): NOT_OBJECTS,
    ("markers",): [*NOT_OBJECTS, None, {}],
    ("dry",): NOT_OBJECTS,
    ("roles",): NOT_OBJECTS,
    ("markers", "start"): [*NOT_INTEGERS, None],
    ("markers", "end"): [*NOT_INTEGERS, None],
    ("markers", "header_end"): [*NOT_INTEGERS, None],
    ("markers", "header_tail"): [*NOT_TOKENS, [3] * (MOST_TAIL + 1)],
    ("markers", "after_end"): [*NOT_TOKENS, [3] * (MOST_TAIL + 1)],
    ("markers", "eos"): [*NOT_TOKENS, [3] * (MOST_EOS + 1)],
    ("markers", "line_breaks"): NOT_FLAGS,
    ("dry", "multiplier"): [*NOT_NUMBERS, None, MOST_MULTIPLIER * 1.001],
    ("dry", "base"): [*NOT_NUMBERS, None, 0.999, 0, MOST_BASE * 1.001],
    ("dry", "allowed_length"): [*NOT_INTEGERS, None],
    ("dry", "range"): [*NOT_INTEGERS, None],
    ("dry", "sequence_breakers"): [
        "\n",
        None,
        1,
        {},
        {"a": 1},
        [1],
        [None],
        [True],
        [["a"]],
        [""],
        ["a" * (MOST_BREAKER_CHARACTERS + 1)],
        ["a"] * (MOST_BREAKERS + 1),
        ["\ud800"],
    ],
    ("roles", "headers"): [
        *([bad] for bad in NOT_TOKENS),
        "x",
        None,
        {},
        1,
        [[]],
        [[9]] * (MOST_PATHS + 1),
        [[9] * (LONGEST_PATH + 1)],
        [[9] * LONGEST_PATH] * (MOST_PATH_TOKENS // LONGEST_PATH + 1),
        [[6, 7]],
    ],
    ("roles", "open_names"): [*([bad] for bad in NOT_TOKENS), None, [[]], [[5]], [[6], [6]], [[6], [6, 7]]],
    ("roles", "forbid_end"): NOT_FLAGS,
    ("roles", "ignore_eos"): NOT_FLAGS,
    ("roles", "minimum_content"): [*NOT_INTEGERS, None],
}


def refused(told: dict[str, Any]) -> bool:
    """Whether it is a ValueError; any other error is the test's."""
    try:
        from_extra_args(told)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("path", BAD, ids=lambda path: ".".join(path) or KEY)
def test_what_is_impossible_is_a_value_error(path: tuple[str, ...]) -> None:
    for bad in BAD[path]:
        told = copy.deepcopy(WHOLE)
        at = told
        for key in (KEY, *path)[:-1]:
            at = at[key]
        at[(KEY, *path)[-1]] = bad
        assert refused(told), f"taken: {path} = {bad!r}"[:200]


@pytest.mark.parametrize("lacking", ["markers", "start", "end", "header_end"])
def test_markers_are_needed(lacking: str) -> None:
    told = copy.deepcopy(WHOLE)
    del (told[KEY] if lacking == "markers" else told[KEY]["markers"])[lacking]
    with pytest.raises(ValueError, match=lacking):
        from_extra_args(told)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(st.data())
def test_anything_else_is_taken_or_a_value_error(data: st.DataObject) -> None:
    """Any value in any place; what is taken goes there and back again."""
    told = copy.deepcopy(WHOLE)
    for path in data.draw(st.lists(st.sampled_from(sorted(BAD)), min_size=1, max_size=3)):
        *keys, last = (KEY, *path)
        at: Any = told
        for key in keys:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[last] = data.draw(json_values)
    try:
        taken = from_extra_args(told)
    except ValueError:
        return
    assert taken is None or from_extra_args(to_extra_args(taken)) == taken
