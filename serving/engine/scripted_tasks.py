"""A TaskEngine without a model: results follow from what is asked alone. For tests and front-end load tests.

`gate` makes each task wait for whatever the test awaits in it, first and behind each piece of what is heard; it and the
script may be changed at any time. `asked` and `endings` tell what became of the tasks. Keeps the port's laws.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from serving.core.tasks import Embedded, Heard, Outcome, PreparedTask, TokenLists, Transcribed
from serving.engine.base import OnHeard
from serving.errors import EngineFailed

Ending = Literal["finished", "failed", "aborted"]


def sums(task: PreparedTask[TokenLists]) -> Outcome:
    """For each input three numbers: of its ids the count, the sum, and a third, which no binary fraction is."""
    vectors = (array("f", (len(ids), sum(ids), 1 / 3)) for ids in task.work.token_ids)
    return Outcome(Embedded(tuple(vectors)), task.units)


class ScriptedTaskEngine:
    """Does tasks as `script` says."""

    def __init__(
        self,
        script: Callable[[PreparedTask[Any]], Outcome] = sums,
        *,
        gate: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.script = script
        self.gate = gate
        self._dead = asyncio.Event()
        self.asked: list[PreparedTask[Any]] = []
        self.endings: list[Ending] = []

    async def perform(self, task: PreparedTask[Any], on_heard: OnHeard | None = None) -> Outcome:
        """Do the task; each segment is a piece of a second. Raises EngineFailed, and what the script raises."""
        self.asked.append(task)
        ending: Ending = "aborted"
        try:
            await self._wait()
            outcome = self.script(task)
            if on_heard is not None and isinstance(outcome.result, Transcribed):
                for seconds, segment in enumerate(outcome.result.segments, 1):
                    await on_heard(Heard(segment.text, min(seconds, outcome.units), segment.logprobs))
                    await self._wait()
            ending = "finished"
        except Exception:
            ending = "failed"
            raise
        finally:
            self.endings.append(ending)
        return outcome

    async def _wait(self) -> None:
        await self.check_health()
        await (asyncio.sleep(0) if self.gate is None else self.gate())

    async def check_health(self) -> None:
        """Raises EngineFailed when the engine is dead."""
        if self._dead.is_set():
            raise EngineFailed("The engine died. Nothing in the request is wrong; try again later.")

    async def wait_dead(self) -> None:
        """Returns once the engine is dead or shut down."""
        await self._dead.wait()

    async def shutdown(self) -> None:
        """Like death. May be called twice."""
        self._dead.set()
