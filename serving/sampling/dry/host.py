"""DRY on the host: numba kernels that equal `reference.py` on every input.

Stateless: each step reads the window of a row again, from its end. The token that was written last is searched with
vector instructions; where it stands, the length of the repetition comes from those found before (a Z-algorithm over at
most 50 tokens), so that no text, however it repeats, costs more than a few steps a token. It does not know vLLM;
`v1.py` says which rows are whose.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from serving.core import Dry, LogitsRules, Markers
from serving.sampling.arguments import MOST_TAIL
from serving.sampling.dry.params import MOST_LENGTH, penalty_table
from serving.sampling.dry.sets import BreakerSets, SetTables
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.vocabulary import LINE_BREAK, Vocabulary

Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_RANGE, _SET, _START, _HEADER_END, _LINE_BREAKS, _TAILS, _TAIL = range(7)
_FIELDS: Final = _TAIL + MOST_TAIL
_BLOCK: Final = 64
"""Tokens that are compared at once, without a branch between them."""


class _Tables(NamedTuple):
    """`slots: [S, _FIELDS] int32`, `penalties: [S, MOST_LENGTH + 1] float32`, `kinds: [V] uint8`."""

    slots: Ints
    penalties: Floats
    kinds: Bytes
    sets: SetTables


class HostDry:
    """The parameters of the requests in a batch, by slot."""

    def __init__(self, slots: int, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._sets = BreakerSets(slots, vocabulary.size)
        self._slots: Ints = np.zeros((slots, _FIELDS), np.int32)
        self._penalties: Floats = np.zeros((slots, MOST_LENGTH + 1), np.float32)
        # Of each token the longest repetition it would prolong; zeros between the rows.
        self._longest: Bytes = np.zeros(vocabulary.size, np.uint8)
        self._compile()

    def _compile(self) -> None:
        """Now, and not at the first request: for logits that lie together, and for the columns of wider ones."""
        self.add(0, LogitsRules(Markers(0, 0, 0), dry=Dry(sequence_breakers=())))
        ids: Ints = np.zeros(1, np.int32)
        size = self._vocabulary.size
        for width in (size, size + 1):
            self.apply(torch.zeros(2, width)[:, :size], ids, ids, np.zeros((1, 1), np.int32), ids)
        self._sets.release(0)

    def add(self, slot: int, rules: LogitsRules) -> bool:
        """A new request in `slot`. False: DRY changes nothing for it."""
        self._sets.release(slot)
        dry, markers = rules.dry, rules.markers
        if dry is None or dry.multiplier <= 0:
            return False
        self._penalties[slot] = penalty_table(dry)
        if not self._penalties[slot].any():
            return False
        key = (frozenset(dry.sequence_breakers), markers)
        number = self._sets.hold(slot, key, lambda: self._vocabulary.marked(dry.sequence_breakers, markers))
        tail = markers.header_tail
        row = self._slots[slot]
        row[:_TAIL] = dry.range, number, markers.start, markers.header_end, markers.line_breaks, len(tail)
        row[_TAIL : _TAIL + len(tail)] = tail
        return True

    def apply(self, logits: torch.Tensor, rows: Ints, slots: Ints, history: Ints, lengths: Ints) -> None:
        """As `HostSampler.apply`."""
        if logits.device.type == "cpu":
            _apply(logits.numpy(), rows, slots, history, lengths, self._tables(), self._longest)
        else:
            self._apply_elsewhere(logits, rows, slots, history, lengths)

    def _apply_elsewhere(self, logits: torch.Tensor, rows: Ints, slots: Ints, history: Ints, lengths: Ints) -> None:
        """To logits that do not lie in this process's memory: only what is to be taken off them is sent there."""
        off = torch.zeros(len(rows), logits.shape[1])
        order = np.arange(len(rows), dtype=np.int32)
        _apply(off.numpy(), order, slots, history, lengths, self._tables(), self._longest)
        at, tokens = off.nonzero(as_tuple=True)
        where = torch.as_tensor(rows)[at].to(logits.device), tokens.to(logits.device)
        logits[where] += off[at, tokens].to(logits.device)

    def _tables(self) -> _Tables:
        return _Tables(self._slots, self._penalties, self._vocabulary.kinds, self._sets.tables)


