"""A deterministic engine that says what a script says: for tests and for load on the front end alone.

No model, no tokenizer, no vLLM: token ids stand for nothing. It keeps every promise of the Engine port (stop strings
and tokens, limits, abort, death), so that what passes over it may pass over a real engine: the contract suite runs over
both. It does not honour `min_tokens`, sampling or schemas.
"""

import asyncio
import contextlib
import itertools
import random
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from serving.core import Delta, Event, Finished, FinishReason, PreparedRequest, Started, TokenLogprob, Usage
from serving.engine.limits import MOST_LOGPROBS, Model, check
from serving.errors import EngineFailed, InvalidRequest, ServingError

Chunk: TypeAlias = str | tuple[str, tuple[int, ...]]
"""What one delta says: a text (one token, its id a hash of the text), or a text and its token ids. An empty text with
an id and then a text is a character split over tokens. A stop token is a chunk of its own."""
Script: TypeAlias = Callable[[PreparedRequest], Iterable[Chunk]]
Gate: TypeAlias = Callable[[PreparedRequest, int], Awaitable[None]]
Ending: TypeAlias = Literal["finished", "aborted", "failed", "refused"]

_VOCABULARY = (
    "the a her his old quiet river door lantern captain garden letter winter road harbour wolf candle stranger waited "
    "whispered turned laughed followed remembered opened crossed lost found under beyond before slowly again"
)


def prose(request: PreparedRequest) -> Iterator[str]:
    """Forty to eighty words that depend on the prompt and the adapter alone."""
    words = _VOCABULARY.split()
    dice = random.Random(zlib.crc32((repr(request.token_ids) + (request.adapter or "")).encode()))
    for number in range(dice.randint(40, 80)):
        word = dice.choice(words)
        yield word.capitalize() if number == 0 else f" {word}"
    yield "."


@dataclass(slots=True)
class _Text:
    """The text of one choice so far: holds back what may be the beginning of a stop string, as vLLM does."""

    stops: tuple[str, ...]
    include_stop: bool
    pending: str = ""
    stop: str | None = None

    def add(self, text: str) -> str:
        """What may be told now; `stop` is set once one matches, and the text ends there."""
        self.pending += text
        found = [(at + len(stop), at, stop) for stop in self.stops if (at := self.pending.find(stop)) >= 0]
        if found:
            end, begin, self.stop = min(found, key=lambda match: match[0])
            told, self.pending = self.pending[: end if self.include_stop else begin], ""
            return told
        held = max(map(len, self.stops), default=1) - 1
        at = max(0, len(self.pending) - held)
        told, self.pending = self.pending[:at], self.pending[at:]
        return told

    def flush(self) -> str:
        told, self.pending = self.pending, ""
        return told


