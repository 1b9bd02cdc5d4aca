"""The tables of DRY on the device, by slot, for vLLM's Model Runner V2. The rule itself is in `device.py`."""

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcRequestState

from serving.core import Dry, LogitsRules
from serving.sampling.dry import device
from serving.sampling.dry.params import penalty_table
from serving.sampling.dry.sets import Sequences, SetNumbers
from serving.sampling.history import Rows, packed
from serving.sampling.slots import Histories, table
from serving.sampling.vocabulary import LINE_BREAK, Vocabulary


class DryOnDevice:
    """A `DeviceSampler` for up to `rows` rows a step."""

    def __init__(
        self, req_states: LogitsProcRequestState, vocabulary: Vocabulary, histories: Histories, rows: int
    ) -> None:
        slots = req_states.max_num_reqs
        self._states = req_states
        self._vocabulary = vocabulary
        self._markers = histories.markers
        self._settings = table(req_states, device.SETTING_FIELDS)
        self._penalties = table(req_states, device.PENALTIES, torch.float32)
        self._sets = SetNumbers(slots)
        self._runs: dict[int, Sequences] = {}  # of each set, the runs of tokens
        self._breakers = table(req_states, -(-vocabulary.size // 32))
        self._starts = table(req_states, device.SEQUENCE_STARTS)
        self._sequences = table(req_states, 1)
        self._line_breaks = packed(torch.from_numpy(vocabulary.kinds & LINE_BREAK)).to(req_states.device)
        self._longest = req_states.all_token_ids.gpu.shape[1]
        self._scratch = device.Scratch.of(rows, self._longest, req_states.device)
        self.used: npt.NDArray[np.bool_] = np.zeros(slots, bool)
        self._sequenced: npt.NDArray[np.bool_] = np.zeros(slots, bool)

    def add(self, slot: int, rules: LogitsRules | None) -> bool:
        was, dry = self.used[slot], rules.dry if rules else None
        self.used[slot] = self._sequenced[slot] = False
        self._sets.release(slot)
        if rules is None or dry is None or not any(penalty_table(dry)):
            if was:
                self._settings.stage_write(slot, 0, device.setting_row(None, 0))
            return False
        number, new = self._sets.hold(slot, (frozenset(dry.sequence_breakers), rules.markers))
        if new:
            self._add_set(number, rules, dry)
        self.used[slot] = True
        self._sequenced[slot] = bool(self._runs[number])
        self._settings.stage_write(slot, 0, device.setting_row(dry, number))
        self._penalties.stage_write(slot, 0, device.penalty_row(dry))
        return True

    def _add_set(self, number: int, rules: LogitsRules, dry: Dry) -> None:
        marked, runs = self._vocabulary.marked(dry.sequence_breakers, rules.markers)
        sequences = self._runs[number] = tuple(run for run in runs if 0 < len(run) <= device.LONGEST_SEQUENCE)
        self._breakers.stage_write(number, 0, packed(torch.from_numpy(marked)).tolist())
        tokens, starts = device.sequence_rows(sequences)
        self._starts.stage_write(number, 0, starts)
        if len(tokens) <= self._sequences.gpu.shape[1]:
            self._sequences.stage_write(number, 0, tokens)
            return
        self._sequences = table(self._states, 1 << (len(tokens) - 1).bit_length())
        for other, held in self._runs.items():
            self._sequences.stage_write(other, 0, device.sequence_rows(held)[0])

    def apply_staged_writes(self) -> None:
        for each in (self._settings, self._penalties, self._breakers, self._starts, self._sequences):
            each.apply_write()

    def apply(self, logits: torch.Tensor, rows: Rows, longest: int, slots: npt.NDArray[np.int32]) -> None:
        tables = device.Tables(
            self._settings.gpu,
            self._penalties.gpu,
            self._markers.gpu,
            self._breakers.gpu,
            self._sequences.gpu,
            self._starts.gpu,
            self._line_breaks,
        )
        sequences = bool(self._sequenced[slots].any())
        device.apply(logits, rows, tables, self._scratch, min(longest, self._longest), sequences)
