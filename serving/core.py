"""The nouns of the service: what is asked, what is prepared, what the engine says, who pays.

Frozen dataclasses of plain data, standard library only. Nothing here knows a wire protocol, an engine or a store.
Defaults of a generation live here and nowhere else. Money is an `int` of microcredits; units stand in the names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serving.core_prompts import ChatPrompt, Header, Message, Prompt, RawPrompt, Role, TemplatePrompt, TokenPrompt

__all__ = ["ChatPrompt", "Header", "Message", "Prompt", "RawPrompt", "Role", "TemplatePrompt", "TokenPrompt"]
"""Those of a prompt, which are found here, too."""

FinishReason: TypeAlias = Literal["stop", "length"]


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; every default changes nothing. `top_k` 0 is off. `banned_tokens` are never drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    banned_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a choice ends. With `at_message_end` it ends with the message; else it goes on until EOS or a limit.

    `include_stop`: the matched stop string stays in the text. `max_tokens` None is whatever the context still holds;
    `max_total_tokens` counts the prompt too. `ignore_eos` forbids EOS itself, never a message end.
    """

    max_tokens: int | None = None
    max_total_tokens: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    at_message_end: bool = True
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Dry:
    """The DRY sampler's parameters. `range` 0 looks at the whole history; `multiplier` 0 is off."""

    multiplier: float = 0.8
    base: float = 1.75
    allowed_length: int = 2
    sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    range: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What the logits rules must hold. `allowed_roles` None allows any role in a generated header; `names` None any
    names."""

    allowed_roles: frozenset[Role] | None = None
    names: tuple[str, ...] | None = None
    disallow_message_end: bool = False
    minimum_message_content_tokens: int = 0
    dry: Dry | None = None


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The answer is JSON; `schema` (a JSON Schema as JSON text) None allows any object."""

    schema: str | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """The answer follows a grammar in GBNF, whose first rule is `root`."""

    text: str


AnswerFormat: TypeAlias = JsonFormat | Grammar

Distribution: TypeAlias = Literal["raw", "sampled"]
"""That of a token: of the model itself, or what the samplers leave of it."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request, free of any dialect: `n` choices for each of `prompts`, in prompt-major order.

    `logprobs` None reports none, k the chosen token and k alternatives. `echo` puts the prompt before the answer.
    `keep_special_tokens` leaves message ends and headers in the text, as the native protocol shows them.
    `add_bos` False puts no BOS before a prompt that lacks it. `cut_prompt`: a prompt that leaves less room than
    `max_tokens` within `max_total_tokens` and the context loses its beginning; else it is an error.
    `distribution`: not an answer is wanted, but the likeliest `logprobs` of all tokens that may come next.
    """

    request_id: str
    model: str
    prompts: tuple[Prompt | TemplatePrompt, ...]
    n: int = 1
    sampling: Sampling = Sampling()
    stopping: Stopping = Stopping()
    rules: Rules = Rules()
    answer_format: AnswerFormat | None = None
    logprobs: int | None = None
    echo: bool = False
    keep_special_tokens: bool = False
    add_bos: bool = True
    cut_prompt: bool = False
    distribution: Distribution | None = None


