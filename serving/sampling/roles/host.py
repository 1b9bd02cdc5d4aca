"""The role automaton on the host: numba kernels that equal `reference.py` on every input.

Stateless: each step looks back from the end of a history, at most `minimum_content` and a header's length. It does not
know vLLM; `v1.py` says which rows are whose.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from serving.core import LogitsRules, Markers, RoleRule
from serving.sampling.arguments import MOST_EOS, MOST_TAIL
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.roles.params import MOST_NAME_TOKENS, MOST_PATH_TOKENS, MOST_PATHS
from serving.sampling.vocabulary import LINE_BREAK, NAME_START, SPECIAL, Vocabulary

Ints = npt.NDArray[np.int32]

CONTENT: Final = 0
LISTED: Final = 1
NAMES_BEGIN: Final = 2
NAMES: Final = 3
"""Modes of a state record `[mode, count, ids...]`: all but `ids`; only `ids`; a name's first token; a later one, which
is none of `ids`, or the header's end, which is then `ids[0]`."""

_RECORD = 2 + MOST_PATHS + MOST_EOS + 2
_RULE_FIELDS = 5
_START, _END, _HEADER_END, _LINE_BREAKS = range(4)
# The number of ids of a list, and then the list.
_TAILS, _TAIL = 4, 5
_AFTERS, _AFTER = _TAIL + MOST_TAIL, _TAIL + MOST_TAIL + 1
_EOSES, _EOS = _AFTER + MOST_TAIL, _AFTER + MOST_TAIL + 1
_MARKER_FIELDS = _EOS + MOST_EOS


class HostRoles:
    """The rules of the requests in a batch, by slot."""

    def __init__(self, slots: int, vocabulary: Vocabulary) -> None:
        self._kinds = vocabulary.kinds
        self._markers: Ints = np.zeros((slots, _MARKER_FIELDS), np.int32)
        self._rules: Ints = np.zeros((slots, _RULE_FIELDS), np.int32)
        self._starts: Ints = np.zeros((slots, MOST_PATHS + 1), np.int32)
        self._paths: Ints = np.zeros((slots, MOST_PATH_TOKENS), np.int32)
        self._compile()

    def _compile(self) -> None:
        """Now, and not at the first request."""
        self.add(0, LogitsRules(Markers(0, 0, 0), roles=RoleRule()))
        ids: Ints = np.zeros(1, np.int32)
        self.apply(torch.zeros(1, self._kinds.size), ids, ids, np.zeros((1, 1), np.int32), ids)

    def add(self, slot: int, rules: LogitsRules) -> bool:
        """A new request in `slot`. False: it has no role rule."""
        if rules.roles is None:
            return False
        rule, markers = rules.roles, rules.markers
        paths = (*rule.headers, *rule.open_names)
        joined = [token for path in paths for token in path]
        self._paths[slot, : len(joined)] = joined
        self._starts[slot, : len(paths) + 1] = np.cumsum([0, *map(len, paths)])
        self._rules[slot] = (
            len(rule.headers),
            len(rule.open_names),
            rule.forbid_end,
            rule.minimum_content,
            rule.ignore_eos,
        )
        row = self._markers[slot]
        row[:_TAILS] = markers.start, markers.end, markers.header_end, markers.line_breaks
        eos = tuple(token for token in markers.eos if token != markers.end)
        for at, ids in ((_TAILS, markers.header_tail), (_AFTERS, markers.after_end), (_EOSES, eos)):
            row[at] = len(ids)
            row[at + 1 : at + 1 + len(ids)] = ids
        return True

    def apply(self, logits: torch.Tensor, rows: Ints, slots: Ints, history: Ints, lengths: Ints) -> None:
        """As `HostSampler.apply`."""
        states: Ints = np.empty((len(rows), _RECORD), np.int32)
        tables = (self._markers, self._rules, self._starts, self._paths, self._kinds)
        _read_states(slots, history, lengths, *tables, states)
        if logits.device.type == "cpu":
            _write_rows(logits.numpy(), rows, states, self._kinds)
        else:
            _write_elsewhere(logits, rows, states, self._kinds)


