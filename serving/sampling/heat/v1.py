"""The multiplying for vLLM's Model Runner V1 (the CPU build). vLLM imports this module in its own processes."""

from collections.abc import Callable, Sequence

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from serving.sampling.heat.params import factor_of


class Heat(AdapterLogitsProcessor):  # type: ignore[misc]
    """For the requests whose `extra_args` ask for it."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for what is impossible."""
        factor_of(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        # Not with penalties, which come behind it.
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None:
        factor = factor_of(params.extra_args)

        def multiply(output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            return logits.mul_(factor)

        return multiply if factor != 1 else None
