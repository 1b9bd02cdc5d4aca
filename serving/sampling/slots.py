"""What device samplers need of vLLM's Model Runner V2: tables that requests are written into by slot, and histories.

A slot is a place in the runner's tables that a request has for as long as it is in the batch; slots are used again.
Imports torch, Triton and vLLM: for the worker only. Decides nothing about logits.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

from serving.core import LogitsRules
from serving.sampling.history import MARKER_FIELDS, Rows, copy_new, marker_row

_MOST_COPY_BYTES = 1 << 30


class DeviceSampler(Protocol):
    """A sampler on the device. `used: [slots] bool` is for which requests it does something."""

    used: npt.NDArray[np.bool_]

    def add(self, slot: int, rules: LogitsRules | None) -> bool:
        """A new request in `slot`, whatever was there before. False: there is nothing to do for it."""
        ...

    def apply_staged_writes(self) -> None:
        """Bring to the device what `add` said."""
        ...

    def apply(self, logits: torch.Tensor, rows: Rows, longest: int, slots: npt.NDArray[np.int32]) -> None:
        """Change `logits: [B, V] float32` in place. `slots` are those of the requests in this step, of which none that
        is `used` has more than `longest` tokens, drafts included."""
        ...


def table(req_states: LogitsProcRequestState, width: int, dtype: torch.dtype = torch.int32) -> StagedWriteTensor:
    """`[slots, width]` on the device, 0 at first."""
    return StagedWriteTensor((req_states.max_num_reqs, width), dtype, req_states.device)


class Histories:
    """The token histories and markers of the requests in the batch.

    vLLM may keep the tokens in the host's memory, from where each step would fetch all of them again; then there is a
    copy on the device, to which each step adds what is new.
    """

    def __init__(self, req_states: LogitsProcRequestState) -> None:
        self._states = req_states
        self.markers = table(req_states, MARKER_FIELDS)
        self.tokens: torch.Tensor = req_states.all_token_ids.gpu
        self._copied: StagedWriteTensor | None = None
        far = getattr(req_states.all_token_ids, "_uva_buf", None) is not None
        if far and self.tokens.numel() * self.tokens.element_size() <= _MOST_COPY_BYTES:
            self.tokens = torch.zeros(self.tokens.shape, dtype=self.tokens.dtype, device=req_states.device)
            self._copied = table(req_states, 1)

    def add(self, slot: int, rules: LogitsRules | None) -> None:
        """A new request in `slot`; of one without rules nothing is kept."""
        if rules is not None:
            self.markers.stage_write(slot, 0, marker_row(rules.markers))
        if self._copied is not None:
            self._copied.stage_write_elem(slot, -1 if rules is None else 0)

    def apply_staged_writes(self) -> None:
        """Bring to the device what `add` said."""
        self.markers.apply_write()
        if self._copied is not None:
            self._copied.apply_write()

    def rows(self, ctx: LogitsContext) -> Rows:
        """What the rows of this step continue."""
        lengths = self._states.total_len.gpu
        if self._copied is not None:
            requests = ctx.idx_mapping[: len(ctx.idx_mapping_np)]
            copy_new(self._states.all_token_ids.gpu, lengths, self.tokens, self._copied.gpu, requests)
        drafts = len(ctx.expanded_idx_mapping) != len(ctx.idx_mapping_np)
        return Rows(self.tokens, lengths, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids, drafts)
