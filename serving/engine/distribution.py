"""What the next token may be: the distribution over the whole vocabulary, by vLLM, and what the samplers leave of it.

vLLM tells the model's own log probabilities, whatever the samplers do, so these are applied here: by their references,
in a thread. The token that vLLM draws meanwhile is nobody's. What is asked for and told is as in `translate`.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import numpy as np
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from serving.core import Delta, Event, Finished, PreparedRequest, Started, TokenLogprob, Usage
from serving.engine.translate import finite, outputs
from serving.errors import EngineFailed
from serving.sampling.chain import Chain


async def distribution(
    llm: AsyncLLM, request: PreparedRequest, vllm_id: str, lora: LoRARequest | None, chain: Callable[[], Chain]
) -> AsyncGenerator[Event, None]:
    """The events of a request for a distribution. `chain` blocks. Raises EngineFailed, vLLM's errors."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        # As many as are told need not be more, unless the samplers are to see all.
        logprobs=request.logprobs or 0 if request.distribution == "raw" else -1,
        # Without texts, and not as an object for each of a hundred thousand tokens: both would be made on our loop.
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )
    prompt = tokens_input(list(request.token_ids))
    async with contextlib.aclosing(outputs(llm, prompt, params, vllm_id, lora)) as told:
        async for output in told:
            part = output.outputs[0]
            if part.finish_reason not in ("stop", "length"):
                break
            usage = Usage(len(request.token_ids), output.num_cached_tokens or 0, 1)
            yield Started(request.index, usage.prompt_tokens, usage.cached_tokens)
            best = await asyncio.to_thread(_best, llm.get_tokenizer(), request, part.logprobs, chain)
            (token_id,) = part.token_ids
            yield Delta(request.index, "", (token_id,), (TokenLogprob(token_id, "", None, best),))
            yield Finished(request.index, "length", usage)
            return
    raise EngineFailed("The engine stopped this generation before its end.")


def _best(
    tokenizer: Any,  # noqa: ANN401
    request: PreparedRequest,
    flat: Any,  # noqa: ANN401  # vLLM's FlatLogprobs: the token that was drawn, and then the best ones in order
    chain: Callable[[], Chain],
) -> tuple[TokenLogprob, ...]:
    ids, logprobs = flat.token_ids[1:], flat.logprobs[1:]
    if request.distribution == "sampled":
        row = np.full(chain().size, -math.inf)
        row[ids] = logprobs
        row = chain().apply(row, request)
        ids = np.argsort(-row, kind="stable")[: request.logprobs or 0].tolist()
        ids = [token_id for token_id in ids if row[token_id] > -math.inf]
        logprobs = row[ids].tolist()
    spelled = _spelled(tokenizer, ids)
    return tuple(map(TokenLogprob, ids, spelled, map(finite, logprobs)))


def _spelled(tokenizer: Any, ids: list[int]) -> Iterable[str]:  # noqa: ANN401
    """How the vocabulary spells these ids; one beyond it is its number."""
    spelled = tokenizer.convert_ids_to_tokens(ids)
    return (text or str(token_id) for token_id, text in zip(ids, spelled, strict=True))