class ScriptedEngine:
    """Says `script(request)`. For assertions: `asked` holds every request, `ended` how each one came to its end.

    `gate` is awaited before every delta (request, number of the delta): a test holds a stream there on an Event.
    `refuse` returns the error to raise before the first event. `die_after`: the engine dies before its n-th delta.
    `adapters` are those that it can use; `read` holds the names of those that it was told to read.
    """

    def __init__(
        self,
        script: Script = prose,
        *,
        context_tokens: int = 8192,
        vocab_size: int = 128_256,
        eos_token_ids: tuple[int, ...] = (),
        cached_tokens: int = 0,
        gate: Gate | None = None,
        refuse: Callable[[PreparedRequest], ServingError | None] | None = None,
        die_after: int | None = None,
        decode: Callable[[int], str] = lambda token_id: f"<{token_id}>",
        adapters: Collection[str] = (),
    ) -> None:
        self._script = script
        self._model = Model(vocab_size, context_tokens, MOST_LOGPROBS)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._cached_tokens = cached_tokens
        self._gate = gate
        self._refuse = refuse
        self._die_after = die_after
        self._decode = decode
        self._adapters = adapters
        self._dead = asyncio.Event()
        self._deltas = itertools.count(1)
        self._in_flight = 0
        self.asked: list[PreparedRequest] = []
        self.ended: list[tuple[PreparedRequest, Ending]] = []
        self.read: list[str] = []

    @property
    def context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self._model.context_tokens

    @property
    def unfinished(self) -> int:
        """Choices begun and not ended."""
        return self._in_flight

    @property
    def endings(self) -> list[Ending]:
        """How the generations ended, in the order they did."""
        return [ending for _, ending in self.ended]

    async def generate(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        """Generate one choice. Raises InvalidRequest (before the first event), EngineFailed."""
        self.asked.append(request)
        self._in_flight += 1
        ending: Ending = "aborted"
        try:
            self._alive()
            check(request, self._model)
            if request.adapter is not None:
                self._check_adapter(request.adapter)
            refused = self._refuse(request) if self._refuse is not None else None
            if refused is not None:
                raise refused
            async with contextlib.aclosing(self._say(request)) as events:
                async for event in events:
                    if type(event) is Finished:
                        ending = "finished"
                    yield event
        except EngineFailed:
            ending = "failed"
            raise
        except ServingError:
            ending = "refused"
            raise
        finally:
            self._in_flight -= 1
            self.ended.append((request, ending))

    async def load_adapter(self, name: str) -> None:
        """Remember that it was asked for. Raises InvalidRequest, EngineFailed."""
        self._alive()
        self._check_adapter(name)
        self.read.append(name)

    def _check_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise InvalidRequest(f"The adapter {name} cannot be loaded: the script has none.", param="model")

    async def _say(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        prompt_tokens, completion_tokens = len(request.token_ids), 0
        cached_tokens = min(self._cached_tokens, prompt_tokens - 1)
        yield Started(request.index, prompt_tokens, cached_tokens, self._prompt_logprobs(request))
        text = _Text(request.stop, request.include_stop)
        stop_ids = frozenset(request.stop_token_ids) | (frozenset() if request.ignore_eos else self._eos_token_ids)
        reason: FinishReason = "length"
        chunks = iter(self._script(request)) if request.max_tokens else iter(())
        for number in itertools.count():
            if completion_tokens >= request.max_tokens:
                break
            await self._next(request, number)
            chunk = next(chunks, None)
            if chunk is None:
                reason = "stop"
                break
            said, token_ids = self._cut(chunk, request.max_tokens - completion_tokens)
            completion_tokens += len(token_ids)
            stopped = not stop_ids.isdisjoint(token_ids)
            told = text.add("" if stopped else said)
            if stopped or text.stop is not None or completion_tokens >= request.max_tokens:
                told += text.flush()
            yield Delta(request.index, told, token_ids, self._logprobs(request, token_ids))
            if stopped or text.stop is not None:
                reason = "stop"
                break
        if text.pending:
            yield Delta(request.index, text.flush(), ())
        usage = Usage(prompt_tokens, cached_tokens, completion_tokens)
        yield Finished(request.index, reason, usage, text.stop)

    async def _next(self, request: PreparedRequest, number: int) -> None:
        """Until the next delta may be said, or the engine is dead."""
        if next(self._deltas) == self._die_after:
            self.die()
        if self._gate is None:
            await asyncio.sleep(0)
        else:
            gate = asyncio.ensure_future(self._gate(request, number))
            death = asyncio.ensure_future(self._dead.wait())
            try:
                await asyncio.wait({gate, death}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (gate, death):
                    if not task.done():
                        task.cancel()
        self._alive()

    def _cut(self, chunk: Chunk, left: int) -> tuple[str, tuple[int, ...]]:
        """A chunk as text and ids, no more of them than are `left` of max_tokens, with as large a part of the text."""
        if isinstance(chunk, str):
            return chunk, (zlib.crc32(chunk.encode()) % self._model.vocab_size,)
        text, token_ids = chunk
        if len(token_ids) <= left:
            return chunk
        return text[: len(text) * left // len(token_ids)], token_ids[:left]

    def _logprobs(self, request: PreparedRequest, token_ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        if request.logprobs is None:
            return ()
        return tuple(self._logprob(token_id, request.logprobs) for token_id in token_ids)

    def _logprob(self, token_id: int, alternatives: int) -> TokenLogprob:
        """The token at -0.5, as the best of its alternatives; the next ids follow, each 1.0 less likely."""
        ranked = (((token_id + rank) % self._model.vocab_size, -0.5 - rank) for rank in range(alternatives))
        top = tuple(TokenLogprob(other, self._decode(other), logprob) for other, logprob in ranked)
        return TokenLogprob(token_id, self._decode(token_id), -0.5, top)

    def _prompt_logprobs(self, request: PreparedRequest) -> tuple[TokenLogprob, ...]:
        if not request.prompt_logprobs:
            return ()
        first, *rest = request.token_ids
        told = (self._logprob(token_id, request.logprobs or 0) for token_id in rest)
        return (TokenLogprob(first, self._decode(first), None), *told)

    def _alive(self) -> None:
        if self._dead.is_set():
            raise EngineFailed("The engine died. Nothing in the request is wrong; try again later.")

    def die(self) -> None:
        """Fail everything in flight, and everything after, with EngineFailed."""
        self._dead.set()

    async def check_health(self) -> None:
        """Raises EngineFailed when the engine is dead."""
        self._alive()

    async def wait_dead(self) -> None:
        """Returns once the engine is dead or shut down."""
        await self._dead.wait()

    async def shutdown(self) -> None:
        """Like death. May be called twice."""
        self._dead.set()
