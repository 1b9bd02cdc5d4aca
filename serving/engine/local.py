"""The engine in this process: vLLM's AsyncLLM behind the Engine port.

Translates a prepared request into vLLM's words and vLLM's outputs into events; decides nothing about requests beyond
the last defence in `limits`. Keeps two laws: chunks are not tokens (counts come from token ids, since vLLM merges the
deltas of slow readers), and nothing per token touches pydantic or makes a task.

Importing this module imports vllm (about ten seconds): do it in a thread, as `registry.local` does.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Literal, Self

import psutil  # type: ignore[import-untyped]
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError
from vllm.inputs import TokensPrompt, tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from serving.core import (
    Delta,
    Event,
    Finished,
    FinishReason,
    PreparedRequest,
    Sampling,
    Started,
    TokenLogprob,
    Usage,
)
from serving.engine.arguments import engine_arguments
from serving.engine.limits import Model, check
from serving.errors import EngineFailed, InvalidRequest, Overloaded

logger = logging.getLogger(__name__)

StartMethod = Literal["spawn", "fork"]
_LOWEST_LOGPROB = -9999.0
"""What -inf becomes, since JSON has no infinity. Source: vLLM 0.32, openai/chat_completion/serving.py."""
_SHUTDOWN_GRACE_S = 5.0


class LocalEngine:
    """One model on this machine. Make it with `load`; it belongs to the event loop that loaded it."""

    def __init__(self, llm: AsyncLLM, processes: list[psutil.Process]) -> None:
        self._llm = llm
        self._processes = processes
        self._serial = itertools.count()
        self._closing: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        config = llm.model_config
        vocab_size = config.get_vocab_size()
        logprobs = config.max_logprobs if config.max_logprobs >= 0 else vocab_size
        self._model = Model(vocab_size, config.max_model_len, logprobs)

    @classmethod
    async def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        engine: Mapping[str, Any] | None = None,
        start_method: StartMethod = "spawn",
    ) -> Self:
        """Start the engine's processes and load `model` (a folder or a hub id); the loop stays free meanwhile.

        `engine` goes to AsyncEngineArgs as it is. Raises ValueError for a key vLLM does not know, and whatever vLLM
        raises for a model it cannot load; then, and when cancelled, no process is left behind.
        """
        start = _Start(model, revision, dict(engine or {}), start_method)
        thread = asyncio.ensure_future(asyncio.to_thread(start.run))
        try:
            llm = await asyncio.shield(thread)
        except asyncio.CancelledError:
            start.cancel()
            with contextlib.suppress(Exception):
                await asyncio.to_thread((await thread).shutdown)
            raise
        except BaseException:
            await asyncio.to_thread(start.cancel)
            raise
        self = cls(llm, start.processes())
        try:
            await self._warm_up()
        except BaseException:
            await self.shutdown()
            raise
        return self

    async def _warm_up(self) -> None:
        """Generate one token: proves that the engine answers, and starts vLLM's output task, which tells of death."""
        request = PreparedRequest("warm-up", 0, (0,), Sampling(temperature=0.0), max_tokens=1)
        async for _ in self.generate(request):
            pass

    @property
    def context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self._model.context_tokens

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._model.vocab_size

    @property
    def unfinished(self) -> int:
        """Choices that vLLM has taken and not finished."""
        return int(self._llm.output_processor.get_num_unfinished_requests())

    async def generate(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        """Generate one choice. Raises InvalidRequest (before the first event), Overloaded, EngineFailed."""
        if self._closing is not None:
            raise EngineFailed("The engine is shut down.")
        check(request, self._model)
        # vLLM aborts by this id; ours need not be unique, nor be text that can be encoded.
        vllm_id = f"{ascii(request.request_id)[1:65]}-{request.index}-{next(self._serial)}"
        stream = self._llm.generate(_prompt(request), _sampling_params(request), vllm_id)
        finished = False
        self._in_flight += 1
        self._idle.clear()
        try:
            async with contextlib.aclosing(self._events(request, stream)) as events:
                async for event in events:
                    finished = type(event) is Finished
                    yield event
        except EngineDeadError:
            raise EngineFailed("The engine died. Nothing in the request is wrong; try again later.") from None
        except GracefulHTTPError as error:
            raise Overloaded("The engine's queue is full. Try again later.", retry_after_s=1.0) from error
        except VLLMClientError as error:
            raise _invalid(error) from error
        except EngineGenerateError as error:
            # vLLM wraps whatever its own checks and the way to the engine raise; what they raise is about the request.
            if isinstance(error.__cause__, (ValueError, TypeError, OverflowError)):
                raise _invalid(error.__cause__) from error
            raise EngineFailed("The engine failed to generate.") from error
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()
            await stream.aclose()
            if not finished:
                # Closing aborts, but not when it hits vLLM between its own queue and the engine's. Abort is idempotent.
                await self._llm.abort(vllm_id)

    async def _events(self, request: PreparedRequest, stream: Any) -> AsyncGenerator[Event, None]:  # noqa: ANN401
        """vLLM's outputs as events. Text never holds a stop string: vLLM cuts it, we put it back if it is wanted."""
        index, started, completion_tokens = request.index, False, 0
        usage = Usage()
        async for output in stream:
            part = output.outputs[0]
            reason, matched = part.finish_reason, None
            if reason is not None and reason not in ("stop", "length"):
                raise _broken(request, reason, started)
            if not started:
                started = True
                usage = Usage(len(request.token_ids), output.num_cached_tokens or 0)
                prompt_logprobs = self._prompt_logprobs(request, output.prompt_logprobs)
                yield Started(index, usage.prompt_tokens, usage.cached_tokens, prompt_logprobs)
            text, token_ids = part.text, part.token_ids
            if reason == "stop" and isinstance(part.stop_reason, str):
                matched = part.stop_reason
                if request.include_stop:
                    text += matched
            if request.max_tokens and (text or token_ids):
                completion_tokens += len(token_ids)
                logprobs = _logprobs(token_ids, part.logprobs, request.logprobs) if part.logprobs else ()
                yield Delta(index, text, tuple(token_ids), logprobs)
            if reason is not None:
                usage += Usage(completion_tokens=completion_tokens)
                ended: FinishReason = "stop" if reason == "stop" and request.max_tokens else "length"
                yield Finished(index, ended, usage, matched if request.max_tokens else None)

    def _prompt_logprobs(self, request: PreparedRequest, positions: Any) -> tuple[TokenLogprob, ...]:  # noqa: ANN401
        if not request.prompt_logprobs or not positions:
            return ()
        first = request.token_ids[0]
        head = TokenLogprob(first, self._llm.get_tokenizer().decode([first]), None)
        return (head, *_logprobs(request.token_ids[1:], positions[1:], request.logprobs))

    async def check_health(self) -> None:
        """Raises EngineFailed when the engine is dead or shut down."""
        if self._closing is not None or self._llm.errored:
            raise EngineFailed("The engine is dead.")

    async def wait_dead(self) -> None:
        """Returns once the engine is dead or shut down, idle or not.

        Source: vLLM 0.32: a thread watches the engine's process, a message tells of a dead worker, and both end the
        output task; vLLM's own server polls `errored` every five seconds instead.
        """
        await asyncio.wait({self._llm.output_handler})

    async def shutdown(self) -> None:
        """Let what runs finish within `shutdown_timeout`, then end every process. May be called twice."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        # We drain ourselves: vLLM would cancel the task that feeds the streams while they still wait for it.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self._llm.vllm_config.shutdown_timeout)
        processor = self._llm.output_processor
        processor.propagate_error(EngineDeadError())
        if not self._llm.errored:
            await self._llm.abort(list(processor.request_states), internal=True)
        self._llm.output_handler.cancel()
        try:
            await asyncio.to_thread(self._llm.shutdown, _SHUTDOWN_GRACE_S)
        finally:
            await asyncio.to_thread(_end, self._processes)


class _Start:
    """One attempt to start an engine, in a thread; `cancel` ends it from another."""

    def __init__(self, model: str, revision: str | None, engine: dict[str, Any], start_method: StartMethod) -> None:
        self._model, self._revision, self._engine, self._start_method = model, revision, engine, start_method
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        self._cancelled = threading.Event()

    def run(self) -> AsyncLLM:
        arguments = engine_arguments(self._model, self._revision, self._engine)
        config = arguments.create_engine_config()
        # After create_engine_config: vLLM's CPU platform resets it to spawn.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = self._start_method
        if self._cancelled.is_set():
            raise RuntimeError("the start was cancelled")
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prompt(request: PreparedRequest) -> Any:  # noqa: ANN401
    """A request with a schema goes the way of raw prompts: vLLM then validates it in its thread pool, not on our loop.

    Source: vLLM 0.32, AsyncLLM.add_request: a rendered input is processed on the loop, a raw one by a thread.
    """
    if request.json_format is not None:
        return TokensPrompt(prompt_token_ids=list(request.token_ids))
    return tokens_input(list(request.token_ids))


def _sampling_params(request: PreparedRequest) -> SamplingParams:
    """vLLM's parameters. Raises InvalidRequest where vLLM refuses."""
    sampling = request.sampling
    try:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            # Beyond int32 the worker's array overflows; 0 is the whole vocabulary.
            top_k=sampling.top_k if sampling.top_k < 2**31 else 0,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            logit_bias=dict(sampling.logit_bias) or None,
            max_tokens=max(1, request.max_tokens),
            min_tokens=sampling.min_tokens,
            stop=list(request.stop),
            stop_token_ids=list(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            logprobs=request.logprobs,
            prompt_logprobs=(request.logprobs or 0) if request.prompt_logprobs else None,
            structured_outputs=_structure(request),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.DELTA,
            # Made for this request alone: vLLM need not copy it.
            skip_clone=True,
        )
    except (VLLMClientError, ValueError) as error:
        raise _invalid(error) from error


def _structure(request: PreparedRequest) -> StructuredOutputsParams | None:
    if request.json_format is None:
        return None
    if request.json_format.schema is None:
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=request.json_format.schema)


