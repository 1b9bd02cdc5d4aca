"""The one path of a generation. Read this file first.

    authenticate -> wire -> translate -> [ plan limits -> prepare -> hold -> slot -> generate -> settle ] -> translate

The part in brackets is here; `dialects/http.py` does what stands around it. This module decides nothing about wire
formats, prompts, sampling or money: it puts those who do in order. It keeps the law of settling: whatever happens
after the hold, what was generated is settled, once, also when the caller is gone.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from serving import telemetry
from serving.admission import Admission
from serving.core import (
    Caller,
    ChatPrompt,
    Delta,
    Event,
    Finished,
    GenerationRequest,
    Hold,
    Plan,
    PreparedRequest,
    Price,
    Receipt,
    Started,
    TemplatePrompt,
    Usage,
)
from serving.engine.base import Engine
from serving.engine.choices import generate_choices
from serving.errors import InsufficientCredit, InvalidRequest, PromptTooLong, ServingError, UnknownModel
from serving.ledger.base import Ledger
from serving.prompting.prepare import Prompting
from serving.prompting.reader import TextReader
from serving.sampling.base import SAMPLERS

_MOST_LOGPROBS = 262_144
"""Per request, alternatives included: some 100 MB of objects and 20 MB of JSON."""

_ECHO_SLICE = 256
"""Tokens: telling so many logprobs holds the event loop for some milliseconds."""

T = TypeVar("T")


class Engines(Protocol):
    """Where engines are found by model id."""

    def get(self, model: str) -> Engine:
        """Raises Overloaded while the model loads, EngineFailed when it is gone."""
        ...

    def use(self, model: str) -> AbstractContextManager[Engine]:
        """The same, for work on it: an engine whose place another takes is not ended before all such work is over."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the pipeline must know of a model beside its engine."""

    id: str
    prompting: Prompting
    price: Price


@dataclass(frozen=True, slots=True)
class Granted:
    """What may be told of a hold. `clamped_to`: the completion tokens of each choice, when credit pays for no more."""

    hold: Hold
    clamped_to: int | None = None


class Meter:
    """What a request has used so far, by the engine's own count of token ids, and when. The prompt counts once."""

    def __init__(self, model: str, choices: Sequence[PreparedRequest], began_s: float) -> None:
        self._model = model
        self._choices = choices
        self._began_s = began_s
        self._chunk_at_s: dict[int, float] = {}
        self._tokens: Counter[int] = Counter()
        self._finished: set[int] = set()
        self._between_chunks = telemetry.BETWEEN_CHUNKS.labels(model)
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    @property
    def started(self) -> bool:
        """Whether the engine took a choice."""
        return bool(self._chunk_at_s)

    @property
    def usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._cached_tokens, self._completion_tokens)

    def add(self, event: Event) -> None:
        """Count one event of the engine."""
        now_s = time.monotonic()
        if isinstance(event, Delta):
            self._completion_tokens += len(event.token_ids)
            self._tokens[event.index] += len(event.token_ids)
            self._between_chunks.observe(now_s - self._chunk_at_s[event.index])
            self._chunk_at_s[event.index] = now_s
        elif isinstance(event, Started):
            if not self.started:
                telemetry.FIRST_TOKEN.labels(self._model).observe(now_s - self._began_s)
            self._chunk_at_s[event.index] = now_s
            if self._choices[event.index].first_of_prompt:
                self._prompt_tokens += event.prompt_tokens
                self._cached_tokens += event.cached_tokens
        else:
            self._finished.add(event.index)

    def end(self) -> Iterator[Event]:
        """The events that end the choices where they are now."""
        for choice in self._choices:
            index, prompt_tokens = choice.index, len(choice.token_ids)
            if index not in self._chunk_at_s:
                yield Started(index, prompt_tokens)
            if index not in self._finished:
                yield Finished(index, "stop", Usage(prompt_tokens, completion_tokens=self._tokens[index]))

    def close(self, cost: int) -> None:
        """Tell the metrics; `cost` is in microcredits."""
        telemetry.TOKENS.labels(self._model, "prompt").inc(self._prompt_tokens)
        telemetry.TOKENS.labels(self._model, "cached").inc(self._cached_tokens)
        telemetry.TOKENS.labels(self._model, "completion").inc(self._completion_tokens)
        telemetry.MICROCREDITS.labels(self._model).inc(cost)
        telemetry.DURATION.labels(self._model).observe(time.monotonic() - self._began_s)


@dataclass(slots=True, eq=False)
class _Running:
    """A generation that its caller may stop."""

    stopped: bool = False


