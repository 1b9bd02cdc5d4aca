"""What vLLM is told of a temperature that it refuses, and what is done to the logits before."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from serving.engine.translate import sampling_params
from serving.sampling.heat.params import KEY, MOST, VLLM_MOST, factor_of, split
from serving.sampling.heat.v1 import Heat
from tests.engine.harness import ask

SIZE = 64


@given(st.floats(0, MOST), st.floats(-30, 30))
def test_both_together_are_the_temperature(temperature: float, logit: float) -> None:
    told, factor = split(temperature)
    assert 0 <= told <= VLLM_MOST
    assert factor == 1 or told == VLLM_MOST
    assert factor_of({KEY: factor}) == factor
    if temperature:
        assert logit * factor / told == pytest.approx(logit / temperature)


@pytest.mark.parametrize("factor", [0, 0.39, 1.01, -1, float("nan"), float("inf"), True, "1", None, 2**63])
def test_what_is_impossible_is_refused(factor: Any) -> None:  # noqa: ANN401
    for check in (Heat.validate_params, lambda params: factor_of(params.extra_args)):
        with pytest.raises(ValueError, match=KEY):
            check(SamplingParams(extra_args={KEY: factor}))


def test_only_rows_that_ask_are_multiplied() -> None:
    config: Any = SimpleNamespace()
    processor = Heat(config, torch.device("cpu"), is_pin_memory=False)
    multiply = processor.new_req_logits_processor(SamplingParams(extra_args={KEY: 0.5}))
    assert multiply is not None
    row = torch.randn(SIZE)
    np.testing.assert_array_equal(multiply([], row.clone()).numpy(), row.numpy() / 2)
    assert processor.new_req_logits_processor(SamplingParams()) is None
    assert processor.new_req_logits_processor(SamplingParams(extra_args={KEY: 1})) is None


@pytest.mark.parametrize("penalties_last", [True, False])
def test_penalties_are_of_the_logits_as_they_were(*, penalties_last: bool) -> None:
    """Where vLLM takes them off what was multiplied before, they are multiplied, too."""
    hot = {"temperature": 4.0, "presence_penalty": 1.5, "frequency_penalty": -2.0, "repetition_penalty": 1.3}
    told = sampling_params(ask(sampling=hot), None, penalties_last=penalties_last)
    assert (told.temperature, told.extra_args) == (2.0, {KEY: 0.5})
    assert (told.presence_penalty, told.frequency_penalty) == ((0.75, -1.0) if penalties_last else (1.5, -2.0))
    assert told.repetition_penalty == 1.3
    cool = sampling_params(ask(sampling={"temperature": 2.0}), None, penalties_last=penalties_last)
    assert (cool.temperature, cool.extra_args) == (2.0, None)
