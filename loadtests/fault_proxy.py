"""A proxy between a client and Redis that does to their connections what networks do.

    async with FaultProxy(server_url) as proxy:
        ...                         # use proxy.url in place of server_url
        proxy.delay_ms = 200.0      # from now on all bytes are that much later, in both directions
        proxy.hang()                # connections stay, and nothing passes any more ...
        proxy.resume()              # ... until now: what waited passes
        proxy.cut()                 # all connections are cut, now
        proxy.cut_replies(10)       # 10 more bytes of answers pass, to whomever; then all connections are cut, once
        await proxy.refuse()        # as cut, and new connections are refused ...
        await proxy.accept()        # ... until now

`cut_replies(0)` is the lost answer: the server carries out what it is sent next, and nobody hears of it. URLs are
`redis://HOST:PORT` or `unix://PATH`; the proxy listens in the same way. `connections` tells how many there are,
`accepted` how many there ever were. It reads no protocol. Standard library only.
"""

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import unquote, urlsplit

_CHUNK_BYTES = 65_536


@dataclass(eq=False, slots=True)
class _Pair:
    """A client's connection, and the one to the server that was made for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class FaultProxy:
    """See the module. For one event loop."""

    def __init__(self, server_url: str) -> None:
        self._target = urlsplit(server_url)
        self.delay_ms = 0.0
        self.accepted = 0
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._reply_bytes_left: int | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._listener: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where the proxy listens; the database is the one of the server's URL."""
        if self._folder is not None:
            return f"unix://{self._folder.name}/proxy.sock"
        return f"redis://127.0.0.1:{self._port}{self._target.path}"

    @property
    def connections(self) -> int:
        return len(self._pairs)

    async def __aenter__(self) -> "FaultProxy":
        if self._target.scheme == "unix":
            self._folder = tempfile.TemporaryDirectory()
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._folder is not None:
            self._folder.cleanup()

    def hang(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        for pair in self._pairs:
            pair.cut()

    def cut_replies(self, after_bytes: int) -> None:
        self._reply_bytes_left = after_bytes

    async def refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()

    async def accept(self) -> None:
        if self._listener is not None:
            return
        if self._folder is not None:
            self._listener = await asyncio.start_unix_server(self._join, f"{self._folder.name}/proxy.sock")
        else:
            self._listener = await asyncio.start_server(self._join, "127.0.0.1", self._port)
            self._port = self._listener.sockets[0].getsockname()[1]

    async def _join(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """One client's connection, until either side has ended it."""
        self.accepted += 1
        try:
            from_server, server = await self._connect()
        except OSError:
            client.transport.abort()
            return
        pair = _Pair(client, server)
        self._pairs.add(pair)
        pumps = [
            asyncio.create_task(self._pump(from_client, server, is_reply=False)),
            asyncio.create_task(self._pump(from_server, client, is_reply=True)),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._pairs.discard(pair)
            self._tasks.difference_update(pumps)
            for pump in pumps:
                pump.cancel()
            for writer in (client, server):
                writer.close()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.scheme == "unix":
            return await asyncio.open_unix_connection(unquote(self._target.path))
        return await asyncio.open_connection(self._target.hostname, self._target.port or 6379)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool) -> None:
        """Carry one direction. Reading does not wait for what is delayed, so a delay does not add up."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        carrying = asyncio.create_task(self._carry(chunks, writer, is_reply))
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                chunks.put_nowait((time.monotonic() + self.delay_ms / 1000, chunk))
            chunks.put_nowait((0.0, b""))
            await carrying
        except ConnectionError:
            return
        finally:
            carrying.cancel()

    async def _carry(
        self, chunks: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter, is_reply: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                due, chunk = await chunks.get()
                await asyncio.sleep(max(due - time.monotonic(), 0))
                await self._flowing.wait()
                if not chunk:
                    return
                left = self._reply_bytes_left if is_reply else None
                writer.write(chunk[:left])
                await writer.drain()
                if left is not None:
                    self._reply_bytes_left = left - len(chunk)
                    if left <= len(chunk):
                        self._reply_bytes_left = None
                        self.cut()
