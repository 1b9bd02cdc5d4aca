"""The server process with a scripted engine in place of vLLM, whose choices last until their limit of tokens."""

import asyncio
import itertools
import multiprocessing
import signal
import sys
from collections.abc import Iterator

from serving import settings, telemetry
from serving.core import PreparedRequest
from serving.engine.base import Engine
from serving.engine.scripted import ScriptedEngine
from serving.server import serve

STEP_S = 0.005


def endless(request: PreparedRequest) -> Iterator[str]:
    """Words without an end."""
    return (f" {number}" for number in itertools.count())


async def pace(request: PreparedRequest, number: int) -> None:
    """Tokens come as a busy engine's do, so that signals arrive while they do."""
    await asyncio.sleep(STEP_S)


async def load() -> Engine:
    # As vLLM's engines do, with a process that would outlive this one.
    multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True).start()
    return ScriptedEngine(endless, context_tokens=4096, gate=pace)


if __name__ == "__main__":
    telemetry.configure_logging("text")
    configured = settings.load()
    sys.exit(serve(configured, {model.id: load for model in configured.models}))
