"""The drawing of digits for vLLM's Model Runner V1 (the CPU build). vLLM imports this module in its own processes."""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from serving.sampling.normalizer import digits

_TELLER = "normalizer_teller"
"""In a request's own `extra_args`: vLLM takes it out of the batch for a step without room for it, and keeps these."""


class TellNormalizer(AdapterLogitsProcessor):  # type: ignore[misc]
    """For the requests whose `extra_args` ask for it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ANN401
        super().__init__(vllm_config, device, is_pin_memory)
        self._vocab_size = vllm_config.model_config.get_vocab_size()

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for what is impossible."""
        digits.asked(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "_Teller | None":
        if not digits.asked(params.extra_args):
            return None
        teller: _Teller = params.extra_args.setdefault(_TELLER, _Teller(*digits.places(self._vocab_size)))
        return teller


class _Teller:
    """One request. The number is that of its first token, of whose prompt a part may be read at a time."""

    def __init__(self, places: int, base: int) -> None:
        self._places = places
        self._base = base
        self._bits: int | None = None

    def __call__(self, output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """`logits: [V] float32`, in place."""
        if not output_ids:
            self._bits = digits.bits_of(float(logits.logsumexp(-1)))
        token_id, place = digits.LOST, len(output_ids)
        if self._bits is not None and place < self._places:
            token_id = digits.token(self._bits, place, self._base)
        logits.fill_(-torch.inf)
        logits[token_id] = 0.0
        return logits
