"""A response that is sent part by part, and knows how well the client takes it. It knows no front's formats."""

import asyncio
import time
from dataclasses import dataclass, field

from starlette.types import Send

from serving.edge.body import ClientGone

LARGE_BYTES = 65_536
"""Who reads or makes so many at once lets others come in between."""


@dataclass
class Reply:
    """The response as far as it was sent."""

    send: Send
    headers: dict[str, str] = field(default_factory=dict)
    status: int | None = None
    _writing: int = 0
    _changed_at: float = field(default_factory=time.monotonic)

    async def write(self, part: bytes, *, status: int = 200, more: bool = True) -> None:
        """Send a part of the body, and the head before the first. Waits while the client does not read."""
        self._changed_at = time.monotonic()
        self._writing += 1
        try:
            if self.status is None:
                self.status = status
                headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
                await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": part, "more_body": more})
        finally:
            self._writing -= 1
        if len(part) > LARGE_BYTES:
            # Making it took long, and a send that need not wait yields to nobody.
            await asyncio.sleep(0)

    async def write_unwatched(self, part: bytes, timeout_s: float, *, status: int = 200, more: bool = False) -> None:
        """Write beside nobody's watch: a client that does not take it within `timeout_s` is given up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.write(part, status=status, more=more)
        except TimeoutError:
            raise ClientGone from None

    def stalled_s(self) -> float:
        """For how long the client has not taken what is being written; 0 when nothing is."""
        return time.monotonic() - self._changed_at if self._writing else 0

    def silent_s(self) -> float:
        """For how long nothing was written; 0 while something is."""
        return 0 if self._writing else time.monotonic() - self._changed_at
