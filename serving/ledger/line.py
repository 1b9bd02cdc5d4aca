"""One connection to Redis, and what travels on it: batches of commands, their answers, their ends.

redis-py connects and logs in; what is sent and read from there on goes through its parser, hiredis, alone.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import hiredis
from redis.asyncio.connection import AbstractConnection

Tell: TypeAlias = Callable[[int, Any], None]
"""Told the position of a command in its batch, and its answer: data or a Refusal."""
Ended: TypeAlias = Callable[[Exception | None], None]
"""Told that a batch has ended, and what went wrong if something did."""


@dataclass(frozen=True, slots=True)
class Command:
    """A name and its arguments, as texts and as what is sent for them."""

    words: tuple[str, ...]
    packed: bytes

    @classmethod
    def of(cls, *words: str | int) -> "Command":
        """Raises UnicodeError."""
        texts = tuple(map(str, words))
        return cls(texts, hiredis.pack_command(texts))  # type: ignore[arg-type]  # its stub is wrong


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error that a server answered to one command."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()


class Exchange(Protocol):
    """A batch on its way."""

    def cancel(self) -> object:
        """Nothing of it is told any more."""
        ...


class Line(asyncio.Protocol):
    """A connection for one batch at a time. redis-py has made it and no longer stands between, where it took a third
    of a call's time: answers are told in the turn in which they are read, and a server that hangs up is known at once.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        # redis-py has no other way to hand over what it has connected. It must not close it any more.
        writer, connection._writer, connection._reader = connection._writer, None, None
        if writer is None:
            raise ConnectionError("the connection was lost at once")
        self._writer = writer
        writer.transport.set_protocol(self)
        self._answers = hiredis.Reader(encoding="utf-8", errors="replace")
        self._tell: Tell = _untold
        self._ended: Ended | None = None
        self._count = self._told = 0

    @property
    def is_open(self) -> bool:
        return not self._writer.is_closing()

    def begin(self, commands: Sequence[Command], tell: Tell, ended: Ended) -> None:
        """As `Link.exchange`."""
        self._tell, self._ended, self._count, self._told = tell, ended, len(commands), 0
        self._writer.write(b"".join([command.packed for command in commands]))

    def cancel(self) -> None:
        """Also of a line that is not used any more: it is closed."""
        self._tell, self._ended = _untold, None
        self._writer.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._answers.feed(data)
        while (answer := self._answers.gets()) is not False:
            if self._told == self._count:
                self._writer.transport.abort()  # nobody has asked: what else comes would be another's answer
                return
            self._told += 1
            self._tell(self._told - 1, refusal_of(answer) if isinstance(answer, hiredis.ReplyError) else answer)
        if self._told == self._count:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ConnectionError("the connection was lost"))

    def _end(self, error: Exception | None) -> None:
        ended, self._tell, self._ended = self._ended, _untold, None
        if ended is not None:
            ended(error)


def _untold(position: int, answer: Any) -> None:  # noqa: ANN401  # of as many kinds as commands
    """Nobody listens, or not any more."""


class NewLine:
    """A batch whose line is still to be made."""

    def __init__(self, making: Coroutine[Any, Any, Line], begin: Callable[[Line], None], ended: Ended) -> None:
        self._begin = begin
        self._ended = ended
        self._line: Line | None = None
        self._cancelled = False
        self.making = asyncio.create_task(making)
        self.making.add_done_callback(self._made)

    def cancel(self) -> None:
        self._cancelled = True
        self.making.cancel()
        if self._line is not None:
            self._line.cancel()

    def _made(self, making: asyncio.Task[Line]) -> None:
        error = None if making.cancelled() else making.exception()
        line = making.result() if not making.cancelled() and error is None else None
        if self._cancelled:
            if line is not None:
                line.cancel()
        elif line is not None:
            self._line = line
            self._begin(line)
        else:
            self._ended(error if isinstance(error, Exception) else ConnectionError("the connection was given up"))


def refusal_of(error: Exception) -> Refusal:
    """What a server said, of redis-py's error or hiredis's."""
    # redis-py takes the code off the errors it knows, and leaves it in the others.
    text = str(error)
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    return Refusal(code, text.removeprefix(code).strip())
