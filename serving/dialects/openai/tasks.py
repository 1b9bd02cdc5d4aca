"""OpenAI's endpoints without a token stream: what is asked, and how results are told."""

import base64
import sys
from array import array
from typing import Any

import msgspec

from serving.core import Receipt
from serving.core_tasks import Embed, Embedded, TaskRequest
from serving.dialects import fields
from serving.dialects.base import Context, ModelInfo, TaskEndpoint, Told
from serving.dialects.openai import task_wire as wire

_encode = msgspec.json.Encoder().encode


# ---- embeddings ------------------------------------------------------------------------------------------------------


def embedding_to_core(request: wire.EmbeddingRequest, context: Context) -> TaskRequest:
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
)
