"""What is sent and told by the endpoints of this package. Fields that are not declared are ignored, `null` is absent.

Sources: vLLM 0.32 (`/tokenize`, `/detokenize`; Aphrodite has the former under `/v1`), TabbyAPI (`/v1/token/*`,
`/v1/model`), text-generation-webui (`/v1/internal/*`).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serving.dialects import fields
from serving.dialects.openai.wire import ChatMessage, CompletionRequest

MOST_LOGITS = 262_143
"""More than a vocabulary has."""

Model = Annotated[fields.ModelName | None, Meta(description="A model; the default model if missing or empty.")]
TokenIds = Annotated[list[fields.BiasedToken], Meta(description="Token ids of the model.")]
Text = Annotated[str, Meta(description="A text, in the model's own format.")]


# ---- vLLM and Aphrodite ----------------------------------------------------------------------------------------------


class Tokenize(msgspec.Struct, kw_only=True):
    model: Model = None
    prompt: Annotated[Text | None, Meta(description="A text, in the model's own format; or `messages`.")] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Meta(max_length=fields.MAX_MESSAGES)] | None,
        Meta(description="A chat, as of a chat completion."),
    ] = None
    add_generation_prompt: Annotated[
        bool | None, Meta(description="The chat is followed by the header of its answer; true by default.")
    ] = None
    add_special_tokens: Annotated[
        bool | None, Meta(description="A text is behind the token that a prompt begins with; true by default.")
    ] = None
    return_token_strs: Annotated[bool | None, Meta(description="Tell how the vocabulary spells the tokens.")] = None


class Tokenized(msgspec.Struct):
    """`max_model_len` is the context of the model."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenize(msgspec.Struct, kw_only=True):
    model: Model = None
    tokens: TokenIds


class Detokenized(msgspec.Struct):
    prompt: str


# ---- TabbyAPI --------------------------------------------------------------------------------------------------------


class TokenEncode(msgspec.Struct, kw_only=True):
    model: Model = None
    text: Annotated[
        str | Annotated[list[ChatMessage], Meta(max_length=fields.MAX_MESSAGES)],
        Meta(description="A text, in the model's own format, or the messages of a chat."),
    ]
    add_bos_token: Annotated[
        bool | None, Meta(description="A text is behind the token that a prompt begins with; true by default.")
    ] = None
    encode_special_tokens: Annotated[
        bool | None, Meta(description="Special tokens spelled in a text are that; true by default.")
    ] = None


class TokenDecode(msgspec.Struct, kw_only=True):
    model: Model = None
    tokens: TokenIds
    decode_special_tokens: Annotated[
        bool | None, Meta(description="Special tokens stand in the text; true by default.")
    ] = None


class ModelParameters(msgspec.Struct):
    max_seq_len: int
    prompt_template: str


class ModelCard(msgspec.Struct):
    id: str
    created: int
    owned_by: str
    parameters: ModelParameters
    object: Literal["model"] = "model"


# ---- text-generation-webui -------------------------------------------------------------------------------------------


class InternalEncode(msgspec.Struct, kw_only=True):
    model: Model = None
    text: Text


class InternalDecode(msgspec.Struct, kw_only=True):
    model: Model = None
    tokens: TokenIds


class Encoded(msgspec.Struct):
    tokens: list[int]
    length: int


class Decoded(msgspec.Struct):
    text: str


class TokenCount(msgspec.Struct):
    length: int


class NoBody(msgspec.Struct):
    """A body that is not looked at."""


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"


class InternalModel(msgspec.Struct):
    """`model_name` is `None`, in words, when no model is served. `lora_names` is the adapter that it answers with."""

    model_name: str
    lora_names: list[str]
    loader: str


class InternalModels(msgspec.Struct):
    model_names: list[str]


class LogitsRequest(CompletionRequest, kw_only=True):
    use_samplers: Annotated[
        bool | None, Meta(description="What the samplers leave, not what the model says; false by default.")
    ] = None
    top_logits: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_LOGITS)] | None,
        Meta(description="How many of the likeliest tokens; 50 by default."),
    ] = None


Logits = dict[str, float]
"""Probabilities by token, as the vocabulary spells it."""


class LoadSettings(msgspec.Struct, kw_only=True):
    replaces: Annotated[
        str | None,
        Meta(description="The model whose place is taken: by default of itself, else of the default model."),
    ] = None
    template: Annotated[
        str | None, Meta(description="Of a folder: its prompt template, else that of the model it replaces.")
    ] = None


class LoadModel(msgspec.Struct, kw_only=True):
    model_name: Annotated[str, Meta(description="A configured model, or a folder in `models_dir`.")]
    args: Annotated[
        dict[str, str | int | float | bool] | None,
        Meta(description="Engine arguments that differ from the configured."),
    ] = None
    settings: Annotated[LoadSettings | None, Meta(description="`replaces` and `template`; the rest is ignored.")] = None


class InternalLoras(msgspec.Struct):
    lora_names: list[str]


class LoadLoras(msgspec.Struct, kw_only=True):
    lora_names: Annotated[list[str], Meta(description="The adapter to answer with; none for an empty list.")]


class UnloadModel(msgspec.Struct, kw_only=True):
    model_name: Annotated[str | None, Meta(description="A model that is served; the default one if missing.")] = None
