"""vLLM's pooling models in this process: vectors of texts, and classes of texts, behind the TaskEngine port.

Token ids in, so that what is charged is what was computed. A long list is given to vLLM a part at a time, lest one task
fill its queue. vLLM's processes are `process`'s.

Importing this module imports vllm (about ten seconds): do it in a thread, as `registry.local_task` does.
"""

import asyncio
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from vllm.inputs import tokens_input
from vllm.pooling_params import PoolingParams

from serving.core.tasks import Classified, Embedded, Outcome, PreparedTask, Result, TokenLists
from serving.engine.base import OnHeard
from serving.engine.process import VllmProcess
from serving.errors import InvalidRequest, PromptTooLong

_AT_ONCE = 32
"""Inputs of one task that vLLM has at the same time."""


class _PoolingEngine(VllmProcess):
    """One model that gives a row of numbers for each input."""

    task: ClassVar[Literal["embed", "classify"]]

    @classmethod
    async def load(cls, model: str, *, revision: str | None = None, engine: Mapping[str, Any] | None = None) -> Self:
        """As for every model. Raises ValueError for one that cannot do this task."""
        return await super().load(model, revision=revision, engine={"runner": "pooling", **(engine or {})})

    async def _warm_up(self) -> None:
        if self.task not in await self._llm.get_supported_tasks():
            raise ValueError(f"the model cannot {self.task}")
        await self.perform(PreparedTask("warm-up", TokenLists(((0,),)), 1))

    async def perform(self, task: PreparedTask[TokenLists], on_heard: OnHeard | None = None) -> Outcome:
        """A row for each input. Raises InvalidRequest, PromptTooLong, EngineFailed, Overloaded."""
        self._open()
        asked = task.work
        await asyncio.to_thread(self._check, asked)
        rows = [array("f")] * len(asked.token_ids)
        waiting = iter(enumerate(asked.token_ids))
        works = [asyncio.create_task(self._work(task, waiting, rows)) for _ in range(min(_AT_ONCE, len(rows)))]
        try:
            await asyncio.gather(*works)
        finally:
            # One that fails, or the caller's going, ends all.
            for work in works:
                work.cancel()
            await asyncio.wait(works)
        return Outcome(self._result(rows), sum(map(len, asked.token_ids)))

    def _check(self, asked: TokenLists) -> None:
        config = self._llm.model_config
        vocab_size, most = config.get_vocab_size(), config.max_model_len
        for index, token_ids in enumerate(asked.token_ids):
            where = f"input[{index}]"
            if len(token_ids) > most:
                message = f"{where} has {len(token_ids)} tokens, and this model takes {most}: shorten it."
                raise PromptTooLong(message, param="input")
            # By type: True among token ids would end vLLM's own reading of requests.
            of_ints = set(map(type, token_ids)) == {int}
            if not of_ints or not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
                message = f"{where} must hold token ids from 0 to {vocab_size - 1}, at least one."
                raise InvalidRequest(message, param="input")

    async def _work(
        self, task: PreparedTask[TokenLists], waiting: Iterator[tuple[int, tuple[int, ...]]], rows: list["array[float]"]
    ) -> None:
        """Do one input after another, as long as one waits."""
        for index, token_ids in waiting:
            params = PoolingParams(task=self.task, dimensions=self._dimensions(task.work))
            with self._asking(_invalid):
                async for output in self._llm.encode(
                    tokens_input(list(token_ids)), params, request_id=self._id(f"{task.request_id}-{index}")
                ):
                    rows[index] = array("f", output.outputs.data.numpy().tobytes())

    def _dimensions(self, asked: TokenLists) -> int | None:
        """What vLLM is told of the vectors' length."""
        return None

    def _result(self, rows: Sequence["array[float]"]) -> Result:
        raise NotImplementedError


class Embedder(_PoolingEngine):
    """A model of vectors. It shortens them (`dimensions`) only where it was trained for it (Matryoshka)."""

    task = "embed"

    def _check(self, asked: TokenLists) -> None:
        super()._check(asked)
        config, wanted = self._llm.model_config, asked.dimensions
        if wanted is None or wanted == config.embedding_size:
            return
        if not config.is_matryoshka:
            message = f"This model's embeddings have {config.embedding_size} dimensions, and cannot be shortened."
            raise InvalidRequest(message, param="dimensions")
        among = config.matryoshka_dimensions
        if wanted > config.embedding_size or (among and wanted not in among):
            told = ", ".join(map(str, among)) if among else f"1 to {config.embedding_size}"
            raise InvalidRequest(f"This model's embeddings can have these dimensions: {told}.", param="dimensions")

    def _dimensions(self, asked: TokenLists) -> int | None:
        return None if asked.dimensions == self._llm.model_config.embedding_size else asked.dimensions

    def _result(self, rows: Sequence["array[float]"]) -> Embedded:
        return Embedded(tuple(rows))


class Classifier(_PoolingEngine):
    """A model of classes, whose names are its configuration's."""

    task = "classify"

    def _result(self, rows: Sequence["array[float]"]) -> Classified:
        labels = self._llm.model_config.hf_config.id2label
        return Classified(tuple({labels[index]: score for index, score in enumerate(row)} for row in rows))


def _invalid(error: BaseException) -> InvalidRequest:
    """vLLM's refusals. Their texts can hold what the caller sent."""
    return InvalidRequest("The engine cannot take this request.", param="input")
