"""The nouns of work without a token stream: one thing is asked, one result comes, and units of it are paid.

Frozen dataclasses of plain data, standard library only, like `core`, whose nouns they are beside. A unit is what the
model's input price counts: a token of a text, a second of audio, an image.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from serving.core import Price

TaskKind: TypeAlias = Literal["embedding", "classification"]
ModelKind: TypeAlias = Literal["generation", "embedding", "classification"]


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Embed:
    """A vector for each input, a text or token ids. `dimensions` None is as many as the model has."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Classify:
    """How well each of the model's labels fits each text."""

    inputs: tuple[str, ...]


Work: TypeAlias = Embed | Classify


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One task, free of any dialect."""

    request_id: str
    model: str
    work: Work


# ---- what is prepared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLists:
    """Token ids of each input, the model's own special tokens among them."""

    token_ids: tuple[tuple[int, ...], ...]
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task ready for an engine. `units` are the most it can use, and `price` is what they cost when it is not the
    model's own. `longest_tokens`: of the longest text in it, 0 when there is none."""

    request_id: str
    work: TokenLists
    units: int
    longest_tokens: int = 0
    price: Price | None = None


# ---- what the engine says --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector of float32 for each input, in their order."""

    vectors: tuple["array[float]", ...]


@dataclass(frozen=True, slots=True)
class Classified:
    """For each input the score of each of the model's labels, from 0 to 1."""

    scores: tuple[Mapping[str, float], ...]


Result: TypeAlias = Embedded | Classified


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result and the units it used, no more than were prepared."""

    result: Result
    units: int
