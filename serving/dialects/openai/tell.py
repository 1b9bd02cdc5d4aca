"""Core's events -> OpenAI's chunks and bodies. The other direction is `translate.py`.

A text delta is the hot path: its frame is a prebuilt head, the text as JSON, and a tail. Everything else is encoded
from `wire`'s structs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from serving import __version__
from serving.core import Delta, Event, Finished, GenerationRequest, Receipt, Started, TokenLogprob, Usage
from serving.dialects import sse
from serving.dialects.base import Context
from serving.dialects.lines import encode
from serving.dialects.openai import wire
from serving.dialects.telling import Answer, ChoiceAnswer
from serving.errors import ServingError

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks. Source: the value OpenAI's API reports for very unlikely tokens."""

_NAMES = {"max_total_tokens": "truncation_length", "banned_tokens": "custom_token_bans"}
"""What fields of core are called here."""

_ERROR_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


def error_body(error: ServingError) -> bytes:
    """The error envelope."""
    message, param = worded(error)
    kind = "server_error" if error.status >= 500 else _ERROR_TYPES.get(error.status, "invalid_request_error")
    return encode(wire.ErrorEnvelope(wire.ErrorBody(message, kind, param, error.code)))


def worded(error: ServingError) -> tuple[str, str | None]:
    """Message and field of an error, with the names that core's fields have here."""
    if error.param == "allowed_roles":
        return error.message, "model"  # its suffix says it
    if error.param not in _NAMES:
        return error.message, error.param
    name = _NAMES[error.param]
    return error.message.replace(error.param, name), name


def system_fingerprint(model: str) -> str:
    """Names the backend configuration: constant for a model of this release."""
    return f"fp_{__version__}_{model}"


@dataclass
class Teller:
    """What chat and text answers share: the envelope, usage, keep-alive, errors and the end."""

    context: Context
    model: str
    streamed: bool
    include_usage: bool
    error_body: Callable[[ServingError], bytes] = error_body
    _heads: dict[int, bytes] = field(default_factory=dict)

    kind = ""
    id_prefix = ""
    chunk_kind = ""

    @property
    def media_type(self) -> str:
        return sse.MEDIA_TYPE if self.streamed else "application/json"

    @cached_property
    def envelope(self) -> dict[str, Any]:
        """The fields that every chunk and body of this answer begins with."""
        return {
            "id": self.id_prefix + self.context.request_id,
            "object": self.chunk_kind if self.streamed else self.kind,
            "created": self.context.now,
            "model": self.model,
            "system_fingerprint": system_fingerprint(self.model),
        }

    @cached_property
    def _close(self) -> bytes:
        # With `include_usage` every chunk has the field; all but the last hold null.
        return b',"usage":null}' if self.include_usage else b"}"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """A frame with one choice."""
        return sse.frame(encode(self.envelope)[:-1] + b',"choices":[' + encode(choice) + b"]" + self._close)

    def text_chunk(self, index: int, text: str, key: bytes, tail: bytes) -> bytes:
        """The hot path: a frame whose choice holds nothing but text, under `key`, closed by `tail`."""
        head = self._heads.get(index)
        if head is None:
            start = b"data: " + encode(self.envelope)[:-1]
            head = self._heads[index] = start + b',"choices":[{"index":%d,' % index + key
        return head + encode(text) + tail + self._close + b"\n\n"

    def end(self, receipt: Receipt) -> bytes:
        """The usage chunk, when asked for, and the closing mark."""
        if not self.include_usage:
            return sse.DONE
        return sse.frame(encode({**self.envelope, "choices": [], "usage": usage_wire(receipt.usage)})) + sse.DONE

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE

    def fail(self, error: ServingError) -> bytes:
        return sse.frame(self.error_body(error))

    def body(self, answer: Answer, choices: list[Any]) -> bytes:
        return encode({**self.envelope, "choices": choices, "usage": usage_wire(answer.usage)})


