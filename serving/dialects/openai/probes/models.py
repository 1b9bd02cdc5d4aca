"""The models as other servers' clients ask for them."""

import msgspec

from serving.dialects.base import Standing
from serving.dialects.lines import encode
from serving.dialects.openai.probes import wire


async def current_model(query: msgspec.Struct, standing: Standing) -> bytes:
    """The default model, as TabbyAPI tells the one that it has loaded."""
    info, _ = standing.catalog.resolve(None)
    template = standing.prompting(info.id).format.template.name
    parameters = wire.ModelParameters(standing.pipeline.context_tokens(info.id), template)
    return encode(wire.ModelCard(info.id, info.created, "story-serving", parameters))
