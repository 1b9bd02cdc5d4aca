"""The distribution of a next token: the model's own by transformers' reckoning, and what the samplers leave of it."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from serving.core import Delta, Dry, LogitsRules, Markers, PreparedRequest, RoleRule, Sampling, TokenLogprob
from serving.engine.local import LocalEngine
from serving.errors import InvalidRequest
from tests.conftest import MODEL
from tests.engine.harness import EOS, PROMPT, SPECIAL, VOCAB_SIZE, answer, ask, nothing_left, scripted

MARKERS = Markers(start=SPECIAL, end=EOS, header_end=3, header_tail=(203, 203), eos=(EOS, 1))
"""Those of tests/fixtures/llama3-tiny."""


@pytest.fixture(scope="module")
def model() -> Any:  # noqa: ANN401
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def expected(model: Any, token_ids: tuple[int, ...]) -> list[float]:  # noqa: ANN401
    """The probability of each token, by transformers."""
    with torch.no_grad():
        told: list[float] = model(torch.tensor([token_ids])).logits[0, -1].double().softmax(-1).tolist()
        return told


async def best(engine: LocalEngine, request: PreparedRequest) -> tuple[TokenLogprob, ...]:
    told = await answer(engine, request)
    (delta,) = told.deltas
    assert isinstance(delta, Delta)
    ((token,), (only,)) = delta.token_ids, delta.logprobs
    assert only.token_id == token
    assert told.finished.usage.completion_tokens == 1
    return only.top


def probabilities(top: tuple[TokenLogprob, ...]) -> dict[int, float]:
    return {token.token_id: math.exp(token.logprob or 0.0) for token in top}


@pytest.mark.parametrize("prompt", [PROMPT, (0,), tuple(range(100, 400))], ids=len)
async def test_raw_probabilities_are_the_models_own(
    local_engine: LocalEngine,
    model: Any,  # noqa: ANN401
    prompt: tuple[int, ...],
) -> None:
    asked = ask(max_tokens=1, distribution="raw", logprobs=VOCAB_SIZE, sampling={"temperature": 0.3, "top_k": 2})
    whole = await best(local_engine, replace(asked, token_ids=prompt))
    told, right = probabilities(whole), expected(model, prompt)
    assert len(told) == len(whole) == len({token.text for token in whole}) == VOCAB_SIZE
    assert list(told.values()) == sorted(told.values(), reverse=True)
    assert sum(told.values()) == pytest.approx(1, abs=1e-5)
    # The engine computes in bfloat16.
    assert sum(abs(told[token] - right[token]) for token in range(VOCAB_SIZE)) < 0.03
    few = await best(local_engine, replace(asked, token_ids=prompt, logprobs=5))
    assert [token.logprob for token in few] == pytest.approx([token.logprob for token in whole[:5]])
    await nothing_left(local_engine)


async def test_without_samplers_both_are_the_same(local_engine: LocalEngine) -> None:
    asked = ask(max_tokens=1, logprobs=VOCAB_SIZE)
    raw = probabilities(await best(local_engine, replace(asked, distribution="raw")))
    assert probabilities(await best(local_engine, replace(asked, distribution="sampled"))) == pytest.approx(raw)


REPEATING = (*PROMPT, 50, 51, 52, *PROMPT, 50, 51)
BOTH = {99: 50.0, 98: 49.0}
SAMPLERS: dict[str, tuple[PreparedRequest, int]] = {
    "bias": (ask(sampling={"logit_bias": BOTH}), 99),
    "minimum": (ask(sampling={"min_tokens": 1, "logit_bias": {EOS: 50.0}}, stop_token_ids=(EOS,)), EOS),
    "dry": (
        ask(
            token_ids=REPEATING,
            rules=LogitsRules(MARKERS, dry=Dry(multiplier=60.0, sequence_breakers=())),
            sampling={"logit_bias": {52: 50.0}},
        ),
        52,
    ),
    "roles": (
        ask(rules=LogitsRules(MARKERS, roles=RoleRule(forbid_end=True)), sampling={"logit_bias": {EOS: 50.0}}),
        EOS,
    ),
    "repetition": (ask(token_ids=(*PROMPT, 60), sampling={"repetition_penalty": 30.0, "logit_bias": {60: 12.0}}), 60),
    "header": (
        ask(
            token_ids=(*PROMPT, EOS, SPECIAL),
            rules=LogitsRules(MARKERS, roles=RoleRule(headers=((278, 87, 783, 3, 203, 203),))),
        ),
        278,
    ),
}
"""A request, and the token whose probability its samplers change."""


@pytest.mark.parametrize("samplers", SAMPLERS)
async def test_the_likeliest_is_what_the_engine_takes(local_engine: LocalEngine, samplers: str) -> None:
    """The samplers on this side are those in the engine."""
    asked, changed = SAMPLERS[samplers]
    asked = replace(asked, max_tokens=1, ignore_eos=True)
    greedy = replace(asked, sampling=replace(asked.sampling, temperature=0.0))
    (taken,) = (await answer(local_engine, greedy)).token_ids
    told = await best(local_engine, replace(greedy, distribution="sampled", logprobs=10))
    assert probabilities(told) == {taken: 1.0}
    warm = probabilities(await best(local_engine, replace(asked, distribution="sampled", logprobs=VOCAB_SIZE)))
    assert warm[taken] == max(warm.values())
    assert sum(warm.values()) == pytest.approx(1)
    bias = {} if samplers == "bias" else asked.sampling.logit_bias
    loose = replace(asked, rules=None, stop_token_ids=(), sampling=Sampling(logit_bias=bias), distribution="sampled")
    before = probabilities(await best(local_engine, replace(loose, logprobs=VOCAB_SIZE)))
    assert abs(warm.get(changed, 0) - before[changed]) > 0.5


@pytest.mark.parametrize("penalty", [0.5, 1.1, 3.0])
@pytest.mark.parametrize("prompt", [PROMPT, tuple(range(100, 400))], ids=len)
async def test_a_repetition_penalty_is_on_the_models_own_logits(
    local_engine: LocalEngine,
    model: Any,  # noqa: ANN401
    prompt: tuple[int, ...],
    penalty: float,
) -> None:
    """Not on log probabilities, which are all below 0."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    seen = torch.tensor(sorted(set(prompt)))
    assert (logits[seen] > 0).any()
    assert (logits[seen] < 0).any()
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    right = logits.softmax(-1).tolist()
    asked = ask(max_tokens=1, logprobs=VOCAB_SIZE, sampling={"repetition_penalty": penalty}, distribution="sampled")
    told = probabilities(await best(local_engine, replace(asked, token_ids=prompt)))
    assert sum(abs(told.get(token, 0) - right[token]) for token in range(VOCAB_SIZE)) < 0.03
    await nothing_left(local_engine)