class ChatTeller(Teller):
    """Chat completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def tell(self, event: Event | Receipt) -> bytes:
        if isinstance(event, Delta):
            if event.logprobs or event.names is not None:
                delta = {"content": event.text}
                if event.names is not None:
                    delta["name"] = "; ".join(event.names)
                return self._chunk(event.index, delta, logprobs=chat_logprobs(event.logprobs))
            if not event.text:
                return b""
            return self.text_chunk(
                event.index, event.text, b'"delta":{"content":', b'},"logprobs":null,"finish_reason":null}]'
            )
        if isinstance(event, Started):
            return self._chunk(event.index, {"role": "assistant", "content": ""})
        if isinstance(event, Finished):
            return self._chunk(event.index, {}, finish_reason=event.reason)
        return self.end(event)

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        *,
        logprobs: wire.ChatLogprobs | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        return self.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})

    def whole(self, answer: Answer) -> bytes:
        return self.body(answer, [self._choice(index, choice) for index, choice in answer.in_order()])

    def _choice(self, index: int, choice: ChoiceAnswer) -> wire.ChatChoice:
        name = msgspec.UNSET if choice.names is None else "; ".join(choice.names)
        message = wire.AnswerMessage("assistant", choice.text, name)
        return wire.ChatChoice(index, message, chat_logprobs(choice.logprobs), choice.finish_reason or "stop")


@dataclass
class TextTeller(Teller):
    """Text completions."""

    _offsets: dict[int, int] = field(default_factory=dict)

    kind = "text_completion"
    chunk_kind = "text_completion"
    id_prefix = "cmpl-"

    def tell(self, event: Event | Receipt) -> bytes:
        if isinstance(event, Delta):
            if event.logprobs:
                logprobs = self._logprobs(event.index, event.logprobs)
                return self._chunk(event.index, event.text, logprobs=logprobs)
            if not event.text:
                return b""
            return self.text_chunk(event.index, event.text, b'"text":', b',"logprobs":null,"finish_reason":null}]')
        if isinstance(event, Started):
            return b""
        if isinstance(event, Finished):
            return self._chunk(event.index, "", finish_reason=event.reason)
        return self.end(event)

    def _chunk(
        self, index: int, text: str, *, logprobs: wire.TextLogprobs | None = None, finish_reason: str | None = None
    ) -> bytes:
        return self.chunk({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason})

    def _logprobs(self, index: int, tokens: tuple[TokenLogprob, ...]) -> wire.TextLogprobs:
        logprobs = text_logprobs(tokens, self._offsets.get(index, 0))
        self._offsets[index] = logprobs.text_offset[-1] + len(tokens[-1].text)
        return logprobs

    def whole(self, answer: Answer) -> bytes:
        choices = [
            wire.TextChoice(
                index,
                choice.text,
                text_logprobs(choice.logprobs, 0) if choice.logprobs else None,
                choice.finish_reason,
            )
            for index, choice in answer.in_order()
        ]
        return self.body(answer, choices)


def chat_teller(
    request: wire.ChatCompletionRequest,
    core: GenerationRequest,
    context: Context,
    error_body: Callable[[ServingError], bytes] = error_body,
) -> ChatTeller:
    return ChatTeller(context, core.model, bool(request.stream), _include_usage(request), error_body)


def text_teller(
    request: wire.CompletionRequest,
    core: GenerationRequest,
    context: Context,
    error_body: Callable[[ServingError], bytes] = error_body,
) -> TextTeller:
    return TextTeller(context, core.model, bool(request.stream), _include_usage(request), error_body)


def _include_usage(request: wire.CommonRequest) -> bool:
    return bool(request.stream_options and request.stream_options.include_usage)


def usage_wire(usage: Usage) -> wire.UsageWire:
    return wire.UsageWire(
        usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, wire.UsageDetails(usage.cached_tokens)
    )


def chat_logprobs(tokens: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> wire.ChatLogprobs | None:
    if not tokens:
        return None
    return wire.ChatLogprobs(
        [
            wire.ChatLogprob(
                token.text,
                finite(token.logprob),
                list(token.text.encode()),
                [wire.TopLogprob(top.text, finite(top.logprob), list(top.text.encode())) for top in token.top],
            )
            for token in tokens
        ]
    )


def text_logprobs(tokens: tuple[TokenLogprob, ...] | list[TokenLogprob], offset: int) -> wire.TextLogprobs:
    """`offset`: characters of text before the first token. The first token of a prompt has no probability: null."""
    told = wire.TextLogprobs([], [], [], [])
    for token in tokens:
        told.tokens.append(token.text)
        told.token_logprobs.append(None if token.logprob is None else finite(token.logprob))
        told.top_logprobs.append(None if token.logprob is None else _by_text(token.top))
        told.text_offset.append(offset)
        offset += len(token.text)
    return told


def _by_text(tokens: tuple[TokenLogprob, ...]) -> dict[str, float]:
    """Different ids can have one text; the likeliest, which comes first, stands for it."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(token.text, finite(token.logprob))
    return found


def finite(logprob: float | None) -> float:
    return _LEAST_LOGPROB if logprob is None else max(logprob, _LEAST_LOGPROB)
