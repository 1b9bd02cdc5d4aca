"""A multipart body -> its fields, and its file, which is kept on disk when it is large.

It knows no front's formats. A body over the limit is refused before it is read whole.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive

from serving.edge.body import ClientGone, too_large
from serving.errors import InvalidRequest, PayloadTooLarge

_MOST_FIELDS = 64
_MOST_FIELD_BYTES = 64 * 1024


class _Ended(MultiPartException):
    """The body's end before its time: the parser closes its files on its own kind of error alone."""

    def __init__(self, cause: ClientGone | PayloadTooLarge) -> None:
        super().__init__("")
        self.cause = cause


@dataclass
class Form:
    """The values by field, the file's as its name. A field that ends in `[]`, or is there again, is a list."""

    values: dict[str, Any] = field(default_factory=dict)
    file: BinaryIO | None = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


async def read_form(headers: Headers, receive: Receive, limit_bytes: int) -> Form:
    """The whole form. Raises PayloadTooLarge before reading more than `limit_bytes`, InvalidRequest, ClientGone."""
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise too_large(limit_bytes)
    if not headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequest("The body must be multipart/form-data.")
    most = {"max_files": 1, "max_fields": _MOST_FIELDS, "max_part_size": _MOST_FIELD_BYTES}
    try:
        items = (await MultiPartParser(headers, _chunks(receive, limit_bytes), **most).parse()).multi_items()
    except _Ended as ended:
        raise ended.cause from None
    except MultiPartException:
        most_told = f"one file, and {_MOST_FIELDS} fields of {_MOST_FIELD_BYTES} bytes"
        raise InvalidRequest(f"The form cannot be read: it may have {most_told}.") from None
    form = Form()
    for name, value in items:
        if isinstance(value, UploadFile):
            form.file = value.file
        told = value.filename or "" if isinstance(value, UploadFile) else value
        known = form.values.get(name.removesuffix("[]"))
        many = [*known, told] if isinstance(known, list) else [known, told] if known is not None else [told]
        form.values[name.removesuffix("[]")] = many if len(many) > 1 or name.endswith("[]") else told
    return form


async def _chunks(receive: Receive, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Ended(ClientGone())
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise _Ended(too_large(limit_bytes))
        yield chunk
        more = message.get("more_body", False)