def _write_elsewhere(logits: torch.Tensor, rows: Ints, states: Ints, kinds: npt.NDArray[np.uint8]) -> None:
    """Logits that do not lie in this process's memory: each row is fetched and put back where it is in a header."""
    for row, state in zip(rows.tolist(), states, strict=True):
        if state[0] == CONTENT:
            banned = torch.as_tensor(state[2 : 2 + state[1]].astype(np.int64), device=logits.device)
            logits[row, banned[banned < logits.shape[1]]] = -torch.inf
            continue
        own = logits[row : row + 1].cpu()
        _write_rows(own.numpy(), np.zeros(1, np.int32), state[None], kinds)
        logits[row : row + 1] = own.to(logits.device)


@njit(cache=True, nogil=True)
def _read_states(
    slots: Ints,
    history: Ints,
    lengths: Ints,
    markers: Ints,
    rules: Ints,
    starts: Ints,
    paths: Ints,
    kinds: npt.NDArray[np.uint8],
    states: Ints,
) -> None:
    """A state record for each of `slots`."""
    for number in range(slots.shape[0]):
        slot = slots[number]
        ids = history[slot, : lengths[slot]]
        _read_state(ids, markers[slot], rules[slot], starts[slot], paths[slot], kinds, states[number])


@njit(cache=True, nogil=True)
def _read_state(
    ids: Ints, markers: Ints, rule: Ints, starts: Ints, paths: Ints, kinds: npt.NDArray[np.uint8], state: Ints
) -> None:
    count = ids.shape[0]
    minimum = rule[3]
    # Further back, there are enough content tokens whatever stands there.
    oldest = max(0, count - np.int64(minimum) - LONGEST_HEADER_TOKENS - 2)
    border = count - 1
    while border >= oldest and ids[border] != markers[_START] and ids[border] != markers[_END]:
        border -= 1
    content = border + 1
    if border >= oldest and ids[border] == markers[_END] and _behind_end(ids[content:], markers, rule, kinds, state):
        return
    if border >= oldest and ids[border] == markers[_START]:
        over, inside = _header(ids, border, markers, kinds)
        if inside and _in_header(ids[border + 1 :], markers, rule, starts, paths, state):
            return
        if over > 0:
            content = over
    early = count - content < minimum
    state[0], state[1] = CONTENT, 1
    state[2] = markers[_START]
    if early or rule[2]:
        _append(state, markers[_END])
    if early or rule[4]:
        for number in range(markers[_EOSES]):
            _append(state, markers[_EOS + number])


@njit(cache=True, nogil=True)
def _behind_end(behind: Ints, markers: Ints, rule: Ints, kinds: npt.NDArray[np.uint8], state: Ints) -> bool:
    """Records what may follow a message end and the tokens `behind` it; False where those are no part of the format."""
    size, expected = behind.shape[0], markers[_AFTERS]
    shared = 0
    while shared < size and shared < expected and behind[shared] == markers[_AFTER + shared]:
        shared += 1
    if (shared == size and size == expected) or (size == 1 and _is_line_break(behind[0], kinds)):
        _list_with_ends(markers[_START], markers, rule, state)
        return True
    if shared == size:
        _list_with_ends(markers[_AFTER + size], markers, rule, state)
        return True
    return False


@njit(cache=True, nogil=True)
def _header(ids: Ints, start: int, markers: Ints, kinds: npt.NDArray[np.uint8]) -> tuple[int, bool]:
    """Where the header that begins at `start` is over (0: nowhere), and whether `ids` end inside of it."""
    most = min(ids.shape[0], start + LONGEST_HEADER_TOKENS)
    for at in range(start + 1, most):
        token = ids[at]
        if token == markers[_HEADER_END] or (markers[_LINE_BREAKS] and _is_line_break(token, kinds)):
            over, tail = at + 1, 0
            while tail < markers[_TAILS] and over < most and ids[over] == markers[_TAIL + tail]:
                over, tail = over + 1, tail + 1
            waits = over == ids.shape[0] and tail < markers[_TAILS]
            return over, waits and over - start < LONGEST_HEADER_TOKENS
    return 0, ids.shape[0] - start < LONGEST_HEADER_TOKENS


