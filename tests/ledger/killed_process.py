"""A process that serves one request on the credit ledger, and is killed at a step of it: for test_kill_points.py.

python -m tests.ledger.killed_process POINT URL FOLDER
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from loadtests.ledger_app import Tallied, Tally
from serving.admission import Admission
from serving.core import Caller, GenerationRequest, Plan, PreparedRequest, Price, RawPrompt, Stopping
from serving.engine.scripted import ScriptedEngine
from serving.ledger.outbox import Outbox
from serving.ledger.redis import RedisLedger
from serving.ledger.scripts import SCRIPTS
from serving.ledger.store import Store
from serving.pipeline import Pipeline, ServedModel
from serving.prompting.prepare import Prompting
from serving.settings import DEMO_MODEL_DIR
from tests.ledger.servers import DEADLINE_S

REQUEST, TOKENS, TOLD_AT = f"{1:032}", 10, 5
"""The request has so many tokens in the end, and tells the store how far it is when it has `TOLD_AT`."""
LEASE_S = 0.2
CALLER = Caller("alice", "key_1", Plan("free", monthly_credits=0))
PRICE = Price(1000, 500, 2000)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DeadlyStore(Store):
    """Kills the process before or behind a script."""

    point = ""

    async def run(self, script: str, tag: str, *arguments: str | int) -> list[str]:
        if self.point == f"before {script}":
            die()
        answer = await super().run(script, tag, *arguments)
        if self.point == f"behind {script}":
            die()
        return answer


class LateStore(DeadlyStore):
    """Never sends a settle, so that the outbox has it on the disk first."""

    async def run(self, script: str, tag: str, *arguments: str | int) -> list[str]:
        if script == "settle":
            await asyncio.Event().wait()
        return await super().run(script, tag, *arguments)


def synced_then_dead(file: int) -> None:
    os.fdatasync(file)
    die()


def gate(point: str, ledger: Callable[[], RedisLedger]) -> Callable[[PreparedRequest, int], Awaitable[None]]:
    """Kills before a token; tells the store how far the request is before token TOLD_AT."""

    async def wait(request: PreparedRequest, number: int) -> None:
        if number == TOLD_AT:
            await ledger().extend()
        if point == f"token {number}":
            die()

    return wait


async def serve(point: str, url: str, folder: Path) -> None:
    in_outbox = point == "settle on the disk"
    store = (LateStore if in_outbox else DeadlyStore)(url, DEADLINE_S, SCRIPTS)
    store.point = point
    outbox = Outbox(folder / "outbox", sync=synced_then_dead if in_outbox else os.fdatasync)
    ledger = RedisLedger(store, outbox, lease_s=LEASE_S)
    engine = ScriptedEngine(lambda request: ["word"] * TOKENS, gate=gate(point, lambda: ledger), vocab_size=3000)
    tallied = Tallied(engine, Tally(folder / "tally"))
    models = {"m": ServedModel("m", Prompting.load(str(DEMO_MODEL_DIR)), PRICE)}
    pipeline = Pipeline(models, _Engines(tallied), ledger, Admission(1))
    asked = GenerationRequest(REQUEST, "m", (RawPrompt("Once upon a time"),), stopping=Stopping(max_tokens=20))
    async for _ in pipeline.generate(CALLER, asked):
        pass
    if point == "when it is over":
        die()


class _Engines:
    def __init__(self, engine: Tallied) -> None:
        self._engine = engine

    def get(self, model: str) -> Tallied:
        return self._engine

    def use(self, model: str) -> AbstractContextManager[Tallied]:
        return nullcontext(self._engine)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
