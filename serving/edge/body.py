"""Bytes of a request's body -> its wire model, with a bound on what that costs. It knows no front's formats.

Decoding holds the event loop, so its cost is bounded before it begins (law 11): a body of the largest size that is one
long text decodes in a millisecond, one of a million tiny values in a tenth of a second. The latter is refused: a text
with as many commas would not fit into the context of any model either.
"""

import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive

from serving.errors import InvalidRequest, PayloadTooLarge

_SMALL_BYTES = 256 * 1024
_MOST_MARKS = ((b'"', 262_144), (b",", 262_144), (b"{", 65_536), (b"[", 16_384))
"""Most occurrences of each mark in a body that is not small: they bound the number of JSON values in it."""

_WHERE = re.compile(r"(?: - at `(?P<key>key` in `)?\$\.?(?P<path>[^`]*)`)$")

_SHOWN = 64
"""Most characters of a name that is not one of ours."""

W = TypeVar("W", bound=msgspec.Struct)


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


async def read_body(headers: Headers, receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Raises PayloadTooLarge before reading more than `limit_bytes`, ClientGone."""
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def decode(kind: type[W], body: bytes) -> W:
    """The wire model in `body`. Raises InvalidRequest that names the field, never repeating what it held."""
    if len(body) > _SMALL_BYTES and any(body.count(mark) > most for mark, most in _MOST_MARKS):
        raise InvalidRequest("The body holds too many values. Send fewer or shorter lists.")
    try:
        with _no_collection():
            return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        reason, param = describe(str(error))
        raise InvalidRequest(reason, param=param) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # The library's words for broken JSON name positions, not contents.
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing that is being made is garbage yet, and looking for it again and again took 60 ms for 60,000 lists."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def decode_query(kind: type[W], values: Mapping[str, Any]) -> W:
    """The values of an address or a form. Raises InvalidRequest that names the field, never repeating what it held."""
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        reason, param = describe(str(error))
        raise InvalidRequest(reason, param=param) from None


def describe(error: str) -> tuple[str, str | None]:
    """Sentence and field of a validation error. Source: the wording of msgspec 0.22."""
    where = _WHERE.search(error)
    reason = error[: where.start()] if where else error
    # `Invalid enum value 'x'` repeats what was sent, in quotes of either kind.
    reason = re.sub(r"^(Invalid enum value) .*$", r"\1", reason, flags=re.DOTALL)
    reason = reason.replace("Invalid RFC3339 encoded date", "Must be a date like 2026-11-25")
    path = where["path"] if where else ""
    if missing := re.fullmatch(r"Object missing required field `(.+)`", reason):
        path = f"{path}.{missing[1]}" if path else missing[1]
        return f"{path} is required.", path
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", reason, flags=re.DOTALL):
        path = f"{path}.{unknown[1]}" if path else unknown[1]
        return f"{path[:_SHOWN]} is not known here.", path[:_SHOWN]
    if not path:
        return f"The body is not as expected: {reason}.", None
    return f"{path}: {reason[0].lower()}{reason[1:]}.", path


def too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit_bytes} bytes. Send less.")
