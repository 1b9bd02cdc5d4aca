"""The nouns of tasks: one thing is asked, one result comes, some of it before the rest, and units of it are paid.

Frozen dataclasses of plain data, standard library only. A unit is what the
model's input price counts: a token of a text, a second of audio, an image.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Generic, Literal, TypeAlias, TypeVar

from serving.core.credit import Price
from serving.core.events import TokenLogprob

TaskKind: TypeAlias = Literal["embedding", "classification", "image", "transcription"]
ModelKind: TypeAlias = Literal["generation", "embedding", "classification", "image", "transcription"]


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


@dataclass(frozen=True, slots=True)
class Draw:
    """`n` images of what `prompt` says. `size` (`1024x1024`) None is the model's first one, `quality` None whatever its
    server does by itself."""

    prompt: str
    n: int = 1
    size: str | None = None
    quality: str | None = None


@dataclass(frozen=True, slots=True)
class Hearing:
    """How a sound is heard. `language` (`en`) None is found out; `prompt` is a text before it. `timestamps`: segments
    have times finer than half a minute. `logprobs`, `no_speech`: they have these, too."""

    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    timestamps: bool = False
    logprobs: bool = False
    no_speech: bool = False


@dataclass(frozen=True, slots=True)
class Transcribe:
    """What is said in a sound, a file of any format."""

    file: BinaryIO
    hearing: Hearing = Hearing()


W = TypeVar("W", covariant=True)


@dataclass(frozen=True, slots=True)
class TaskRequest(Generic[W]):
    """One task, free of any dialect."""

    request_id: str
    model: str
    work: W


# ---- what is prepared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLists:
    """Token ids of each input, the model's own special tokens among them."""

    token_ids: tuple[tuple[int, ...], ...]
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """A sound in windows of float32 samples, one channel."""

    windows: tuple["array[float]", ...]
    rate_hz: int
    hearing: Hearing = Hearing()


P = TypeVar("P", covariant=True)


@dataclass(frozen=True, slots=True)
class PreparedTask(Generic[P]):
    """A task ready for an engine. `units` are the most it can use, and `price` is what they cost when it is not the
    model's own. `longest_tokens`: of the longest text in it, 0 when there is none."""

    request_id: str
    work: P
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


@dataclass(frozen=True, slots=True)
class Drawn:
    """The images, each a PNG (or what the server makes) in base64."""

    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of what is said, and the seconds from which to which it is.

    `window_s`: where its window begins. `logprobs` of its tokens, and `no_speech`, the probability that there is no
    speech in its window, where they were asked for.
    """

    start_s: float
    end_s: float
    text: str
    token_ids: tuple[int, ...]
    window_s: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()
    no_speech: float | None = None


@dataclass(frozen=True, slots=True)
class Transcribed:
    """What is said in a sound of so many seconds."""

    language: str
    duration_s: float
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(token for segment in self.segments for token in segment.logprobs)


Result: TypeAlias = Embedded | Classified | Drawn | Transcribed


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result and the units it used, no more than were prepared."""

    result: Result
    units: int


@dataclass(frozen=True, slots=True)
class Heard:
    """More of what is said, told before the rest of it is done. `units`: those of all the sound that was heard so far,
    to the end of this window."""

    text: str
    units: int
    logprobs: tuple[TokenLogprob, ...] = ()