async def test_a_repetition_penalty_needs_room_behind_the_prompt(local_engine: LocalEngine) -> None:
    asked = ask(max_tokens=1, logprobs=1, sampling={"repetition_penalty": 1.1}, distribution="sampled")
    full = (7,) * (local_engine.context_tokens - 1)
    with pytest.raises(InvalidRequest) as refused:
        await best(local_engine, replace(asked, token_ids=full))
    assert refused.value.param == "repetition_penalty"
    assert len(await best(local_engine, replace(asked, token_ids=full, sampling=Sampling()))) == 1


async def test_what_is_drawn_at_a_temperature_over_2(local_engine: LocalEngine) -> None:
    """As often as it is said to be: of two tokens, 400 times."""
    asked = ask(max_tokens=1, sampling={"temperature": 4.0, "logit_bias": {99: 100.0, 98: 94.0}})
    said = probabilities(await best(local_engine, replace(asked, distribution="sampled", logprobs=2)))
    assert sum(said.values()) == pytest.approx(1, abs=1e-6)
    assert 0.6 < said[99] < 0.9
    seeded = (replace(asked, index=seed, sampling=replace(asked.sampling, seed=seed)) for seed in range(400))
    drawn = await asyncio.gather(*(answer(local_engine, each) for each in seeded))
    often = sum(told.token_ids == (99,) for told in drawn) / 400
    assert often == pytest.approx(said[99], abs=4 * math.sqrt(said[99] * said[98] / 400))
    await nothing_left(local_engine)


async def test_tokens_that_cannot_be_drawn_are_not_told(local_engine: LocalEngine) -> None:
    asked = ask(max_tokens=1, distribution="sampled", logprobs=50, sampling={"top_k": 3})
    assert len(await best(local_engine, asked)) == 3


@pytest.mark.parametrize("logprobs", [-1, VOCAB_SIZE + 1])
async def test_more_than_the_vocabulary_is_refused(local_engine: LocalEngine, logprobs: int) -> None:
    for engine in (local_engine, scripted()):
        with pytest.raises(InvalidRequest) as refused:
            await answer(engine, ask(max_tokens=1, distribution="raw", logprobs=logprobs))
        assert refused.value.param == "logprobs"
