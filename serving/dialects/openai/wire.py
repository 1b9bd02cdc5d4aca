"""What OpenAI clients send and expect: requests with their bounds, and the shapes of answers.

Fields that are not declared here are ignored, whatever they hold (`tools`, `functions`, `best_of`, `suffix`, a
client's whole sampler preset). `null` is the same as absent, since client libraries send it.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.dialects import fields
from serving.dialects.dry import DryWire, FlatDryWire


class ContentPart(msgspec.Struct, kw_only=True):
    """One part of a message's content; only text is understood."""

    type: str = "text"
    text: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message. With a `name` it is a turn of the story; an empty name is the narrator."""

    role: str
    content: str | list[ContentPart] | None = None
    name: fields.Name | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None


class JsonSchemaWire(msgspec.Struct, kw_only=True):
    name: str | None = None
    schema: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaWire | None = None


class CommonRequest(FlatDryWire, kw_only=True):
    """What chat and text completions have in common."""

    model: fields.ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: fields.Choices | None = None
    max_tokens: fields.TokenCount | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    top_k: fields.TopK | None = None
    min_p: fields.MinP | None = None
    presence_penalty: fields.Penalty | None = None
    frequency_penalty: fields.Penalty | None = None
    repetition_penalty: fields.RepetitionPenalty | None = None
    seed: fields.Seed | None = None
    logit_bias: fields.LogitBias | None = None
    stop: fields.StopString | fields.StopStrings | None = None
    min_tokens: fields.TokenCount | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    role_config: fields.RoleConfigWire | None = None
    dry: DryWire | None = None
    minimum_message_content_tokens: fields.TokenCount | None = None


class ChatCompletionRequest(CommonRequest, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=fields.MAX_MESSAGES)]
    max_completion_tokens: fields.MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: fields.TopLogprobs | None = None


class CompletionRequest(CommonRequest, kw_only=True):
    """`prompt`: a text, a list of texts, token ids, or a list of token id lists."""

    prompt: str | list[str | int | list[int]]
    logprobs: fields.TopLogprobs | None = None
    echo: bool | None = None
    skip_special_tokens: bool | None = None


# ---- answers ---------------------------------------------------------------------------------------------------------


class UsageDetails(msgspec.Struct):
    cached_tokens: int


class UsageWire(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: UsageDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]


class AnswerMessage(msgspec.Struct, omit_defaults=True):
    """`name` is there when the model chose the speaker itself; empty for the narrator."""

    role: Annotated[str, Meta(examples=["assistant"])]
    content: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(msgspec.Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageWire


class TextLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(msgspec.Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageWire


class ModelWire(msgspec.Struct):
    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    data: list[ModelWire]
    object: Literal["list"] = "list"


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct):
    error: ErrorBody
