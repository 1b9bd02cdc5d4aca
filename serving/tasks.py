"""The one path of a task: work with one result, such as embeddings.

    authenticate -> wire -> translate -> [ prepare -> plan limits -> hold -> slot -> perform -> settle ] -> translate

The part in brackets is here, as that of a generation is in `pipeline`, whose laws it keeps. A task that brought no
result, since it failed or its caller is gone, costs what was told of it: what an engine had done beside that nobody can
use.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from serving import telemetry
from serving.admission import Admission
from serving.core import Caller, Hold, Plan, Price, Receipt, Usage
from serving.core.tasks import Draw, Heard, PreparedTask, Result, TaskRequest
from serving.engine.base import OnHeard, TaskEngine
from serving.errors import InvalidRequest, PromptTooLong, ServingError, UnknownModel
from serving.ledger.base import Ledger
from serving.pipeline import Granted, reserve, uncancelled


class TaskEngines(Protocol):
    """Where the engines of tasks are found by model id."""

    def task(self, model: str) -> TaskEngine:
        """Raises Overloaded while the model loads, EngineFailed when it is gone."""
        ...


@dataclass(frozen=True, slots=True)
class TaskModel:
    """What the path must know of a model beside its engine. `prepare` counts what a task can use, and raises
    InvalidRequest for one that is impossible."""

    id: str
    price: Price
    prepare: Callable[[TaskRequest[Any]], Awaitable[PreparedTask[Any]]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one image costs by its size, in microcredits, the size of requests that name none first."""

    microcredits: Mapping[str, int]

    async def prepare(self, request: TaskRequest[Draw]) -> PreparedTask[Draw]:
        """Its units are images. Raises InvalidRequest for a size that is not here."""
        size = request.work.size or next(iter(self.microcredits))
        if size not in self.microcredits:
            raise InvalidRequest(f"size must be one of {', '.join(self.microcredits)}, or auto.", param="size")
        price = Price(input_per_1k=1000 * self.microcredits[size])
        work = replace(request.work, size=size)
        return PreparedTask(request.request_id, work, units=work.n, price=price)


@dataclass(slots=True)
class _Meter:
    """The units of what was told so far; None before anything was."""

    on_heard: OnHeard | None
    units: int | None = None

    async def tell(self, heard: Heard) -> None:
        assert self.on_heard is not None
        self.units = heard.units
        await self.on_heard(heard)


class Tasks:
    """Tasks for all dialects."""

    def __init__(
        self, models: Mapping[str, TaskModel], engines: TaskEngines, ledger: Ledger, admission: Admission
    ) -> None:
        self._models = models
        self._engines = engines
        self._ledger = ledger
        self._admission = admission

    async def perform(
        self,
        caller: Caller,
        request: TaskRequest[Any],
        *,
        on_hold: Callable[[Granted], None] = lambda granted: None,
        on_heard: OnHeard | None = None,
        revoked: asyncio.Future[ServingError] | None = None,
    ) -> tuple[Result, Receipt]:
        """The result, and what was charged for it. Cancelling this aborts the engine and charges what was heard.

        `on_hold` and `revoked` are as for a generation, and so is what is raised. `on_heard` is as for the engine.
        """
        began_s = time.monotonic()
        model = self._models.get(request.model)
        if model is None or not caller.may_use(request.model):
            raise UnknownModel("There is no such model for this key.", param="model")
        engine = self._engines.task(model.id)
        task = await model.prepare(request)
        check_context(caller.plan, task)
        worst_case = Usage(prompt_tokens=task.units)
        price = task.price or model.price
        hold = await reserve(self._ledger, caller, request.request_id, model.id, price, worst_case)
        meter = _Meter(on_heard)
        reason = "disconnect"
        try:
            on_hold(Granted(hold))
            with self._admission.slot(1):
                outcome = await engine.perform(task, meter.tell if on_heard else None)
            meter.units = outcome.units
            reason = "finish"
        except Exception:
            reason = "error"
            raise
        finally:
            if reason == "disconnect" and revoked is not None and revoked.done():
                reason = "revoked"
            receipt = await uncancelled(self._close(hold, meter.units, reason))
            telemetry.UNITS.labels(model.id).inc(receipt.usage.prompt_tokens)
            telemetry.MICROCREDITS.labels(model.id).inc(receipt.cost)
            telemetry.DURATION.labels(model.id).observe(time.monotonic() - began_s)
        return outcome.result, receipt

    async def _close(self, hold: Hold, units: int | None, reason: str) -> Receipt:
        """Charge the units of what was told; when that is nothing the hold is given back."""
        if units is None:
            await self._ledger.release(hold)
            reason, receipt = "release", Receipt(hold.request_id, Usage(), 0)
        else:
            receipt = await self._ledger.settle(hold, Usage(prompt_tokens=units), reason)
        telemetry.SETTLES.labels(reason).inc()
        return receipt


def check_context(plan: Plan, task: PreparedTask[Any]) -> None:
    """Refuse a text longer than the plan's context."""
    limit = plan.max_context_tokens
    if limit is not None and task.longest_tokens > limit:
        message = f"An input has {task.longest_tokens} tokens, and the context of this plan is {limit}: shorten it."
        raise PromptTooLong(message, param="input")
