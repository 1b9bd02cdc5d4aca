"""What OpenAI clients send and expect where there is no token stream: embeddings, moderations, images."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serving.dialects import fields

Model = Annotated[fields.ModelName | None, Meta(description="A model of this kind; the first one if missing or empty.")]


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """`input`: a text, a list of texts, token ids, or a list of token id lists."""

    input: Annotated[
        str | list[str | int | list[int]],
        Meta(description="A text, token ids, or a list of either, up to 2048; 300,000 tokens in all."),
    ]
    model: Model = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="How vectors are written: `float`, or `base64` of little-endian float32."),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1, le=65_536)] | None,
        Meta(description="Shorter vectors, from models that were trained for it (Matryoshka)."),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted, and not used.")] = None


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingWire(msgspec.Struct):
    """`embedding` is a text when base64 was asked for."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct):
    data: list[EmbeddingWire]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class ModerationPart(msgspec.Struct, kw_only=True):
    """One part of a text; only text is understood."""

    type: Annotated[str, Meta(description="Only `text` is understood.")]
    text: Annotated[str | None, Meta(description="The text of the part.")] = None


class ModerationRequest(msgspec.Struct, kw_only=True):
    """`input`: a text, a list of texts, or the parts of one text."""

    input: Annotated[
        str | Annotated[list[str | ModerationPart], Meta(min_length=1, max_length=fields.MAX_INPUTS)],
        Meta(description="A text, a list of texts, or the parts of one; 300,000 tokens in all."),
    ]
    model: Model = None


class ModerationResult(msgspec.Struct):
    """One text. `flagged`: some category applies. There is an entry for each of OpenAI's categories and of the model's;
    those that the model does not know have the score 0 and are not among the applied input types."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class ModerationWire(msgspec.Struct):
    id: str
    model: str
    results: list[ModerationResult]


class ImageRequest(msgspec.Struct, kw_only=True):
    prompt: Annotated[str, Meta(min_length=1, max_length=32_000, description="What the images show.")]
    model: Model = None
    n: Annotated[Annotated[int, Meta(ge=1, le=10)] | None, Meta(description="How many images; 1 by default.")] = None
    size: Annotated[
        Annotated[str, Meta(max_length=32)] | None,
        Meta(description="Like `1024x1024`: one of those that the model has; its first by default, or for `auto`."),
    ] = None
    quality: Annotated[
        Literal["auto", "standard", "hd", "low", "medium", "high"] | None,
        Meta(description="Handed to the image server; the price is that of the size."),
    ] = None
    response_format: Annotated[
        Literal["url", "b64_json"] | None,
        Meta(description="`b64_json` (the default), or `url`: a `data:` URL that holds the image."),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted, and not used.")] = None


class ImageWire(msgspec.Struct, omit_defaults=True):
    b64_json: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET


class ImageList(msgspec.Struct):
    created: int
    data: list[ImageWire]


class TranscriptionRequest(msgspec.Struct, kw_only=True):
    """The fields of a form."""

    file: Annotated[
        str, Meta(description="A sound of any format that FFmpeg reads.", extra_json_schema={"format": "binary"})
    ]
    model: Model = None
    language: Annotated[
        Annotated[str, Meta(max_length=16)] | None, Meta(description="Like `en`; found out when it is missing.")
    ] = None
    prompt: Annotated[
        Annotated[str, Meta(max_length=8192)] | None, Meta(description="A text that comes before, for names and style.")
    ] = None
    response_format: Annotated[
        Literal["json", "text", "srt", "vtt", "verbose_json"] | None, Meta(description="`json` by default.")
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="0 takes the likeliest token.")
    ] = 0.0
    timestamp_granularities: Annotated[
        list[Literal["segment", "word"]] | None, Meta(description="Only `segment`; with `verbose_json`.")
    ] = None
    include: Annotated[
        list[Literal["logprobs"]] | None, Meta(description="The log probability of each token; with `json`.")
    ] = None
    stream: Annotated[
        bool | None, Meta(description="The answer to `json` and `text` comes as server-sent events, as it is heard.")
    ] = None


class DurationUsage(msgspec.Struct):
    seconds: int
    type: Literal["duration"] = "duration"


class SegmentWire(msgspec.Struct):
    """Times are in seconds, but `seek`: where its window of half a minute begins, in hundredths of one."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptLogprob(msgspec.Struct):
    """`bytes` are those of the token's text; none where a character goes on in the next token."""

    token: str
    bytes: list[int]
    logprob: float


class Transcription(msgspec.Struct, omit_defaults=True):
    """`task`, `language`, `duration` and `segments` are there for `verbose_json`, `logprobs` if they are included."""

    text: str
    usage: DurationUsage
    logprobs: list[TranscriptLogprob] | msgspec.UnsetType = msgspec.UNSET
    task: Literal["transcribe"] | msgspec.UnsetType = msgspec.UNSET
    language: str | msgspec.UnsetType = msgspec.UNSET
    duration: float | msgspec.UnsetType = msgspec.UNSET
    segments: list[SegmentWire] | msgspec.UnsetType = msgspec.UNSET


class TranscriptDelta(msgspec.Struct, tag_field="type", tag="transcript.text.delta", omit_defaults=True):
    delta: str
    logprobs: list[TranscriptLogprob] | msgspec.UnsetType = msgspec.UNSET


class TranscriptDone(msgspec.Struct, tag_field="type", tag="transcript.text.done", omit_defaults=True):
    text: str
    usage: DurationUsage
    logprobs: list[TranscriptLogprob] | msgspec.UnsetType = msgspec.UNSET
