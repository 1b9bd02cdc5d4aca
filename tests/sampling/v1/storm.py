"""Many requests at once through a real vLLM engine that is short of memory, and all that was generated looked at.

Run as a script with a model's folder and its template; prints what was counted as JSON, or fails. Random weights: the
model would write anything, and is pushed towards the tokens that begin and end messages, most of all where it must not.
"""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from serving.core import (
    ChatPrompt,
    Dry,
    GenerationRequest,
    Header,
    LogitsRules,
    Message,
    PreparedRequest,
    Prompt,
    RawPrompt,
    Rules,
    Stopping,
)
from serving.prompting.prepare import Prompting
from serving.sampling.arguments import to_extra_args
from serving.sampling.base import adapters
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import Headers
from serving.sampling.roles.reference import constraint
from serving.sampling.source import load_vocabulary
from serving.sampling.vocabulary import Vocabulary

REQUESTS, CONCURRENT, CONTEXT = 200, 64, 512
BLOCK, BLOCKS = 32, 200
"""64 requests at their longest would need three times as many blocks."""
BATCHED_TOKENS = 96
"""Less than every prompt: each prefill is split."""
NEVER_TWICE = Dry(multiplier=1000.0, base=1.0, allowed_length=1, sequence_breakers=())
"""No token may follow the same token twice."""
PAST = (
    Message("system", "Write a story about a fox and a crow. " * 8),
    Message("user", "Begin it at night, in the rain. " * 4),
    Message("text", "The fox was wet, and the crow laughed.", ("Mia",)),
)


@dataclass(frozen=True)
class Done:
    """An answer and what was asked."""

    request: GenerationRequest
    prepared: PreparedRequest
    output: tuple[int, ...]


# ---- what is asked ---------------------------------------------------------------------------------------------------


def prompts(prompting: Prompting, rng: random.Random) -> dict[str, Prompt]:
    """Prompts that end everywhere a prompt can."""
    template = prompting.format.template
    past = PAST[: rng.randint(2, 3)]
    text = template.render_text(past, bos=template.bos)
    begun = f"{text}{template.message_start}{template.header_text('text')}"
    opened = f"{begun}{template.header_end_token}{template.header_end_text}"
    return {
        "closed header": ChatPrompt(past, Header("text", ("Mia",))),
        "open header": ChatPrompt(past, Header("text", open=True)),
        "between": RawPrompt(text),
        "message end": RawPrompt(text.removesuffix(template.after_message)),
        "message": RawPrompt(f"{opened}It was late"),
        "message start": RawPrompt(f"{text}{template.message_start}"),
        "names": RawPrompt(f"{begun}{template.names_marker}"),
    }


def ask(prompting: Prompting, rng: random.Random, number: int) -> GenerationRequest:
    where, prompt = rng.choice(list(prompts(prompting, rng).items()))
    allowed = rng.choice([None, {"text"}, {"text", "user"}, {"user", "assistant"}, {"system", "text", "assistant"}])
    names = rng.choice([None, None, ("Mia",), ("Lucifer", "Mia")])
    if allowed is not None and where in ("closed header", "open header", "message", "names"):
        allowed = allowed | {"text"}
    rules = Rules(
        allowed_roles=None if allowed is None else frozenset(allowed),
        names=names,
        disallow_message_end=rng.random() < 0.07,
        minimum_message_content_tokens=rng.choice([0, 0, 0, 2, 9]),
        dry=rng.choice([None, None, None, Dry(), Dry(multiplier=2.0, allowed_length=1), NEVER_TWICE]),
    )
    stopping = Stopping(
        max_tokens=rng.randint(150, 250), at_message_end=rng.random() < 0.05, ignore_eos=rng.random() < 0.5
    )
    if rng.random() < 0.1:
        rules, stopping = Rules(), replace(stopping, ignore_eos=False)
    return GenerationRequest(f"request {number}", "model", (prompt,), stopping=stopping, rules=rules)


