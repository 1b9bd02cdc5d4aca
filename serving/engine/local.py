"""The engine in this process: vLLM's AsyncLLM behind the Engine port.

vLLM's processes are `process`'s. What is said to vLLM and what it says is translated in `translate`; what could harm it
is refused by `limits`.

Importing this module imports vllm (about ten seconds): do it in a thread, as `registry.local` does.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil
from vllm.v1.engine.async_llm import AsyncLLM

from serving.core import AnswerFormat, Event, JsonFormat, PreparedRequest, Sampling
from serving.engine.arguments import adapter_arguments, adapter_room
from serving.engine.distribution import distribution
from serving.engine.limits import MOST_LOGPROBS, Model, check
from serving.engine.loras import Loras
from serving.engine.process import VllmProcess
from serving.engine.structure import Structures
from serving.engine.translate import events, invalid
from serving.errors import InvalidRequest
from serving.sampling.base import adapters
from serving.sampling.chain import Chain
from serving.sampling.source import load_vocabulary


class LocalEngine(VllmProcess):
    """One model on this machine that generates. Make it with `load`; it belongs to the event loop that loaded it."""

    def __init__(self, llm: AsyncLLM, processes: list[psutil.Process]) -> None:
        super().__init__(llm, processes)
        config: Any = llm.model_config
        vocab_size = config.get_vocab_size()
        logprobs = config.max_logprobs if config.max_logprobs >= 0 else MOST_LOGPROBS
        self._model = Model(vocab_size, config.max_model_len, logprobs)
        self._chain: Chain | None = None
        self._structures = Structures()
        self._loras = Loras(self._open, None, 0, self.wait_dead)

    @classmethod
    async def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        engine: Mapping[str, Any] | None = None,
        loras: Path | None = None,
    ) -> Self:
        """As for any engine; `loras` is the folder of the model's adapters."""
        given = dict(engine or {})
        adapters = await asyncio.to_thread(adapter_arguments, loras, given)
        self = await super().load(model, revision=revision, engine=given | adapters)
        if loras is not None:
            llm: Any = self._open()
            self._loras = Loras(self._open, loras, adapter_room(llm.vllm_config.lora_config), self.wait_dead)
        return self

    @staticmethod
    def _configure(config: Any) -> None:  # noqa: ANN401  # VllmConfig, which has no types here
        # Only now is it known which model runner will load them.
        own = config.model_config.logits_processors or []
        config.model_config.logits_processors = [*own, *adapters(use_v2=config.use_v2_model_runner)]

    async def _warm_up(self) -> None:
        request = PreparedRequest("warm-up", 0, (0,), Sampling(temperature=0.0), max_tokens=1)
        async for _ in self.generate(request):
            pass

    @property
    def context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self._model.context_tokens

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._model.vocab_size

    async def generate(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        """Generate one choice. Raises InvalidRequest (before the first event), Overloaded, EngineFailed."""
        llm = self._open()
        check(request, self._model)
        vllm_id = self._id(f"{request.request_id}-{request.index}")
        with self._asking(partial(invalid, request)):
            grammar = await self._grammar(request.answer_format)
            async with self._loras.use(request.adapter) as lora:
                if request.distribution is None:
                    said = events(llm, request, vllm_id, lora, grammar)
                else:
                    said = distribution(llm, request, vllm_id, lora, self._model, self._host_chain)
                async with contextlib.aclosing(said) as told:
                    async for event in told:
                        yield event

    async def load_adapter(self, name: str) -> None:
        """Read an adapter's files, again if they were read before: for choices that begin from now on. Raises
        InvalidRequest that says why it cannot be used, Overloaded, EngineFailed."""
        self._open()
        with self._asking(lambda error: InvalidRequest(str(error), param="model")):
            await self._loras.load(name)

    async def _grammar(self, wanted: AnswerFormat | None) -> str | None:
        if wanted is None or wanted == JsonFormat():
            return None
        return await self._structures.grammar(wanted)

    def _host_chain(self) -> Chain:
        """Blocks when it is called first: reads files."""
        if self._chain is None:
            config: Any = self._llm.vllm_config
            self._chain = Chain(load_vocabulary(config), penalty_first=config.use_v2_model_runner)
        return self._chain
