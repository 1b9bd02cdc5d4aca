"""The image server's side of the task port, over a real one on a real port."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from serving.core.tasks import Draw, Drawn, Outcome, PreparedTask
from serving.engine.images import ImageServer
from serving.errors import EngineFailed, InvalidRequest, Overloaded, ServingError
from tests.painter import DOT, Painter, painting

IMAGE = base64.b64encode(DOT).decode()


def ask(n: int = 1, prompt: str = "a ship", quality: str | None = None) -> PreparedTask[Draw]:
    return PreparedTask("r", Draw(prompt, n, "256x256", quality), units=n)


@pytest.fixture
def painter() -> Iterator[Painter]:
    with painting() as painter:
        yield painter


@pytest.fixture
async def engine(painter: Painter) -> AsyncIterator[ImageServer]:
    engine = ImageServer(painter.address + "/", "there/painter", "secret")
    yield engine
    await engine.shutdown()


async def test_what_is_asked_of_the_server_and_what_comes(engine: ImageServer, painter: Painter) -> None:
    assert await engine.perform(ask(2, quality="hd")) == Outcome(Drawn((IMAGE, IMAGE)), 2)
    known = {"prompt": "a ship", "n": 2, "size": "256x256", "quality": "hd", "response_format": "b64_json"}
    assert painter.asked == [{"path": "/v1/images/generations", "model": "there/painter", **known}]
    assert painter.keys == ["Bearer secret"]
    await engine.perform(ask())
    assert "quality" not in painter.asked[1]


@pytest.mark.parametrize(("made", "paid"), [(1, 1), (3, 2)])
async def test_another_number_of_images_than_was_asked_for(
    engine: ImageServer, painter: Painter, made: int, paid: int
) -> None:
    painter.answer = json.dumps({"data": [{"b64_json": IMAGE}] * made}).encode()
    assert await engine.perform(ask(2)) == Outcome(Drawn((IMAGE,) * paid), paid)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidRequest), (422, InvalidRequest), (429, Overloaded), (503, Overloaded)]
    + [(status, EngineFailed) for status in (204, 302, 401, 404, 500, 502)],
)
async def test_a_server_that_refuses(
    engine: ImageServer, painter: Painter, status: int, error: type[ServingError]
) -> None:
    painter.status, painter.answer = status, b"" if status == 204 else b'{"error": {"message": "xyzzy"}}'
    with pytest.raises(error) as told:
        await engine.perform(ask())
    assert "xyzzy" not in told.value.message
    painter.status, painter.answer = 200, None
    assert (await engine.perform(ask())).units == 1


WITHOUT_IMAGES = [b"", b"{", b"[]", b"\xff", b'{"data": []}', b'{"data": {"b64_json": "AAAA"}}']
WITHOUT_IMAGES += [b'{"data": [{"url": "http://a/b.png"}]}', b'{"data": [{"b64_json": ""}]}']
WITHOUT_IMAGES += [b'{"data": [{"b64_json": "no base64!"}]}', b'{"data": [{"b64_json": null}]}']


@pytest.mark.parametrize("answer", WITHOUT_IMAGES)
async def test_an_answer_without_images(engine: ImageServer, painter: Painter, answer: bytes) -> None:
    painter.answer = answer
    with pytest.raises(EngineFailed, match="without images"):
        await engine.perform(ask())


async def test_an_answer_that_never_ends_is_not_read_to_its_end(
    engine: ImageServer, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.engine.images._MOST_BYTES_OF_AN_IMAGE", 1000)
    painter.answer = b" " * 2000
    with pytest.raises(EngineFailed, match="more than images can be"):
        await engine.perform(ask())


async def test_a_server_that_is_away() -> None:
    with painting() as painter:
        engine = ImageServer(painter.address, "m")
    with pytest.raises(EngineFailed, match="cannot be reached"):
        await engine.perform(ask())
    await engine.shutdown()


async def test_a_cancelled_task_hangs_up(engine: ImageServer, painter: Painter) -> None:
    painter.silent = True
    running = asyncio.create_task(engine.perform(ask()))
    assert await asyncio.to_thread(painter.begun.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await asyncio.to_thread(painter.gone.wait, 10)


async def test_a_prompt_that_is_no_unicode(engine: ImageServer, painter: Painter) -> None:
    with pytest.raises(InvalidRequest) as told:
        await engine.perform(ask(prompt="a\ud800"))
    assert (told.value.param, painter.asked) == ("prompt", [])


async def test_after_shutdown_it_is_over(engine: ImageServer) -> None:
    dead = asyncio.create_task(engine.wait_dead())
    await engine.shutdown()
    await engine.shutdown()
    await asyncio.wait_for(dead, 5)
    with pytest.raises(EngineFailed):
        await engine.perform(ask())
