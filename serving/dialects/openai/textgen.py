"""text-generation-webui's own manners: the same requests and answers, at an address of their own.

What differs: a model that is not served means the default one, a text has 512 tokens unless more are asked for, and
errors have the shapes of that server. Its extension fields are understood at OpenAI's addresses, too.

Source: text-generation-webui at 1dcde41d, modules/api. Its errors are FastAPI's where a field is impossible or a key is
missing, and OpenAI's, without a code, elsewhere.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec

from serving.core import GenerationRequest
from serving.core.tasks import TaskKind
from serving.dialects.base import Call, Context, Endpoint, Listing, Standing, TaskEndpoint
from serving.dialects.catalog import Catalog, ModelInfo
from serving.dialects.lines import encode
from serving.dialects.location import location
from serving.dialects.openai import speech, wire
from serving.dialects.openai.dialect import OpenAI, list_models, one_model
from serving.dialects.openai.task_wire import TranscriptionRequest
from serving.dialects.openai.tell import chat_teller, text_teller, worded
from serving.dialects.openai.translate import chat_to_core, text_to_core
from serving.errors import (
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PromptTooLong,
    ServingError,
    Unauthenticated,
    UnknownModel,
)

MAX_TOKENS = 512


class FieldError(msgspec.Struct):
    loc: list[str | int]
    msg: str
    type: str


class TextGenError(msgspec.Struct, omit_defaults=True):
    """One of both: `error`, or `detail` as FastAPI has it."""

    error: wire.ErrorBody | msgspec.UnsetType = msgspec.UNSET
    detail: str | list[FieldError] | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class AnyModel(Catalog):
    """A catalog in which every name means a model."""

    def resolve(self, name: str | None, *, param: str = "model") -> tuple[ModelInfo, str | None]:
        """Raises UnknownModel only where there is none at all."""
        try:
            return Catalog.resolve(self, name, param=param)
        except UnknownModel:
            if not self.models:
                raise
            return self.models[0], None

    def resolve_task(self, kind: TaskKind, name: str | None) -> ModelInfo:
        """Raises NotFound when there is none of that kind."""
        try:
            return Catalog.resolve_task(self, kind, name)
        except UnknownModel:
            return Catalog.resolve_task(self, kind, None)


def _any(catalog: Catalog) -> AnyModel:
    return AnyModel(catalog.models, catalog.tasks)


def _lenient(context: Context) -> Context:
    return replace(context, catalog=_any(context.catalog))


def _chat(request: wire.ChatCompletionRequest, context: Context) -> GenerationRequest:
    return chat_to_core(request, _lenient(context))


def _text(request: wire.CompletionRequest, context: Context) -> GenerationRequest:
    if request.max_tokens is None:
        request = msgspec.structs.replace(request, max_tokens=MAX_TOKENS)
    return text_to_core(request, _lenient(context))


async def any_model(query: wire.ModelQuery, standing: Standing) -> bytes:
    """A model by its id, which is told as it was asked for."""
    if not query.model:
        return await list_models(query, standing)
    try:
        return await one_model(query, standing)
    except (UnknownModel, InvalidRequest):
        return encode(wire.ModelWire(query.model, 0, "user"))


def envelope(error: ServingError) -> wire.ErrorBody:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    message, param = worded(error)
    return wire.ErrorBody(message, kind, param, None)


def stream_error(error: ServingError) -> bytes:
    return encode(TextGenError(envelope(error)))


def _own_listing(listing: Listing[Any]) -> Listing[Any]:
    return replace(listing, tell=any_model) if listing.name == "model" else listing


def _own_call(call: Call[Any]) -> Call[Any]:
    async def tell(request: Any, standing: Standing) -> bytes:  # noqa: ANN401  # the call's wire model
        return await call.tell(request, replace(standing, catalog=_any(standing.catalog)))

    return replace(call, tell=tell)


def _own_endpoint(endpoint: Endpoint[Any]) -> Endpoint[Any]:
    if endpoint.wire is wire.ChatCompletionRequest:
        return replace(endpoint, to_core=_chat, teller=partial(chat_teller, error_body=stream_error))
    if endpoint.wire is wire.CompletionRequest:
        return replace(endpoint, to_core=_text, teller=partial(text_teller, error_body=stream_error))
    return replace(endpoint, to_core=lambda request, context: endpoint.to_core(request, _lenient(context)))


def _own_task(task: TaskEndpoint[Any]) -> TaskEndpoint[Any]:
    own = replace(task, to_core=lambda request, context: task.to_core(request, _lenient(context)))
    if task.wire is TranscriptionRequest:
        return replace(own, stream=partial(speech.stream, error_body=stream_error))
    return own


class TextGen(OpenAI):
    """OpenAI's dialect with other manners."""

    name = "textgen"
    prefixes = ("/textgen/v1",)
    endpoints = tuple(map(_own_endpoint, OpenAI.endpoints))
    tasks = tuple(map(_own_task, OpenAI.tasks))
    listings = tuple(map(_own_listing, OpenAI.listings))
    calls: tuple[Call[Any], ...] = tuple(_own_call(call) for call in OpenAI.calls if call.prefixes is None)
    error_schema: type[msgspec.Struct] = TextGenError

    def render_error(self, error: ServingError) -> tuple[int, bytes]:
        if isinstance(error, InvalidRequest) and not isinstance(error, PromptTooLong):
            message, param = worded(error)
            place = FieldError(location(param), message, error.code)
            return 422, encode(TextGenError(detail=[place]))
        if isinstance(error, Unauthenticated | Forbidden | MethodNotAllowed) or type(error) is NotFound:
            return error.status, encode(TextGenError(detail=error.message))
        return error.status, encode(TextGenError(envelope(error)))
