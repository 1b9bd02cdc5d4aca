"""Images by an OpenAI-compatible image server reached over HTTP, such as vLLM-Omni, behind the TaskEngine port.

It asks for images in base64, so that nothing of the server's own addresses reaches a caller. A server that is down or
wrong fails the task, not this process; what it says of an error is told to nobody, since a prompt may stand in it.
"""

import asyncio
import base64
import binascii
import logging

import httpx
import msgspec

from serving.core.tasks import Draw, Drawn, Outcome, PreparedTask
from serving.engine.base import OnHeard
from serving.errors import EngineFailed, InvalidRequest, Overloaded, ServingError, Timeout

log = logging.getLogger(__name__)

_CONNECT_S, _ANSWER_S = 10.0, 300.0
_MOST_BYTES_OF_AN_IMAGE = 64 * 1024 * 1024


class _Image(msgspec.Struct):
    b64_json: str


class _Images(msgspec.Struct):
    data: list[_Image]


class ImageServer:
    """One model of an image server. `address` is where its API begins (`http://host:port/v1`)."""

    def __init__(self, address: str, model: str, key: str | None = None) -> None:
        self._url = f"{address.rstrip('/')}/images/generations"
        self._model = model
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S))
        self._closed = asyncio.Event()

    async def perform(self, task: PreparedTask[Draw], on_heard: OnHeard | None = None) -> Outcome:
        """As many images as the server makes, `n` at most. Raises InvalidRequest, EngineFailed, Overloaded, Timeout."""
        await self.check_health()
        asked = task.work
        body = {"model": self._model, "prompt": asked.prompt, "n": asked.n, "size": asked.size}
        body |= {"response_format": "b64_json"} | ({"quality": asked.quality} if asked.quality else {})
        try:
            content = msgspec.json.encode(body)
        except UnicodeEncodeError:
            raise InvalidRequest("prompt is not valid Unicode (a lone surrogate).", param="prompt") from None
        try:
            answer = await self._answer(content, asked.n * _MOST_BYTES_OF_AN_IMAGE)
        except httpx.TimeoutException:
            raise Timeout("The image server took too long. Try again later.") from None
        except httpx.HTTPError as error:
            log.error("the image server %s failed: %s", self._url, type(error).__name__)
            raise EngineFailed("The image server cannot be reached. Try again later.") from None
        images = await asyncio.to_thread(_read, answer)
        return Outcome(Drawn(images[: asked.n]), min(len(images), asked.n))

    async def _answer(self, content: bytes, most_bytes: int) -> bytes:
        """The body of an answer that is well."""
        async with self._client.stream("POST", self._url, content=content) as response:
            if response.status_code != 200:
                log.error("the image server %s answered %d", self._url, response.status_code)
                raise _refused(response.status_code)
            parts: list[bytes] = []
            size = 0
            async for part in response.aiter_bytes():
                size += len(part)
                if size > most_bytes:
                    raise EngineFailed("The image server answered with more than images can be.")
                parts.append(part)
        return b"".join(parts)

    async def check_health(self) -> None:
        """Raises EngineFailed once this is shut down. The server may come and go."""
        if self._closed.is_set():
            raise EngineFailed("The image server is not used any more.")

    async def wait_dead(self) -> None:
        """Returns once this is shut down."""
        await self._closed.wait()

    async def shutdown(self) -> None:
        """Close the connections. May be called twice."""
        self._closed.set()
        await self._client.aclose()


def _refused(status: int) -> ServingError:
    if status in (400, 422):
        return InvalidRequest("The image server refuses this request: change the prompt.", param="prompt")
    if status in (429, 503):
        return Overloaded("The image server is busy. Try again in a moment.", retry_after_s=5)
    return EngineFailed("The image server failed. Try again later.")


def _read(answer: bytes) -> tuple[str, ...]:
    """The images of an answer: at least one, and each in base64."""
    try:
        images = tuple(image.b64_json for image in msgspec.json.decode(answer, type=_Images).data)
        whole = bool(images) and all(base64.b64decode(image, validate=True) for image in images)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError):
        whole = False
    if not whole:
        raise EngineFailed("The image server answered without images. Try again later.")
    return images