@njit(cache=True, nogil=True)
def _in_header(written: Ints, markers: Ints, rule: Ints, starts: Ints, paths: Ints, state: Ints) -> bool:
    """Records what may follow the part of a header `written`; False where no header of the rule begins so."""
    size = written.shape[0]
    state[0], state[1] = LISTED, 0
    for number in range(rule[0] + rule[1]):
        begin, end = starts[number], starts[number + 1]
        shared = 0
        while shared < size and begin + shared < end and written[shared] == paths[begin + shared]:
            shared += 1
        if shared == size and begin + size < end:
            _append(state, paths[begin + size])
        elif number >= rule[0] and begin + shared == end:
            _in_names(written[shared:], markers, state)
            return True
    return state[1] > 0


@njit(cache=True, nogil=True)
def _in_names(names: Ints, markers: Ints, state: Ints) -> None:
    state[0], state[1] = NAMES, 1
    state[2] = markers[_HEADER_END]
    if names.shape[0] == 0:
        state[0], state[1] = NAMES_BEGIN, 0
        return
    for at in range(names.shape[0]):
        if names[at] == markers[_HEADER_END]:
            state[0] = LISTED
            state[2] = markers[_TAIL + names.shape[0] - at - 1]
            return
    if names.shape[0] >= MOST_NAME_TOKENS:
        state[0] = LISTED
        return
    for token in (markers[_START], markers[_END]):
        _append(state, token)
    for number in range(markers[_EOSES]):
        _append(state, markers[_EOS + number])


@njit(cache=True, nogil=True)
def _list_with_ends(following: int, markers: Ints, rule: Ints, state: Ints) -> None:
    state[0], state[1] = LISTED, 1
    state[2] = following
    if not rule[4]:
        for number in range(markers[_EOSES]):
            _append(state, markers[_EOS + number])


@njit(cache=True, nogil=True)
def _append(state: Ints, token: int) -> None:
    for at in range(2, 2 + state[1]):
        if state[at] == token:
            return
    state[2 + state[1]] = token
    state[1] += 1


@njit(cache=True, nogil=True)
def _is_line_break(token: int, kinds: npt.NDArray[np.uint8]) -> bool:
    return 0 <= token < kinds.shape[0] and (kinds[token] & LINE_BREAK) != 0


@njit(cache=True, nogil=True)
def _write_rows(logits: npt.NDArray[np.float32], rows: Ints, states: Ints, kinds: npt.NDArray[np.uint8]) -> None:
    """`logits: [B, V] float32`, in place: what the state records leave of the rows."""
    width = logits.shape[1]
    for number in range(rows.shape[0]):
        row, state = logits[rows[number]], states[number]
        mode, ids = state[0], state[2 : 2 + state[1]]
        if mode == CONTENT:
            for token in ids:
                if token < width:
                    row[token] = -np.inf
        elif mode == LISTED:
            _keep_listed(row, ids)
        elif mode == NAMES_BEGIN:
            for token in range(width):
                if token >= kinds.shape[0] or kinds[token] & NAME_START == 0:
                    row[token] = -np.inf
        else:
            kept = row[ids[0]] if ids[0] < width else np.float32(0.0)
            for token in range(min(width, kinds.shape[0])):
                if kinds[token] & (LINE_BREAK | SPECIAL) != 0:
                    row[token] = -np.inf
            for token in ids:
                if token < width:
                    row[token] = -np.inf
            if ids[0] < width:
                row[ids[0]] = kept


@njit(cache=True, nogil=True)
def _keep_listed(row: npt.NDArray[np.float32], ids: Ints) -> None:
    """All but `ids` become impossible; were those impossible, all of them become 0."""
    kept = np.empty(ids.shape[0], np.float32)
    rescued = True
    for number in range(ids.shape[0]):
        kept[number] = row[ids[number]] if ids[number] < row.shape[0] else -np.inf
        rescued = rescued and kept[number] == -np.inf
    row[:] = -np.inf
    for number in range(ids.shape[0]):
        if ids[number] < row.shape[0]:
            row[ids[number]] = np.float32(0.0) if rescued else kept[number]
