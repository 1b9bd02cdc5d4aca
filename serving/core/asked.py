"""What is asked of a generation, free of any dialect. Its defaults live here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serving.core.prompts import Prompt, Role, TemplatePrompt


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
    `adapter`: a LoRA adapter of the model.
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
    adapter: str | None = None
