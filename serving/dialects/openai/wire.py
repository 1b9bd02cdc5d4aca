"""What OpenAI clients send and expect: requests with their bounds, and the shapes of answers.

Fields that are not declared here are ignored, whatever they hold. Those of text-generation-webui's presets are declared
in `preset.py`. `null` is the same as absent, since client libraries send it.
"""

import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.dialects import fields
from serving.dialects.dry import DryWire
from serving.dialects.openai.preset import Mode, PresetFields, only_in


class ContentPart(msgspec.Struct, kw_only=True):
    """One part of a message's content; only text is understood."""

    type: Annotated[str, Meta(description="Only `text` is understood.")] = "text"
    text: Annotated[str | None, Meta(description="The text of the part.")] = None


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message. With a `name` it is a turn of the story; an empty name is the narrator."""

    role: Annotated[str, Meta(description="`system`, `developer`, `user`, `assistant`, `text`, `tool` or `function`.")]
    content: Annotated[str | list[ContentPart] | None, Meta(description="A text, or parts that are put together.")] = (
        None
    )
    name: Annotated[
        fields.Name | None,
        Meta(description="Who speaks; several are separated by `;`, and the empty name is the narrator."),
    ] = None


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: Annotated[bool | None, Meta(description="The stream ends with a chunk that holds the usage.")] = None


class JsonSchemaWire(msgspec.Struct, kw_only=True):
    name: Annotated[str | None, Meta(description="Not used.")] = None
    schema: Annotated[dict[str, Any] | None, Meta(description="The JSON Schema, up to 32 KiB.")] = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    type: Annotated[Literal["text", "json_object", "json_schema"], Meta(description="What the answer is.")]
    json_schema: Annotated[JsonSchemaWire | None, Meta(description="Needed for `json_schema`.")] = None


_CHATS: tuple[Mode, ...] = ("chat", "chat-instruct")
_INSTRUCTS: tuple[Mode, ...] = ("instruct", "chat-instruct")
_ALL: tuple[Mode, ...] = ("instruct", "chat", "chat-instruct")


class ModeFields(PresetFields, kw_only=True):
    """text-generation-webui's ways to write a chat; `modes.py` says what they mean."""

    mode: Annotated[
        Mode | None,
        only_in(
            *_ALL, description="`instruct`: as it is. `chat`: a role-play. `chat-instruct`: one, as an instruction."
        ),
    ] = None
    character: Annotated[
        fields.FileName | None, only_in(*_CHATS, description="A character of the server's: names, context, greeting.")
    ] = None
    user_name: Annotated[fields.Name | None, only_in(*_CHATS, description="Who the user is; `You` by default.")] = None
    name1: Annotated[
        fields.Name | None, only_in(*_CHATS, description="The same as `user_name`, which is stronger.")
    ] = None
    bot_name: Annotated[fields.Name | None, only_in(*_CHATS, description="Who answers; `AI` by default.")] = None
    name2: Annotated[fields.Name | None, only_in(*_CHATS, description="The same as `bot_name`, which is stronger.")] = (
        None
    )
    context: Annotated[
        fields.StoryText | None, only_in(*_CHATS, description="The system turn at the head: who the characters are.")
    ] = None
    user_bio: Annotated[
        fields.StoryText | None, only_in(*_CHATS, description="Who the user is, behind the context.")
    ] = None
    greeting: Annotated[
        fields.StoryText | None,
        only_in(*_CHATS, description="The first words, where the chat does not begin with an answer."),
    ] = None
    chat_instruct_command: Annotated[
        fields.StoryText | None,
        only_in("chat-instruct", description="The instruction; `<|character|>` is who answers, `<|prompt|>` the chat."),
    ] = None
    instruction_template: Annotated[
        fields.FileName | None,
        only_in(*_INSTRUCTS, description="A template of the server's, instead of the model's own."),
    ] = None
    instruction_template_str: Annotated[
        fields.TemplateText | None, only_in(*_INSTRUCTS, description="A Jinja template, instead of the model's own.")
    ] = None
    chat_template_str: Annotated[
        fields.TemplateText | None, only_in("chat", description="A Jinja template, instead of the model's own.")
    ] = None
    continue_: Annotated[
        bool | None, only_in(*_ALL, description="The answer goes on with the last message, which it does not repeat.")
    ] = None


