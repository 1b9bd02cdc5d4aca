"""Between the Engine port and vLLM: a prepared request in vLLM's words, vLLM's outputs as events.

Starts and ends nothing, and decides nothing about a request. Keeps two laws: chunks are not tokens (counts come from
token ids, since vLLM merges the deltas of slow readers), and nothing per token touches pydantic or makes a task.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from tokenizers.decoders import DecodeStream
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.inputs import TokensPrompt, tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from serving.core import Delta, Event, Finished, FinishReason, PreparedRequest, Started, TokenLogprob, Usage
from serving.engine.structure import named, refusal
from serving.errors import EngineFailed, InvalidRequest
from serving.sampling.arguments import to_extra_args
from serving.sampling.heat import params as heat

logger = logging.getLogger(__name__)

_LOWEST_LOGPROB = -9999.0
"""What -inf becomes, since JSON has no infinity. Source: vLLM 0.32, openai/chat_completion/serving.py."""


async def events(
    llm: AsyncLLM, request: PreparedRequest, vllm_id: str, lora: LoRARequest | None, grammar: str | None
) -> AsyncGenerator[Event, None]:
    """Generate `request` under `vllm_id`, unique in this engine. Raises InvalidRequest, EngineFailed, vLLM's errors.

    `grammar` is what the answer must follow, if it is not just any JSON object.

    vLLM is always told to leave a stop string out, and it is put back here if it is wanted: told to include it, vLLM
    includes the text of stop tokens too.
    """
    index, started, completion_tokens = request.index, None, 0
    usage = Usage(len(request.token_ids))
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    if request.prompt_logprobs or not request.max_tokens:
        usage, prompt_logprobs = await _prompt_alone(llm, request, f"{vllm_id}-prompt", lora)
        if not request.max_tokens:
            yield Started(index, usage.prompt_tokens, usage.cached_tokens, prompt_logprobs)
            yield Finished(index, "length", usage)
            return
    config: Any = llm.vllm_config
    params = sampling_params(request, grammar, penalties_last=not config.use_v2_model_runner)
    said = outputs(llm, _prompt(request), params, vllm_id, lora)
    async with contextlib.aclosing(said):
        async for output in said:
            part = output.outputs[0]
            reason, text, token_ids, matched = part.finish_reason, part.text, part.token_ids, None
            if reason is not None and reason not in ("stop", "length"):
                raise _broken(request, reason, started is not None)
            if started is None:
                if not request.prompt_logprobs:
                    usage = Usage(usage.prompt_tokens, output.num_cached_tokens or 0)
                started = Started(index, usage.prompt_tokens, usage.cached_tokens, prompt_logprobs)
                yield started
            if reason == "stop" and isinstance(part.stop_reason, str):
                matched = part.stop_reason
                text += matched if request.include_stop else ""
            if text or token_ids:
                completion_tokens += len(token_ids)
                logprobs = _logprobs(token_ids, part.logprobs, request.logprobs) if part.logprobs else ()
                yield Delta(index, text, tuple(token_ids), logprobs)
            if reason is not None:
                ended: FinishReason = "stop" if reason == "stop" else "length"
                yield Finished(index, ended, usage + Usage(completion_tokens=completion_tokens), matched)


async def outputs(
    llm: AsyncLLM,
    prompt: Any,  # noqa: ANN401
    params: SamplingParams,
    vllm_id: str,
    lora: LoRARequest | None,
) -> AsyncGenerator[Any, None]:
    """vLLM's outputs of one request, aborted when closed."""
    stream, finished = llm.generate(prompt, params, vllm_id, lora_request=lora), False
    try:
        async for output in stream:
            finished = output.finished
            yield output
    finally:
        await stream.aclose()
        if not finished:
            # Closing aborts, but not when it hits vLLM between its own queue and the engine's. Abort is idempotent.
            await llm.abort(vllm_id)


async def _prompt_alone(
    llm: AsyncLLM, request: PreparedRequest, vllm_id: str, lora: LoRARequest | None
) -> tuple[Usage, tuple[TokenLogprob, ...]]:
    """Compute the prompt, and the logprobs of its tokens if asked for; the one token that vLLM insists on is dropped.

    A pass of its own, since vLLM decodes the texts of all alternatives one by one on our loop: 0.8 s for 1,580 tokens
    with 20 each. Without detokenizing it does not, and a thread does. The answer finds the prompt in the prefix cache.
    """
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=(request.logprobs or 0) if request.prompt_logprobs else None,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )
    prompt = tokens_input(list(request.token_ids))
    async with contextlib.aclosing(outputs(llm, prompt, params, vllm_id, lora)) as told:
        async for output in told:
            if output.outputs[0].finish_reason not in ("stop", "length"):
                break
            usage = Usage(len(request.token_ids), output.num_cached_tokens or 0)
            flat = output.prompt_logprobs
            return usage, await asyncio.to_thread(_prompt_logprobs, llm.get_tokenizer(), request, flat) if flat else ()
    raise EngineFailed("The engine stopped this generation before its end.")


