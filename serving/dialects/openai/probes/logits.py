"""What the next token may be, as text-generation-webui tells it: a generation of one token, charged as such.

Source: text-generation-webui at 1dcde41d, modules/logits.py; its answer is flat, though its schema says otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving.core import Event, GenerationRequest, Receipt
from serving.dialects.base import Context
from serving.dialects.lines import encode
from serving.dialects.openai.modes import unused_of
from serving.dialects.openai.probes import wire
from serving.dialects.openai.tell import error_body
from serving.dialects.openai.translate import text_to_core
from serving.dialects.telling import Answer
from serving.errors import InvalidRequest, ServingError

_TOP = 50


def logits_to_core(request: wire.LogitsRequest, context: Context) -> GenerationRequest:
    """Of what a completion takes, whatever is about more than one token has no meaning here."""
    core = text_to_core(request, context)
    if len(core.prompts) > 1:
        raise InvalidRequest("prompt must be one prompt.", param="prompt")
    return replace(
        core,
        n=1,
        stopping=replace(core.stopping, max_tokens=1),
        answer_format=None,
        logprobs=request.top_logits or _TOP,
        echo=False,
        distribution="sampled" if request.use_samplers else "raw",
    )


def ignored(request: wire.LogitsRequest) -> Sequence[str]:
    """Samplers that do not take part."""
    if not request.use_samplers:
        return ()
    return [*unused_of(request), *(name for name in ("response_format", "grammar_string") if getattr(request, name))]


@dataclass
class LogitsTeller:
    """One body, never a stream."""

    streamed: bool = False
    media_type: str = "application/json"

    def tell(self, event: Event | Receipt) -> bytes:
        return b""

    def keep_alive(self) -> bytes:
        return b""

    def fail(self, error: ServingError) -> bytes:
        return error_body(error)

    def whole(self, answer: Answer) -> bytes:
        (token,) = answer.choices[0].logprobs
        return encode({best.text: math.exp(best.logprob or 0.0) for best in token.top})


def logits_teller(request: wire.LogitsRequest, core: GenerationRequest, context: Context) -> LogitsTeller:
    return LogitsTeller()
