"""DreamGen's native API <-> core: one file, since the protocol is small.

The API goes on past message ends: the output holds message ends and headers as they are spelled, and a generation
ends with EOS, a stop sequence (included) or a limit. Source: DreamGen's API page (its role parameters imply it).
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from serving.accounts.credits import MICROCREDITS
from serving.core import (
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Price,
    RawPrompt,
    Receipt,
    Rules,
    Sampling,
    Started,
    Stopping,
    Usage,
)
from serving.dialects.base import Call, Context, Endpoint, Listing, TaskEndpoint
from serving.dialects.dreamgen import wire
from serving.dialects.dreamgen.key import tell_key
from serving.dialects.dry import read_dry
from serving.dialects.fields import given
from serving.dialects.lines import encode
from serving.dialects.telling import Answer
from serving.errors import InvalidRequest, ServingError
from serving.prompting.roles import generated_headers

LINES = "application/x-ndjson"

_FIELDS = {
    "prompt": "input",
    "model": "modelId",
    "max_tokens": "samplingParams.maxTokens",
    "max_total_tokens": "samplingParams.maxTotalTokens",
    "allowed_roles": "samplingParams.allowedRoles",
    "disallow_message_end": "samplingParams.disallowMessageEnd",
    "minimum_message_content_tokens": "samplingParams.minimumMessageContentTokens",
    "dry": "samplingParams.dry",
}
"""Core's names of fields, as this API spells them."""


def to_core(request: wire.CompletionRequest, context: Context) -> GenerationRequest:
    """A suffix of `modelId` restricts the roles as `allowedRoles` does; where both speak, both must agree."""
    params = request.sampling_params or wire.SamplingParams()
    model, suffix = context.catalog.resolve(request.model_id, param="modelId")
    roles = frozenset(params.allowed_roles) if params.allowed_roles else None
    suffix_roles, names = generated_headers(suffix=suffix)
    if suffix_roles is not None:
        roles = suffix_roles if roles is None else roles & suffix_roles
        if not roles:
            raise InvalidRequest(
                "samplingParams.allowedRoles allows none of the roles that the suffix of modelId does.",
                param="samplingParams.allowedRoles",
            )
    return GenerationRequest(
        request_id=context.request_id,
        model=model.id,
        adapter=model.adapter,
        prompts=(RawPrompt(request.input),),
        sampling=Sampling(
            **given(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=None if params.top_k is None else max(params.top_k, 0),
                min_p=params.min_p,
                presence_penalty=params.presence_penalty,
                frequency_penalty=params.frequency_penalty,
                repetition_penalty=params.repetition_penalty,
                seed=params.seed,
            )
        ),
        stopping=Stopping(
            max_tokens=params.max_tokens,
            max_total_tokens=params.max_total_tokens,
            stop=tuple(text for text in params.stop_sequences or () if text),
            include_stop=True,
            at_message_end=False,
            ignore_eos=bool(params.ignore_eos),
        ),
        rules=Rules(
            allowed_roles=roles,
            names=names,
            disallow_message_end=bool(params.disallow_message_end),
            minimum_message_content_tokens=params.minimum_message_content_tokens or 0,
            dry=read_dry(params.dry, None, param="samplingParams.dry"),
        ),
        keep_special_tokens=True,
    )


@dataclass
class LineTeller:
    """JSON lines: one for each delta, and the last with the reason and the final usage."""

    price: Price
    full: bool
    streamed: bool = True
    media_type: str = LINES
    _text: str = ""
    _usage: Usage = field(default=Usage())
    _reason: FinishReason = "stop"

    def tell(self, event: Event | Receipt) -> bytes:
        if isinstance(event, Delta):
            self._usage += Usage(completion_tokens=len(event.token_ids))
            if not event.text:
                return b""
            if self.full:
                self._text += event.text
            return self._line(self._text if self.full else event.text, self._usage, self.price.cost(self._usage))
        if isinstance(event, Started):
            self._usage += Usage(prompt_tokens=event.prompt_tokens, cached_tokens=event.cached_tokens)
            return b""
        if isinstance(event, Finished):
            self._reason = event.reason
            return b""
        return self._line(self._text, event.usage, event.cost, self._reason)

    def keep_alive(self) -> bytes:
        """A line that adds nothing: the protocol has no comments."""
        return self._line(self._text, self._usage, self.price.cost(self._usage))

    def fail(self, error: ServingError) -> bytes:
        return error_line(error)

    def whole(self, answer: Answer) -> bytes:
        """The same events as one line, for `stream: false`."""
        choice = answer.choices[0]
        return self._line(choice.text, answer.usage, answer.cost, choice.finish_reason or "stop")

    def _line(self, output: str, usage: Usage, cost: int, reason: FinishReason | None = None) -> bytes:
        told = wire.CompletionUsage(usage.prompt_tokens, usage.completion_tokens, cost / MICROCREDITS)
        return encode(wire.CompletionOk(True, output, told, reason or msgspec.UNSET)) + b"\n"


def teller(request: wire.CompletionRequest, core: GenerationRequest, context: Context) -> LineTeller:
    model, _ = context.catalog.resolve(core.model)
    return LineTeller(model.price, request.output_mode == "full", request.stream is not False)


def error_line(error: ServingError) -> bytes:
    """An error has no field for the field at fault, so the message names it, as this API spells it."""
    message = error.message
    if error.param is not None:
        field = _FIELDS.get(error.param, error.param)
        if "_" in error.param:  # else it is also a word of the sentence
            message = message.replace(error.param, field)
        if field not in message:
            message = f"{field}: {message}"
    return encode(wire.CompletionError(message, False, error.status)) + b"\n"


class DreamGen:
    """The native dialect."""

    name = "dreamgen"
    prefixes = ("/api/v1",)
    endpoints = (
        Endpoint(
            "completion",
            "/model/completion",
            "Continue a prompt in the model's own format",
            wire.CompletionRequest,
            wire.CompletionOk,
            (LINES,),
            (LINES,),
            to_core,
            teller,
        ),
    )
    tasks: tuple[TaskEndpoint[Any], ...] = ()
    listings: tuple[Listing[Any], ...] = (
        Listing(
            "key", "/key", "This key, its credits, and what was used", ("GET",), wire.NoQuery, wire.KeyInfo, tell_key
        ),
    )
    calls: tuple[Call[Any], ...] = ()
    error_schema = wire.CompletionError

    def render_error(self, error: ServingError) -> tuple[int, bytes]:
        return error.status, error_line(error)
