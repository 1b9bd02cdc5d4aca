"""The OpenAPI description of the dialects' endpoints, made from the wire models that decode and encode them."""

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.dialects.base import Call, Dialect, Listing, Posted, TaskEndpoint, posted
from serving.edge.description import parameters

_SECURITY_SCHEME = "bearer"


class Description:
    """What FastAPI cannot know: bodies, answers and errors of endpoints whose models are not pydantic's."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        models: list[type[Any]] = []
        for dialect in dialects:
            models.append(dialect.error_schema)
            asked: tuple[Posted | Call[Any], ...] = (*posted(dialect), *dialect.calls)
            for endpoint in asked:
                models += [endpoint.wire, endpoint.answer]
            models += [listing.answer for listing in dialect.listings]
        unique = list(dict.fromkeys(models))
        references, self._schemas = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
        self._references = dict(zip(unique, references, strict=True))

    def operation(self, dialect: Dialect, endpoint: Posted | Listing[Any] | Call[Any]) -> dict[str, Any]:
        """FastAPI's `openapi_extra` for one endpoint."""
        answer = {"schema": self._references[endpoint.answer]}
        error = {"application/json": {"schema": self._references[dialect.error_schema]}}
        operation: dict[str, Any] = {
            "security": [{_SECURITY_SCHEME: []}],
            "responses": {
                "200": {"description": "The answer", "content": dict.fromkeys(endpoint.whole_media_types, answer)},
                "default": {"description": "An error, in this dialect's shape", "content": error},
            },
        }
        if isinstance(endpoint, Listing):
            operation["parameters"] = list(parameters(endpoint.path, endpoint.query))
            return operation
        kind = "multipart/form-data" if isinstance(endpoint, TaskEndpoint) and endpoint.form else "application/json"
        body = {kind: {"schema": self._references[endpoint.wire]}}
        operation["requestBody"] = {"required": not isinstance(endpoint, Call), "content": body}
        if not isinstance(endpoint, Call):
            # A stream is a sequence of events, which OpenAPI cannot describe further.
            operation["responses"]["200"]["content"] |= {kind: {} for kind in endpoint.stream_media_types}
        return operation

    def complete(self, app: FastAPI) -> dict[str, Any]:
        """The whole document: FastAPI's, with our schemas."""
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            parts = document.setdefault("components", {})
            parts.setdefault("schemas", {}).update(self._schemas)
            parts["securitySchemes"] = {_SECURITY_SCHEME: {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = document
        return app.openapi_schema