class Pipeline:
    """Generations for all dialects."""

    def __init__(
        self, models: Mapping[str, ServedModel], engines: Engines, ledger: Ledger, admission: Admission
    ) -> None:
        self._models = models
        self._engines = engines
        self._ledger = ledger
        self._admission = admission
        self._running: defaultdict[str, set[_Running]] = defaultdict(set)

    def stop(self, key_id: str) -> None:
        """End the running generations of a key at their next token, as if they were complete."""
        for running in self._running.get(key_id, ()):
            running.stopped = True

    async def generate(
        self,
        caller: Caller,
        request: GenerationRequest,
        *,
        on_hold: Callable[[Granted], None] = lambda granted: None,
        revoked: asyncio.Future[ServingError] | None = None,
    ) -> AsyncGenerator[Event | Receipt, None]:
        """The events of all choices, then the Receipt. Closing the generator aborts the engine and settles.

        `on_hold` is called before the first event. `revoked`, when it is done, is why a generation that is closed or
        cancelled ended; else the caller is gone.

        Raises every ServingError but those of authentication; after the first event only EngineFailed. PlanChanged is
        raised before anything was done: ask again with the caller as it is now.
        """
        began_s = time.monotonic()
        model = self.model(caller, request.model)
        with self._engines.use(model.id) as engine:
            request = within_plan(caller.plan, request)
            prepared = await model.prompting.prepare(request, engine.context_tokens)
            prepared = within_context(caller.plan, request, prepared)
            check_logprobs(prepared)
            worst = worst_case(prepared)
            hold = await reserve(self._ledger, caller, request.request_id, model.id, model.price, worst)
            meter = Meter(model.id, prepared, began_s)
            count_samplers(model.id, prepared)
            reason = "disconnect"
            try:
                share = share_of(prepared, hold)
                prepared = within_hold(prepared, share)
                on_hold(Granted(hold, share))
                with self._admission.slot(len(prepared)):
                    readers = [model.prompting.reader(choice) for choice in prepared]
                    async with aclosing(self._events(caller, engine, prepared, hold, meter)) as events:
                        async for event in events:
                            for told in read(event, readers[event.index], prepared[event.index]):
                                yield told
                reason = "finish"
            except Exception:
                reason = "error"
                raise
            finally:
                if reason == "disconnect" and revoked is not None and revoked.done():
                    reason = "revoked"
                receipt = await uncancelled(self._close(hold, meter, reason))
                meter.close(receipt.cost)
        yield receipt

    async def _events(
        self, caller: Caller, engine: Engine, prepared: Sequence[PreparedRequest], hold: Hold, meter: Meter
    ) -> AsyncGenerator[Event, None]:
        """The engine's events, counted; the last ones are ours when the caller stops the generation."""
        running = _Running()
        self._running[caller.key_id].add(running)
        try:
            async with aclosing(generate_choices(engine, prepared)) as events:
                async for event in events:
                    meter.add(event)
                    self._ledger.note(hold, meter.usage)
                    yield event
                    if running.stopped:
                        break
        finally:
            self._running[caller.key_id].discard(running)
            if not self._running[caller.key_id]:
                del self._running[caller.key_id]
        if running.stopped:  # of an engine that ends too early nobody says that it was complete
            for event in meter.end():
                yield event

    def model(self, caller: Caller, model_id: str) -> ServedModel:
        """Raises UnknownModel, also for a model that the caller may not use."""
        model = self._models.get(model_id)
        if model is None or not caller.may_use(model_id):
            raise UnknownModel("There is no such model for this key.", param="model")
        return model

    def context_tokens(self, model_id: str) -> int:
        """Raises as `Engines.get` does."""
        return self._engines.get(model_id).context_tokens

    async def _close(self, hold: Hold, meter: Meter, reason: str) -> Receipt:
        """Charge what was generated, exactly; give the hold back when the engine never took a choice."""
        if meter.started:
            receipt = await self._ledger.settle(hold, meter.usage, reason)
        else:
            await self._ledger.release(hold)
            reason, receipt = "release", Receipt(hold.request_id, meter.usage, 0)
        telemetry.SETTLES.labels(reason).inc()
        return receipt


async def reserve(ledger: Ledger, caller: Caller, request_id: str, model: str, price: Price, worst: Usage) -> Hold:
    """The hold for a request's worst case, told to the metrics, as a refusal is. Raises as `Ledger.hold` does."""
    try:
        hold = await ledger.hold(caller, request_id, model, price, worst)
    except ServingError as refusal:
        telemetry.REFUSALS.labels(refusal.code).inc()
        raise
    telemetry.HOLDS.inc()
    if not hold.recorded:
        telemetry.UNRECORDED.inc()
    return hold


