"""What an engine is given: token ids and resolved sampling, nothing left to decide."""

from dataclasses import dataclass

from serving.core.asked import AnswerFormat, Distribution, Dry, Sampling


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
    `distribution` the one token's alternatives are of that one, spelled as the vocabulary does. `adapter` is a LoRA
    adapter of the engine's model.
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
    adapter: str | None = None
    first_of_prompt: bool = True
    open_header: bool = False
    keep_special_tokens: bool = False
    echo_text: str | None = None
