"""The LoRA adapters that one engine holds, and who generates with which.

Keeps the law that no request can kill the engine. Source: vLLM 0.32, lora/worker_manager.py: an adapter that vLLM does
not hold is read in the middle of a step, where one that cannot be read ends the engine for everybody. So vLLM holds an
adapter before the first request with it is told, and for as long as one runs; and never more than it has room for,
since it would drop one of its own choice. An adapter that is read again has another number and name: vLLM tells them
apart by these, also in its prefix cache.
"""

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from serving.engine.adapters import adapters_in, read_config
from serving.errors import EngineFailed, InvalidRequest, Overloaded

logger = logging.getLogger(__name__)

MOST_WEIGHT = 1000.0
"""No weight of a trained adapter comes near it. Greater ones, or NaN, make the engine compute NaN, which stays in its
cache of keys and values and spoils the answers of others, without an adapter (seen with vLLM 0.32 on CPU)."""
_REASON = re.compile(r"Worker failed with error '(.*)', please check the stack trace", re.DOTALL)
_REASON_CHARS = 300


@dataclass(slots=True, eq=False)
class _Held:
    """One that vLLM holds, and how many generate with it."""

    request: LoRARequest
    users: int = 0


class Loras:
    """The adapters in `folder`, of one engine that has room for `room` at once; none without a folder, for which the
    engine was not started then. `llm` raises EngineFailed when it is shut down, `wait_dead` returns when it is dead."""

    def __init__(
        self, llm: Callable[[], AsyncLLM], folder: Path | None, room: int, wait_dead: Callable[[], Awaitable[None]]
    ) -> None:
        self._llm: Callable[[], Any] = llm
        self._folder = folder
        self._room = room
        self._wait_dead = wait_dead
        self._held: dict[str, _Held] = {}  # the one that nobody used for longest is the first
        self._former: set[_Held] = set()
        self._broken: set[str] = set()
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._numbers = itertools.count(1)

    async def load(self, name: str) -> None:
        """Read an adapter's files, also those of one that is held: for generations that begin from now on. When they
        cannot be used, what is held stays. Raises InvalidRequest that says why, Overloaded, EngineFailed,
        EngineDeadError."""
        await asyncio.shield(self._read(name))

    @contextlib.asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[LoRARequest | None]:
        """What vLLM is told of an adapter, which is held until the context is left. Raises as `load` does, without the
        reason: a caller need not know this machine's files."""
        if name is None:
            yield None
            return
        held = await self._find(name)
        self._held[name] = self._held.pop(name)
        held.users += 1
        try:
            yield held.request
        finally:
            held.users -= 1

    async def _find(self, name: str) -> _Held:
        """One that is held, or is now; others that wait may have taken its room again meanwhile."""
        while (held := self._held.get(name)) is None:
            if name in self._broken:
                message = f"The adapter {name} cannot be loaded. The log of the server has the reason."
                raise InvalidRequest(message, param="model")
            with contextlib.suppress(InvalidRequest):  # it is among the broken then
                await asyncio.shield(self._reading.get(name) or self._read(name))
        return held

    def _read(self, name: str) -> asyncio.Task[None]:
        """It goes on when who asked for it does not wait any longer: else nobody would know what vLLM holds."""
        task = self._reading[name] = asyncio.create_task(self._hold(name))
        task.add_done_callback(lambda done: self._end(name, done))
        return task

    def _end(self, name: str, task: asyncio.Task[None]) -> None:
        if self._reading.get(name) is task:
            del self._reading[name]
        if task.cancelled() or (error := task.exception()) is None:
            self._broken.discard(name)
        elif isinstance(error, InvalidRequest):
            self._broken.add(name)  # a request does not try again what may take long to fail
            logger.warning("%s", error)

    async def _hold(self, name: str) -> None:
        async with self._one_at_a_time:
            path = await asyncio.to_thread(self._checked, name)
            await self._make_room(name)
            number = next(self._numbers)
            held = _Held(LoRARequest(f"{name}:{number}", number, str(path)))
            try:
                await self._ask(self._llm().add_lora(held.request))
            except (EngineDeadError, EngineFailed):
                raise
            except Exception as error:  # vLLM raises no narrower one
                await self._ask(self._llm().remove_lora(number))  # it may hold a part
                raise _unusable(name, _reason(error)) from error
            if (former := self._held.pop(name, None)) is not None:
                self._former.add(former)
            self._held[name] = held
            await self._drop_former()

    def _checked(self, name: str) -> Path:
        """Where an adapter lies, after a look at what vLLM would not look at. Blocks: reads all of it."""
        if self._folder is None or name not in adapters_in(self._folder):
            raise _unusable(name, "there is none of this name")
        path, llm = self._folder.absolute() / name, self._llm()
        try:
            rank, most = read_config(path).rank, llm.vllm_config.lora_config.max_lora_rank
            if rank > most:
                raise _unusable(
                    name, f"its rank is {rank}, and the engine takes {most}: load the model anew, or set max_lora_rank"
                )
            _check_weights(path / "adapter_model.safetensors", llm.model_config.get_hidden_size())
        except (OSError, ValueError, msgspec.MsgspecError, SafetensorError) as error:
            raise _unusable(name, str(error)) from error
        return path

    async def _make_room(self, name: str) -> None:
        """Drop what nobody uses until there is room for one more; `name` itself stays until it is replaced."""
        await self._drop_former()
        while len(self._held) + len(self._former) >= self._room:
            idle = next((other for other, held in self._held.items() if other != name and not held.users), None)
            if idle is None:
                message = "All adapters that the engine has room for are in use. Try again later."
                raise Overloaded(message, retry_after_s=1.0)
            await self._drop(self._held.pop(idle))

    async def _drop_former(self) -> None:
        for held in [held for held in self._former if not held.users]:
            self._former.discard(held)
            await self._drop(held)

    async def _drop(self, held: _Held) -> None:
        await self._ask(self._llm().remove_lora(held.request.lora_int_id))

    async def _ask(self, call: Coroutine[Any, Any, bool]) -> None:
        """vLLM tells nobody who waits for such a call that the engine has died."""
        answer, dead = asyncio.ensure_future(call), asyncio.ensure_future(self._wait_dead())
        try:
            await asyncio.wait({answer, dead}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise EngineDeadError
            answer.result()
        finally:
            answer.cancel()
            dead.cancel()


def _unusable(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"The adapter {name} cannot be loaded: {reason}.", param="model")


def _reason(error: Exception) -> str:
    """In vLLM's words, where it has some: what only its assertions forbid has none."""
    found = _REASON.search(str(error))
    words = " ".join((found[1] if found else str(error)).split())[:_REASON_CHARS]
    return words.removesuffix(".") or "vLLM cannot use its weights"


def _check_weights(path: Path, hidden_size: int) -> None:
    """Raises ValueError for weights that vLLM takes and that make nonsense, OSError, SafetensorError."""
    fits = False
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            tensor = file.get_tensor(name)
            if not bool((tensor.float().abs() <= MOST_WEIGHT).all()):
                raise ValueError(f"{name} holds what is no number, or one over {MOST_WEIGHT:g}")
            fits |= hidden_size in tensor.shape  # [rank, in] or [out, rank], one of which a layer shares with the model
    if not fits:
        raise ValueError(f"none of its layers has the width of the model, which is {hidden_size}")
