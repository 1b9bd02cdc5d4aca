"""The models that are served, those that could be, and one that takes the place of another.

It knows how a name becomes a model (a configured one, or a folder in `models_dir`), which adapters the default one has,
and keeps what is told of models in step with the engines. Loading, draining and ending are the registry's.

Nothing is kept: a server that starts again serves what is configured.
"""

import asyncio
import logging
import time
from collections.abc import Callable, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.dialects.catalog import ModelInfo
from serving.engine.adapters import adapters_in
from serving.engine.registry import EngineRegistry, Loader
from serving.errors import Conflict, EngineFailed, InvalidRequest, ServingError, UnknownModel
from serving.pipeline import ServedModel
from serving.settings import ModelSettings, SettingsError

log = logging.getLogger(__name__)

ARGUMENTS = (
    "dtype",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "kv_cache_memory_bytes",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "quantization",
    "seed",
    "tensor_parallel_size",
)
"""Engine arguments that may be sent with a load. The others, some of which run code, are set in the configuration."""

_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Ways:
    """How a configured model is made ready, and its engine loaded."""

    prepare: Callable[[ModelSettings], ServedModel]
    loader: Callable[[ModelSettings], Loader]


class Stock:
    """`served` (by id) and `infos` (the default model first) are of those served at the start; `served` is kept true.

    `known`: what is configured, of all kinds; only models that generate are loaded and unloaded. `folder`: each folder
    in it is a model that can be loaded. `beside`: a model is loaded while the one whose place it takes still serves,
    for which there must be memory.
    """

    def __init__(
        self,
        served: dict[str, ServedModel],
        infos: tuple[ModelInfo, ...],
        engines: EngineRegistry,
        known: Mapping[str, ModelSettings],
        ways: Ways,
        *,
        folder: Path | None,
        beside: bool,
    ) -> None:
        self._served = served
        self._infos = infos
        self._engines = engines
        self._known = dict(known)
        self._ways = ways
        self._folder = folder
        self._beside = beside

    @property
    def infos(self) -> tuple[ModelInfo, ...]:
        """The models that are served, the default one first."""
        return self._infos

    @property
    def known(self) -> KeysView[str]:
        """The ids of models that are served, or can be; it changes when a folder is loaded for the first time."""
        return self._known.keys()

    @property
    def loadable(self) -> tuple[str, ...]:
        """What `load` takes: configured models, and then folders."""
        folder = self._folder
        found = sorted(path.parent.name for path in folder.glob("*/config.json")) if folder else []
        generating = [name for name, model in self._known.items() if model.kind == "generation"]
        return tuple(dict.fromkeys([*generating, *found]))

    async def load(
        self, name: str, arguments: Mapping[str, Any], *, template: str | None = None, replaces: str | None = None
    ) -> None:
        """Serve `name` in the place of `replaces`: by default of itself, else of the default model, if one is served.

        `arguments` are those of its engine that differ from the configured ones; `template` is that of a folder, by
        default the one of the model that it replaces. Raises InvalidRequest, UnknownModel, Conflict, EngineFailed.
        """
        for argument in arguments:
            if argument not in ARGUMENTS:
                raise InvalidRequest(f"args.{argument} cannot be set here, only: {', '.join(ARGUMENTS)}.", param="args")
        old = self._place(name, replaces)
        known = self._model(name, old, template)
        model = replace(known, engine={**known.engine, **arguments})
        try:
            served = await asyncio.to_thread(self._ways.prepare, model)
        except SettingsError as error:
            raise InvalidRequest(str(error), param="model_name") from error
        adapters = await asyncio.to_thread(adapters_in, model.loras)

        def swap() -> None:
            self._known[name] = known
            self._swap(old, served, ModelInfo(name, int(time.time()), model.price, adapters=adapters))

        try:
            await self._engines.replace(old, name, self._ways.loader(model), swap, beside=self._beside)
        except ServingError:
            raise
        except Exception as error:
            raise _not_loaded(error, name, old, arguments) from error
        log.info("model %s is served%s", name, f" in the place of {old}" if old else "")

    async def unload(self, name: str | None) -> None:
        """Serve a model no longer, by default the default one. Raises UnknownModel, Conflict."""
        model = name or self._default() or ""
        self._check_served(model, "model_name")
        await self._engines.unload(model, lambda: self._swap(model, None, None))
        log.info("model %s is served no longer", model)

    async def adapters(self, model: str) -> tuple[str, ...]:
        """Names of a model's adapters; what lies in their folder now can be asked for from now on."""
        found = await asyncio.to_thread(adapters_in, self._known[model].loras)
        self._tell(model, adapters=found)
        return found

    async def adapt(self, adapters: Sequence[str]) -> None:
        """Answer with an adapter where the default model is asked for by its id alone, or with none; the adapter's
        files are read anew. What runs goes on as it began. Raises InvalidRequest, UnknownModel, and as `Engines.get`;
        then all is as before."""
        if len(adapters) > 1:
            message = "lora_names may hold one name: an answer is generated with one adapter."
            raise InvalidRequest(message, param="lora_names")
        model, adapter = self._default(), next(iter(adapters), None)
        if model is None:
            raise UnknownModel("No model is served.", param="lora_names")
        if adapter is not None:
            if adapter not in (known := await self.adapters(model)):
                raise UnknownModel(f"Adapters of {model}: {', '.join(known) or 'none'}.", param="lora_names")
            with self._engines.use(model) as engine:
                try:
                    await engine.load_adapter(adapter)
                except InvalidRequest as error:
                    raise InvalidRequest(error.message, param="lora_names") from error
        self._tell(model, adapter=adapter)
        log.info("model %s answers with %s", model, f"the adapter {adapter}" if adapter else "no adapter")

    def _tell(self, model: str, **values: Any) -> None:  # noqa: ANN401  # those of ModelInfo
        """What is told of a model, unless another has taken its place meanwhile."""
        self._infos = tuple(replace(info, **values) if info.id == model else info for info in self._infos)

    def _default(self) -> str | None:
        return next((info.id for info in self._infos if info.id in self._served), None)

    def _place(self, name: str, replaces: str | None) -> str | None:
        """The model whose place `name` takes."""
        if replaces is not None:
            self._check_served(replaces, "settings.replaces")
        if name not in self._served:
            return replaces or self._default()
        if replaces not in (None, name):
            raise Conflict(f"{name} is served already: it can only replace itself.", param="settings.replaces")
        return name

    def _check_served(self, name: str, param: str) -> None:
        if name not in self._served:
            raise UnknownModel(f"Models that are served: {', '.join(self._served) or 'none'}.", param=param)

    def _model(self, name: str, old: str | None, template: str | None) -> ModelSettings:
        """A model by its name: what is configured, or a folder, which is like the model that it replaces."""
        if name not in self.loadable:
            raise UnknownModel(f"Models that can be loaded: {', '.join(self.loadable)}.", param="model_name")
        if name in self._known:
            return self._known[name]
        if old is None:
            message = (
                "A folder has the price and the template of the model that it replaces: load a configured one first."
            )
            raise InvalidRequest(message, param="model_name")
        like = self._known[old]
        return ModelSettings(name, str((self._folder or Path()) / name), template or like.template, price=like.price)

    def _swap(self, old: str | None, served: ServedModel | None, info: ModelInfo | None) -> None:
        """Put a model in the place of another; there may be only one of the two."""
        infos = list(self._infos)
        at = next((number for number, other in enumerate(infos) if other.id == old), len(infos))
        infos[at : at + 1] = [] if info is None else [info]
        self._infos = tuple(infos)
        if old is not None:
            del self._served[old]
        if served is not None:
            self._served[served.id] = served


def _not_loaded(error: Exception, name: str, old: str | None, arguments: Mapping[str, Any]) -> ServingError:
    """What is told to whoever has the admin key; the whole of it is in the log."""
    reason = " ".join(str(error).split())[:_REASON_CHARS]
    message = f"{name} could not be loaded{f', {old} serves as before' if old else ''}: {reason}"
    if arguments and isinstance(error, ValueError | TypeError):
        return InvalidRequest(message, param="args")
    return EngineFailed(message)
