"""The OpenAI dialect: its endpoints and listings, and how it tells errors."""

from typing import Any

import msgspec

from serving.dialects.base import Call, Endpoint, Listing, Standing
from serving.dialects.catalog import ModelInfo
from serving.dialects.lines import encode
from serving.dialects.openai import billing, speech, wire
from serving.dialects.openai.chat_prompt import CHAT_PROMPT
from serving.dialects.openai.lookup import look_up
from serving.dialects.openai.modes import unused_of
from serving.dialects.openai.probes import routes as probes
from serving.dialects.openai.tasks import TASKS
from serving.dialects.openai.tell import chat_teller, error_body, text_teller
from serving.dialects.openai.translate import chat_to_core, text_to_core
from serving.dialects.sse import MEDIA_TYPE as SSE
from serving.errors import ServingError
from serving.prompting.roles import resolve

_JSON = ("application/json",)
_GET, _BOTH = ("GET",), ("GET", "POST")
_MODELS = "List the models of this key"

_SUFFIXES = ("", "/text", "/assistant")
"""Each model is listed as it is and with its role shorthands: SillyTavern offers what is listed, and nothing else."""


async def list_models(query: msgspec.Struct, standing: Standing) -> bytes:
    names = standing.catalog.names.items()
    models = [_model(info, name + suffix) for name, (info, _) in names for suffix in _SUFFIXES]
    return encode(wire.ModelList(models + [_model(info, info.id) for info in standing.catalog.tasks]))


async def one_model(query: wire.ModelQuery, standing: Standing) -> bytes:
    if not query.model:  # `/models/`, as some clients join their addresses
        return await list_models(query, standing)
    for info in standing.catalog.tasks:
        if info.id == query.model:
            return encode(_model(info, info.id))
    info, suffix = standing.catalog.resolve(query.model)
    resolve(suffix=suffix)  # refuses what is no role config, as a request with this model would be
    return encode(wire.ModelWire(query.model, info.created, "story-serving"))


def _model(info: ModelInfo, name: str) -> wire.ModelWire:
    kind = msgspec.UNSET if info.kind == "generation" else info.kind
    return wire.ModelWire(name, info.created, "story-serving", display_type=kind)


class OpenAI:
    """OpenAI's protocol, under DreamGen's prefix and under the usual one."""

    name = "openai"
    prefixes: tuple[str, ...] = ("/v1", "/api/openai/v1")
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
            unused_of,
            look_up,
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
            unused_of,
            look_up,
        ),
        *probes.ENDPOINTS,
    )
    tasks = (*TASKS, *speech.TASKS)
    listings: tuple[Listing[Any], ...] = (
        Listing("models", "/models", _MODELS, _BOTH, wire.NoQuery, wire.ModelList, list_models),
        Listing("models", "/models/list", _MODELS, _BOTH, wire.NoQuery, wire.ModelList, list_models),
        Listing("model", "/models/{model:path}", "One model", _GET, wire.ModelQuery, wire.ModelWire, one_model),
        Listing(
            "billing.usage",
            "/billing/usage",
            "Tokens that the account used, by day",
            _GET,
            wire.UsageQuery,
            wire.BillingUsage,
            billing.usage,
        ),
        Listing(
            "dashboard.usage",
            "/dashboard/billing/usage",
            "What the account used, in hundredths of a credit",
            _GET,
            wire.UsageQuery,
            wire.DashboardUsage,
            billing.dashboard_usage,
        ),
        Listing(
            "dashboard.subscription",
            "/dashboard/billing/subscription",
            "What the account may use, in credits",
            _GET,
            wire.NoQuery,
            wire.Subscription,
            billing.subscription,
        ),
        Listing("models", "/model/list", _MODELS, _GET, wire.NoQuery, wire.ModelList, list_models),
        *probes.LISTINGS,
    )
    calls: tuple[Call[Any], ...] = (*probes.SERVER_CALLS, *probes.CALLS, CHAT_PROMPT)
    error_schema: type[msgspec.Struct] = wire.ErrorEnvelope

    def render_error(self, error: ServingError) -> tuple[int, bytes]:
        return error.status, error_body(error)
