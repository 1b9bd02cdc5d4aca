"""What Livepeer's `/llm` sends and expects. Source: the Python SDK livepeer-ai 0.10.0, and Livepeer's API page.

`null` is the same as absent, as everywhere; what is absent has Livepeer's defaults.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serving.dialects import fields

TEMPERATURE = 0.7
MAX_TOKENS = 256


class LLMTurn(msgspec.Struct, kw_only=True):
    role: Annotated[str, Meta(description="`system`, `user` or `assistant`; the others of OpenAI's API, too.")]
    content: Annotated[str, Meta(description="The text of the turn.")]


class LLMRequest(msgspec.Struct, kw_only=True):
    messages: Annotated[
        Annotated[list[LLMTurn], Meta(min_length=1, max_length=fields.MAX_MESSAGES)],
        Meta(description="The chat so far."),
    ]
    model: Annotated[
        fields.ModelName | None, Meta(description="A model, perhaps with a suffix; empty is the default model.")
    ] = ""
    temperature: fields.Temperature | None = TEMPERATURE
    max_tokens: Annotated[fields.MaxTokens | None, Meta(description="Most tokens of the answer.")] = MAX_TOKENS
    top_p: fields.TopP | None = 1.0
    top_k: fields.TopK | None = -1
    stream: Annotated[bool | None, Meta(description="The answer comes as server-sent events.")] = False


# ---- answers ---------------------------------------------------------------------------------------------------------


class LLMTokenUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LLMMessage(msgspec.Struct):
    role: Literal["assistant"]
    content: str


class LLMChoice(msgspec.Struct):
    """A part of a stream has a `delta`, a whole answer a `message`; `finish_reason` is null until the last part."""

    index: int
    finish_reason: Literal["stop", "length"] | None
    delta: LLMMessage | None
    message: LLMMessage | None


class LLMResponse(msgspec.Struct):
    """A whole answer, or one part of a stream, with the usage so far."""

    id: str
    model: str
    created: int
    usage: LLMTokenUsage
    choices: list[LLMChoice]


class APIError(msgspec.Struct):
    msg: str


class ValidationError(msgspec.Struct):
    """`loc` leads from `body` to the field."""

    loc: list[str | int]
    msg: str
    type: str


class HTTPError(msgspec.Struct):
    """`detail` is a list where a field is impossible (422)."""

    detail: APIError | list[ValidationError]


class StreamError(msgspec.Struct):
    """The last frame of a stream that failed."""

    error: str
