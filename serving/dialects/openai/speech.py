"""OpenAI's transcriptions: what is asked in a form, and what is said, as JSON, text, subtitles or events."""

from typing import Any

from serving.core import Receipt
from serving.core.tasks import Segment, TaskRequest, Transcribe, Transcribed
from serving.dialects.base import Context, TaskEndpoint, Told
from serving.dialects.catalog import ModelInfo
from serving.dialects.lines import encode
from serving.dialects.openai import task_wire as wire
from serving.dialects.sse import MEDIA_TYPE as SSE
from serving.errors import InvalidRequest

_JSON, _TEXT, _SRT, _VTT = "application/json", "text/plain; charset=utf-8", "application/x-subrip", "text/vtt"


def to_core(request: wire.TranscriptionRequest, context: Context) -> TaskRequest[Transcribe]:
    model = context.catalog.resolve_task("transcription", request.model)
    if context.file is None:
        raise InvalidRequest("file must be a file.", param="file")
    granularities = request.timestamp_granularities or []
    if "word" in granularities:
        raise InvalidRequest("timestamp_granularities can only be segment.", param="timestamp_granularities")
    if granularities and request.response_format != "verbose_json":
        message = "timestamp_granularities needs response_format to be verbose_json."
        raise InvalidRequest(message, param="timestamp_granularities")
    timestamps = request.response_format in ("srt", "vtt", "verbose_json")
    if request.stream and timestamps:
        raise InvalidRequest("stream needs response_format to be json or text.", param="stream")
    sound = Transcribe(context.file, request.language, request.prompt, request.temperature or 0.0, timestamps)
    return TaskRequest(context.request_id, model.id, sound)


def tell(request: wire.TranscriptionRequest, result: Transcribed, model: ModelInfo, receipt: Receipt) -> Told:
    usage = wire.DurationUsage(receipt.usage.prompt_tokens)
    if request.stream:
        return Told(_events(result, usage), SSE)
    if request.response_format == "text":
        return Told(f"{result.text}\n".encode(), _TEXT)
    if request.response_format == "srt":
        return Told(_subtitles(result.segments, ",", numbered=True), _SRT)
    if request.response_format == "vtt":
        return Told(b"WEBVTT\n\n" + _subtitles(result.segments, ".", numbered=False), _VTT)
    told = wire.Transcription(result.text, usage)
    if request.response_format == "verbose_json":
        told.task, told.language, told.duration = "transcribe", result.language, round(result.duration_s, 2)
        told.segments = [
            wire.SegmentWire(
                number, part.start_s, part.end_s, part.text, list(part.token_ids), request.temperature or 0.0
            )
            for number, part in enumerate(result.segments)
        ]
    return Told(encode(told))


def _events(result: Transcribed, usage: wire.DurationUsage) -> bytes:
    events: list[object] = [wire.TranscriptDelta(part.text) for part in result.segments]
    events.append(wire.TranscriptDone(result.text, usage))
    return b"".join(b"data: " + encode(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


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


TASKS: tuple[TaskEndpoint[Any], ...] = (
    TaskEndpoint(
        "transcriptions",
        "/audio/transcriptions",
        "What is said in a sound",
        wire.TranscriptionRequest,
        wire.Transcription,
        to_core,
        tell,
        whole_media_types=(_JSON, _TEXT, _SRT, _VTT),
        stream_media_types=(SSE,),
        form=True,
    ),
)
