"""The OpenAI dialect: its endpoints and listings, and how it tells errors."""

from collections.abc import Mapping
from typing import Any

from serving.dialects.base import Catalog, Endpoint, Listing, ModelInfo
from serving.dialects.lines import encode
from serving.dialects.openai import wire
from serving.dialects.openai.tell import chat_teller, error_body, text_teller
from serving.dialects.openai.translate import chat_to_core, text_to_core
from serving.dialects.sse import MEDIA_TYPE as SSE
from serving.errors import ServingError
from serving.prompting.roles import resolve

_JSON = ("application/json",)

_SUFFIXES = ("", "/text", "/assistant")
"""Each model is listed as it is and with its role shorthands: SillyTavern offers what is listed, and nothing else."""


def list_models(catalog: Catalog, _: Mapping[str, Any]) -> bytes:
    models = [_model(info, suffix) for info in catalog.models for suffix in _SUFFIXES]
    return encode(wire.ModelList(models))


def one_model(catalog: Catalog, path: Mapping[str, Any]) -> bytes:
    if not path["model"]:  # `/models/`, as some clients join their addresses
        return list_models(catalog, path)
    info, suffix = catalog.resolve(path["model"])
    resolve(suffix=suffix)  # refuses what is no role config, as a request with this model would be
    return encode(wire.ModelWire(path["model"], info.created, "story-serving"))


def _model(info: ModelInfo, suffix: str) -> wire.ModelWire:
    return wire.ModelWire(info.id + suffix, info.created, "story-serving")


class OpenAI:
    """OpenAI's protocol, under DreamGen's prefix and under the usual one."""

    name = "openai"
    prefixes = ("/v1", "/api/openai/v1")
    endpoints: tuple[Endpoint[Any], ...] = (
        Endpoint(
            "chat.completions",
            "/chat/completions",
            "Answer a chat with one message",
            wire.ChatCompletionRequest,
            wire.ChatCompletion,
            _JSON,
            (SSE,),
            chat_to_core,
            chat_teller,
        ),
        Endpoint(
            "completions",
            "/completions",
            "Continue a prompt in the model's own format",
            wire.CompletionRequest,
            wire.TextCompletion,
            _JSON,
            (SSE,),
            text_to_core,
            text_teller,
        ),
    )
    listings = (
        Listing("models", "/models", "List the models of this key", ("GET", "POST"), wire.ModelList, list_models),
        Listing("models", "/models/list", "List the models of this key", ("GET", "POST"), wire.ModelList, list_models),
        Listing("model", "/models/{model:path}", "One model", ("GET",), wire.ModelWire, one_model),
    )
    error_schema = wire.ErrorEnvelope

    def render_error(self, error: ServingError) -> tuple[int, bytes]:
        return error.status, error_body(error)
