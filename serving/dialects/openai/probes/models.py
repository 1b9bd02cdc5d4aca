"""The models as other servers' clients ask for them, and changes of what is served, for who has the admin key."""

import msgspec

from serving.dialects.base import OPERATOR, Standing
from serving.dialects.lines import encode
from serving.dialects.openai.probes import wire

OK = encode("OK")
"""How text-generation-webui answers what is done."""


async def current_model(query: msgspec.Struct, standing: Standing) -> bytes:
    """The default model, as TabbyAPI tells the one that it has loaded."""
    info, _ = standing.catalog.resolve(None)
    template = standing.prompting(info.id).format.template.name
    parameters = wire.ModelParameters(standing.backend.pipeline.context_tokens(info.id), template)
    return encode(wire.ModelCard(info.id, info.created, "story-serving", parameters))


async def internal_model(query: msgspec.Struct, standing: Standing) -> bytes:
    """The default model, as text-generation-webui tells the one that it has loaded."""
    model = next(iter(standing.catalog.models), None)
    adapters = [model.adapter] if model and model.adapter else []
    return encode(wire.InternalModel(model.id if model else "None", adapters, "vLLM"))


async def internal_models(query: msgspec.Struct, standing: Standing) -> bytes:
    """The models that the key may use; to who has the admin key, those that can be loaded."""
    served = [info.id for info in standing.catalog.models]
    return encode(wire.InternalModels([*standing.models.loadable] if standing.caller is OPERATOR else served))


async def health(query: msgspec.Struct, standing: Standing) -> bytes:
    return encode(wire.Health())


async def stop_generation(request: wire.NoBody, standing: Standing) -> bytes:
    await standing.stop()
    return OK


async def loras(query: msgspec.Struct, standing: Standing) -> bytes:
    """The adapters that the default model has, as text-generation-webui tells those in its folder."""
    model = next(iter(standing.catalog.models), None)
    return encode(wire.InternalLoras([*await standing.models.adapters(model.id)] if model else []))


async def load_loras(request: wire.LoadLoras, standing: Standing) -> bytes:
    await standing.models.adapt(request.lora_names)
    return OK


async def unload_loras(request: wire.NoBody, standing: Standing) -> bytes:
    await standing.models.adapt(())
    return OK


async def load_model(request: wire.LoadModel, standing: Standing) -> bytes:
    settings = request.settings or wire.LoadSettings()
    await standing.models.load(
        request.model_name, request.args or {}, template=settings.template, replaces=settings.replaces
    )
    return OK


async def unload_model(request: wire.UnloadModel, standing: Standing) -> bytes:
    await standing.models.unload(request.model_name)
    return OK
