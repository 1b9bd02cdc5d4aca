"""A pipeline over a scripted engine and a ledger in memory that is as slow as a store: what its tests are made of."""

import asyncio
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter

from serving.admission import Admission
from serving.core import (
    Caller,
    Event,
    GenerationRequest,
    Hold,
    Plan,
    Price,
    RawPrompt,
    Receipt,
    Stopping,
    Usage,
)
from serving.engine.base import Engine
from serving.engine.scripted import Chunk, ScriptedEngine
from serving.ledger.base import Key
from serving.ledger.memory import MemoryLedger
from serving.pipeline import Granted, Pipeline, ServedModel
from serving.prompting.prepare import Prompting
from tests.service import LLAMA3, PRICE

CALLER = Caller("alice", "key_1")
PROMPTING = Prompting.load(str(LLAMA3), template="llama3-writer")
PROMPT_TOKENS = 5
"""Of `request()`: BOS and a token for each letter of its prompt."""


@dataclass
class SlowLedger:
    """The ledger in memory, as far away as a store: each call waits before it acts, and after. It notes every call."""

    inner: MemoryLedger = field(default_factory=MemoryLedger)
    calls: list[str] = field(default_factory=list)
    settled: list[Usage] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    noted: list[Usage] = field(default_factory=list)

    async def hold(self, caller: Caller, request_id: str, model: str, price: Price, worst_case: Usage) -> Hold:
        await self._open(caller)
        await asyncio.sleep(0)
        hold = await self.inner.hold(caller, request_id, model, price, worst_case)
        self.calls.append("hold")
        return hold

    async def _open(self, caller: Caller) -> None:
        """Callers have an account and a key when they first come."""
        if await self.inner.account(caller.account) is None:
            await self.inner.open_account(caller.account, caller.plan.id)
            await self.inner.add_key(Key(caller.key_id, caller.account, "a key", "sk-story-...", caller.key_id))

    def note(self, hold: Hold, usage: Usage) -> None:
        self.noted.append(usage)
        self.inner.note(hold, usage)

    async def settle(self, hold: Hold, usage: Usage, reason: str) -> Receipt:
        await asyncio.sleep(0)
        self.calls.append("settle")
        self.settled.append(usage)
        self.reasons.append(reason)
        receipt = await self.inner.settle(hold, usage, reason)
        await asyncio.sleep(0)
        return receipt

    @property
    def waiting(self) -> int:
        return self.inner.waiting

    async def release(self, hold: Hold) -> None:
        await asyncio.sleep(0)
        self.calls.append("release")
        await self.inner.release(hold)
        await asyncio.sleep(0)

    @property
    def is_resolved(self) -> bool:
        """Every hold was settled or released, once."""
        ends = len(self.calls) - self.calls.count("hold")
        return not self.inner._open and ends == self.calls.count("hold")


@dataclass
class Path:
    """A pipeline over a scripted engine, and what stands around it."""

    engine: ScriptedEngine
    ledger: SlowLedger = field(default_factory=SlowLedger)
    admission: Admission = field(default_factory=lambda: Admission(100))
    granted: list[Granted] = field(default_factory=list)

    def get(self, model: str) -> Engine:
        return self.engine

    def use(self, model: str) -> AbstractContextManager[Engine]:
        return nullcontext(self.engine)

    @property
    def pipeline(self) -> Pipeline:
        models = {"m": ServedModel("m", PROMPTING, PRICE)}
        return Pipeline(models, self, self.ledger, self.admission)

    async def run(self, asked: GenerationRequest, caller: Caller = CALLER) -> list[Event | Receipt]:
        async with aclosing(self.pipeline.generate(caller, asked, on_hold=self.granted.append)) as events:
            return [event async for event in events]

    def assert_at_rest(self) -> None:
        assert self.ledger.is_resolved
        assert self.admission.running_choices == 0
        assert self.engine.unfinished == 0


def with_credit(amount: int) -> Caller:
    """A caller whose account has so many microcredits."""
    return Caller("alice", "key_1", Plan("metered", monthly_credits=amount))


def path(*chunks: Chunk, **kwargs: Any) -> Path:  # noqa: ANN401  # those of ScriptedEngine
    return Path(ScriptedEngine(lambda request: chunks, vocab_size=832, **kwargs))


def request(n: int = 1, max_tokens: int | None = None, **fields: Any) -> GenerationRequest:  # noqa: ANN401  # its own
    stopping = Stopping(max_tokens=max_tokens)
    return GenerationRequest("r", "m", (RawPrompt("Once"),), n=n, stopping=stopping, **fields)


def counted(series: Counter) -> dict[tuple[str, ...], float]:
    """The values of a series by its labels."""
    samples = next(iter(series.collect())).samples
    return {tuple(sample.labels.values()): sample.value for sample in samples if sample.name.endswith("_total")}
