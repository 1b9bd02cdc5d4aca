"""What DreamGen's native API sends and expects. Source: DreamGen's API page, `CompletionRequest` and its answers."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serving.dialects import fields
from serving.dialects.dry import DryWire


class SamplingParams(msgspec.Struct, kw_only=True, rename="camel"):
    """`stopSequences` stay in the output. `maxTotalTokens` counts input and output."""

    kind: Annotated[Literal["basic"] | None, Meta(description="May be left out.")] = None
    presence_penalty: fields.Penalty | None = None
    frequency_penalty: fields.Penalty | None = None
    repetition_penalty: fields.RepetitionPenalty | None = None
    temperature: fields.Temperature | None = None
    min_p: fields.MinP | None = None
    top_p: fields.TopP | None = None
    top_k: fields.TopK | None = None
    seed: fields.Seed | None = None
    max_tokens: Annotated[
        fields.MaxTokens | None, Meta(description="Most tokens of output; the rest of the context by default.")
    ] = None
    max_total_tokens: Annotated[
        fields.MaxTokens | None, Meta(description="Most tokens of input and output together.")
    ] = None
    stop_sequences: Annotated[
        fields.StopStrings | None, Meta(description="The output ends with the first of them, which stays in it.")
    ] = None
    ignore_eos: Annotated[bool | None, Meta(description="The model cannot write EOS; message ends it can.")] = None
    allowed_roles: Annotated[
        fields.RoleNames | None, Meta(description="Roles of generated messages; none means all.")
    ] = None
    disallow_message_end: Annotated[bool | None, Meta(description="The model cannot end a message.")] = None
    minimum_message_content_tokens: Annotated[
        fields.TokenCount | None, Meta(description="A message cannot end before it has so many tokens.")
    ] = None
    dry: Annotated[DryWire | None, Meta(description="The DRY sampler; multiplier 0 is off.")] = None


class CompletionRequest(msgspec.Struct, kw_only=True, rename="camel"):
    """`outputMode`: whether each line holds what is new (`delta`) or everything so far (`full`).

    `stream` false asks for a single line, when all is done. Both are additions of this project.
    """

    model_id: Annotated[
        fields.ModelName | None,
        Meta(description="A model, perhaps with a suffix; the default model if missing or empty."),
    ] = None
    input: Annotated[str, Meta(description="The prompt, in the model's own format.")]
    sampling_params: Annotated[SamplingParams | None, Meta(description="Everything below.")] = None
    output_mode: Annotated[
        Literal["delta", "full"] | None,
        Meta(description="`delta`: each line holds what is new; `full`: all so far. `delta` by default."),
    ] = None
    stream: Annotated[bool | None, Meta(description="false: one line, when all is done. true by default.")] = None


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


class NoQuery(msgspec.Struct):
    """An address that holds no values."""


class UsedCredits(msgspec.Struct, rename="camel"):
    """Credits that the account used. Days and weeks (from Monday) are UTC's, as the months are."""

    today: float
    this_week: float
    this_month: float


class KeyLimits(msgspec.Struct, rename="camel"):
    """Of this key alone, in credits, since it was made. `limit` null: the account's credits are its only limit."""

    limit: float | None
    remaining: float | None
    used: float


class KeyInfo(msgspec.Struct, rename="camel"):
    """A key and its account, in credits.

    `limit` is what the plan grants each month, until `resetsAt`; `remaining` is what is left of all credits, bought
    ones too. They are null on a plan that is not metered.
    """

    success: Literal[True]
    label: str
    plan: str
    limit: float | None
    remaining: float | None
    resets_at: datetime | None
    usage: UsedCredits
    key: KeyLimits


class CompletionError(msgspec.Struct):
    message: str
    success: Annotated[bool, Meta(examples=[False])]
    status: int
