"""The parameters of DRY beside core's `Dry`: what a history is broken by, and how much a repetition costs.

Standard library only. The bounds are those of the wire (`dialects/dry.py`); they are checked again where an engine
takes requests from others than this service (`sampling/arguments.py`).
"""

from dataclasses import dataclass
from typing import Final

from serving.core import Dry

MOST_LENGTH: Final = 50
"""A repetition counts up to so many tokens. Source: text-generation-webui, `DRYLogitsProcessor`."""
MOST_PENALTY: Final = 1e30
"""Far beyond any logit, and finite: DRY alone never makes a token impossible, so a masked row keeps something."""
MOST_MULTIPLIER: Final = 1000.0
MOST_BASE: Final = 100.0
MOST_INTEGER: Final = 2**31 - 1
MOST_BREAKERS: Final = 64
MOST_BREAKER_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Breakers:
    """Tokens (`ids`) and runs of tokens (`sequences`) that a repetition cannot hold."""

    ids: frozenset[int] = frozenset()
    sequences: tuple[tuple[int, ...], ...] = ()


def check(dry: Dry) -> None:
    """Raises ValueError naming the parameter that is impossible."""
    for name, value, low, high in (
        ("multiplier", dry.multiplier, 0.0, MOST_MULTIPLIER),
        ("base", dry.base, 1.0, MOST_BASE),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"dry.{name} must be a number")
        if not low <= value <= high:  # so is NaN, and an integer beyond every float is no error of its own
            raise ValueError(f"dry.{name} must lie between {low:g} and {high:g}")
    for name, count in (("allowed_length", dry.allowed_length), ("range", dry.range)):
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_INTEGER:
            raise ValueError(f"dry.{name} must be a whole number from 0 to {MOST_INTEGER}")
    if len(dry.sequence_breakers) > MOST_BREAKERS:
        raise ValueError(f"dry.sequence_breakers may hold at most {MOST_BREAKERS} strings")
    for text in dry.sequence_breakers:
        if not isinstance(text, str) or not 0 < len(text) <= MOST_BREAKER_CHARACTERS:
            raise ValueError(f"each of dry.sequence_breakers must have 1 to {MOST_BREAKER_CHARACTERS} characters")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("dry.sequence_breakers must be valid Unicode, without lone surrogates")


def penalty_table(dry: Dry) -> tuple[float, ...]:
    """What a repetition of 0, 1, ... MOST_LENGTH tokens takes off the logit of the token that would prolong it."""
    return tuple(_penalty(dry, length) for length in range(MOST_LENGTH + 1))


def _penalty(dry: Dry, length: int) -> float:
    if length < 1 or length < dry.allowed_length:
        return 0.0
    return min(dry.multiplier * dry.base ** (length - dry.allowed_length), MOST_PENALTY)
