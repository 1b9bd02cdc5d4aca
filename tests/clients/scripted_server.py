"""The server process with scripted engines in place of vLLM: `opus-v1-xl` tells a line, `opus-v1-lg` breaks in it."""

import sys
from collections.abc import Iterator, Mapping
from functools import partial

from serving import settings, telemetry
from serving.core import PreparedRequest
from serving.engine.base import Engine
from serving.engine.scripted import Script, ScriptedEngine
from serving.errors import EngineFailed
from serving.server import serve

LINE = "The tide is with us, said the captain, and she set the sail."


def tell(request: PreparedRequest) -> Iterator[str]:
    first, *words = LINE.split()
    yield first
    yield from (f" {word}" for word in words)


def break_off(request: PreparedRequest) -> Iterator[str]:
    yield "The tide"
    raise EngineFailed("The engine broke.")


SCRIPTS: Mapping[str, Script] = {"opus-v1-xl": tell, "opus-v1-lg": break_off}


async def load(script: Script) -> Engine:
    return ScriptedEngine(script, context_tokens=4096)


if __name__ == "__main__":
    telemetry.configure_logging("text")
    sys.exit(serve(settings.load(), {model: partial(load, script) for model, script in SCRIPTS.items()}))
