"""The admin API over HTTP: who may ask, bytes to wire models and back, errors in one shape. The acts are in `routes`.

Whoever lacks the key is told so at every address under the prefix, and nothing else. Only here errors are caught.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from serving.accounts.admin import Admin
from serving.admin import wire
from serving.admin.acts import Desk, Export
from serving.admin.routes import ROUTES, Route
from serving.edge.admin_key import is_admin
from serving.edge.body import ClientGone, decode, decode_query, read_body
from serving.edge.headers import error_headers
from serving.edge.mistakes import our_mistake
from serving.errors import MethodNotAllowed, NotFound, ServingError, Unauthenticated

log = logging.getLogger(__name__)

PREFIX = "/admin/v1"

_MOST_BODY_BYTES = 65_536
_PART_CHARACTERS = 65_536
_HEADERS = {"cache-control": "no-store"}
"""Answers hold keys and balances: no cache may keep them."""

_ADDRESSES = [(compile_path(PREFIX + route.path)[0], route.method) for route in ROUTES]


@dataclass(frozen=True)
class Front:
    """What the routes need of the application. `admin` raises Overloaded until the books are open. `models`: the ids of
    those that are served."""

    key: str
    admin: Callable[[], Admin]
    models: Collection[str]
    write_timeout_s: float

    def authenticate(self, request: Request) -> None:
        """Raises Unauthenticated. The time it takes tells nothing of the key."""
        if not is_admin(request.headers.get("authorization"), self.key):
            raise Unauthenticated("This is not the admin key. Send the header `Authorization: Bearer ADMIN_KEY`.")

    async def answer(self, route: Route[Any, Any], request: Request) -> Response:
        """Do what a route does, and tell of it, or of what went wrong."""

        async def act(fields: dict[str, object]) -> Response:
            return await self._act(route, request, fields)

        return await self._told(route.name, request, act)

    async def lost(self, request: Request) -> Response:
        """Answer an address, or a method of it, that does not exist."""

        async def refuse(_: dict[str, object]) -> Response:
            path = request.url.path
            allowed = sorted(method for pattern, method in _ADDRESSES if pattern.match(path))
            if not allowed:
                raise NotFound("There is no such address here.")
            response = _failed(MethodNotAllowed(f"{request.method} is not for this address."))
            response.headers["allow"] = ", ".join(allowed)
            return response

        return await self._told("none", request, refuse)

    async def _told(
        self, name: str, request: Request, act: Callable[[dict[str, object]], Awaitable[Response]]
    ) -> Response:
        """What `act` answers, or what went wrong; and a line in the log, with the fields that it adds."""
        began_s = time.monotonic()
        fields: dict[str, object] = {"dialect": "admin", "endpoint": name}
        try:
            self.authenticate(request)
            response = await act(fields)
        except ClientGone:
            response = Response(status_code=400)  # nobody reads it
        except Exception as error:  # noqa: BLE001  # the last resort: whoever asked is told, and so is the log
            reason = error if isinstance(error, ServingError) else our_mistake(error, f"admin {name}")
            fields["code"], response = reason.code, _failed(reason)
        fields |= {"status": response.status_code, "duration_ms": round((time.monotonic() - began_s) * 1000)}
        log.info("request", extra=fields)
        return response

    async def _act(self, route: Route[Any, Any], request: Request, fields: dict[str, object]) -> Response:
        desk = Desk(self.admin(), self.models, datetime.now(UTC))
        address = decode_query(route.address, {**request.query_params, **request.path_params})
        body: wire.Asked = wire.Nothing()
        if route.body is not wire.Nothing:
            body = decode(route.body, await read_body(request.headers, request.receive, _MOST_BODY_BYTES))
        told = await route.act(desk, address, body)
        if isinstance(told, Export):
            parts = _parts(told.lines)
            # What goes wrong before the first line has its status.
            first = await anext(parts)
            headers = _HEADERS | {"content-disposition": f'attachment; filename="{told.name}"'}
            response: Response = _Download(first, parts, told.media_type, headers, self.write_timeout_s)
        else:
            response = Response(msgspec.json.encode(told), route.status, _HEADERS, "application/json")
        # Only now: what was sent is an id that there is, and may stand in a line.
        fields["account"] = getattr(body, "account", None) or getattr(address, "account", None)
        if isinstance(told, wire.KeyTold):
            fields |= {"account": told.account, "key_id": told.id}
        return response


def _failed(error: ServingError) -> Response:
    told = wire.AdminError(wire.AdminErrorBody(error.code, error.message, error.param))
    return Response(msgspec.json.encode(told), error.status, _HEADERS | error_headers(error))


async def _parts(lines: AsyncGenerator[str, None]) -> AsyncGenerator[bytes, None]:
    """Lines, put together to parts that are worth sending."""
    part: list[str] = []
    characters = 0
    async with aclosing(lines):
        async for line in lines:
            part.append(line)
            characters += len(line)
            if characters >= _PART_CHARACTERS:
                yield "".join(part).encode()
                part, characters = [], 0
                # Neither reading nor sending need wait, and others want to.
                await asyncio.sleep(0)
    yield "".join(part).encode()


class _Download(StreamingResponse):
    """An export on its way. When it breaks off, so does the connection: half of it must not look like all."""

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        media_type: str,
        headers: dict[str, str],
        timeout_s: float,
    ) -> None:
        async def content() -> AsyncIterator[bytes]:
            yield first
            async for part in rest:
                yield part

        super().__init__(content(), headers=headers, media_type=media_type)
        self._rest = rest
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timely(message: MutableMapping[str, Any]) -> None:
            async with asyncio.timeout(self._timeout_s):
                await send(message)

        try:
            async with aclosing(self._rest):
                await super().__call__(scope, receive, timely)
        except Exception as error:  # noqa: BLE001  # the server closes a connection whose answer is not complete
            log.error("an export broke off: %s", type(error).__name__)
