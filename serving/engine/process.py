"""vLLM's AsyncLLM in this process: how it is started, watched and ended, whatever it is asked.

It asks nothing itself: `local` has generations, `pooling` embeddings and classes. Keeps the law that an engine that
dies is never waited for, and that none of its processes outlives it.

Importing this module imports vllm (about ten seconds): do it in a thread, as `registry.local` does.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from typing import Any, Self

import psutil
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from serving.engine.arguments import engine_arguments
from serving.errors import EngineFailed, InvalidRequest, Overloaded

_SHUTDOWN_GRACE_S = 5.0


class VllmProcess:
    """One model on this machine. Make it with `load`; it belongs to the event loop that loaded it."""

    def __init__(self, llm: AsyncLLM, processes: list[psutil.Process]) -> None:
        self._llm: Any = llm
        self._processes = processes
        self._serial = itertools.count()
        self._closing: asyncio.Task[None] | None = None
        self._dead = asyncio.Event()
        self._watched: list[int] = []
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> Self:
        """Start the engine's processes and load `model` (a folder or a hub id); the loop stays free meanwhile.

        `engine` goes to AsyncEngineArgs as it is. Raises ValueError for a key vLLM does not know, and whatever vLLM
        raises for a model it cannot load; then, and when cancelled, no process is left behind.
        """
        start = _Start(model, revision, dict(engine or {}), cls._configure)
        thread = asyncio.ensure_future(asyncio.to_thread(start.run))
        try:
            llm = await asyncio.shield(thread)
        except asyncio.CancelledError:
            start.cancel()
            with contextlib.suppress(Exception):
                await asyncio.to_thread((await thread).shutdown, 0.0)
            raise
        except BaseException:
            await asyncio.to_thread(start.cancel)
            raise
        self = cls(llm, start.processes())
        self._watch()
        try:
            await self._warm_up()
        except BaseException:
            await self.shutdown()
            raise
        return self

    @staticmethod
    def _configure(config: Any) -> None:  # noqa: ANN401  # VllmConfig, which has no types here
        """Change vLLM's configuration before its processes start."""

    async def _warm_up(self) -> None:
        """Ask something small: proves that the engine answers, and starts vLLM's output task, which tells of death."""
        raise NotImplementedError

    @property
    def unfinished(self) -> int:
        """What vLLM has taken and not finished."""
        return int(self._llm.output_processor.get_num_unfinished_requests()) if self._llm is not None else 0

    def _open(self) -> AsyncLLM:
        """Raises EngineFailed when the engine is shut down."""
        if self._llm is None or self._closing is not None:
            raise EngineFailed("The engine is shut down.")
        found: AsyncLLM = self._llm
        return found

    def _id(self, request_id: str) -> str:
        """vLLM aborts by this id; ours need not be unique, nor be text that can be encoded."""
        return f"{ascii(request_id)[1:65]}-{next(self._serial)}"

    @contextlib.contextmanager
    def _asking(self, invalid: Callable[[BaseException], InvalidRequest]) -> Iterator[None]:
        """Around each thing vLLM is asked: counts it, and raises vLLM's failures as ours. `invalid` makes those that
        are about the request."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        except EngineDeadError:
            raise EngineFailed("The engine died. Nothing in the request is wrong; try again later.") from None
        except GracefulHTTPError as error:
            raise Overloaded("The engine's queue is full. Try again later.", retry_after_s=1.0) from error
        except VLLMClientError as error:
            raise invalid(error) from error
        except EngineGenerateError as error:
            # vLLM wraps whatever its own checks and the way to the engine raise; what they raise is about the request.
            if isinstance(error.__cause__, (ValueError, TypeError, OverflowError)):
                raise invalid(error.__cause__) from error
            raise EngineFailed("The engine failed to answer.") from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            # The grammar compiler is Rust, whose panics are no Exceptions.
            raise invalid(error) from None
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def check_health(self) -> None:
        """Raises EngineFailed when the engine is dead or shut down."""
        if self._llm is None or self._closing is not None or self._llm.errored:
            raise EngineFailed("The engine is dead.")

    async def wait_dead(self) -> None:
        """Returns once the engine is dead or shut down, idle or not."""
        if self._llm is None:
            return
        dead = asyncio.create_task(self._dead.wait())
        try:
            await asyncio.wait({dead, self._llm.output_handler}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            dead.cancel()

    def _watch(self) -> None:
        """Be told by the kernel when the engine core dies. Of a dead worker the core tells, and vLLM's task ends.

        vLLM 0.32 watches a pipe in a thread, and a forked worker holds that pipe open: 1 to 5 s after the core's death
        the streams still waited. Its own server polls every five seconds.
        """
        if not hasattr(os, "pidfd_open"):
            return
        for process in self._llm.engine_core.resources.engine_manager.processes:
            with contextlib.suppress(ProcessLookupError):
                self._watched.append(os.pidfd_open(process.pid))
                asyncio.get_running_loop().add_reader(self._watched[-1], self._died)

    def _unwatch(self) -> None:
        while self._watched:
            descriptor = self._watched.pop()
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _died(self) -> None:
        self._unwatch()
        self._llm.engine_core.resources.engine_dead = True
        self._llm.output_processor.propagate_error(EngineDeadError())
        self._dead.set()

    async def shutdown(self) -> None:
        """Let what runs finish within `shutdown_timeout`, then end every process. May be called twice."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        llm = self._llm
        self._unwatch()
        # We drain ourselves: vLLM would cancel the task that feeds the streams while they still wait for it.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), 0 if llm.errored else llm.vllm_config.shutdown_timeout)
        processor = llm.output_processor
        processor.propagate_error(EngineDeadError())
        if not llm.errored:
            await llm.abort(list(processor.request_states), internal=True)
        if llm.output_handler is not None:  # it is, until the first thing is asked
            llm.output_handler.cancel()
        try:
            await asyncio.to_thread(llm.shutdown, _SHUTDOWN_GRACE_S)
            # vLLM has closed its sockets, and leaves their context and its threads open.
            await asyncio.to_thread(llm.engine_core.resources.ctx.destroy, 0)
        finally:
            await asyncio.to_thread(_end, self._processes)
            # vLLM shuts down once more when it is collected: now, and not at exit, when its modules are gone.
            self._llm = None


