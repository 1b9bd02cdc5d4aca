"""The samplers as one logits processor of vLLM's Model Runner V2 (GPUs).

Hands requests and steps to the device samplers, DRY first. It decides nothing itself and never waits for the device.
vLLM applies it behind its own penalties and the grammar mask. vLLM's front end loads this module too, only to check
parameters: torch and Triton are imported where the worker needs them.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from serving.sampling.arguments import from_extra_args
from serving.sampling.base import SAMPLERS, load_class
from serving.sampling.source import load_vocabulary

if TYPE_CHECKING:
    import torch

    from serving.sampling.slots import DeviceSampler


class StoryRules(LogitsProcessor):  # type: ignore[misc]
    """All samplers, for the requests whose `extra_args` ask for one."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:  # noqa: ANN401
        from serving.sampling.slots import Histories

        speculative = vllm_config.speculative_config
        rows = req_states.max_num_reqs * (1 + (speculative.num_speculative_tokens if speculative else 0))
        vocabulary = load_vocabulary(vllm_config)
        self._histories = Histories(req_states)
        self._samplers: list[DeviceSampler] = [
            load_class(sampler.device)(req_states, vocabulary, self._histories, rows) for sampler in SAMPLERS
        ]
        if req_states.device.type == "cuda":
            self._compile(req_states)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for rules that are impossible."""
        from_extra_args(sampling_params.extra_args)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """A new request in a slot, whatever was there before. Whether a sampler does anything for it."""
        rules = from_extra_args(sampling_params.extra_args)
        used = [sampler.add(req_idx, rules) for sampler in self._samplers]
        self._histories.add(req_idx, rules if any(used) else None)
        return any(used)

    def apply_staged_writes(self) -> None:
        """Bring to the device what `add_request` said."""
        self._histories.apply_staged_writes()
        for sampler in self._samplers:
            sampler.apply_staged_writes()

    def apply(self, logits: "torch.Tensor", ctx: LogitsContext) -> "torch.Tensor":
        """`logits: [B, V] float32`, in place."""
        slots = ctx.idx_mapping_np
        users = [(sampler, used) for sampler in self._samplers if (used := sampler.used[slots]).any()]
        if not users:
            return logits
        rows = self._histories.rows(ctx)
        for sampler, used in users:
            sampler.apply(logits, rows, int(ctx.seq_lens_upper_bound_np[: len(slots)][used].max()), slots)
        return logits

    def _compile(self, req_states: LogitsProcRequestState) -> None:
        """Now, and not at the first request: short and long histories, with and without drafts."""
        import torch

        from serving.sampling.history import Rows

        first = torch.zeros(1, dtype=torch.int32, device=req_states.device)
        logits = torch.zeros((1, req_states.vocab_size), device=req_states.device)
        for drafts in (False, True):
            rows = Rows(self._histories.tokens, req_states.total_len.gpu, first, first, first, drafts)
            for longest in (1, req_states.all_token_ids.gpu.shape[1]):
                for sampler in self._samplers:
                    sampler.apply(logits, rows, longest, np.zeros(1, np.int32))
