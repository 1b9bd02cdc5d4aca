"""The last defence before an engine: refuses what could kill or stall it, naming the field.

Not the place of the public bounds: those are checked where requests are translated and are tighter. What is refused
here was seen (tests/engine/test_fuzz.py) to kill the engine, to stall its loop or ours, or to leave it answering
nonsense. Keeps the law that no request can kill an engine. Standard library only; messages never repeat a prompt.
"""

from collections.abc import Collection
from dataclasses import dataclass

from serving.core import Grammar, PreparedRequest, Sampling
from serving.errors import InvalidRequest, PromptTooLong
from serving.sampling.heat import params as heat

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_STOP_STRINGS = 256
"""All of them are searched in every chunk on our own loop: 1.5 ms at 1,000, 107 ms at 10,000 (two AVX2 cores)."""
MAX_STOP_CHARS = 1024
"""As many characters less one are held back from a stream."""
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 4096
MAX_SCHEMA_BYTES = 64 * 1024
MOST_LOGPROBS = 20
"""Alternatives to each token: vLLM decodes all of them on our own loop."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a request is measured against. `vocab_size` and `context_tokens` count tokens; `max_logprobs` is for each
    token of an answer, a distribution alone may have more."""

    vocab_size: int
    context_tokens: int
    max_logprobs: int


def _refuse(param: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"`{param}` {rule}.", param=param)


def _real(param: str, value: float, low: float, high: float) -> None:
    # Compared first: an integer beyond every float would raise in isfinite, and NaN compares false.
    if type(value) not in (int, float) or not low <= value <= high:
        raise _refuse(param, f"must be a number from {low:g} to {high:g}")


def _integer(param: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _refuse(param, f"must be an integer from {low} to {high}")


def _text(param: str, value: str) -> None:
    try:
        value.encode()
    except (UnicodeEncodeError, AttributeError):
        raise _refuse(param, "must be text of valid Unicode, without lone surrogates") from None


def _ids(param: str, ids: Collection[int], vocab_size: int) -> None:
    # By type, not by isinstance: True among token ids ends the thread in which vLLM 0.32's engine core reads requests
    # ("Expected `int`, got `bool`", core.py process_input_sockets), and from then on every request hangs.
    if ids and (set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= vocab_size):
        raise _refuse(param, f"must hold token ids from 0 to {vocab_size - 1}")


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    # More than vLLM takes: what is over its bound is done by `sampling.heat`.
    _real("temperature", sampling.temperature, 0.0, heat.MOST)
    _real("top_p", sampling.top_p, 0.0, 1.0)
    if sampling.top_p == 0:
        raise _refuse("top_p", "must be over 0 and up to 1")
    _integer("top_k", sampling.top_k, 0, INT64_MAX)
    _real("min_p", sampling.min_p, 0.0, 1.0)
    _real("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _real("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _real("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0)
    if sampling.seed is not None:
        _integer("seed", sampling.seed, INT64_MIN, INT64_MAX)
    if sampling.logit_bias:
        if len(sampling.logit_bias) > MAX_LOGIT_BIAS:
            raise _refuse("logit_bias", f"may hold up to {MAX_LOGIT_BIAS} tokens")
        _ids("logit_bias", sampling.logit_bias, vocab_size)
        for bias in sampling.logit_bias.values():
            _real("logit_bias", bias, -100.0, 100.0)


def _check_stopping(request: PreparedRequest, vocab_size: int) -> None:
    if len(request.stop) > MAX_STOP_STRINGS:
        raise _refuse("stop", f"may hold up to {MAX_STOP_STRINGS} strings")
    for stop in request.stop:
        _text("stop", stop)
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise _refuse("stop", f"strings must have from 1 to {MAX_STOP_CHARS} characters")
    if len(request.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise _refuse("stop_token_ids", f"may hold up to {MAX_STOP_TOKEN_IDS} ids")
    _ids("stop_token_ids", request.stop_token_ids, vocab_size)


def check(request: PreparedRequest, model: Model) -> None:
    """Raise InvalidRequest naming the field, or PromptTooLong, when `request` could harm the engine."""
    if not request.token_ids:
        raise _refuse("prompt", "must not be empty")
    _integer("max_tokens", request.max_tokens, 0, INT64_MAX)
    # Before the ids are looked at: a prompt far over the limit costs nothing.
    needed = len(request.token_ids) + max(1, request.max_tokens)
    if needed > model.context_tokens:
        raise PromptTooLong(
            f"The prompt has {len(request.token_ids)} tokens and {request.max_tokens} more are asked for, but the "
            f"model holds {model.context_tokens} in all. Shorten the prompt or ask for less.",
            param="max_tokens" if len(request.token_ids) < model.context_tokens else "prompt",
        )
    _ids("prompt", request.token_ids, model.vocab_size)
    _check_sampling(request.sampling, model.vocab_size)
    _integer("min_tokens", request.sampling.min_tokens, 0, request.max_tokens)
    _check_stopping(request, model.vocab_size)
    if request.logprobs is not None:
        most = model.max_logprobs if request.distribution is None else model.vocab_size
        _integer("logprobs", request.logprobs, 0, most)
    answer = request.answer_format
    if isinstance(answer, Grammar):
        _check_structure("grammar_string", "a grammar", answer.text)
    elif answer is not None and answer.schema is not None:
        _check_structure("response_format", "a JSON Schema", answer.schema)


def _check_structure(param: str, kind: str, structure: str) -> None:
    _text(param, structure)
    if not structure.strip() or len(structure.encode()) > MAX_SCHEMA_BYTES:
        raise _refuse(param, f"needs {kind} of up to {MAX_SCHEMA_BYTES} bytes")
