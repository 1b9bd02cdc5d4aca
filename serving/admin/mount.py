"""Puts the admin API into an app, with its description."""

from collections.abc import Callable, Collection
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Mounted
from starlette.types import Receive, Scope, Send

from serving.accounts.admin import Admin
from serving.admin import wire
from serving.admin.acts import MEDIA_TYPES
from serving.admin.http import PREFIX, Front
from serving.admin.routes import ROUTES, Route
from serving.edge.description import parameters

_SECURITY_SCHEME = "admin"


def mount_admin(
    app: FastAPI, key: str, admin: Callable[[], Admin], models: Collection[str], write_timeout_s: float
) -> None:
    """The routes under the prefix, for who sends `key`. `admin` raises Overloaded until the books are open; `models`
    are the ids that keys may be limited to. An app whose description is made must not have been asked for it yet."""
    front = Front(key, admin, models, write_timeout_s)
    description = _Description(app)
    for route in ROUTES:
        app.add_api_route(
            PREFIX + route.path,
            _endpoint(front, route),
            methods=[route.method],
            name=f"{route.method.lower()} {PREFIX}{route.path}",
            summary=route.summary,
            tags=["admin"],
            response_class=Response,
            openapi_extra=description.operation(route),
            status_code=route.status,
        )
    app.openapi = description.complete  # type: ignore[method-assign]  # FastAPI's documented hook
    lost = _Lost(front)
    for path in ("", "/{rest:path}"):
        app.router.routes.append(Mounted(PREFIX + path, lost, include_in_schema=False))


def _endpoint(front: Front, route: Route[Any, Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await front.answer(route, request)

    return endpoint


class _Lost:
    """Whatever else is asked under the prefix, by any method: an ASGI app."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._front.lost(Request(scope, receive))
        await response(scope, receive, send)


class _Description:
    """What FastAPI cannot know of the routes, whose models are not pydantic's."""

    def __init__(self, app: FastAPI) -> None:
        self._whole = app.openapi
        models: list[type[msgspec.Struct]] = [wire.AdminError]
        for route in ROUTES:
            models += [route.body, *filter(None, [route.answer])]
        unique = list(dict.fromkeys(models))
        references, self._schemas = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
        self._references = dict(zip(unique, references, strict=True))

    def operation(self, route: Route[Any, Any]) -> dict[str, Any]:
        """FastAPI's `openapi_extra` for a route."""
        told: dict[str, Any] = {kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in MEDIA_TYPES.values()}
        if route.answer is not None:
            told = self._json(route.answer)
        operation: dict[str, Any] = {
            "security": [{_SECURITY_SCHEME: []}],
            "parameters": list(parameters(route.path, route.address)),
            "responses": {
                str(route.status): {"description": "Done", "content": told},
                "default": {"description": "An error", "content": self._json(wire.AdminError)},
            },
        }
        if route.body is not wire.Nothing:
            operation["requestBody"] = {"required": True, "content": self._json(route.body)}
        return operation

    def _json(self, model: type[msgspec.Struct]) -> dict[str, Any]:
        return {"application/json": {"schema": self._references[model]}}

    def complete(self) -> dict[str, Any]:
        """The whole document: the app's, with our schemas."""
        document = self._whole()
        parts = document.setdefault("components", {})
        parts.setdefault("schemas", {}).update(self._schemas)
        scheme = {"type": "http", "scheme": "bearer", "description": "The setting `admin_key`."}
        parts.setdefault("securitySchemes", {})[_SECURITY_SCHEME] = scheme
        return document
