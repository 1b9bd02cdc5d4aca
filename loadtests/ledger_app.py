"""The app as a process, with a scripted engine that keeps a tally of what it emitted: the apps of ledger_chaos.py.

The tally is a file in memory, so it is exact up to the moment at which the process is killed. Beside the server's own
environment: `LEDGER_TALLY`, the file; `LEDGER_STEP_S`, the seconds before each chunk; `LEDGER_WORDS`, the most chunks
of an answer (0: it ends at max_tokens).
"""

import asyncio
import mmap
import os
import struct
import sys
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

from serving import settings, telemetry
from serving.core import Delta, Event, PreparedRequest, Started, Usage
from serving.engine.base import Engine
from serving.engine.scripted import Chunk, ScriptedEngine
from serving.server import serve

_ROW = struct.Struct("32sII")
_ROWS = 400_000


class Tally:
    """Prompt and completion tokens of each request, row by row."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(_ROWS * _ROW.size)  # takes no room on the disk until it is written
            self._rows = mmap.mmap(file.fileno(), 0)
        self._used = 0

    def begin(self, request_id: str, prompt_tokens: int) -> int:
        """Returns the row."""
        _ROW.pack_into(self._rows, self._used * _ROW.size, request_id.encode(), prompt_tokens, 0)
        self._used += 1
        return self._used - 1

    def add(self, row: int, tokens: int) -> None:
        at = row * _ROW.size
        request_id, prompt_tokens, before = _ROW.unpack_from(self._rows, at)
        _ROW.pack_into(self._rows, at, request_id, prompt_tokens, before + tokens)


def read_tally(path: Path) -> Iterator[tuple[str, Usage]]:
    """What each request used, whether its process lives or not."""
    with path.open("rb") as file:
        while (row := file.read(_ROW.size)) and row[0]:
            request_id, prompt_tokens, completion_tokens = _ROW.unpack(row)
            yield request_id.decode(), Usage(prompt_tokens, 0, completion_tokens)


class Tallied:
    """An engine whose every token is counted before it is told."""

    def __init__(self, engine: Engine, tally: Tally) -> None:
        self._engine = engine
        self._tally = tally

    @property
    def context_tokens(self) -> int:
        return self._engine.context_tokens

    async def generate(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        row = 0
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Started):
                    row = self._tally.begin(request.request_id, event.prompt_tokens)
                elif isinstance(event, Delta):
                    self._tally.add(row, len(event.token_ids))
                yield event

    async def load_adapter(self, name: str) -> None:
        await self._engine.load_adapter(name)

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def wait_dead(self) -> None:
        await self._engine.wait_dead()

    async def shutdown(self) -> None:
        await self._engine.shutdown()


def words(request: PreparedRequest) -> Iterator[Chunk]:
    """Chunks of one and of two tokens; how many depends on the prompt."""
    most = int(os.environ["LEDGER_WORDS"])
    number = 0
    while not most or number <= zlib.crc32(repr(request.token_ids).encode()) % most:
        yield (" word", (17, 18)) if number % 3 == 2 else " word"
        number += 1


async def pace(request: PreparedRequest, number: int) -> None:
    await asyncio.sleep(float(os.environ["LEDGER_STEP_S"]))


async def load() -> Engine:
    engine = ScriptedEngine(words, gate=pace, vocab_size=3000)
    return Tallied(engine, Tally(Path(os.environ["LEDGER_TALLY"])))


if __name__ == "__main__":
    telemetry.configure_logging("text")
    configured = settings.load()
    sys.exit(serve(configured, {model.id: load for model in configured.models}))