class _Start:
    """One attempt to start an engine, in a thread; `cancel` ends it from another."""

    def __init__(
        self, model: str, revision: str | None, engine: dict[str, Any], configure: Callable[[Any], None]
    ) -> None:
        self._model, self._revision, self._engine, self._configure = model, revision, engine, configure
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        self._cancelled = threading.Event()

    def run(self) -> AsyncLLM:
        arguments = engine_arguments(self._model, self._revision, self._engine)
        config = arguments.create_engine_config()
        self._configure(config)
        # vLLM's own choice but on CPU, where create_engine_config resets it to spawn: 42 s to the first token on two
        # cores, since every process imports torch and vLLM again, and 19 s with fork.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        if self._cancelled.is_set():
            raise RuntimeError("the start was cancelled")
        _let_workers_pass_numba()
        with _without_sigint():
            return AsyncLLM.from_vllm_config(
                config,
                enable_log_requests=arguments.enable_log_requests,
                disable_log_stats=arguments.disable_log_stats,
            )

    def processes(self) -> list[psutil.Process]:
        """Those started since: the engine core, its workers, and the workers' helpers."""
        return [process for process in _children() if process.pid not in self._before]

    def cancel(self) -> None:
        """End what was started; a start still under way then fails by itself."""
        self._cancelled.set()
        _end(self.processes())


def _let_workers_pass_numba() -> None:
    """A worker that is forked from a process with numba in it dies otherwise, before it has loaded a model.

    It reads `vars(value).get(...)` of whatever any module holds, and llvmlite's library answers every name with a
    function, `__dict__` too. Source: vLLM 0.32, triton_utils/dispatcher.py; llvmlite 0.47, binding/ffi.py.
    """
    ffi: Any = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab["__dict__"] = {}


def _children() -> list[psutil.Process]:
    """Without multiprocessing's resource tracker: one for the whole process, and it outlives every engine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
    return found


def _end(processes: list[psutil.Process]) -> None:
    """Kill those that still run, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_SHUTDOWN_GRACE_S)


@contextlib.contextmanager
def _without_sigint() -> Iterator[None]:
    """Processes started inside never see SIGINT: they inherit this thread's signal mask.

    A terminal sends Ctrl-C to all of them, and vLLM's workers exit on it at once, under requests that are still being
    served, with tracebacks. This process alone decides when the engine ends. Source: vLLM 0.32, multiproc_executor.py.
    """
    # Where it is not running yet, starting it would unblock SIGINT (CPython 3.11, multiprocessing/resource_tracker.py).
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
