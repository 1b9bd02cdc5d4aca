"""The whole chain on the host, against vLLM's own pieces."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from serving.core import Sampling
from serving.sampling.chain import drawn, normal

# Far enough apart that no two become equally likely: of these each implementation may keep another one.
ROWS = st.lists(st.integers(-20_000, 20_000), min_size=2, max_size=40, unique=True).map(
    lambda row: np.array(row, np.float64) / 1000
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.05, 0.5, 1.0, 1.7]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.integers(0, 45),
    min_p=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
)


def by_vllm(row: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities that vLLM draws with: temperature, its min-p processor, its top-k and top-p."""
    logits = torch.tensor(row, dtype=torch.float64)[None] / sampling.temperature
    shares = logits.softmax(-1)
    logits = logits.masked_fill(shares < shares.amax(-1, keepdim=True) * sampling.min_p, -torch.inf)
    top_k = torch.tensor([min(sampling.top_k or len(row), len(row))])
    cut = apply_top_k_top_p_pytorch(logits, top_k, torch.tensor([sampling.top_p], dtype=torch.float64))
    told: np.ndarray = cut.softmax(-1)[0].numpy()
    return told


@settings(deadline=None, max_examples=300)
@given(row=ROWS, sampling=SAMPLINGS)
def test_what_is_drawn_with_is_what_vllm_draws_with(row: np.ndarray, sampling: Sampling) -> None:
    told = np.exp(drawn(row, sampling))
    assert told == pytest.approx(by_vllm(row, sampling), abs=1e-9)
    assert told.sum() == pytest.approx(1)


@given(row=ROWS)
def test_temperature_0_is_the_likeliest(row: np.ndarray) -> None:
    told = drawn(row, Sampling(temperature=0.0, top_p=0.1, min_p=1.0))
    assert (told.argmax(), np.isfinite(told).sum(), told.max()) == (row.argmax(), 1, 0)


@given(row=ROWS, shift=st.floats(-50, 50))
def test_log_probabilities_do_as_well_as_logits(row: np.ndarray, shift: float) -> None:
    sampling = Sampling(temperature=0.7, top_k=5)
    assert np.exp(drawn(row + shift, sampling)) == pytest.approx(np.exp(drawn(normal(row), sampling)), abs=1e-9)


def test_a_row_without_anything_stays_so() -> None:
    row = np.full(4, -np.inf)
    assert np.array_equal(normal(row), row)
