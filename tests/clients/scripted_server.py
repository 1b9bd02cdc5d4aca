"""The server process with scripted engines in place of vLLM: `opus-v1-xl` tells a line, `opus-v1-lg` breaks in it."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from functools import partial

from serving import settings, telemetry
from serving.core import PreparedRequest
from serving.engine.base import Engine
from serving.engine.scripted import Script, ScriptedEngine
from serving.errors import EngineFailed
from serving.server import serve

LINE = (
    "The tide is with us, said the captain, and she set the sail. Behind them the harbour grew small, and before them "
    "lay the open sea, as wide as the sky and as quiet as a sleeping child."
)
"""Longer than what stop strings hold back."""


def tell(request: PreparedRequest) -> Iterator[str]:
    first, *words = LINE.split()
    yield first
    yield from (f" {word}" for word in words)


def break_off(request: PreparedRequest) -> Iterator[str]:
    yield "The tide"
    raise EngineFailed("The engine broke.")


SCRIPTS: Mapping[str, Script] = {"opus-v1-xl": tell, "opus-v1-lg": break_off}


async def pace(request: PreparedRequest, number: int) -> None:
    """Slow enough for a page to show the answer grow."""
    await asyncio.sleep(0.05)


async def load(script: Script) -> Engine:
    return ScriptedEngine(script, context_tokens=4096, gate=pace)


if __name__ == "__main__":
    telemetry.configure_logging("text")
    sys.exit(serve(settings.load(), {model: partial(load, script) for model, script in SCRIPTS.items()}))
