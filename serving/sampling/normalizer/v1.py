"""The drawing of digits for vLLM's Model Runner V1 (the CPU build). vLLM imports this module in its own processes."""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from serving.sampling.normalizer import digits


class TellNormalizer(AdapterLogitsProcessor):  # type: ignore[misc]
    """For the requests whose `extra_args` ask for it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ANN401
        super().__init__(vllm_config, device, is_pin_memory)
        _, self._base = digits.places(vllm_config.model_config.get_vocab_size())

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "_Teller | None":
        return _Teller(self._base) if (params.extra_args or {}).get(digits.KEY) else None


class _Teller:
    """One request. The number is that of its first token, of whose prompt a part may be read at a time."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._bits: int | None = None

    def __call__(self, output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """`logits: [V] float32`, in place."""
        if not output_ids:
            self._bits = digits.bits_of(float(logits.logsumexp(-1)))
        bits, place = self._bits, len(output_ids)
        token_id = digits.LOST if bits is None else digits.token(bits, place, self._base)
        logits.fill_(-torch.inf)
        logits[token_id] = 0.0
        return logits
