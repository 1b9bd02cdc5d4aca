"""Livepeer's `/llm` <-> core: one file, since the protocol is small.

A frame of a stream is a whole object with a `delta` and the usage so far. Source: Livepeer's ai-runner, whose frames
and errors these are; its gateway passes them on, without `[DONE]`. `finish_reason` tells `length` where that is why,
which the runner calls `stop`. What an operator may want as theirs are settings, which `Livepeer` is made with.
"""

from dataclasses import dataclass, field
from typing import Any

from serving.core import (
    ChatPrompt,
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Receipt,
    Sampling,
    Started,
    Stopping,
    Usage,
)
from serving.dialects import sse
from serving.dialects.base import Call, Context, Endpoint, Listing, TaskEndpoint
from serving.dialects.fields import given
from serving.dialects.lines import encode
from serving.dialects.livepeer import wire
from serving.dialects.location import location
from serving.dialects.telling import Answer
from serving.errors import InvalidRequest, PromptTooLong, ServingError, UnknownModel
from serving.prompting.roles import resolve, to_message

_JSON = "application/json"


def to_core(request: wire.LLMRequest, context: Context) -> GenerationRequest:
    """A chat, answered by one message. A model suffix says how its roles are written, as in the OpenAI dialect."""
    model, suffix = context.catalog.resolve(request.model)
    roles = resolve(suffix=suffix)
    turns = tuple(
        to_message(turn.role, None, turn.content, roles, f"messages[{number}]")
        for number, turn in enumerate(request.messages)
    )
    return GenerationRequest(
        request_id=context.request_id,
        model=model.id,
        adapter=model.adapter,
        prompts=(ChatPrompt(turns, roles.header()),),
        sampling=Sampling(
            temperature=wire.TEMPERATURE if request.temperature is None else request.temperature,
            **given(top_p=request.top_p, top_k=None if request.top_k is None else max(request.top_k, 0)),
        ),
        stopping=Stopping(max_tokens=request.max_tokens or wire.MAX_TOKENS),
    )


@dataclass
class Teller:
    """One answer, told in parts or whole."""

    context: Context
    model: str
    streamed: bool
    done: bool
    length: bool
    _usage: Usage = field(default=Usage())
    _reason: FinishReason = "stop"

    @property
    def media_type(self) -> str:
        return sse.MEDIA_TYPE if self.streamed else _JSON

    def tell(self, event: Event | Receipt) -> bytes:
        if isinstance(event, Delta):
            self._usage += Usage(completion_tokens=len(event.token_ids))
            return self._part(event.text, self._usage) if event.text else b""
        if isinstance(event, Started):
            self._usage += Usage(event.prompt_tokens, event.cached_tokens)
            return b""
        if isinstance(event, Finished):
            self._reason = event.reason
            return b""
        return self._part("", event.usage, self._told(self._reason)) + (sse.DONE if self.done else b"")

    def _part(self, text: str, usage: Usage, reason: FinishReason | None = None) -> bytes:
        choice = wire.LLMChoice(0, reason, delta=wire.LLMMessage("assistant", text), message=None)
        return sse.frame(self._response(choice, usage))

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE

    def fail(self, error: ServingError) -> bytes:
        return sse.frame(encode(wire.StreamError(error.message)))

    def whole(self, answer: Answer) -> bytes:
        choice = answer.choices[0]
        message = wire.LLMMessage("assistant", choice.text)
        reason = self._told(choice.finish_reason or "stop")
        return self._response(wire.LLMChoice(0, reason, delta=None, message=message), answer.usage)

    def _told(self, reason: FinishReason) -> FinishReason:
        return reason if self.length or reason != "length" else "stop"

    def _response(self, choice: wire.LLMChoice, usage: Usage) -> bytes:
        told = wire.LLMTokenUsage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
        context = self.context
        return encode(wire.LLMResponse(f"chatcmpl-{context.request_id}", self.model, context.now, told, [choice]))


class Livepeer:
    """Livepeer's protocol, which has no prefix. `done`: a stream ends with `[DONE]`; `length`: that the limit of tokens
    ended an answer is told."""

    name = "livepeer"
    prefixes = ("",)
    tasks: tuple[TaskEndpoint[Any], ...] = ()
    listings: tuple[Listing[Any], ...] = ()
    calls: tuple[Call[Any], ...] = ()
    error_schema = wire.HTTPError

    def __init__(self, *, done: bool = True, length: bool = True) -> None:
        def teller(request: wire.LLMRequest, core: GenerationRequest, context: Context) -> Teller:
            return Teller(context, core.model, bool(request.stream), done, length)

        def endpoint(path: str) -> Endpoint[wire.LLMRequest]:
            summary = "Answer a chat with one message"
            return Endpoint(
                "llm", path, summary, wire.LLMRequest, wire.LLMResponse, (_JSON,), (sse.MEDIA_TYPE,), to_core, teller
            )

        self.endpoints = (endpoint("/llm"), endpoint("/llm/"))

    def render_error(self, error: ServingError) -> tuple[int, bytes]:
        """An impossible field is a 422 with a list, as FastAPI tells it; anything else one sentence."""
        if isinstance(error, InvalidRequest) and not isinstance(error, PromptTooLong):
            place = wire.ValidationError(location(error.param), error.message, error.code)
            return 422, encode(wire.HTTPError([place]))
        status = 400 if isinstance(error, UnknownModel) else error.status
        return status, encode(wire.HTTPError(wire.APIError(error.message)))
