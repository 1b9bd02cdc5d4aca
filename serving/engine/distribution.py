"""What the next token may be: the distribution over the whole vocabulary, by vLLM, and what the samplers leave of it.

vLLM tells the model's own log probabilities, whatever the samplers do, so these are applied here: by their references,
in a thread. The token that vLLM draws meanwhile is nobody's; for a repetition penalty, which asks for the logits
themselves, it draws those that tell by how much they differ (`sampling.normalizer`); for each of these vLLM makes the
distribution once more, and it is dropped. What is asked for and told is as in `translate`.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import numpy as np
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from serving.core import Delta, Event, Finished, PreparedRequest, Started, TokenLogprob, Usage
from serving.engine.limits import Model
from serving.engine.translate import finite, outputs
from serving.errors import EngineFailed, InvalidRequest, Overloaded
from serving.sampling.chain import Chain
from serving.sampling.normalizer.digits import KEY, places, read


async def distribution(
    llm: AsyncLLM,
    request: PreparedRequest,
    vllm_id: str,
    lora: LoRARequest | None,
    model: Model,
    chain: Callable[[], Chain],
) -> AsyncGenerator[Event, None]:
    """The events of a request for a distribution. `chain` blocks. Raises InvalidRequest, Overloaded, EngineFailed,
    vLLM's errors."""
    needs_logits = request.distribution == "sampled" and request.sampling.repetition_penalty != 1
    tokens = _places(model) if needs_logits else 1
    if len(request.token_ids) + tokens > model.context_tokens:
        message = (
            f"`repetition_penalty` needs room for {tokens} tokens behind the prompt here. Shorten it, or leave it out."
        )
        raise InvalidRequest(message, param="repetition_penalty")
    params = SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        ignore_eos=True,
        extra_args={KEY: True} if needs_logits else None,
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
            offset = _normalizer(part.token_ids, model.vocab_size) if needs_logits else 0.0
            best = await asyncio.to_thread(_best, llm.get_tokenizer(), request, part.logprobs, offset, chain)
            token_id = part.token_ids[0]
            yield Delta(request.index, "", (token_id,), (TokenLogprob(token_id, "", None, best),))
            yield Finished(request.index, "length", usage)
            return
    raise EngineFailed("The engine stopped this generation before its end.")


def _best(
    tokenizer: Any,  # noqa: ANN401
    request: PreparedRequest,
    flat: Any,  # noqa: ANN401  # vLLM's FlatLogprobs: the token that was drawn, and then the best ones in order
    offset: float,
    chain: Callable[[], Chain],
) -> tuple[TokenLogprob, ...]:
    first = slice(flat.start_indices[0] + 1, flat.end_indices[0])
    ids, logprobs = flat.token_ids[first], flat.logprobs[first]
    if request.distribution == "sampled":
        row = np.full(chain().size, -math.inf)
        row[ids] = logprobs
        row += offset
        row = chain().apply(row, request)
        ids = np.argsort(-row, kind="stable")[: request.logprobs or 0].tolist()
        ids = [token_id for token_id in ids if row[token_id] > -math.inf]
        logprobs = row[ids].tolist()
    spelled = _spelled(tokenizer, ids)
    return tuple(map(TokenLogprob, ids, spelled, map(finite, logprobs)))


def _normalizer(token_ids: Sequence[int], vocab_size: int) -> float:
    try:
        return read(token_ids, vocab_size)
    except ValueError:
        # vLLM has taken the request out of its batch between two of these tokens, and forgot about it there.
        raise Overloaded("The engine had no room for this request. Try again in a moment.", retry_after_s=1) from None


def _places(model: Model) -> int:
    try:
        return places(model.vocab_size)[0]
    except ValueError:
        message = "`repetition_penalty` takes no part here, as the vocabulary of the model is too small. Leave it out."
        raise InvalidRequest(message, param="repetition_penalty") from None


def _spelled(tokenizer: Any, ids: list[int]) -> Iterable[str]:  # noqa: ANN401
    """How the vocabulary spells these ids; one beyond it is its number."""
    spelled = tokenizer.convert_ids_to_tokens(ids)
    return (text or str(token_id) for token_id, text in zip(ids, spelled, strict=True))
