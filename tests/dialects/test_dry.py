"""The DRY sampler's spellings: all mean the same, off is off, and mistakes are named as they were spelled."""

import json
from typing import Any

import msgspec
import pytest

from serving.core import Dry
from serving.dialects.dry import DryWire, FlatDryWire, read_dry
from serving.errors import InvalidRequest


def read(nested: dict[str, Any] | None = None, /, **flat: Any) -> Dry | None:  # noqa: ANN401  # wrong types too
    wire = None if nested is None else msgspec.convert(nested, DryWire)
    return read_dry(wire, msgspec.convert(flat, FlatDryWire))


WHOLE = Dry(0.5, 2.0, 3, ("\n", "#"), 100)
NESTED: dict[str, Any] = {"multiplier": 0.5, "base": 2, "sequence_breakers": ["\n", "#"], "range": 100}
FLAT: dict[str, Any] = {
    "dry_multiplier": 0.5,
    "dry_base": 2,
    "dry_allowed_length": 3,
    "dry_sequence_breakers": ["\n", "#"],
}


@pytest.mark.parametrize(
    "found",
    [
        read({**NESTED, "allowed_length": 3}),
        read({**NESTED, "allowedLength": 3}),
        read(**FLAT, dry_range=100),
        read(**FLAT, dry_penalty_last_n=100),
        read({"multiplier": 0.5}, **{**FLAT, "dry_multiplier": 9}, dry_range=100),
        read({**NESTED, "allowed_length": 3}, **dict.fromkeys(FLAT, 7)),
        read(**{**FLAT, "dry_sequence_breakers": '["\\n", "#"]'}, dry_range=100),
        read(**{**FLAT, "dry_sequence_breakers": '"\\n", "#"'}, dry_range=100),
        read(**{**FLAT, "dry_sequence_breakers": "\n,#"}, dry_range=100),
        read(**{**FLAT, "dry_sequence_breakers": ["\n", "", "#"]}, dry_range=100),
    ],
)
def test_all_spellings_mean_the_same(found: Dry | None) -> None:
    assert found == WHOLE


@pytest.mark.parametrize(
    "found",
    [
        read(),
        read({}),
        read({"multiplier": 0}),
        read({"multiplier": 0, "base": "x", "allowed_length": -9, "sequence_breakers": 5}),
        read(dry_multiplier=0, dry_base=1.75, dry_allowed_length=2, dry_penalty_last_n=0, dry_sequence_breakers="[]"),
        read({"multiplier": 0}, dry_multiplier=0.8),
        read(dry_sequence_breakers='["\\n"]', dry_penalty_last_n=0),
        read({"range": 5, "sequence_breakers": ["a"]}),
    ],
)
def test_off_is_off_whatever_else_is_said(found: Dry | None) -> None:
    assert found is None


def test_what_is_not_said_is_the_default() -> None:
    assert read({"multiplier": 0.8}) == Dry()
    assert read({"base": 2}) == Dry(base=2.0)
    assert read({"allowedLength": 0}) == Dry(allowed_length=0)
    assert read(dry_multiplier=0.8, dry_sequence_breakers=[]) == Dry(sequence_breakers=())
    assert read(dry_multiplier=0.8, dry_penalty_last_n=-1) == Dry(range=0)


_BAD_MULTIPLIERS: list[Any] = [-0.1, 1000.1, "1", True, []]
_VALUES: dict[str, list[Any]] = {
    "base": [0.9, 100.1, "1", False, []],
    "allowed_length": [-1, 2**31, 1.5, "1", True],
    "range": [-2, 2**31, 1.5, True],
}
WRONG: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = [
    *[(f"dry.{name}", {"multiplier": 1, name: value}, {}) for name, values in _VALUES.items() for value in values],
    *[("dry.multiplier", {"multiplier": value}, {}) for value in _BAD_MULTIPLIERS],
    *[("dry_multiplier", None, {"dry_multiplier": value}) for value in _BAD_MULTIPLIERS],
    *[("dry_base", {"multiplier": 1}, {"dry_base": value}) for value in (0.9, 100.1, "1")],
    *[("dry.allowedLength", {"multiplier": 1, "allowedLength": value}, {}) for value in (-1, 2**31, 1.5)],
    *[("dry_allowed_length", None, {"dry_multiplier": 1, "dry_allowed_length": value}) for value in (-1, 1.5)],
    *[("dry_range", None, {"dry_multiplier": 1, "dry_range": value}) for value in (-2, "x")],
    *[("dry_penalty_last_n", None, {"dry_multiplier": 1, "dry_penalty_last_n": value}) for value in (-2, "x")],
    *[
        ("dry.sequence_breakers", {"multiplier": 1, "sequence_breakers": value}, {})
        for value in (5, [5], {"a": 1}, "[5]", '{"a": 1}', "5", ["x" * 65], ["x"] * 65, json.dumps(["x"] * 65))
    ],
    ("dry_sequence_breakers", None, {"dry_multiplier": 1, "dry_sequence_breakers": [None]}),
]


@pytest.mark.parametrize(("param", "nested", "flat"), WRONG, ids=lambda value: str(value)[:40])
def test_a_mistake_is_named_as_it_was_spelled(param: str, nested: dict[str, Any] | None, flat: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as error:
        read(nested, **flat)
    assert error.value.param == param
    assert param in error.value.message


def test_breakers_nested_without_end() -> None:
    """As JSON it is nothing, so it is a list separated by commas: one breaker, too long."""
    with pytest.raises(InvalidRequest):
        read({"multiplier": 1, "sequence_breakers": "[" * 100_000})