def _logprobs(
    token_ids: Any,  # noqa: ANN401
    positions: Any,  # noqa: ANN401
    alternatives: int | None,
) -> tuple[TokenLogprob, ...]:
    """vLLM's {id: Logprob} per position, which holds the chosen token beside the best ones if it is not among them."""
    count, told = alternatives or 0, []
    for token_id, entries in zip(token_ids, positions, strict=False):
        best = sorted((item for item in entries.items() if item[1].rank <= count), key=lambda item: item[1].rank)
        top = tuple(TokenLogprob(i, entry.decoded_token or "", _finite(entry.logprob)) for i, entry in best)
        chosen = entries[token_id]
        told.append(TokenLogprob(token_id, chosen.decoded_token or "", _finite(chosen.logprob), top))
    return tuple(told)


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST_LOGPROB else _LOWEST_LOGPROB


def _invalid(error: Exception) -> InvalidRequest:
    """vLLM's refusals name the field where they know it; their texts can hold what the caller sent, so they stay."""
    param = error.parameter if isinstance(error, VLLMValidationError) else None
    logger.info("refused by vLLM: %s, field %s", type(error).__name__, param)
    field = f"`{param}`" if param else "a parameter"
    return InvalidRequest(f"The engine cannot take this request: {field} is impossible.", param=param)


def _broken(request: PreparedRequest, reason: str, started: bool) -> Exception:
    """An end that vLLM calls neither stop nor length."""
    if reason == "error" and request.json_format is not None and not started:
        message = "The JSON Schema cannot be compiled into a grammar. Simplify it."
        return InvalidRequest(message, param="response_format")
    return EngineFailed("The engine stopped this generation before its end.")
