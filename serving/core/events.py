"""What the engine says, in order: Started, Delta, Finished; and the usage that is counted from it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length"]


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
