"""The drawing of digits for vLLM's Model Runner V2 (GPUs), without waiting for the device. vLLM's front end loads this
module too, only to check parameters: torch is imported where the worker needs it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from serving.sampling.normalizer import digits

if TYPE_CHECKING:
    import torch


_SILENT, _UNKNOWN, _KNOWN = 0, 1, 2
"""What is kept of a slot: that it asks for nothing, that its number is not known, or its bits above the third."""


class TellNormalizer(LogitsProcessor):  # type: ignore[misc]
    """For the requests whose `extra_args` ask for it."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:  # noqa: ANN401
        import torch
        from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor

        self._vocab_size = vllm_config.model_config.get_vocab_size()
        self._states = req_states
        self._asked = np.zeros(req_states.max_num_reqs, bool)
        # The last one is for rows of drafts, which have nothing to keep.
        self._kept = StagedWriteTensor(req_states.max_num_reqs + 1, torch.int64, req_states.device)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for what is impossible."""
        digits.asked(sampling_params.extra_args)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """A new request in a slot, whatever was there before. Whether it draws digits."""
        asks = digits.asked(sampling_params.extra_args)
        if asks or self._asked[req_idx]:
            self._kept.stage_write_elem(req_idx, _UNKNOWN if asks else _SILENT)
        self._asked[req_idx] = asks
        return asks

    def apply_staged_writes(self) -> None:
        """Bring to the device what `add_request` said."""
        self._kept.apply_write()

    def apply(self, logits: "torch.Tensor", ctx: LogitsContext) -> "torch.Tensor":
        """`logits: [B, V] float32`, in place."""
        import torch

        if not self._asked[ctx.idx_mapping_np].any():
            return logits
        places, base = digits.places(self._vocab_size)
        kept, slots = self._kept.gpu, ctx.expanded_idx_mapping.long()
        place = (self._states.total_len.gpu - self._states.prompt_len.gpu)[slots].long() + ctx.expanded_local_pos
        # Of its first token, of whose prompt a part may be read at a time.
        own = (logits.logsumexp(-1).view(torch.int32).long() & 0xFFFFFFFF) + _KNOWN
        told = torch.where((kept[slots] != _SILENT) & (place <= 0), own, kept[slots])
        kept[torch.where(ctx.expanded_local_pos == 0, slots, len(kept) - 1)] = told
        known = kept[slots]
        asks, told = known != _SILENT, (known >= _KNOWN) & (place < places)
        place = place.clamp(0, places - 1)
        digit = (known - _KNOWN) // torch.pow(base, place) % base
        token_ids = torch.where(told, place * base + digit, digits.LOST)
        rows = torch.arange(len(slots), device=logits.device)
        logits.masked_fill_(asks[:, None], -torch.inf)
        logits[rows, token_ids] = torch.where(asks, 0.0, logits[rows, token_ids])
        return logits
