"""The drawing of digits for Model Runner V1: those of the first token, however often its prompt is read."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams

from serving.sampling.normalizer.digits import KEY, LOST, places, read
from serving.sampling.normalizer.v1 import TellNormalizer, _Teller

SIZE = 4096


@pytest.fixture
def processor() -> TellNormalizer:
    model = SimpleNamespace(get_vocab_size=lambda: SIZE)
    config: Any = SimpleNamespace(model_config=model)
    return TellNormalizer(config, torch.device("cpu"), is_pin_memory=False)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 7


def test_digits_are_drawn_of_the_first_token(processor: TellNormalizer) -> None:
    teller = processor.new_req_logits_processor(SamplingParams(extra_args={KEY: True}))
    assert teller is not None
    teller([], logits(0))  # a part of the prompt
    drawn: list[int] = []
    for place in range(places(SIZE)[0]):
        row = teller(drawn, logits(1 + place))
        assert row.isfinite().sum() == 1
        drawn.append(int(row.argmax()))
    assert read(drawn, SIZE) == float(logits(1).logsumexp(-1))


def test_one_that_comes_back_still_knows_it(processor: TellNormalizer) -> None:
    """Out of the batch for a step, and in it again: with the same parameters, as vLLM keeps them."""
    params = SamplingParams(extra_args={KEY: True})
    before = processor.new_req_logits_processor(params)
    assert before is not None
    first = int(before([], logits(0)).argmax())
    after = processor.new_req_logits_processor(params)
    assert after is not None
    told = [first]
    for _ in range(1, places(SIZE)[0]):
        told.append(int(after(told, logits(1)).argmax()))
    assert read(told, SIZE) == float(logits(0).logsumexp(-1))


@pytest.mark.parametrize("size", [64, 384, 4096, 128_256, 151_936])
def test_what_cannot_be_told_is_told_to_be_lost(size: int) -> None:
    """Of a number that is not known, and behind the last digit, however long the request goes on."""
    count, base = places(size)
    row = torch.randn(size)
    assert int(_Teller(count, base)([5], row.clone()).argmax()) == LOST
    teller = _Teller(count, base)
    teller([], row.clone())
    for length in range(count, 3 * count):
        assert int(teller([5] * length, row.clone()).argmax()) == LOST


@pytest.mark.parametrize("told", [1, 0, "true", None, [True]])
def test_what_is_no_question_is_refused(told: object) -> None:
    with pytest.raises(ValueError, match=KEY):
        TellNormalizer.validate_params(SamplingParams(extra_args={KEY: told}))


@pytest.mark.parametrize("extra", [None, {}, {KEY: False}, {"story_rules": {}}])
def test_others_are_left_alone(processor: TellNormalizer, extra: dict[str, Any] | None) -> None:
    assert processor.new_req_logits_processor(SamplingParams(extra_args=extra)) is None
