"""The DRY sampler's many spellings -> core's `Dry`. The bounds are those of docs/dialects.md.

Nested (`dry: {...}`, snake or camel case) or flat (`dry_*`); the nested spelling wins where both say something.
"""

import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from serving.core import Dry
from serving.errors import InvalidRequest
from serving.sampling.dry.params import (
    MOST_BASE,
    MOST_BREAKER_CHARACTERS,
    MOST_BREAKERS,
    MOST_INTEGER,
    MOST_MULTIPLIER,
)


class DryWire(msgspec.Struct, kw_only=True):
    """The DRY sampler. Values are checked in `read_dry`, not here: with multiplier 0 none of them is an error."""

    multiplier: Annotated[Any, Meta(description="From 0 to 1000; 0 is off, and then nothing else matters.")] = None
    base: Annotated[Any, Meta(description="From 1 to 100; 1.75 by default.")] = None
    allowed_length: Annotated[Any, Meta(description="Repetitions up to so many tokens are free; 2 by default.")] = None
    allowedLength: Annotated[Any, Meta(description="The same as `allowed_length`.")] = (
        None  # the documents spell it both ways
    )
    sequence_breakers: Annotated[
        Any,
        Meta(
            description=f"Texts that end a repetition: up to {MOST_BREAKERS} of up to {MOST_BREAKER_CHARACTERS} "
            "characters."
        ),
    ] = None
    range: Annotated[Any, Meta(description="How many tokens back it looks; 0 and -1 are all.")] = None


class FlatDryWire(msgspec.Struct, kw_only=True):
    """The flat spelling, for wire models to inherit."""

    dry_multiplier: Annotated[Any, Meta(description="As `dry.multiplier`.")] = None
    dry_base: Annotated[Any, Meta(description="As `dry.base`.")] = None
    dry_allowed_length: Annotated[Any, Meta(description="As `dry.allowed_length`.")] = None
    dry_sequence_breakers: Annotated[
        Any, Meta(description="As `dry.sequence_breakers`; also as JSON in a string, or separated by commas.")
    ] = None
    dry_range: Annotated[Any, Meta(description="As `dry.range`.")] = None
    dry_penalty_last_n: Annotated[Any, Meta(description="The same as `dry_range`.")] = None


def read_dry(nested: DryWire | None, flat: FlatDryWire | None, *, param: str = "dry") -> Dry | None:
    """The sampler's parameters, or None when it is off. Raises InvalidRequest naming the field as it was spelled."""
    nested, flat = nested or DryWire(), flat or FlatDryWire()
    default = Dry()
    turned_on = (nested.multiplier, flat.dry_multiplier, nested.base, nested.allowed_length, nested.allowedLength)
    if all(value is None for value in turned_on):
        return None
    multiplier = _number(
        default.multiplier,
        0,
        MOST_MULTIPLIER,
        (f"{param}.multiplier", nested.multiplier),
        ("dry_multiplier", flat.dry_multiplier),
    )
    if multiplier == 0:
        return None
    base = _number(default.base, 1, MOST_BASE, (f"{param}.base", nested.base), ("dry_base", flat.dry_base))
    allowed = _integer(
        default.allowed_length,
        0,
        (f"{param}.allowed_length", nested.allowed_length),
        (f"{param}.allowedLength", nested.allowedLength),
        ("dry_allowed_length", flat.dry_allowed_length),
    )
    last_n = _integer(
        default.range,
        -1,
        (f"{param}.range", nested.range),
        ("dry_range", flat.dry_range),
        ("dry_penalty_last_n", flat.dry_penalty_last_n),
    )
    breakers = _breakers(
        (f"{param}.sequence_breakers", nested.sequence_breakers), ("dry_sequence_breakers", flat.dry_sequence_breakers)
    )
    return Dry(multiplier, base, allowed, default.sequence_breakers if breakers is None else breakers, max(last_n, 0))


def _first(*fields: tuple[str, Any]) -> tuple[str, object] | None:
    """Name and value of the first field that was given."""
    return next(((name, value) for name, value in fields if value is not None), None)


def _number(default: float, low: float, high: float, *fields: tuple[str, Any]) -> float:
    if (found := _first(*fields)) is None:
        return default
    name, value = found
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isnan(value):
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}.", param=name)
    return float(value)


def _integer(default: int, low: int, *fields: tuple[str, Any]) -> int:
    if (found := _first(*fields)) is None:
        return default
    name, value = found
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MOST_INTEGER:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {MOST_INTEGER}.", param=name)
    return value


def _breakers(*fields: tuple[str, Any]) -> tuple[str, ...] | None:
    """A list of strings, or a string that holds one: as JSON, perhaps without its brackets, else with commas."""
    if (found := _first(*fields)) is None:
        return None
    name, value = found
    if isinstance(value, str):
        value = _listed(value)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidRequest(f"{name} must be a list of strings, or a string that holds one.", param=name)
    breakers = tuple(item for item in value if item)
    if len(breakers) > MOST_BREAKERS or any(len(item) > MOST_BREAKER_CHARACTERS for item in breakers):
        limit = f"{MOST_BREAKERS} strings of at most {MOST_BREAKER_CHARACTERS} characters"
        raise InvalidRequest(f"{name} may hold at most {limit}.", param=name)
    return breakers


def _listed(text: str) -> object:
    """Source: text-generation-webui writes the list's items alone, each as JSON: `"\\n", ":"`."""
    for spelled in (text, f"[{text}]"):
        try:
            value = msgspec.json.decode(spelled)
        except (msgspec.DecodeError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return text.split(",")
