"""OpenAI's endpoints without a token stream: what is asked, and how results are told."""

import base64
import sys
import time
from array import array
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from serving.core import Receipt
from serving.core.tasks import Classified, Classify, Draw, Drawn, Embed, Embedded, TaskRequest
from serving.dialects import fields
from serving.dialects.base import Context, TaskEndpoint
from serving.dialects.catalog import ModelInfo, Moderation
from serving.dialects.openai import task_wire as wire
from serving.dialects.telling import Told
from serving.errors import InvalidRequest

_encode = msgspec.json.Encoder().encode


# ---- embeddings ------------------------------------------------------------------------------------------------------


def embedding_to_core(request: wire.EmbeddingRequest, context: Context) -> TaskRequest[Embed]:
    model = context.catalog.resolve_task("embedding", request.model)
    inputs = fields.texts_or_ids(request.input, "input", fields.MAX_INPUTS)
    return TaskRequest(context.request_id, model.id, Embed(inputs, request.dimensions))


def tell_embeddings(request: wire.EmbeddingRequest, result: Embedded, model: ModelInfo, receipt: Receipt) -> Told:
    """One vector is encoded at a time: a million numbers at once would hold the interpreter lock for long."""
    form = _base64 if request.encoding_format == "base64" else array.tolist
    data = b",".join(_encode(wire.EmbeddingWire(index, form(row))) for index, row in enumerate(result.vectors))
    units = receipt.usage.prompt_tokens
    head = _encode(wire.EmbeddingList([], model.id, wire.EmbeddingUsage(units, units)))
    return Told(head.replace(b"[]", b"[" + data + b"]", 1))


def _base64(vector: "array[float]") -> str:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector).decode()


# ---- moderations -----------------------------------------------------------------------------------------------------

CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
)
"""Source: OpenAI's moderation API, whose clients expect an entry for each of them."""


def moderation_to_core(request: wire.ModerationRequest, context: Context) -> TaskRequest[Classify]:
    model = context.catalog.resolve_task("classification", request.model)
    return TaskRequest(context.request_id, model.id, Classify(_texts(request.input)))


def _texts(sent: str | list[str | wire.ModerationPart]) -> tuple[str, ...]:
    if isinstance(sent, str):
        return (sent,)
    texts = [item for item in sent if isinstance(item, str)]
    parts = [item for item in sent if not isinstance(item, str)]
    if not parts:
        return tuple(texts)
    if texts:
        raise InvalidRequest("A list input holds texts, or the parts of one: not a mixture.", param="input")
    for number, part in enumerate(parts):
        if part.type != "text" or part.text is None:
            raise InvalidRequest("Only parts of the type text are understood.", param=f"input[{number}].type")
    return ("".join(part.text or "" for part in parts),)


def tell_moderation(request: wire.ModerationRequest, result: Classified, model: ModelInfo, receipt: Receipt) -> Told:
    assert model.moderation is not None
    results = [_moderated(scores, model.moderation) for scores in result.scores]
    return Told(_encode(wire.ModerationWire(f"modr-{receipt.request_id}", model.id, results)))


def _moderated(scores: Mapping[str, float], moderation: Moderation) -> wire.ModerationResult:
    """A category has the highest score of the labels that mean it."""
    known: dict[str, float] = {}
    for label, category in moderation.categories.items():
        known[category] = max(scores[label], known.get(category, 0.0))
    told = dict.fromkeys(CATEGORIES, 0.0) | known
    applies = {category: category in known and score >= moderation.threshold for category, score in told.items()}
    kinds: dict[str, list[Literal["text"]]] = {category: ["text"] if category in known else [] for category in told}
    return wire.ModerationResult(any(applies.values()), applies, told, kinds)


# ---- images ----------------------------------------------------------------------------------------------------------


def image_to_core(request: wire.ImageRequest, context: Context) -> TaskRequest[Draw]:
    model = context.catalog.resolve_task("image", request.model)
    size = None if request.size in ("", "auto") else request.size
    return TaskRequest(context.request_id, model.id, Draw(request.prompt, request.n or 1, size, request.quality))


def tell_images(request: wire.ImageRequest, result: Drawn, model: ModelInfo, receipt: Receipt) -> Told:
    """Images are kept nowhere, so that the URL of one holds it."""
    made: list[wire.ImageWire] = []
    for image in result.images:
        if request.response_format == "url":
            made.append(wire.ImageWire(url=f"data:{_media_type(image)};base64,{image}"))
        else:
            made.append(wire.ImageWire(b64_json=image))
    return Told(_encode(wire.ImageList(int(time.time()), made)))


def _media_type(image: str) -> str:
    """By how an image in base64 begins."""
    begins = {"/9j/": "image/jpeg", "UklGR": "image/webp"}
    return next((kind for beginning, kind in begins.items() if image.startswith(beginning)), "image/png")


TASKS: tuple[TaskEndpoint[Any], ...] = (
    TaskEndpoint(
        "embeddings",
        "/embeddings",
        "A vector for each text",
        wire.EmbeddingRequest,
        wire.EmbeddingList,
        embedding_to_core,
        tell_embeddings,
    ),
    TaskEndpoint(
        "moderations",
        "/moderations",
        "Which categories of harm are in texts",
        wire.ModerationRequest,
        wire.ModerationWire,
        moderation_to_core,
        tell_moderation,
    ),
    TaskEndpoint(
        "images",
        "/images/generations",
        "Images of what a prompt says",
        wire.ImageRequest,
        wire.ImageList,
        image_to_core,
        tell_images,
    ),
)
