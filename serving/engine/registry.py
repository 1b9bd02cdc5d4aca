"""The engines by model id: loads them, says which are ready, and tells when one is lost.

Knows no vLLM: a loader is any function that makes an Engine. Routes nothing and retries nothing; an engine that is lost
stays lost, and whoever waits in `wait_failed` ends the process. Keeps the law that a dead engine is never waited for.
"""

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serving.engine.base import Engine, TaskEngine
from serving.engine.images import ImageServer
from serving.errors import EngineFailed, Overloaded, ServingError, UnknownModel

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "closed"]
Loader = Callable[[], Awaitable[Engine | TaskEngine]]
Progress = Callable[[str, State], None]
LOADING_RETRY_S = 5.0


def local(
    model: str,
    *,
    revision: str | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Loader:
    """A loader of a LocalEngine; vllm is imported in a thread when it is called, never before."""

    async def load() -> Engine:
        module = await asyncio.to_thread(importlib.import_module, "serving.engine.local")
        loaded: Engine = await module.LocalEngine.load(model, revision=revision, engine=engine)
        return loaded

    return load


_TASK_ENGINES = {
    "embedding": ("serving.engine.pooling", "Embedder"),
    "classification": ("serving.engine.pooling", "Classifier"),
    "transcription": ("serving.engine.transcription", "Transcriber"),
}
"""By the kind of the model: module and class, which import vllm."""


def local_task(
    model: str,
    kind: Literal["embedding", "classification", "transcription"],
    *,
    revision: str | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Loader:
    """A loader of an engine for tasks of this kind; the rest is as for `local`."""

    async def load() -> TaskEngine:
        name, kind_of = _TASK_ENGINES[kind]
        module = await asyncio.to_thread(importlib.import_module, name)
        loaded: TaskEngine = await getattr(module, kind_of).load(model, revision=revision, engine=engine)
        return loaded

    return load


def image_server(address: str, model: str, key: str | None) -> Loader:
    """A loader of an ImageServer: it is ready at once, whether its server answers yet or not."""

    async def load() -> TaskEngine:
        return ImageServer(address, model, key)

    return load


@dataclass(slots=True)
class _Entry:
    """One model. `reason` says in words why it failed."""

    load: Loader
    state: State = "loading"
    reason: str = ""
    engine: Engine | TaskEngine | None = None
    watch: asyncio.Task[None] | None = field(default=None, repr=False)


class EngineRegistry:
    """Engines by model id. `progress` is called with (model id, state) at every change."""

    def __init__(self, loaders: Mapping[str, Loader], progress: Progress = lambda model, state: None) -> None:
        self._entries = {model: _Entry(load) for model, load in loaders.items()}
        self._progress = progress
        self._loading: asyncio.Task[None] | None = None
        self._failed = asyncio.Event()

    def start(self) -> None:
        """Begin loading in the background, one after another: two at once would fight for the same cores and memory."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_all())

    async def _load_all(self) -> None:
        for model, entry in self._entries.items():
            try:
                entry.engine = await entry.load()
            except Exception as error:
                self._fail(model, f"it could not be loaded: {error}")
                logger.error("model %s could not be loaded", model, exc_info=error)
            else:
                entry.watch = asyncio.create_task(self._watch(model, entry.engine))
                self._change(model, "ready")

    async def _watch(self, model: str, engine: Engine | TaskEngine) -> None:
        await engine.wait_dead()
        self._fail(model, "its engine died")

    def _fail(self, model: str, reason: str) -> None:
        if self._entries[model].state == "closed":
            return
        self._entries[model].reason = reason
        self._change(model, "failed")
        self._failed.set()

    def _change(self, model: str, state: State) -> None:
        self._entries[model].state = state
        self._progress(model, state)

    @property
    def models(self) -> Iterable[str]:
        """The ids of all models, ready or not."""
        return self._entries.keys()

    @property
    def ready(self) -> bool:
        """Every model is loaded and none is dead."""
        return all(entry.state == "ready" for entry in self._entries.values())

    def state(self, model: str) -> State:
        """Raises UnknownModel."""
        return self._entry(model).state

    def get(self, model: str) -> Engine:
        """Raises UnknownModel, Overloaded (loading, closed), EngineFailed (failed to load, or died)."""
        engine = self._ready(model)
        if isinstance(engine, TaskEngine):
            raise _unknown()
        return engine

    def task(self, model: str) -> TaskEngine:
        """As `get`, for a model that does tasks."""
        engine = self._ready(model)
        if not isinstance(engine, TaskEngine):
            raise _unknown()
        return engine

    def _ready(self, model: str) -> Engine | TaskEngine:
        entry = self._entry(model)
        if entry.state == "ready" and entry.engine is not None:
            return entry.engine
        raise _unavailable(entry)

    def _entry(self, model: str) -> _Entry:
        if model not in self._entries:
            raise _unknown()
        return self._entries[model]

    async def wait_loaded(self) -> None:
        """Returns when no model is loading any more, whether it is ready or failed."""
        if self._loading is not None:
            await asyncio.wait({self._loading})

    async def wait_failed(self) -> str:
        """Returns, with the reason, when an engine dies or cannot be loaded; never otherwise."""
        await self._failed.wait()
        return self.reasons

    @property
    def reasons(self) -> str:
        """In words for the operator's log: may hold paths, so not for callers."""
        failed = (f"model {model}: {entry.reason}" for model, entry in self._entries.items() if entry.state == "failed")
        return "; ".join(failed)

    async def shutdown(self) -> None:
        """End loading and every engine; leaves no process behind. May be called twice."""
        tasks = [entry.watch for entry in self._entries.values()] + [self._loading]
        engines = [entry.engine for entry in self._entries.values() if entry.engine is not None]
        for model in self._entries:
            self._change(model, "closed")
        pending = [task for task in tasks if task is not None]
        for task in pending:
            task.cancel()
        results = await asyncio.gather(*pending, *(engine.shutdown() for engine in engines), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                logger.error("an engine did not shut down cleanly", exc_info=result)


def _unknown() -> UnknownModel:
    return UnknownModel("There is no such model.", param="model")


def _unavailable(entry: _Entry) -> ServingError:
    if entry.state == "failed":
        return EngineFailed("The model's engine has failed. Nothing in the request is wrong; try again later.")
    word = "is being loaded" if entry.state == "loading" else "is shutting down"
    return Overloaded(f"The model {word}. Try again later.", retry_after_s=LOADING_RETRY_S)
