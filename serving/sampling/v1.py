"""The samplers as one logits processor of vLLM's Model Runner V1 (the CPU build).

Keeps each request's history as an array and hands batches to the host samplers, in the order of `SAMPLERS`. It decides
nothing itself. vLLM imports this module inside its own processes, and applies it before its own penalties.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from serving.core import LogitsRules
from serving.sampling.arguments import from_extra_args
from serving.sampling.base import SAMPLERS, HostSampler, load_class
from serving.sampling.source import load_vocabulary

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request in the batch. `output` is vLLM's own list and grows."""

    slot: int
    output: list[int]
    used: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of the batch that one sampler works on."""

    sampler: HostSampler
    rows: Ints
    slots: Ints


class StoryRules(LogitsProcessor):  # type: ignore[misc]
    """All samplers, for the requests whose `extra_args` ask for one."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ANN401
        slots = vllm_config.scheduler_config.max_num_seqs
        vocabulary = load_vocabulary(vllm_config)
        self._samplers: list[HostSampler] = [load_class(sampler.host)(slots, vocabulary) for sampler in SAMPLERS]
        # Pages that no history reaches are never touched.
        self._history: Ints = np.empty((slots, vllm_config.model_config.max_model_len + 1), np.int32)
        self._lengths: Ints = np.zeros(slots, np.int32)
        self._prompts: Ints = np.zeros(slots, np.int32)
        self._free = list(range(slots))
        self._entries: dict[int, _Entry] = {}
        self._parts: list[_Part] = []
        # Of all requests in the batch: vLLM's lists, and their slots in the same order.
        self._outputs: list[list[int]] = []
        self._slots: Ints = np.empty(0, np.int32)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for rules that are impossible."""
        from_extra_args(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch; called before each step."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._remove(row)
        for row, params, prompt, output in batch_update.added:
            self._remove(row)
            rules = from_extra_args(params.extra_args)
            if rules is not None and prompt is not None:
                self._add(row, rules, prompt, output)
        for first, second, direction in batch_update.moved:
            moved, other = self._entries.pop(first, None), self._entries.pop(second, None)
            if moved is not None:
                self._entries[second] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                self._entries[first] = other
            elif other is not None:
                self._free.append(other.slot)
        self._regroup()

    def _add(self, row: int, rules: LogitsRules, prompt: list[int], output: list[int]) -> None:
        slot = self._free.pop()
        used = tuple(sampler.add(slot, rules) for sampler in self._samplers)
        self._history[slot, : len(prompt)] = prompt
        self._prompts[slot] = self._lengths[slot] = len(prompt)
        self._entries[row] = _Entry(slot, output, used)

    def _remove(self, row: int) -> None:
        entry = self._entries.pop(row, None)
        if entry is not None:
            self._free.append(entry.slot)

    def _regroup(self) -> None:
        self._outputs = [entry.output for entry in self._entries.values()]
        self._slots = np.array([entry.slot for entry in self._entries.values()], np.int32)
        self._parts = []
        for number, sampler in enumerate(self._samplers):
            members = [(row, entry.slot) for row, entry in self._entries.items() if entry.used[number]]
            if members:
                rows, slots = np.array(members, np.int32).T.copy()
                self._parts.append(_Part(sampler, rows, slots))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits: [B, V] float32`, in place."""
        if self._parts:
            self._follow()
        for part in self._parts:
            part.sampler.apply(logits, part.rows, part.slots, self._history, self._lengths)
        return logits

    def _follow(self) -> None:
        """Take over what has been generated since the last step; usually one token of each request."""
        slots, known = self._slots, self._lengths[self._slots]
        lengths = self._prompts[slots] + np.fromiter(map(len, self._outputs), np.int32, len(slots))
        if (lengths == known + 1).all():
            self._history[slots, known] = [output[-1] for output in self._outputs]
        else:
            for slot, output, begin, end in zip(slots, self._outputs, known, lengths, strict=True):
                if begin < end:
                    self._history[slot, begin:end] = output[begin - end :]
        self._lengths[slots] = lengths  # also where some were taken back: what comes instead is written over them
