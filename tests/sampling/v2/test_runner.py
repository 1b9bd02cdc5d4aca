"""The real Model Runner V2 with our samplers and random weights, the hardest case: whatever such a model would like to
write, its messages are those that were allowed.

Prompts are prefilled in chunks, and the cache is so small that requests are preempted.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm.sampling_params import SamplingParams

from serving.core import Dry, LogitsRules, Markers, RoleRule
from serving.sampling.arguments import to_extra_args
from serving.sampling.base import adapters
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import Headers
from serving.sampling.normalizer import digits
from serving.sampling.vocabulary import Vocabulary

MODEL = Path(__file__).parents[2] / "fixtures/llama3-tiny"
BOS, START, HEADER_END, END, EOS = 0, 2, 3, 4, 1
"""Of the fixture's tokenizer; the line break behind a header's end is 20, as bytes begin at 10."""
TAIL = (20, 20)
MARKERS = Markers(START, END, HEADER_END, header_tail=TAIL, eos=(END, EOS))
WRITER, MIA, NARRATOR = (101, 102), (101, 102, 103, 60), (107,)
VOCABULARY, PROMPT_TOKENS, ANSWER_TOKENS = 832, 90, 48
# A block holds 128 tokens of two layers, key and value, one head of 32 numbers of four bytes.
BLOCK_BYTES = 128 * 2 * 2 * 32 * 4


@dataclass(frozen=True)
class Ask:
    """A request and what its messages may be: headers, and the fewest tokens of a message; None is no end at all."""

    rules: LogitsRules | None
    headers: tuple[tuple[int, ...], ...] = ()
    least: int | None = 0


def header(role: tuple[int, ...]) -> tuple[int, ...]:
    return (*role, HEADER_END, *TAIL)


# Nothing that was said twice may be continued alike: a penalty of 1,000 leaves no chance.
NEVER = Dry(multiplier=1000.0, base=1.0, allowed_length=1, sequence_breakers=())
ASKS = (
    Ask(
        LogitsRules(MARKERS, NEVER, RoleRule((header(WRITER), header(NARRATOR)), minimum_content=3)),
        (WRITER, NARRATOR),
        3,
    ),
    Ask(LogitsRules(MARKERS, roles=RoleRule((header(WRITER), header(MIA)), ignore_eos=True)), (WRITER, MIA), 0),
    Ask(LogitsRules(MARKERS, roles=RoleRule((header(MIA),), forbid_end=True)), (MIA,), None),
    Ask(LogitsRules(MARKERS, NEVER)),
    Ask(None),
)


@pytest.fixture(scope="module")
def llm() -> Any:  # noqa: ANN401
    os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM

    return LLM(
        str(MODEL),
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=7 * BLOCK_BYTES,
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        logits_processors=adapters(use_v2=True),
        disable_log_stats=False,
    )


def prompt(number: int) -> list[int]:
    """A message that was ended, so that the next header is the model's; the longest one fills a block nearly."""
    return [BOS, START, *header(NARRATOR), *range(200, 200 + PROMPT_TOKENS - number), END]


def test_messages_are_what_was_allowed(llm: Any) -> None:  # noqa: ANN401
    """No other role, no early end, and no token that DRY forbids; the neighbours without rules are free."""
    # Ends are frequent, so that there are many headers; each request is asked for twice.
    asks = [*ASKS, *ASKS[:3]]
    params = [
        SamplingParams(
            max_tokens=ANSWER_TOKENS,
            ignore_eos=True,
            detokenize=False,
            logit_bias={END: 9.0},
            extra_args=to_extra_args(ask.rules) if ask.rules else None,
        )
        for ask in asks
    ]
    prompts = [{"prompt_token_ids": prompt(number)} for number in range(len(asks))]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    headers = 0
    for number, (ask, output) in enumerate(zip(asks, outputs, strict=True)):
        ids = [*prompt(number), *output.outputs[0].token_ids]
        assert len(output.outputs[0].token_ids) == ANSWER_TOKENS
        if ask.rules is not None and ask.rules.dry is not None:
            assert repeated(ids, len(prompt(number)), ask.rules.dry) == []
        if ask.rules is not None and ask.rules.roles is not None:
            headers += read(ids, len(prompt(number)) - 1, ask)
    assert headers >= 15
    assert preemptions(llm) > 0


def read(ids: list[int], at: int, ask: Ask) -> int:
    """How many messages begin behind the message end at `at`; each of them is checked."""
    count = 0
    while at + 1 < len(ids):
        if ids[at] == EOS:  # the engine was told to go on
            return count
        following = ids[at + 1]
        assert following in ((START,) if ask.rules and ask.rules.roles and ask.rules.roles.ignore_eos else (START, EOS))
        if following == EOS:
            return count
        written = ids[at + 2 :]
        begins = [role for role in map(header, ask.headers) if tuple(written[: len(role)]) == role[: len(written)]]
        assert begins, written[:8]
        count += 1
        begin = at + 2 + len(max(begins, key=len))
        at = next((place for place in range(begin, len(ids)) if ids[place] in (END, EOS)), len(ids))
        assert START not in ids[begin:at]
        if at < len(ids):
            assert ask.least is not None
            assert at - begin >= ask.least
    return count


def repeated(ids: list[int], begin: int, dry: Dry) -> list[int]:
    """Where a token stands that DRY forbade."""
    vocabulary = Vocabulary.load(MODEL, VOCABULARY)
    breakers = vocabulary.breakers(dry.sequence_breakers, MARKERS)
    headers = Headers.of(MARKERS, vocabulary.classes().line_break)
    return [at for at in range(begin, len(ids)) if ids[at] in penalties(ids[:at], dry, breakers, headers)]


def preemptions(llm: Any) -> float:  # noqa: ANN401
    counts = (metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    return float(sum(counts))


def test_normalizers_are_told_in_the_digits_that_are_drawn(llm: Any) -> None:  # noqa: ANN401
    """Among requests that draw words; the longest prompt is read in several parts."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    size = model.config.vocab_size
    prompts = [[BOS, *range(200, 200 + length)] for length in (1, 30, 150)]
    asked = SamplingParams(
        temperature=0.0, max_tokens=digits.places(size)[0], ignore_eos=True, extra_args={digits.KEY: True}
    )
    words = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    both = [(prompt, params) for prompt in prompts for params in (asked, words)]
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in both], [one for _, one in both], use_tqdm=False
    )
    for (prompt, params), output in zip(both, outputs, strict=True):
        drawn = list(output.outputs[0].token_ids)
        with torch.no_grad():
            if params is asked:
                wanted = float(model(torch.tensor([prompt])).logits[0, -1].logsumexp(-1))
                assert digits.read(drawn, size) == pytest.approx(wanted, abs=1e-3)
            else:
                assert (
                    drawn
                    == model.generate(torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False)[
                        0, len(prompt) :
                    ].tolist()
                )