def sampling_params(prompting: Prompting, prepared: PreparedRequest, rng: random.Random) -> Any:  # noqa: ANN401
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    markers, temperature = prompting.book.markers, rng.choice([0.5, 1.0, 2.0])
    (marker,) = prompting.format.tokens.encode_split([prompting.format.template.names_marker], CONTEXT)
    pushed = {**dict.fromkeys(marker, 6.5), markers.start: 7.5, markers.end: 7.5, markers.header_end: 7.0}
    pushed |= {token: 2.0 for token in markers.eos if token != markers.end}
    return SamplingParams(
        temperature=temperature,
        repetition_penalty=rng.choice([1.0, 1.0, 1.1]),
        max_tokens=prepared.max_tokens,
        stop_token_ids=list(prepared.stop_token_ids),
        ignore_eos=prepared.ignore_eos,
        logit_bias={token: bias * temperature for token, bias in pushed.items()},
        extra_args=to_extra_args(prepared.rules) if prepared.rules is not None else None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


# ---- the engine ------------------------------------------------------------------------------------------------------


def engine(model: str) -> Any:  # noqa: ANN401
    """In this process; its worker is forked, which saves the time to import vLLM again."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    config = EngineArgs(
        model,
        load_format="dummy",
        dtype="float32",
        hf_overrides={"num_hidden_layers": 2},
        max_model_len=CONTEXT,
        max_num_seqs=CONCURRENT,
        max_num_batched_tokens=BATCHED_TOKENS,
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        block_size=BLOCK,
        num_gpu_blocks_override=BLOCKS,
        kv_cache_memory_bytes=1 << 28,
        enforce_eager=True,
    ).create_engine_config()
    assert not config.use_v2_model_runner
    assert config.scheduler_config.enable_chunked_prefill
    config.model_config.logits_processors = adapters(use_v2=False)
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    return LLMEngine.from_vllm_config(config)


def generate(prompting: Prompting, llm: Any, requests: list[GenerationRequest], rng: random.Random) -> Iterator[Done]:  # noqa: ANN401
    from vllm.inputs import tokens_input

    asked = {}
    for request in requests:
        (prepared,) = asyncio.run(prompting.prepare(request, CONTEXT))
        assert len(prepared.token_ids) > BATCHED_TOKENS
        asked[request.request_id] = request, prepared
        params = sampling_params(prompting, prepared, rng)
        llm.add_request(request.request_id, tokens_input(list(prepared.token_ids)), params)
    while llm.has_unfinished_requests():
        for output in llm.step():
            if output.finished:
                yield Done(*asked.pop(output.request_id), tuple(output.outputs[0].token_ids))
    assert not asked


# ---- what came of it -------------------------------------------------------------------------------------------------


class Reader:
    """Looks at answers: token by token with the references, and message by message by what was asked."""

    def __init__(self, prompting: Prompting, vocabulary: Vocabulary) -> None:
        self._form, self._vocabulary = prompting.format, vocabulary
        self._classes = vocabulary.classes()
        self._markers = prompting.book.markers
        self.counted: Counter[str] = Counter()

    def look(self, done: Done) -> None:
        rules = done.prepared.rules
        self.counted["requests"] += 1
        self.counted["tokens"] += len(done.output)
        if rules is None:
            self.counted["requests without rules"] += 1
            return
        self._replay(done, rules)
        if rules.roles is not None:
            self._messages(done)

    def _replay(self, done: Done, rules: LogitsRules) -> None:
        """Every token was allowed at its place."""
        history = list(done.prepared.token_ids)
        headers = Headers.of(rules.markers, self._classes.line_break)
        breakers = self._vocabulary.breakers((), rules.markers)
        for token in done.output:
            found = constraint(history, rules.roles, rules.markers, self._classes) if rules.roles is not None else None
            if found is not None:
                assert token not in found.banned, (done, len(history), token)
                assert found.only is None or token in found.only, (done, len(history), token)
            if rules.dry == NEVER_TWICE:
                assert token not in penalties(history, rules.dry, breakers, headers), (done, len(history), token)
            history.append(token)

    def _messages(self, done: Done) -> None:
        """Headers and contents, from the message that the prompt ends in on."""
        ids, begin = [*done.prepared.token_ids, *done.output], len(done.prepared.token_ids)
        rules, markers = done.request.rules, self._markers
        starts = [at for at, token in enumerate(ids) if token == markers.start]
        for start, following in zip(starts, [*starts[1:], len(ids)], strict=True):
            over = self._header_end(ids, start, following)
            if over is None:
                assert following == len(ids), "a header that was not ended"
                break
            if over > begin:
                self._header(done, ids[start:over])
            end = next((at for at in range(over, following) if ids[at] == markers.end), None)
            if end is not None and end >= begin:
                self.counted["messages"] += 1
                assert not rules.disallow_message_end
                assert end - over >= rules.minimum_message_content_tokens
            ended = any(token in markers.eos and token != markers.end for token in ids[max(over, begin) : following])
            assert not (ended and done.request.stopping.ignore_eos)

    def _header_end(self, ids: list[int], start: int, following: int) -> int | None:
        """Behind the header that begins at `start`; None where the answer ends inside of it."""
        tail = self._markers.header_tail
        end = next((at for at in range(start, following) if ids[at] == self._markers.header_end), None)
        if end is None or len(ids) - end - 1 < len(tail):
            return None
        assert tuple(ids[end + 1 : end + 1 + len(tail)]) == tail
        return end + 1 + len(tail)

    def _header(self, done: Done, ids: list[int]) -> None:
        """A role that may speak, the right names, and the tokens that the template would write."""
        template, rules, prompt = self._form.template, done.request.rules, done.request.prompts[0]
        (message,) = self._form.read([*ids, self._markers.end]).turns
        opened = isinstance(prompt, ChatPrompt) and prompt.header.open
        assert message.role in ({"text"} if opened else rules.allowed_roles or template.roles), message.role
        if message.role == "text" and rules.names is not None:
            assert message.names == rules.names
        self.counted["headers"] += 1
        names = () if rules.names is None else message.names
        if ids != self._written(names, message.role):
            # Names of the model's choice: no tokenizer need write them so, but what stands before them.
            assert message.role == "text"
            assert rules.names is None
            self.counted["headers with chosen names"] += 1
            before = os.path.commonprefix([self._written((name,)) for name in ("Ann", "ron", "7 of 9")])  # noqa: RUF071  # of lists
            assert ids[: len(before)] == before
            text = self._form.tokens.decode_fragments([ids[1 : ids.index(self._markers.header_end)]])[0]
            assert text.startswith(f"{template.header_text('text')}{template.names_marker} "), text

    def _written(self, names: tuple[str, ...], role: str = "text") -> list[int]:
        """A header as the template writes it, from its message start on."""
        ids = self._form.render(ChatPrompt((), Header(role, names)), CONTEXT)
        return ids[ids.index(self._markers.start) :]


def main(model: str, template: str) -> None:
    prompting = Prompting.load(model, template=template)
    rng = random.Random(7)
    requests = [ask(prompting, rng, number) for number in range(REQUESTS)]
    llm = engine(model)
    reader = Reader(prompting, load_vocabulary(llm.vllm_config))
    for done in generate(prompting, llm, requests, rng):
        reader.look(done)
    for metric in llm.get_metrics():
        if metric.name in ("vllm:num_preemptions", "vllm:prefix_cache_hits"):
            reader.counted[metric.name] += int(metric.value)
    print(json.dumps(reader.counted))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
