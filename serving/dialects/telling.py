"""How a dialect tells answers: whole or as they come.

`Answer` is the fold of a generation's events; law 1: every whole answer of every dialect is made from it, so a stream
and a whole answer cannot disagree. Every method of what tells a stream returns bytes for the wire; empty bytes say
nothing.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from serving.core import Delta, Event, Finished, FinishReason, Receipt, Started, TokenLogprob, Usage
from serving.core.tasks import Heard
from serving.errors import ServingError


@dataclass(slots=True)
class ChoiceAnswer:
    """One choice, folded from its events."""

    text: str = ""
    names: tuple[str, ...] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Answer:
    """A generation, folded from its events. `usage` and `cost` (microcredits) are those of the receipt."""

    choices: dict[int, ChoiceAnswer] = field(default_factory=dict)
    usage: Usage = field(default=Usage())
    cost: int = 0

    def add(self, event: Event | Receipt) -> None:
        if isinstance(event, Delta):
            choice = self.choices[event.index]
            choice.text += event.text
            choice.logprobs.extend(event.logprobs)
            if event.names is not None:
                choice.names = event.names
        elif isinstance(event, Started):
            self.choices[event.index] = ChoiceAnswer()
        elif isinstance(event, Finished):
            self.choices[event.index].finish_reason = event.reason
        else:
            self.usage, self.cost = event.usage, event.cost

    def in_order(self) -> list[tuple[int, ChoiceAnswer]]:
        return sorted(self.choices.items())


class Told(NamedTuple):
    """A whole body."""

    body: bytes
    media_type: str = "application/json"


class Stream(Protocol):
    """What every stream can say beside its answer."""

    @property
    def media_type(self) -> str: ...

    def keep_alive(self) -> bytes:
        """Something that changes nothing, for a stream that was silent for long."""
        ...

    def fail(self, error: ServingError) -> bytes:
        """The end of a stream that had begun and failed."""
        ...


class Teller(Stream, Protocol):
    """How one generation is told."""

    @property
    def streamed(self) -> bool:
        """Whether events are told as they come, or folded into one body."""
        ...

    def tell(self, event: Event | Receipt) -> bytes:
        """A part of the stream. The Receipt is the last event, and its part ends the stream."""
        ...

    def whole(self, answer: Answer) -> bytes:
        """The body of an answer that is not streamed."""
        ...


class TaskStream(Stream, Protocol):
    """How what is said in one sound is told as it is heard."""

    def tell(self, heard: Heard) -> bytes:
        """A part of the stream."""
        ...

    def end(self, result: Any, receipt: Receipt) -> bytes:  # noqa: ANN401  # of the task's own kind
        """The part that ends the stream."""
        ...
