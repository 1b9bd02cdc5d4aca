"""OpenAI's transcriptions: what is asked in a form, and what is said, as JSON, text, subtitles or events."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import msgspec

from serving.core import Receipt, TokenLogprob
from serving.core.tasks import Heard, Hearing, Segment, TaskRequest, Transcribe, Transcribed
from serving.dialects import sse
from serving.dialects.base import Context, TaskEndpoint
from serving.dialects.catalog import ModelInfo
from serving.dialects.lines import encode
from serving.dialects.openai import task_wire as wire
from serving.dialects.openai.tell import error_body, finite
from serving.dialects.telling import Told
from serving.errors import InvalidRequest, ServingError

_JSON, _TEXT, _SRT, _VTT = "application/json", "text/plain; charset=utf-8", "application/x-subrip", "text/vtt"


def to_core(request: wire.TranscriptionRequest, context: Context) -> TaskRequest[Transcribe]:
    model = context.catalog.resolve_task("transcription", request.model)
    if context.file is None:
        raise InvalidRequest("file must be a file.", param="file")
    form, granularities = request.response_format or "json", request.timestamp_granularities or []
    if "word" in granularities:
        message = "timestamp_granularities can only be segment: the engine does not tell the times of words."
        raise InvalidRequest(message, param="timestamp_granularities")
    if granularities and form != "verbose_json":
        message = "timestamp_granularities needs response_format to be verbose_json."
        raise InvalidRequest(message, param="timestamp_granularities")
    if request.include and form != "json":
        raise InvalidRequest("include needs response_format to be json.", param="include")
    if request.stream and form not in ("json", "text"):
        raise InvalidRequest("stream needs response_format to be json or text.", param="stream")
    verbose = form == "verbose_json"
    hearing = Hearing(
        language=(request.language or "").strip().lower() or None,
        prompt=request.prompt,
        temperature=request.temperature or 0.0,
        timestamps=form in ("srt", "vtt", "verbose_json"),
        logprobs=verbose or bool(request.include),
        no_speech=verbose,
    )
    return TaskRequest(context.request_id, model.id, Transcribe(context.file, hearing))


# ---- whole -----------------------------------------------------------------------------------------------------------


def tell(request: wire.TranscriptionRequest, result: Transcribed, model: ModelInfo, receipt: Receipt) -> Told:
    if request.response_format == "text":
        return Told(f"{result.text}\n".encode(), _TEXT)
    if request.response_format == "srt":
        return Told(_subtitles(result.segments, ",", numbered=True), _SRT)
    if request.response_format == "vtt":
        return Told(b"WEBVTT\n\n" + _subtitles(result.segments, ".", numbered=False), _VTT)
    told = wire.Transcription(result.text, _usage(receipt), _logprobs(request, result.logprobs))
    if request.response_format == "verbose_json":
        told.task, told.language, told.duration = "transcribe", result.language, round(result.duration_s, 2)
        temperature = request.temperature or 0.0
        told.segments = [_segment(number, part, temperature) for number, part in enumerate(result.segments)]
    return Told(encode(told))


def _usage(receipt: Receipt) -> wire.DurationUsage:
    return wire.DurationUsage(receipt.usage.prompt_tokens)


def _segment(number: int, part: Segment, temperature: float) -> wire.SegmentWire:
    assert part.no_speech is not None
    text = part.text.encode()
    return wire.SegmentWire(
        id=number,
        seek=round(100 * part.window_s),
        start=part.start_s,
        end=part.end_s,
        text=part.text,
        tokens=list(part.token_ids),
        temperature=temperature,
        avg_logprob=fmean(finite(token.logprob) for token in part.logprobs),
        compression_ratio=len(text) / len(zlib.compress(text)),
        no_speech_prob=part.no_speech,
    )


def _logprobs(
    request: wire.TranscriptionRequest, tokens: Sequence[TokenLogprob]
) -> list[wire.TranscriptLogprob] | msgspec.UnsetType:
    """Those of the tokens, where they are asked for."""
    if not request.include:
        return msgspec.UNSET
    return [wire.TranscriptLogprob(token.text, list(token.text.encode()), finite(token.logprob)) for token in tokens]


def _subtitles(segments: tuple[Segment, ...], mark: str, *, numbered: bool) -> bytes:
    """A blank line ends an entry, so that none may stand in a text."""
    entries = []
    for number, part in enumerate(segments, 1):
        text = " ".join(part.text.split())
        head = f"{number}\n" if numbered else ""
        entries.append(f"{head}{_clock(part.start_s, mark)} --> {_clock(part.end_s, mark)}\n{text}\n\n")
    return "".join(entries).encode()


def _clock(at_s: float, mark: str) -> str:
    ms = round(at_s * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


# ---- as it is heard --------------------------------------------------------------------------------------------------


@dataclass
class Events:
    """Server-sent events. Their texts together are the whole text, which neither begins nor ends with a space."""

    request: wire.TranscriptionRequest
    error_body: Callable[[ServingError], bytes]
    _waiting: Heard = field(default=Heard("", 0))
    _begun: bool = False

    media_type = sse.MEDIA_TYPE

    def tell(self, heard: Heard) -> bytes:
        text = self._waiting.text + heard.text
        tokens = self._waiting.logprobs + heard.logprobs
        if not self._begun:
            text = text.lstrip()
        delta = text.rstrip()
        if not delta:
            self._waiting = Heard(text, heard.units, tokens)
            return b""
        self._waiting, self._begun = Heard(text[len(delta) :], heard.units), True
        return sse.frame(encode(wire.TranscriptDelta(delta, _logprobs(self.request, tokens))))

    def end(self, result: Transcribed, receipt: Receipt) -> bytes:
        done = wire.TranscriptDone(result.text, _usage(receipt), _logprobs(self.request, result.logprobs))
        return sse.frame(encode(done)) + sse.DONE

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE

    def fail(self, error: ServingError) -> bytes:
        return sse.frame(self.error_body(error))


def stream(
    request: wire.TranscriptionRequest, error_body: Callable[[ServingError], bytes] = error_body
) -> Events | None:
    return Events(request, error_body) if request.stream else None


TASKS: tuple[TaskEndpoint[Any], ...] = (
    TaskEndpoint(
        "transcriptions",
        "/audio/transcriptions",
        "What is said in a sound",
        wire.TranscriptionRequest,
        wire.Transcription,
        to_core,
        tell,
        stream,
        whole_media_types=(_JSON, _TEXT, _SRT, _VTT),
        stream_media_types=(sse.MEDIA_TYPE,),
        form=True,
    ),
)