@njit(cache=True, nogil=True)
def _apply(
    logits: Floats, rows: Ints, slots: Ints, history: Ints, lengths: Ints, tables: _Tables, longest: Bytes
) -> None:
    """`logits: [B, V] float32`, in place; `longest: [V] uint8` is all zeros before and after."""
    marks = np.empty(history.shape[1], np.uint8)
    found = np.empty(min(history.shape[1], longest.shape[0]), np.int32)
    width = min(logits.shape[1], longest.shape[0])
    for number in range(rows.shape[0]):
        row, slot = rows[number], slots[number]
        ids = history[slot, : lengths[slot]]
        count = _row(ids, tables.slots[slot], tables, marks, longest, found)
        for at in range(count):
            token = found[at]
            penalty = tables.penalties[slot, longest[token]]
            longest[token] = 0
            # An untouched logit keeps its bits, and -0.0 its sign.
            if penalty > 0 and token < width:
                logits[row, token] -= penalty


@njit(cache=True, nogil=True)
def _row(ids: Ints, fields: Ints, tables: _Tables, marks: Bytes, longest: Bytes, found: Ints) -> int:
    """Sets `longest` for the tokens that would prolong a repetition, and lists them in `found`; says how many."""
    size = ids.shape[0]
    begin = max(0, size - fields[_RANGE]) if fields[_RANGE] > 0 else 0
    breakers = tables.sets.bitmaps[fields[_SET]]
    if size - begin < 2 or _has(breakers, ids[size - 1]):
        return 0
    head, tail = _header_before(ids, size, begin, fields, tables.kinds)
    mark = _mark_sequences(ids, begin, fields[_SET], tables.sets, marks)
    # The end of the window that may be repeated.
    most, longest_end = 0, min(MOST_LENGTH, size - max(tail, mark + 1))
    while most < longest_end and not _has(breakers, ids[size - 1 - most]):
        most += 1
    if most <= 0:
        return 0
    return _scan(ids, begin, most, fields, tables, (head, tail, mark), marks, longest, found)


@njit(cache=True, nogil=True)
def _scan(
    ids: Ints,
    begin: int,
    most: int,
    fields: Ints,
    tables: _Tables,
    borders: tuple[int, int, int],
    marks: Bytes,
    longest: Bytes,
    found: Ints,
) -> int:
    """Finds where the last token stands, newest first, and how many of the last `most` tokens end there.

    What is known of `ids[low + 1 : high + 1]` is that it equals as many of the last tokens; whether the part of it that
    ends at some `at` does too is then known from `own`, but for what lies at or before `low`. `borders` are the last
    header, from `head` to before `tail`, and the last marked position.
    """
    size, last, width = ids.shape[0], ids[ids.shape[0] - 1], longest.shape[0]
    head, tail, mark = borders
    breakers = tables.sets.bitmaps[fields[_SET]]
    own = _own_repetitions(ids, most)
    count, high, low = 0, size, size
    end = size - 1
    while end > begin:
        start = max(begin, end - _BLOCK)
        if not _holds(ids[start:end], last):
            end = start
            continue
        for at in range(end - 1, start - 1, -1):
            token = ids[at + 1]
            # A token that would prolong all that may be repeated has its penalty; a breaker never gets one.
            if ids[at] != last or not 0 <= token < width or longest[token] == most or breakers[token]:
                continue
            if at + 1 < head:
                head, tail = _header_before(ids, at + 2, begin, fields, tables.kinds)
            if at + 1 < mark:
                mark = _previous(marks, np.uint8(1), at + 2, begin)
            length = min(own[high - at], at - low) if at > low else 1
            if at <= low or length == at - low:
                while length < most and at - length >= begin and ids[at - length] == ids[size - 1 - length]:
                    length += 1
                high, low = at, at - length
            # Less than nothing where the next position is broken itself.
            length = min(length, at + 1 - max(tail, mark + 1))
            if length > longest[token]:
                if longest[token] == 0:
                    found[count] = token
                    count += 1
                longest[token] = length
        end = start
    return count


