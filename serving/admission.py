"""Gives or refuses a Slot: the right to occupy an engine. Bounds how much one process takes on at once.

It does not queue: vLLM schedules what was admitted, and a caller that is told 503 with Retry-After can go elsewhere.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Overloaded


class Admission:
    """Counts running choices of all requests; `drain` refuses new ones while those running finish."""

    def __init__(self, max_choices: int) -> None:
        self._max_choices = max_choices
        self.running_choices = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()

    @contextmanager
    def slot(self, choices: int) -> Iterator[None]:
        """Occupy the engine with `choices` choices. Raises Overloaded when full or draining."""
        if self.draining:
            raise Overloaded("The server is shutting down. Try again in a moment.", retry_after_s=5)
        if self.running_choices + choices > self._max_choices:
            raise Overloaded("The server is full. Try again in a moment.", retry_after_s=1)
        self.running_choices += choices
        self._idle.clear()
        try:
            yield
        finally:
            self.running_choices -= choices
            if not self.running_choices:
                self._idle.set()
