"""The endpoints of this package, for every dialect that has them."""

from typing import Any

from serving.dialects.base import Call, Endpoint, Listing
from serving.dialects.openai.lookup import look_up
from serving.dialects.openai.probes import logits, models, tokens, wire
from serving.dialects.openai.wire import NoQuery

_ROOTS = ("", "/api/openai", "/textgen")
"""Clients take `/v1` off the address that they are given, and add what they know of the server."""

ENDPOINTS: tuple[Endpoint[Any], ...] = (
    Endpoint(
        "internal.logits",
        "/internal/logits",
        "What the next token may be",
        wire.LogitsRequest,
        wire.Logits,
        ("application/json",),
        (),
        logits.logits_to_core,
        logits.logits_teller,
        logits.ignored,
        look_up,
    ),
)

SERVER_CALLS: tuple[Call[Any], ...] = (
    Call(
        "tokenize", "/tokenize", "Tokens of a prompt or a chat", wire.Tokenize, wire.Tokenized, tokens.tokenize, _ROOTS
    ),
    Call(
        "detokenize", "/detokenize", "The text of tokens", wire.Detokenize, wire.Detokenized, tokens.detokenize, _ROOTS
    ),
)
"""Those that stand beside the addresses of a dialect, not under them."""

CALLS: tuple[Call[Any], ...] = (
    Call("tokenize", "/tokenize", "Tokens of a prompt or a chat", wire.Tokenize, wire.Tokenized, tokens.tokenize),
    Call("detokenize", "/detokenize", "The text of tokens", wire.Detokenize, wire.Detokenized, tokens.detokenize),
    Call(
        "token.encode",
        "/token/encode",
        "Tokens of a text or a chat",
        wire.TokenEncode,
        wire.Encoded,
        tokens.token_encode,
    ),
    Call("token.decode", "/token/decode", "The text of tokens", wire.TokenDecode, wire.Decoded, tokens.token_decode),
    Call(
        "internal.encode",
        "/internal/encode",
        "Tokens of a text",
        wire.InternalEncode,
        wire.Encoded,
        tokens.internal_encode,
    ),
    Call(
        "internal.decode",
        "/internal/decode",
        "The text of tokens, without special ones",
        wire.InternalDecode,
        wire.Decoded,
        tokens.internal_decode,
    ),
    Call(
        "internal.token-count",
        "/internal/token-count",
        "How many tokens a text has",
        wire.InternalEncode,
        wire.TokenCount,
        tokens.token_count,
    ),
    Call(
        "internal.stop-generation",
        "/internal/stop-generation",
        "End the running generations of this key",
        wire.NoBody,
        str,
        models.stop_generation,
    ),
    Call(
        "internal.lora.load",
        "/internal/lora/load",
        "Answer with a LoRA adapter",
        wire.LoadLoras,
        str,
        models.load_loras,
        access="admin",
    ),
    Call(
        "internal.lora.unload",
        "/internal/lora/unload",
        "Answer without a LoRA adapter",
        wire.NoBody,
        str,
        models.unload_loras,
        access="admin",
    ),
    Call(
        "internal.model.load",
        "/internal/model/load",
        "Serve a model in the place of another",
        wire.LoadModel,
        str,
        models.load_model,
        access="admin",
    ),
    Call(
        "internal.model.unload",
        "/internal/model/unload",
        "Serve a model no longer",
        wire.UnloadModel,
        str,
        models.unload_model,
        access="admin",
    ),
)

LISTINGS: tuple[Listing[Any], ...] = (
    Listing("current model", "/model", "The default model", ("GET",), NoQuery, wire.ModelCard, models.current_model),
    Listing("internal.health", "/internal/health", "The server answers", ("GET",), NoQuery, wire.Health, models.health),
    Listing(
        "internal.model.info",
        "/internal/model/info",
        "The default model",
        ("GET",),
        NoQuery,
        wire.InternalModel,
        models.internal_model,
    ),
    Listing(
        "internal.model.list",
        "/internal/model/list",
        "The models of this key; with the admin key, those that can be loaded",
        ("GET",),
        NoQuery,
        wire.InternalModels,
        models.internal_models,
        access="either",
    ),
    Listing(
        "internal.lora.list",
        "/internal/lora/list",
        "LoRA adapters of the default model",
        ("GET",),
        NoQuery,
        wire.InternalLoras,
        models.loras,
        access="either",
    ),
)