# ---- what is prepared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Markers:
    """Where messages begin and end, in token ids of one model.

    A header is written with `header_end` and then `header_tail` at its end; with `line_breaks` any token that holds a
    line break ends one. `after_end` stands between a message's end and the next one's start. `eos` are all ends of
    sequence; the message end may be one of them.
    """

    start: int
    end: int
    header_end: int
    header_tail: tuple[int, ...] = ()
    line_breaks: bool = False
    after_end: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RoleRule:
    """Which messages may be generated, in token ids.

    `headers` are whole headers, from behind the message start to the end of the header; behind the beginnings in
    `open_names` the model writes names of its choice and then the end of the header. None of the latter begins another
    path. A message cannot end at all with `forbid_end`, nor before it has `minimum_content` tokens. `ignore_eos`
    forbids every EOS that is no message end.
    """

    headers: tuple[tuple[int, ...], ...] = ()
    open_names: tuple[tuple[int, ...], ...] = ()
    forbid_end: bool = False
    minimum_content: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class LogitsRules:
    """What the samplers of `serving.sampling` must do for one choice; an absent one does nothing."""

    markers: Markers
    dry: Dry | None = None
    roles: RoleRule | None = None


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One choice, ready for an engine: token ids and resolved sampling, nothing left to decide.

    `index` numbers the choice within its request; `first_of_prompt` marks the choice that pays for the prompt.
    `sampling` has no banned tokens any more: they are biases. `stop_token_ids` end the choice and are not part of its
    text. `ignore_eos`: the engine's own EOS list is not used.
    `max_tokens` 0 asks for the prompt alone (echo). `prompt_logprobs` asks for those of the prompt's tokens. With a
    `distribution` the one token's alternatives are of that one, spelled as the vocabulary does.
    The rest is read behind the engine: `open_header` (the model writes the rest of its own header first),
    `keep_special_tokens`, and `echo_text`, told before the first token.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    answer_format: AnswerFormat | None = None
    rules: LogitsRules | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    distribution: Distribution | None = None
    first_of_prompt: bool = True
    open_header: bool = False
    keep_special_tokens: bool = False
    echo_text: str | None = None


# ---- what the engine says --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts from the engine's own token ids. `cached_tokens` is the part of the prompt it need not compute."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its natural-log probability (raw, before sampling settings) and the likeliest alternatives, best first.

    `logprob` None: the first token of a prompt has no probability.
    """

    token_id: int
    text: str
    logprob: float | None
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has taken the choice and computed its prompt."""

    index: int
    prompt_tokens: int
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """More of a choice. `text` may be empty while `token_ids` are not (a character split over tokens), and the reverse.

    `names` is set once per choice, when the model has written its own header: who it says is speaking.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The choice is complete. `usage` is its own; `stop` is the stop string that matched, if one did."""

    index: int
    reason: FinishReason
    usage: Usage
    stop: str | None = None


Event: TypeAlias = Started | Delta | Finished


# ---- who pays --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """Prices and limits of an account; None is no limit, for `models` every model.

    `monthly_credits` (microcredits, granted at the start of each calendar month UTC) None: the plan is not metered.
    `api` False: its keys may not call the API. `price_percent` multiplies the models' prices.
    """

    id: str = "unlimited"
    models: frozenset[str] | None = None
    monthly_credits: int | None = None
    price_percent: int = 100
    max_context_tokens: int | None = None
    max_output_tokens: int | None = None
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    api: bool = True

    @property
    def metered(self) -> bool:
        return self.monthly_credits is not None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is authenticated. `key_id` names the key in logs and listings; it is not the key. `models` None: the key
    itself allows whatever the plan does."""

    account: str
    key_id: str
    plan: Plan = Plan()
    models: frozenset[str] | None = None

    def may_use(self, model: str) -> bool:
        return all(allowed is None or model in allowed for allowed in (self.models, self.plan.models))


@dataclass(frozen=True, slots=True)
class Price:
    """Microcredits for 1,000 tokens of each kind. Rounding happens once, on the whole, up."""

    input_per_1k: int = 0
    cached_per_1k: int = 0
    output_per_1k: int = 0

    def at(self, percent: int) -> "Price":
        """These prices, each at so many percent, rounded up."""
        per_1k = (self.input_per_1k, self.cached_per_1k, self.output_per_1k)
        return Price(*(-(-price * percent // 100) for price in per_1k))

    def cost(self, usage: Usage) -> int:
        """Microcredits for `usage`."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        thousandths = (
            fresh * self.input_per_1k
            + usage.cached_tokens * self.cached_per_1k
            + usage.completion_tokens * self.output_per_1k
        )
        return -(-thousandths // 1000)


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit of so many a minute: what is left of it now, and in how many seconds all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Credit reserved before work.

    `bound` is the most the request may cost, in microcredits, and `usage` the most it may use for it. `amount` is what
    the account's credit was lowered by meanwhile: `bound`, or 0 on a plan that is not metered.
    """

    request_id: str
    account: str
    key_id: str
    model: str
    price: Price
    usage: Usage
    bound: int
    amount: int
    requests: Rate | None = None
    tokens: Rate | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was charged in the end, in microcredits."""

    request_id: str
    usage: Usage
    cost: int