def within_plan(plan: Plan, request: GenerationRequest) -> GenerationRequest:
    """The request with as many output tokens as the plan allows."""
    asked, limit = request.stopping.max_tokens, plan.max_output_tokens
    if limit is None or (asked is not None and asked <= limit):
        return request
    return replace(request, stopping=replace(request.stopping, max_tokens=limit))


def within_context(plan: Plan, request: GenerationRequest, prepared: list[PreparedRequest]) -> list[PreparedRequest]:
    """The choices, each cut so that its prompt and completion fit into the plan's context. Raises PromptTooLong."""
    limit = plan.max_context_tokens
    if limit is None:
        return prepared
    longest = max(len(choice.token_ids) for choice in prepared)
    if longest >= limit:
        message = f"the prompt has {longest} tokens, and the context of this plan is {limit}: shorten it"
        chat = isinstance(request.prompts[0], ChatPrompt | TemplatePrompt)
        raise PromptTooLong(message, param="messages" if chat else "prompt")
    return [_cut(choice, limit - len(choice.token_ids)) for choice in prepared]


def count_samplers(model: str, prepared: Sequence[PreparedRequest]) -> None:
    """Tell the metrics which samplers this request uses, in any of its choices."""
    rules = [choice.rules for choice in prepared if choice.rules is not None]
    for sampler in SAMPLERS:
        if any(map(sampler.used, rules)):
            telemetry.SAMPLER_REQUESTS.labels(model, sampler.name).inc()


def check_logprobs(prepared: Sequence[PreparedRequest]) -> None:
    """Refuse more logprobs than a process should hold in memory for one request."""
    asked = sum(
        (choice.max_tokens + len(choice.token_ids) * choice.prompt_logprobs) * (choice.logprobs + 1)
        for choice in prepared
        if choice.logprobs is not None
    )
    if asked > _MOST_LOGPROBS:
        message = f"Up to {asked} logprobs are asked for, and at most {_MOST_LOGPROBS} can be: lower max_tokens or n."
        raise InvalidRequest(message, param="logprobs")


def worst_case(prepared: Sequence[PreparedRequest]) -> Usage:
    """The most that the choices can use together: no prompt token cached, every choice as long as it may be."""
    return Usage(
        prompt_tokens=sum(len(choice.token_ids) for choice in prepared if choice.first_of_prompt),
        completion_tokens=sum(choice.max_tokens for choice in prepared),
    )


def share_of(prepared: Sequence[PreparedRequest], hold: Hold) -> int | None:
    """Each choice's share of the completion tokens that the hold pays for; None when it pays for all of them."""
    if hold.usage.completion_tokens >= worst_case(prepared).completion_tokens:
        return None
    return hold.usage.completion_tokens // len(prepared)


def within_hold(prepared: list[PreparedRequest], share: int | None) -> list[PreparedRequest]:
    """The choices, each cut to its share. Raises InsufficientCredit when that is nothing."""
    if share is None:
        return prepared
    if share < 1:
        raise InsufficientCredit(f"The credit left does not pay for one token of each of {len(prepared)} choices.")
    return [_cut(choice, share) for choice in prepared]


def _cut(choice: PreparedRequest, max_tokens: int) -> PreparedRequest:
    """The choice with at most `max_tokens`."""
    if choice.max_tokens <= max_tokens:
        return choice
    min_tokens = min(choice.sampling.min_tokens, max_tokens)
    return replace(choice, max_tokens=max_tokens, sampling=replace(choice.sampling, min_tokens=min_tokens))


def read(event: Event, reader: TextReader | None, choice: PreparedRequest) -> tuple[Event, ...]:
    """What is told of one event: text as the choice's reader leaves it, and the echo as the first of it."""
    told = (event,) if reader is None else reader.on_event(event)
    if isinstance(event, Started) and choice.echo_text is not None:
        told += echo(event, choice.echo_text)
    return told


def echo(event: Started, text: str) -> tuple[Delta, ...]:
    """The prompt as deltas: its text with the first of its logprobs, and the other logprobs in slices."""
    logprobs = event.prompt_logprobs
    if logprobs and not text.startswith(logprobs[0].text):
        # A BOS that the prompt did not spell stands for no text.
        logprobs = (replace(logprobs[0], text=""), *logprobs[1:])
    slices = [logprobs[at : at + _ECHO_SLICE] for at in range(0, len(logprobs), _ECHO_SLICE)] or [()]
    return tuple(Delta(event.index, "" if at else text, (), part) for at, part in enumerate(slices))


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, however often this task is cancelled meanwhile; then honour the cancellation."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()
