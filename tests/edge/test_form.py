"""Multipart bodies: fields, files, and how much of them is read."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from serving.edge.body import ClientGone
from serving.edge.form import Form, read_form
from serving.errors import InvalidRequest, PayloadTooLarge

LIMIT = 4 * 1024 * 1024


class Sender:
    """A request's body in pieces; counts what was taken. `gone`: the client hangs up before the last one."""

    def __init__(self, content: bytes, *, gone: bool = False) -> None:
        self._pieces: Iterator[bytes] = (content[at : at + 65_536] for at in range(0, len(content), 65_536))
        self._left = len(content)
        self._gone = gone
        self.taken = 0

    async def receive(self) -> Message:
        piece = next(self._pieces)
        self.taken += len(piece)
        if self._gone and self.taken == self._left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": self.taken < self._left}


def form(*fields: tuple[str, Any], headers: dict[str, str] | None = None) -> tuple[Headers, bytes]:
    """A form as httpx writes it; a field that is a pair is a file."""
    made = [(name, value if isinstance(value, tuple) else (None, value)) for name, value in fields]
    request = httpx.Request("POST", "http://here", files=made)
    return Headers({"content-type": request.headers["content-type"], **(headers or {})}), request.read()


async def read(headers: Headers, content: bytes, limit: int = LIMIT) -> Form:
    return await read_form(headers, Sender(content).receive, limit)


@pytest.mark.parametrize("size", [3, 3_000_000])
async def test_fields_and_a_file(size: int) -> None:
    found = await read(*form(("model", "m"), ("file", ("a.wav", b"x" * size)), ("a[]", "1"), ("b", "1"), ("b", "2")))
    assert found.values == {"model": "m", "file": "a.wav", "a": ["1"], "b": ["1", "2"]}
    assert found.file is not None
    assert found.file.read() == b"x" * size
    found.close()
    assert found.file.closed


async def test_a_form_over_the_limit_is_not_read_whole() -> None:
    headers, content = form(("file", ("a.wav", b"x" * 3 * LIMIT)))
    sender = Sender(content)
    with pytest.raises(PayloadTooLarge):
        await read_form(headers, sender.receive, LIMIT)
    assert sender.taken <= LIMIT + 65_536
    sender = Sender(content)
    with pytest.raises(PayloadTooLarge):
        await read_form(Headers({**headers, "content-length": str(len(content))}), sender.receive, LIMIT)
    assert sender.taken == 0


async def test_a_client_that_goes_away() -> None:
    headers, content = form(("file", ("a.wav", b"x" * 3_000_000)))
    with pytest.raises(ClientGone):
        await read_form(headers, Sender(content, gone=True).receive, LIMIT)


BAD = [
    form(("a", "1"), headers={"content-type": "application/json"}),
    form(("a", "1"), headers={"content-type": "multipart/form-data"}),
    form(("a", "1"), headers={"content-type": "multipart/form-data; boundary=other"}),
    form(("a", ("a", b"1")), ("b", ("b", b"2"))),
    form(*[("a", "1")] * 65),
    form(("a", "x" * 70_000)),
]


@pytest.mark.parametrize(("headers", "content"), BAD)
async def test_what_is_no_form_is_refused(headers: Headers, content: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await read(headers, content)
