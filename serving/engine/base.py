"""The ports to inference: token ids in and events out, and tasks, which have one result.

`Engine`: one prepared choice in, one stream of events out. What it promises, and every implementation is tested for:

- The first event is one `Started`, the last one `Finished`; `Delta`s lie between. Nothing is said before the engine
  has taken the choice, so an impossible request fails with `InvalidRequest` before the first event.
- `Finished.usage.completion_tokens` is the number of token ids that the `Delta`s carried.
- Closing the generator, at any moment, aborts the choice in the engine.
- A dead engine fails what is in flight with `EngineFailed`, and everything after; it never hangs.
- A request for a distribution has one `Delta` with one token, whose alternatives are the likeliest of the vocabulary.
- A choice is generated with the adapter that it names, as its files were when they were read last; one that cannot be
  used is an impossible request. No answer depends on the adapters of others.
- Special tokens stand in the text as they are spelled. The text of a stop token is left out, that of a matched stop
  string too unless `include_stop`; their token ids are counted.

`TaskEngine`: one prepared task in, its result and the units it used out; no more units than were prepared. Cancelling
the call aborts the work. A dead engine fails as above. What is heard in a sound is told as it is heard to who wants it:
in the order of time, the texts together those of the segments, and units that never fall.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from serving.core import Event, PreparedRequest
from serving.core.tasks import Heard, Outcome, PreparedTask

OnHeard: TypeAlias = Callable[[Heard], Awaitable[None]]
"""Awaited with each piece: the work waits meanwhile."""


class Living(Protocol):
    """What holds a model, and can die."""

    async def check_health(self) -> None:
        """Raises EngineFailed when the engine is dead."""
        ...

    async def wait_dead(self) -> None:
        """Returns once the engine is dead or shut down, idle or not; until then it waits."""
        ...

    async def shutdown(self) -> None:
        """Free everything the engine holds; leaves no process behind. May be called twice."""
        ...


class Engine(Living, Protocol):
    """An inference engine holding one model."""

    @property
    def context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        ...

    def generate(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        """Generate one choice. Raises InvalidRequest (before the first event), EngineFailed."""
        ...

    async def load_adapter(self, name: str) -> None:
        """Read an adapter's files for choices that begin from now on, again if they were read before. Without this they
        are read when a choice first needs them. Raises InvalidRequest that says why it cannot be used, and then what
        was read before stays; Overloaded, EngineFailed."""
        ...


@runtime_checkable
class TaskEngine(Living, Protocol):
    """An engine that does one kind of task with one model."""

    async def perform(self, task: PreparedTask[Any], on_heard: OnHeard | None = None) -> Outcome:
        """Do the task. Raises InvalidRequest, EngineFailed, Overloaded, and what `on_heard` raises."""
        ...
