"""The drawing of digits for Model Runner V1: those of the first token, however often its prompt is read."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams

from serving.sampling.normalizer.digits import KEY, LOST, places, read
from serving.sampling.normalizer.v1 import TellNormalizer

SIZE = 4096
ASKED = SamplingParams(extra_args={KEY: True})


@pytest.fixture
def processor() -> TellNormalizer:
    model = SimpleNamespace(get_vocab_size=lambda: SIZE)
    config: Any = SimpleNamespace(model_config=model)
    return TellNormalizer(config, torch.device("cpu"), is_pin_memory=False)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 7


def test_digits_are_drawn_of_the_first_token(processor: TellNormalizer) -> None:
    teller = processor.new_req_logits_processor(ASKED)
    assert teller is not None
    teller([], logits(0))  # a part of the prompt
    drawn: list[int] = []
    for place in range(places(SIZE)[0]):
        row = teller(drawn, logits(1 + place))
        assert row.isfinite().sum() == 1
        drawn.append(int(row.argmax()))
    assert read(drawn, SIZE) == float(logits(1).logsumexp(-1))


def test_one_that_comes_back_has_lost_it(processor: TellNormalizer) -> None:
    teller = processor.new_req_logits_processor(ASKED)
    assert teller is not None
    assert int(teller([5], logits(0)).argmax()) == LOST


@pytest.mark.parametrize("extra", [None, {}, {KEY: False}, {"story_rules": {}}])
def test_others_are_left_alone(processor: TellNormalizer, extra: dict[str, Any] | None) -> None:
    assert processor.new_req_logits_processor(SamplingParams(extra_args=extra)) is None
