"""The same requests for every engine, and what a test wants to know of the answers.

A request says what must be answered: a schema with one `const` forces a text, a bias forces one token again and again.
A real engine obeys by its samplers, the scripted one by reading the request.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from serving.core import Delta, Event, Finished, JsonFormat, PreparedRequest, Sampling, Started
from serving.engine.base import Engine
from serving.engine.scripted import Chunk, ScriptedEngine, prose

PROMPT = tuple(range(10, 40))
SPECIAL, EOS = 2, 4
"""tests/fixtures/llama3-tiny: <|start_header_id|>, <|eot_id|> (the tokenizer's EOS)."""
SPELLED = {SPECIAL: "<|start_header_id|>", EOS: "<|eot_id|>"}
VOCAB_SIZE, CONTEXT_TOKENS = 832, 2048


class Counting(Engine, Protocol):
    """An engine that can say how much it still has to do."""

    @property
    def unfinished(self) -> int: ...


def ask(*, max_tokens: int = 12, sampling: dict[str, Any] | None = None, **fields: Any) -> PreparedRequest:  # noqa: ANN401
    """A prepared request with a fixed prompt."""
    request = PreparedRequest("r", 0, PROMPT, Sampling(**(sampling or {})), max_tokens)
    return replace(request, **fields)


def forced(token_id: int, **fields: Any) -> PreparedRequest:  # noqa: ANN401
    """A request whose every token is `token_id`."""
    return ask(sampling={"temperature": 0.0, "logit_bias": {token_id: 100.0}}, **fields)


def saying(text: str, **fields: Any) -> PreparedRequest:  # noqa: ANN401
    """A request whose answer is `text` as a JSON string, and then the end."""
    schema = json.dumps({"const": text}, ensure_ascii=False)
    return replace(ask(max_tokens=400, answer_format=JsonFormat(schema)), **fields)


def scripted_answer(request: PreparedRequest) -> Iterator[Chunk]:
    """What the real engine is forced to say: byte by byte, so that characters are split over tokens."""
    if isinstance(request.answer_format, JsonFormat) and request.answer_format.schema is not None:
        text = json.dumps(json.loads(request.answer_format.schema)["const"], ensure_ascii=False)
        for character in text:
            *head, last = character.encode()
            yield from (("", (10 + byte,)) for byte in head)
            yield character, (10 + last,)
    elif request.sampling.logit_bias:
        (token_id,) = request.sampling.logit_bias
        while True:
            yield SPELLED.get(token_id, "x"), (token_id,)
    else:
        yield from prose(request)


def scripted() -> ScriptedEngine:
    """A scripted engine with the measures of the real one."""
    return ScriptedEngine(scripted_answer, context_tokens=CONTEXT_TOKENS, vocab_size=VOCAB_SIZE, eos_token_ids=(EOS, 1))


@dataclass(frozen=True)
class Answer:
    """All events of one choice, whose order and counts were checked."""

    started: Started
    deltas: tuple[Delta, ...]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token_id for delta in self.deltas for token_id in delta.token_ids)


async def answer(engine: Engine, request: PreparedRequest) -> Answer:
    """Generate to the end; checks what the port promises of every stream."""
    events: list[Event] = []
    async with asyncio.timeout(30), streaming(engine, request) as stream:
        async for event in stream:
            events.append(event)  # noqa: PERF401  # the timeout is easier to read around a loop
    started, *between, finished = events
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    deltas = tuple(event for event in between if isinstance(event, Delta))
    assert len(deltas) == len(between)
    assert {event.index for event in events} == {request.index}
    told = Answer(started, deltas, finished)
    assert finished.usage.completion_tokens == len(told.token_ids)
    assert finished.usage.prompt_tokens == started.prompt_tokens == len(request.token_ids)
    assert finished.usage.cached_tokens == started.cached_tokens
    return told


@asynccontextmanager
async def streaming(engine: Engine, request: PreparedRequest) -> AsyncIterator[AsyncGenerator[Event, None]]:
    """The stream, closed at the end."""
    stream = engine.generate(request)
    try:
        yield stream
    finally:
        await stream.aclose()


async def nothing_left(engine: Counting) -> None:
    """Closing has aborted: this side has no unfinished choice now, and the engine's own none within a second."""
    assert engine.unfinished == 0
    llm = getattr(engine, "_llm", None)
    if llm is not None:
        async with asyncio.timeout(1.0):
            # Returns when the engine's own scheduler has nothing left: an answer that still runs would hold it.
            await llm.engine_core.pause_scheduler_async("wait", False)
        await llm.resume_generation()