class CommonRequest(ModeFields, kw_only=True):
    """What chat and text completions have in common."""

    model: Annotated[
        fields.ModelName | None,
        Meta(description="A model, perhaps with a suffix; the default model if missing or empty."),
    ] = None
    stream: Annotated[bool | None, Meta(description="The answer comes as server-sent events.")] = None
    stream_options: Annotated[StreamOptions | None, Meta(description="How the stream is told.")] = None
    n: fields.Choices | None = None
    max_tokens: Annotated[
        fields.TokenCount | None, Meta(description="Most tokens of each answer; the rest of the context by default.")
    ] = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    top_k: fields.TopK | None = None
    min_p: fields.MinP | None = None
    presence_penalty: fields.Penalty | None = None
    frequency_penalty: fields.Penalty | None = None
    repetition_penalty: fields.RepetitionPenalty | None = None
    seed: fields.Seed | None = None
    logit_bias: fields.LogitBias | None = None
    stop: Annotated[
        fields.StopString | fields.StopStrings | None,
        Meta(description="The answer ends before the first of these texts."),
    ] = None
    min_tokens: Annotated[
        fields.TokenCount | None, Meta(description="The answer cannot end before it has so many tokens.")
    ] = None
    ignore_eos: Annotated[
        bool | None, Meta(description="The model cannot write EOS; a text completion runs on past message ends.")
    ] = None
    response_format: Annotated[
        ResponseFormat | None, Meta(description="`json_object` or `json_schema`: the answer is JSON.")
    ] = None
    user: Annotated[str | None, Meta(description="Accepted, and not used.")] = None
    role_config: Annotated[
        fields.RoleConfigWire | None,
        only_in(None, "instruct", description="How the roles of the chat become those of the model."),
    ] = None
    dry: Annotated[DryWire | None, Meta(description="The DRY sampler; multiplier 0 is off.")] = None
    minimum_message_content_tokens: Annotated[
        fields.TokenCount | None, Meta(description="A message cannot end before it has so many tokens.")
    ] = None


class ChatCompletionRequest(CommonRequest, kw_only=True):
    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=fields.MAX_MESSAGES)],
        Meta(description="The chat so far."),
    ]
    max_completion_tokens: Annotated[
        fields.MaxTokens | None, Meta(description="The same as `max_tokens`, and stronger.")
    ] = None
    logprobs: Annotated[bool | None, Meta(description="Report the log probability of each token, raw.")] = None
    top_logprobs: fields.TopLogprobs | None = None


class CompletionRequest(CommonRequest, kw_only=True):
    """`prompt`: a text, a list of texts, token ids, or a list of token id lists; or `messages` instead."""

    prompt: Annotated[
        str | list[str | int | list[int]] | None,
        Meta(
            description="A text, token ids, or a list of either; in the model's own format. Needed without `messages`."
        ),
    ] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=fields.MAX_MESSAGES)] | None,
        Meta(description="A chat, instead of a prompt."),
    ] = None
    logprobs: fields.TopLogprobs | None = None
    echo: Annotated[bool | None, Meta(description="The prompt stands before the answer.")] = None


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


class NoQuery(msgspec.Struct):
    """An address that holds no values."""


class ModelQuery(msgspec.Struct):
    model: str


class UsageQuery(msgspec.Struct):
    """Days, UTC; this month's by default."""

    start_date: Annotated[datetime.date | msgspec.UnsetType, Meta(description="The first day.")] = msgspec.UNSET
    end_date: Annotated[datetime.date | msgspec.UnsetType, Meta(description="The day after the last one.")] = (
        msgspec.UNSET
    )


class ModelWire(msgspec.Struct):
    """`display_type`: the kind of a model that does not generate text."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"
    display_type: str | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct):
    data: list[ModelWire]
    object: Literal["list"] = "list"


class DayUnits(msgspec.Struct):
    """What an account used on one day (UTC), each in its own unit."""

    date: datetime.date
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    audio_seconds: int
    images: int


class BillingUsage(msgspec.Struct):
    """`total_usage` is in tokens, of models that have some. Days without usage are left out."""

    total_usage: int
    daily: list[DayUnits]
    object: Literal["list"] = "list"


class LineItem(msgspec.Struct):
    """`name` is a model's id, `cost` is in hundredths of a credit."""

    name: str
    cost: float


class DailyCost(msgspec.Struct):
    """`timestamp` is the Unix time in seconds at which the day (UTC) begins."""

    timestamp: float
    line_items: list[LineItem]


class DashboardUsage(msgspec.Struct):
    """`total_usage` is in hundredths of a credit."""

    total_usage: float
    daily_costs: list[DailyCost]
    object: Literal["list"] = "list"


class SubscriptionPlan(msgspec.Struct):
    id: str
    title: str


class Subscription(msgspec.Struct):
    """A credit counts as a dollar. `access_until` is a Unix time in seconds, 0 when the key does not expire."""

    has_payment_method: bool
    access_until: int
    soft_limit_usd: float
    hard_limit_usd: float
    system_hard_limit_usd: float
    plan: SubscriptionPlan
    object: Literal["billing_subscription"] = "billing_subscription"


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct):
    error: ErrorBody
