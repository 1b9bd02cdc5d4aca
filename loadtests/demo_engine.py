"""The demo model behind a real engine in this process, for benchmarks of the samplers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from serving.core import Delta, PreparedRequest
from serving.engine.local import LocalEngine
from serving.prompting.prepare import Prompting
from serving.settings import DEMO_MODEL_DIR


@asynccontextmanager
async def demo_engine() -> AsyncIterator[tuple[LocalEngine, Prompting]]:
    """The engine, shut down at the end, and what prepares requests for it."""
    prompting = Prompting.load(str(DEMO_MODEL_DIR))
    engine = await LocalEngine.load(str(DEMO_MODEL_DIR))
    try:
        yield engine, prompting
    finally:
        await engine.shutdown()


async def generate_all(engine: LocalEngine, requests: Sequence[PreparedRequest]) -> list[list[int]]:
    """The token ids of all choices, generated at once."""
    return await asyncio.gather(*(_generate(engine, request) for request in requests))


async def _generate(engine: LocalEngine, request: PreparedRequest) -> list[int]:
    ids: list[int] = []
    async for event in engine.generate(request):
        if isinstance(event, Delta):
            ids += event.token_ids
    return ids
