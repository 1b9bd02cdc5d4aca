"""The models that a caller may use, and what a name in a request means among them. It loads nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from serving.core import Caller, Price
from serving.core.tasks import ModelKind, TaskKind
from serving.errors import NotFound, UnknownModel
from serving.prompting.roles import split_model


@dataclass(frozen=True, slots=True)
class Moderation:
    """How a classifier's scores are told: the category that each of its labels means (those that are not here are not
    told), and the score from which one applies."""

    categories: Mapping[str, str]
    threshold: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a dialect may know of a served model. `created` is a Unix time in seconds, `price` what its caller pays,
    `moderation` a classifier's. `adapters` are those that it has, and with `adapter`, one of them, it answers."""

    id: str
    created: int
    price: Price
    kind: ModelKind = "generation"
    moderation: Moderation | None = None
    adapters: tuple[str, ...] = ()
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models that one caller may use: those that generate, the default one first, and those that do tasks."""

    models: tuple[ModelInfo, ...]
    tasks: tuple[ModelInfo, ...] = ()

    @classmethod
    def of(cls, models: tuple[ModelInfo, ...], caller: Caller) -> "Catalog":
        percent = caller.plan.price_percent
        usable = [replace(model, price=model.price.at(percent)) for model in models if caller.may_use(model.id)]
        tasks = tuple(model for model in usable if model.kind != "generation")
        return cls(tuple(model for model in usable if model.kind == "generation"), tasks)

    @property
    def names(self) -> dict[str, tuple[ModelInfo, str | None]]:
        """What generating models are called, and the adapter that each answers with: `id`, and `id:adapter` for each of
        its adapters, unless that is the id of another model."""
        names: dict[str, tuple[ModelInfo, str | None]] = {}
        for model in self.models:
            names[model.id] = (model, model.adapter)
            for adapter in model.adapters:
                names.setdefault(f"{model.id}:{adapter}", (model, adapter))
        return names

    def resolve(self, name: str | None, *, param: str = "model") -> tuple[ModelInfo, str | None]:
        """The model that `name` means, with the adapter to answer with, and the suffix behind its name. Missing or
        empty means the default model. Raises UnknownModel.
        """
        if not name and self.models:
            return self.models[0], None
        names = self.names
        try:
            known, suffix = split_model(name or "", names)
        except UnknownModel:
            raise _unknown(names, param) from None
        model, adapter = names[known]
        return replace(model, adapter=adapter), suffix

    def resolve_task(self, kind: TaskKind, name: str | None) -> ModelInfo:
        """The model that `name` means at an address for `kind`. Missing or empty means the first one.

        Raises NotFound when there is none of that kind, UnknownModel.
        """
        by_id = {model.id: model for model in self.tasks if model.kind == kind}
        if not by_id:
            raise NotFound(f"There is no {kind} model here that this key may use.")
        model_id = name or next(iter(by_id))
        if model_id not in by_id:
            raise _unknown(by_id, "model")
        return by_id[model_id]


def _unknown(known: Iterable[str], param: str) -> UnknownModel:
    told = ", ".join(known) or "none"
    return UnknownModel(f"There is no such model for this key. Models it may use: {told}.", param=param)