@njit(cache=True, nogil=True)
def _own_repetitions(ids: Ints, most: int) -> npt.NDArray[np.int64]:
    """For each j < `most` how many of the last `most` tokens, from the end, also end j tokens before it."""
    end = ids.shape[0] - 1
    own = np.empty(most, np.int64)
    own[0] = most
    high, low = 0, 0
    for j in range(1, most):
        length = min(own[j - high], low - j) if j < low else 0
        while j + length < most and ids[end - j - length] == ids[end - length]:
            length += 1
        own[j] = length
        if j + length > low:
            high, low = j, j + length
    return own


@njit(cache=True, nogil=True)
def _previous(values: Ints, value: int, before: int, floor: int) -> int:
    """The last place before `before` where `values` holds `value`, at least `floor`; `floor - 1` if there is none."""
    at = before - 1
    while at + 1 - _BLOCK >= floor and not _holds(values[at + 1 - _BLOCK : at + 1], value):
        at -= _BLOCK
    while at >= floor and values[at] != value:
        at -= 1
    return at


@njit(cache=True, nogil=True)
def _holds(values: Ints, value: int) -> bool:
    """Whether `value` is among `values`; quickly for _BLOCK of them."""
    hits = 0
    if values.shape[0] == _BLOCK:
        for at in range(_BLOCK):
            hits |= values[at] == value
    else:
        for at in range(values.shape[0]):
            hits |= values[at] == value
    return hits != 0


@njit(cache=True, nogil=True)
def _has(table: Bytes, token: int) -> bool:
    return 0 <= token < table.shape[0] and table[token] != 0


# ---- what no repetition runs through ---------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _header_before(ids: Ints, before: int, begin: int, fields: Ints, kinds: Bytes) -> tuple[int, int]:
    """The last header that begins before `before` and may reach into the window: where it begins, and where it is over
    (or the window's begin, if that is later)."""
    floor = max(0, begin - LONGEST_HEADER_TOKENS)
    head = _previous(ids, fields[_START], before, floor)
    if head < floor:
        return -1, begin
    return head, max(begin, _header_end(ids, head, fields, kinds))


@njit(cache=True, nogil=True)
def _header_end(ids: Ints, start: int, fields: Ints, kinds: Bytes) -> int:
    """As `Headers.end`."""
    most = min(ids.shape[0], start + LONGEST_HEADER_TOKENS)
    for at in range(start + 1, most):
        token = ids[at]
        if token == fields[_START]:
            return at
        breaks = fields[_LINE_BREAKS] and 0 <= token < kinds.shape[0] and kinds[token] & LINE_BREAK
        if breaks or token == fields[_HEADER_END]:
            over, tail = at + 1, 0
            while tail < fields[_TAILS] and over < most and ids[over] == fields[_TAIL + tail]:
                over, tail = over + 1, tail + 1
            return over
    return most


@njit(cache=True, nogil=True)
def _mark_sequences(ids: Ints, begin: int, number: int, sets: SetTables, marks: Bytes) -> int:
    """Marks where the sequences of a set stand in the window, overlapping too, and gives the last marked position
    (`begin - 1`: there is none, and then `marks` may hold anything).

    Each is searched from its end, as Knuth, Morris and Pratt do, but from one place of its last token to the next while
    nothing of it is found.
    """
    if sets.first[number] == sets.first[number + 1]:
        return begin - 1
    size = ids.shape[0]
    marks[begin:size] = 0
    for sequence in range(sets.first[number], sets.first[number + 1]):
        begins = sets.starts[sequence]
        ends = sets.starts[sequence + 1]
        tokens, falls = sets.tokens[begins:ends], sets.falls[begins:ends]
        at, matched, marked = size - 1, 0, size
        while at >= begin:
            if matched == 0:
                at = _previous(ids, tokens[0], at + 1, begin)
                if at < begin:
                    break
            while matched > 0 and tokens[matched] != ids[at]:
                matched = falls[matched - 1]
            if tokens[matched] == ids[at]:
                matched += 1
            if matched == ends - begins:
                marks[at : min(at + matched, marked)] = 1
                marked = at
                matched = falls[matched - 1]
            at -= 1
    return _previous(marks, np.uint8(1), size, begin)
