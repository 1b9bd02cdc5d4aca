"""The tables of the role automaton on the device, by slot, for vLLM's Model Runner V2. The rule is in `device.py`."""

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcRequestState

from serving.core import LogitsRules
from serving.sampling.history import Rows, packed
from serving.sampling.roles import device
from serving.sampling.roles.params import MOST_PATH_TOKENS
from serving.sampling.slots import Histories, table
from serving.sampling.vocabulary import LINE_BREAK, NAME_START, SPECIAL, Vocabulary


class RolesOnDevice:
    """A `DeviceSampler` for up to `rows` rows a step."""

    def __init__(
        self, req_states: LogitsProcRequestState, vocabulary: Vocabulary, histories: Histories, rows: int
    ) -> None:
        self._markers = histories.markers
        self._rules = table(req_states, device.RULE_FIELDS)
        self._paths = table(req_states, MOST_PATH_TOKENS)
        self._starts = table(req_states, device.STARTS)
        classes = (LINE_BREAK, LINE_BREAK | SPECIAL, NAME_START)
        having = [packed(torch.from_numpy(vocabulary.kinds & kind)) for kind in classes]
        self._classes = torch.stack(having).to(req_states.device)
        self._records = torch.empty((rows, device.RECORD_FIELDS), dtype=torch.int32, device=req_states.device)
        self.used: npt.NDArray[np.bool_] = np.zeros(req_states.max_num_reqs, bool)

    def add(self, slot: int, rules: LogitsRules | None) -> bool:
        was, rule = self.used[slot], rules.roles if rules else None
        self.used[slot] = rule is not None
        if was or rule is not None:
            self._rules.stage_write(slot, 0, device.rule_row(rule))
        if rule is not None:
            paths, starts = device.path_rows(rule)
            self._paths.stage_write(slot, 0, paths)
            self._starts.stage_write(slot, 0, starts)
        return rule is not None

    def apply_staged_writes(self) -> None:
        for each in (self._rules, self._paths, self._starts):
            each.apply_write()

    def apply(self, logits: torch.Tensor, rows: Rows, longest: int, slots: npt.NDArray[np.int32]) -> None:
        tables = device.Tables(self._rules.gpu, self._paths.gpu, self._starts.gpu, self._markers.gpu, self._classes)
        device.apply(logits, rows, tables, self._records)
