"""What DreamGen's native API sends and expects. Source: DreamGen's API page, `CompletionRequest` and its answers."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serving.dialects import fields
from serving.dialects.dry import DryWire


class SamplingParams(msgspec.Struct, kw_only=True, rename="camel"):
    """`stopSequences` stay in the output. `maxTotalTokens` counts input and output."""

    kind: Literal["basic"] | None = None
    presence_penalty: fields.Penalty | None = None
    frequency_penalty: fields.Penalty | None = None
    repetition_penalty: fields.RepetitionPenalty | None = None
    temperature: fields.Temperature | None = None
    min_p: fields.MinP | None = None
    top_p: fields.TopP | None = None
    top_k: fields.TopK | None = None
    seed: fields.Seed | None = None
    max_tokens: fields.MaxTokens | None = None
    max_total_tokens: fields.MaxTokens | None = None
    stop_sequences: fields.StopStrings | None = None
    ignore_eos: bool | None = None
    allowed_roles: fields.RoleNames | None = None
    disallow_message_end: bool | None = None
    minimum_message_content_tokens: fields.TokenCount | None = None
    dry: DryWire | None = None


class CompletionRequest(msgspec.Struct, kw_only=True, rename="camel"):
    """`outputMode`: whether each line holds what is new (`delta`) or everything so far (`full`).

    `stream` false asks for a single line, when all is done. Both are additions of this project.
    """

    model_id: fields.ModelName | None = None
    input: str
    sampling_params: SamplingParams | None = None
    output_mode: Literal["delta", "full"] | None = None
    stream: bool | None = None


class CompletionUsage(msgspec.Struct, rename="camel"):
    input_tokens: int
    output_tokens: int
    completion_credits: float


class CompletionOk(msgspec.Struct, rename="camel", omit_defaults=True):
    """One line. `finishReason` stands on the last one alone, with the final usage."""

    success: Literal[True]
    output: str
    usage: CompletionUsage
    finish_reason: Literal["length", "stop"] | msgspec.UnsetType = msgspec.UNSET


class CompletionError(msgspec.Struct):
    message: str
    success: Annotated[bool, Meta(examples=[False])]
    status: int
