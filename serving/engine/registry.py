"""The engines by model id: loads, replaces and unloads them, says which are ready, and tells when one is lost.

Knows no vLLM: a loader is any function that makes an Engine. Routes nothing and retries nothing; an engine that is lost
stays lost, and whoever waits in `wait_failed` ends the process. Keeps two laws: a dead engine is never waited for, and
one that is replaced or unloaded is ended only when nobody uses it any more.
"""

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from serving.engine.base import Engine, TaskEngine
from serving.engine.images import ImageServer
from serving.errors import Conflict, EngineFailed, Overloaded, ServingError, UnknownModel

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "closed", "unloaded"]
Loader = Callable[[], Awaitable[Engine | TaskEngine]]
Progress = Callable[[str, State], None]
LOADING_RETRY_S = 5.0


def local(
    model: str,
    *,
    revision: str | None = None,
    engine: Mapping[str, Any] | None = None,
    loras: Path | None = None,
) -> Loader:
    """A loader of a LocalEngine; vllm is imported in a thread when it is called, never before."""

    async def load() -> Engine:
        module = await asyncio.to_thread(importlib.import_module, "serving.engine.local")
        loaded: Engine = await module.LocalEngine.load(model, revision=revision, engine=engine, loras=loras)
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
    """One model. `reason` says in words why it failed; `users` is how many work on its engine now."""

    load: Loader
    state: State = "loading"
    reason: str = ""
    engine: Engine | TaskEngine | None = None
    watch: asyncio.Task[None] | None = field(default=None, repr=False)
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class EngineRegistry:
    """Engines by model id. `progress` is called with (model id, state) at every change."""

    def __init__(self, loaders: Mapping[str, Loader], progress: Progress = lambda model, state: None) -> None:
        self._entries = {model: _Entry(load) for model, load in loaders.items()}
        self._progress = progress
        self._loading: asyncio.Task[None] | None = None
        self._works: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()

    def start(self) -> None:
        """Begin loading in the background, one after another: two at once would fight for the same cores and memory."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_all())

    async def _load_all(self) -> None:
        for model, entry in self._entries.items():
            await self._load(model, entry)

    async def _load(self, model: str, entry: _Entry) -> None:
        try:
            engine = await entry.load()
        except Exception as error:
            self._fail(model, entry, f"it could not be loaded: {error}")
            logger.error("model %s could not be loaded", model, exc_info=error)
        else:
            self._begin(model, entry, engine)

    def _begin(self, model: str, entry: _Entry, engine: Engine | TaskEngine) -> None:
        entry.engine = engine
        entry.watch = asyncio.create_task(self._watch(model, entry, engine))
        self._change(model, entry, "ready")

    async def _watch(self, model: str, entry: _Entry, engine: Engine | TaskEngine) -> None:
        await engine.wait_dead()
        self._fail(model, entry, "its engine died")

    def _fail(self, model: str, entry: _Entry, reason: str) -> None:
        if entry.state in ("closed", "unloaded"):
            return
        entry.reason = reason
        self._change(model, entry, "failed")
        self._failed.set()

    def _change(self, model: str, entry: _Entry, state: State) -> None:
        entry.state = state
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
        engine = _ready(self._entry(model))
        if isinstance(engine, TaskEngine):
            raise _unknown()
        return engine

    def task(self, model: str) -> TaskEngine:
        """As `get`, for a model that does tasks."""
        engine = _ready(self._entry(model))
        if not isinstance(engine, TaskEngine):
            raise _unknown()
        return engine

    @contextmanager
    def use(self, model: str) -> Iterator[Engine]:
        """As `get`; the engine is not ended by `replace` or `unload` before the context is left."""
        engine, entry = self.get(model), self._entry(model)
        entry.users += 1
        try:
            yield engine
        finally:
            entry.users -= 1
            if not entry.users:
                entry.unused.set()

    def _entry(self, model: str) -> _Entry:
        if model not in self._entries:
            raise _unknown()
        return self._entries[model]

    async def wait_loaded(self) -> None:
        """Returns when no model is loading any more, whether it is ready or failed."""
        if self._loading is not None:
            await asyncio.wait({self._loading})

    # ---- one in the place of another ---------------------------------------------------------------------------------

    async def replace(
        self, old: str | None, new: str, load: Loader, swap: Callable[[], None], *, beside: bool = True
    ) -> None:
        """Load `new` and let it take the place of `old`, which goes on meanwhile and is ended when nobody uses it.

        Returns when `new` serves; `swap` is called in that moment. Not `beside`: `old` is ended first, and loaded again
        if `new` cannot be. Raises UnknownModel, Conflict (another change is not over), and whatever `load` raises: then
        all is as before. It goes on when who asked for it does not wait any longer.
        """
        self._check_free()
        former = None if old is None else self._entry(old)
        entry, served = _Entry(load), asyncio.Event()

        def take_place() -> None:
            entries = list(self._entries.items())
            at = next((number for number, (model, _) in enumerate(entries) if model == old), len(entries))
            self._entries = dict([*entries[:at], (new, entry), *entries[at + 1 :]])
            if former is not None and old is not None:
                self._change(old, former, "unloaded")
            swap()
            served.set()

        change = partial(self._replace, new, entry, former, take_place)
        if former is not None and old is not None and not beside:
            change = partial(self._replace_after, old, former, change)
        work = self._work(change())
        waits = asyncio.create_task(served.wait())
        try:
            await asyncio.wait({work, waits}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waits.cancel()
        if not served.is_set():
            await work

    async def _replace(self, new: str, entry: _Entry, former: _Entry | None, take_place: Callable[[], None]) -> None:
        """Where memory holds both."""
        engine = await entry.load()
        take_place()
        self._begin(new, entry, engine)
        if former is not None:
            await self._end(former)

    async def _replace_after(self, old: str, former: _Entry, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Where memory does not hold both."""
        self._change(old, former, "loading")
        await self._end(former)
        try:
            await change()
        except Exception:
            await self._load(old, former)
            raise

    async def unload(self, model: str, swap: Callable[[], None]) -> None:
        """Serve a model no longer, from the moment in which `swap` is called; returns when nobody uses it any more and
        its engine is ended. Raises UnknownModel, Conflict. It goes on as `replace` does."""
        self._check_free()
        entry = self._entry(model)
        del self._entries[model]
        self._change(model, entry, "unloaded")
        swap()
        await asyncio.shield(self._work(self._end(entry)))

    def _check_free(self) -> None:
        if self._works or (self._loading is not None and not self._loading.done()):
            raise Conflict("Another model is being loaded, or finishes its last requests. Try again later.")

    def _work(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a model could not be replaced", exc_info=task.exception())

    async def _end(self, entry: _Entry) -> None:
        """End an engine once nobody uses it, or at once when this is cancelled."""
        engine, entry.engine = entry.engine, None
        if entry.watch is not None:
            entry.watch.cancel()
        try:
            while entry.users:
                entry.unused.clear()
                await entry.unused.wait()
        finally:
            if engine is not None:
                await engine.shutdown()

    # ---- the end -------------------------------------------------------------------------------------------------

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
        tasks = [entry.watch for entry in self._entries.values()] + [self._loading, *self._works]
        engines = [entry.engine for entry in self._entries.values() if entry.engine is not None]
        for model, entry in self._entries.items():
            self._change(model, entry, "closed")
        pending = [task for task in tasks if task is not None]
        for task in pending:
            task.cancel()
        results = await asyncio.gather(*pending, *(engine.shutdown() for engine in engines), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                logger.error("an engine did not shut down cleanly", exc_info=result)


def _ready(entry: _Entry) -> Engine | TaskEngine:
    if entry.state == "ready" and entry.engine is not None:
        return entry.engine
    raise _unavailable(entry)


def _unknown() -> UnknownModel:
    return UnknownModel("There is no such model.", param="model")


def _unavailable(entry: _Entry) -> ServingError:
    if entry.state == "failed":
        return EngineFailed("The model's engine has failed. Nothing in the request is wrong; try again later.")
    word = "is being loaded" if entry.state == "loading" else "is shutting down"
    return Overloaded(f"The model {word}. Try again later.", retry_after_s=LOADING_RETRY_S)
