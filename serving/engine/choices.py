"""Several choices of one request as one stream of events. It knows nothing of what the events say."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from serving.core import Event, PreparedRequest
from serving.engine.base import Engine

MOST_IN_A_ROW = 128
"""Events that are handed on before others get their turn: a queue that holds something is read without a pause, and
after 128 prompts were begun it held 8,000 (25 ms)."""


async def generate_choices(engine: Engine, requests: Sequence[PreparedRequest]) -> AsyncGenerator[Event, None]:
    """The events of all `requests` as they come; in order within a choice, interleaved between them.

    The first failure ends all. Closing the generator aborts all, and waits until they are aborted.
    """
    if len(requests) == 1:
        async with aclosing(engine.generate(requests[0])) as events:
            async for event in events:
                yield event
        return
    # Unbounded, but each choice is bounded by its max_tokens.
    queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
    tasks: list[asyncio.Task[None]] = []
    try:
        for request in requests:
            tasks.append(asyncio.create_task(_forward(engine, request, queue)))
            # An engine looks at every token of a prompt when it takes it: others get their turn in between.
            await asyncio.sleep(0)
        handed, running = 0, len(tasks)
        while running:
            handed += 1
            if handed % MOST_IN_A_ROW == 0:
                await asyncio.sleep(0)
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(
    engine: Engine, request: PreparedRequest, queue: "asyncio.Queue[Event | BaseException | None]"
) -> None:
    """Put one choice's events into `queue`, then None, or the error that ended it."""
    try:
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                queue.put_nowait(event)
    except Exception as error:  # noqa: BLE001  # handed to the reader of the queue, who raises it
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
