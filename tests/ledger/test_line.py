"""One connection: answers that nobody asked for are nobody's, and few connections are enough."""

import asyncio
from pathlib import Path
from typing import Any

import hiredis

from serving.errors import Overloaded
from serving.ledger.line import Line, NewLine
from tests.ledger.servers import RedisServer, opened, recovered


class Talkative(asyncio.Protocol):
    """A server that answers a command by its last word, and when it has answered what it read by one word more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._commands = hiredis.Reader(encoding="utf-8")

    def data_received(self, data: bytes) -> None:
        self._commands.feed(data)
        said = b""
        while (command := self._commands.gets()) is not False:
            said += b"$%d\r\n%s\r\n" % (len(command[-1]), command[-1].encode())
        self._transport.write(said + b"+surplus\r\n" if b"ECHO" in data else said)


async def test_answers_that_nobody_asked_for_are_nobodys(tmp_path: Path, scripts: Path) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Talkative, tmp_path / "socket")
    async with server, opened(f"unix://{tmp_path}/socket", scripts) as store:
        for _ in range(3):
            calls = (store.command("ECHO", str(number)) for number in range(300))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            lost = [isinstance(answer, Overloaded) for answer in answers]
            assert all(answer == str(number) or lost[number] for number, answer in enumerate(answers))
            assert not all(lost)
            await recovered(store)


async def test_a_batch_that_was_cancelled_is_told_nothing() -> None:
    """Nor when its connection fails, or is there, just then."""
    told: list[object] = []

    async def failing() -> Line:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise ConnectionError("refused")

    new = NewLine(failing(), told.append, told.append)
    await asyncio.sleep(0)
    new.cancel()
    await asyncio.wait([new.making])
    await asyncio.sleep(0)
    assert told == []


async def test_connections_are_used_again(redis_server: RedisServer, scripts: Path) -> None:
    before = len(str(redis_server.command("CLIENT", "LIST")).splitlines())
    async with opened(redis_server.url, scripts) as store:
        for number in range(5):
            assert await store.problems() == []
            assert await store.command("ECHO", number) == str(number)
        assert len(str(redis_server.command("CLIENT", "LIST")).splitlines()) == before + 1
