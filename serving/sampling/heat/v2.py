"""The multiplying for vLLM's Model Runner V2 (GPUs). vLLM's front end loads this module too, only to check parameters:
torch is imported where the worker needs it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from serving.sampling.heat.params import factor_of

if TYPE_CHECKING:
    import torch


class Heat(LogitsProcessor):  # type: ignore[misc]
    """For the requests whose `extra_args` ask for it."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:  # noqa: ANN401
        import torch
        from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor

        self._used = np.zeros(req_states.max_num_reqs, bool)
        self._factors = StagedWriteTensor(req_states.max_num_reqs, torch.float32, req_states.device)
        self._factors.gpu.fill_(1.0)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for what is impossible."""
        factor_of(sampling_params.extra_args)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """A new request in a slot, whatever was there before. Whether its logits are multiplied."""
        factor = factor_of(sampling_params.extra_args)
        if factor != 1 or self._used[req_idx]:
            self._factors.stage_write(req_idx, 0, [factor])
        self._used[req_idx] = factor != 1
        return factor != 1

    def apply_staged_writes(self) -> None:
        """Bring to the device what `add_request` said."""
        self._factors.apply_write()

    def apply(self, logits: "torch.Tensor", ctx: LogitsContext) -> "torch.Tensor":
        """`logits: [B, V] float32`, in place."""
        if self._used[ctx.idx_mapping_np].any():
            logits.mul_(self._factors.gpu[ctx.expanded_idx_mapping.long()][:, None])
        return logits