def _prompt_logprobs(tokenizer: Any, request: PreparedRequest, flat: Any) -> tuple[TokenLogprob, ...]:  # noqa: ANN401
    """vLLM's FlatLogprobs: per position the prompt's own token and then the best ones in order; none for the first.

    Decodes with the tokenizer's Rust core alone, which threads may share as long as nobody changes its settings.
    """
    core = getattr(tokenizer, "_tokenizer", None)
    texts: dict[int, str] = {}

    def text_of(token_id: int) -> str:
        if token_id not in texts:
            text = core.decode([token_id], skip_special_tokens=False) if core else tokenizer.decode([token_id])
            texts[token_id] = "" if text.endswith("\ufffd") else text
        return texts[token_id]

    own_text = _in_order(core) if core else text_of
    told = [TokenLogprob(request.token_ids[0], own_text(request.token_ids[0]), None)]
    for position in range(1, len(request.token_ids)):
        own, *best = range(flat.start_indices[position], flat.end_indices[position])
        top = tuple(
            TokenLogprob(flat.token_ids[at], text_of(flat.token_ids[at]), finite(flat.logprobs[at])) for at in best
        )
        token_id = flat.token_ids[own]
        told.append(TokenLogprob(token_id, own_text(token_id), finite(flat.logprobs[own]), top))
    return tuple(told)


def _in_order(core: Any) -> Callable[[int], str]:  # noqa: ANN401
    """Texts of tokens that follow one another: a character split over tokens is the text of the last of them."""
    stream = DecodeStream(skip_special_tokens=False)

    def text_of(token_id: int) -> str:
        nonlocal stream
        try:
            return stream.step(core, token_id) or ""
        except Exception:  # noqa: BLE001  # tokenizers raises no narrower one
            # Source: vLLM 0.32, detokenizer.py: bytes that are no text can break the stream; begin anew.
            stream = DecodeStream(skip_special_tokens=False)
            return ""

    return text_of


def _prompt(request: PreparedRequest) -> Any:  # noqa: ANN401
    """A request with a schema goes the way of raw prompts: vLLM then validates it in its thread pool, not on our loop.

    Source: vLLM 0.32, AsyncLLM.add_request: a rendered input is processed on the loop, a raw one by a thread.
    """
    if request.answer_format is not None:
        return TokensPrompt(prompt_token_ids=list(request.token_ids))
    return tokens_input(list(request.token_ids))


def sampling_params(request: PreparedRequest, grammar: str | None, *, penalties_last: bool) -> SamplingParams:
    """vLLM's parameters. `penalties_last`: its runner takes penalties off behind our processors. Raises InvalidRequest
    where vLLM refuses."""
    sampling = request.sampling
    temperature, factor = heat.split(sampling.temperature)
    told = {} if request.rules is None else to_extra_args(request.rules)
    if factor != 1:
        told[heat.KEY] = factor
    penalized = factor if penalties_last else 1.0
    try:
        return SamplingParams(
            temperature=temperature,
            top_p=sampling.top_p,
            # Beyond int32 the worker's array overflows; 0 is the whole vocabulary.
            top_k=sampling.top_k if sampling.top_k < 2**31 else 0,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty * penalized,
            frequency_penalty=sampling.frequency_penalty * penalized,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            logit_bias=dict(sampling.logit_bias) or None,
            max_tokens=request.max_tokens,
            min_tokens=sampling.min_tokens,
            stop=list(request.stop),
            stop_token_ids=list(request.stop_token_ids),
            ignore_eos=bool(request.ignore_eos),
            logprobs=request.logprobs,
            structured_outputs=_structure(request, grammar),
            extra_args=told or None,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.DELTA,
            # Made for this request alone: vLLM need not copy it.
            skip_clone=True,
        )
    except (VLLMClientError, ValueError) as error:
        raise invalid(request, error) from error


def _structure(request: PreparedRequest, grammar: str | None) -> StructuredOutputsParams | None:
    if request.answer_format is None:
        return None
    return StructuredOutputsParams(json_object=True) if grammar is None else StructuredOutputsParams(grammar=grammar)


def _logprobs(
    token_ids: Any,  # noqa: ANN401
    positions: Any,  # noqa: ANN401
    alternatives: int | None,
) -> tuple[TokenLogprob, ...]:
    """vLLM's {id: Logprob} per position, which holds the chosen token beside the best ones if it is not among them."""
    count, told = alternatives or 0, []
    for token_id, entries in zip(token_ids, positions, strict=False):
        best = sorted((item for item in entries.items() if item[1].rank <= count), key=lambda item: item[1].rank)
        top = tuple(TokenLogprob(i, entry.decoded_token or "", finite(entry.logprob)) for i, entry in best)
        chosen = entries[token_id]
        told.append(TokenLogprob(token_id, chosen.decoded_token or "", finite(chosen.logprob), top))
    return tuple(told)


def finite(logprob: float) -> float:
    """As JSON can say it."""
    return logprob if logprob > _LOWEST_LOGPROB else _LOWEST_LOGPROB


def invalid(request: PreparedRequest, error: BaseException) -> InvalidRequest:
    """vLLM's refusals. Their texts can hold what the caller sent: told is only what they say of a structure."""
    if request.answer_format is not None and getattr(error, "parameter", None) is None:
        return refusal(request.answer_format, str(error))
    param = error.parameter if isinstance(error, VLLMValidationError) else None
    logger.warning("refused by vLLM, not by limits: %s, field %s", type(error).__name__, param)
    return InvalidRequest(
        f"The engine cannot take this request: `{param or 'a parameter'}` is impossible.", param=param
    )


def _broken(request: PreparedRequest, reason: str, started: bool) -> Exception:
    """An end that vLLM calls neither stop nor length."""
    if reason == "error" and request.answer_format is not None and not started:
        kind, field = named(request.answer_format)
        return InvalidRequest(f"The {kind} cannot be compiled. Simplify it.", param=field)
    return EngineFailed("The engine stopped this generation before its end.")
