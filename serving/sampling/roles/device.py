"""The role automaton on the device: Triton kernels that equal `reference.py` on every input.

Two launches. The first reads each row's state by looking back from the end of its history, at most `minimum_content`
and a header's length, writes it to a record, and does all that a row in CONTENT needs. The second writes the other
rows, in which most tokens are impossible. Nothing is carried from step to step; never waits for the device.

Does not know vLLM: `v2.py` keeps the tables.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from serving.core import RoleRule
from serving.sampling.arguments import MOST_EOS, MOST_TAIL
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.history import MARKER_FIELDS, Rows, has_bit, kernel, token_at
from serving.sampling.roles.params import MOST_NAME_TOKENS, MOST_PATH_TOKENS, MOST_PATHS

RULE_FIELDS: Final = 8
STARTS: Final = MOST_PATHS + 1
RECORD_FIELDS: Final = 64
"""Of a state: its mode, how many ids, and the ids."""
_CHUNK: Final = 8192
_LOOK_BACK: Final = 256
_MOST_MINIMUM: Final = 2**30

LINE_BREAKS, NOT_IN_NAMES, NAME_STARTS = range(3)
"""Rows of `Tables.classes`: tokens that hold a line break; those, and special ones; those that begin a name."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What the kernels know of requests and of the vocabulary, on the device, all int32: `rules: [slots, RULE_FIELDS]`
    as `rule_row` says, `paths: [slots, MOST_PATH_TOKENS]` and `starts: [slots, STARTS]` as `path_rows`, `markers:
    [slots, MARKER_FIELDS]`, `classes: [3, ceil(V / 32)]` as bits."""

    rules: torch.Tensor
    paths: torch.Tensor
    starts: torch.Tensor
    markers: torch.Tensor
    classes: torch.Tensor


def rule_row(rule: RoleRule | None) -> list[int]:
    """A row of `Tables.rules`; None is a request without a rule."""
    if rule is None:
        return [0] * RULE_FIELDS
    minimum = min(rule.minimum_content, _MOST_MINIMUM)
    row = [1, len(rule.headers), len(rule.open_names), int(rule.forbid_end), int(rule.ignore_eos), minimum]
    return row + [0] * (RULE_FIELDS - len(row))


def path_rows(rule: RoleRule) -> tuple[list[int], list[int]]:
    """The beginning of a row of `Tables.paths`, and of one of `Tables.starts`: where each path begins, and the end."""
    starts = [0]
    for path in (*rule.headers, *rule.open_names):
        starts.append(starts[-1] + len(path))
    return [token for path in (*rule.headers, *rule.open_names) for token in path], starts


def apply(logits: torch.Tensor, rows: Rows, tables: Tables, records: torch.Tensor) -> None:
    """Constrain `logits: [B, V] float32` in place; `records: [B or more, RECORD_FIELDS] int32` is scratch."""
    count, vocab = logits.shape
    history = (rows.slots, rows.local, rows.lengths, rows.inputs, rows.tokens, rows.tokens.stride(0))
    of_slots = (tables.rules, tables.paths, tables.starts, tables.markers, tables.classes)
    _read_states[(count,)](logits, logits.stride(0), vocab, *history, *of_slots, records, DRAFTS=rows.drafts)
    _write_rows[(count, triton.cdiv(vocab, _CHUNK))](
        logits, logits.stride(0), vocab, tables.classes, tables.classes.stride(0), records, CHUNK=_CHUNK, num_warps=8
    )


_CONTENT = tl.constexpr(0)
_LISTED = tl.constexpr(1)
_NAMES_BEGIN = tl.constexpr(2)
_NAMES = tl.constexpr(3)
"""Modes of a record: all but some tokens; only its ids; a name's first token; a later one, or its id, a header end."""

_RECORD = tl.constexpr(RECORD_FIELDS)
_RULE = tl.constexpr(RULE_FIELDS)
_STARTS = tl.constexpr(STARTS)
_MARKERS = tl.constexpr(MARKER_FIELDS)
_MOST_PATHS = tl.constexpr(MOST_PATHS)
_MOST_PATH_TOKENS = tl.constexpr(MOST_PATH_TOKENS)
_MOST_NAME_TOKENS = tl.constexpr(MOST_NAME_TOKENS)
_LONGEST = tl.constexpr(LONGEST_HEADER_TOKENS)
_BACK = tl.constexpr(_LOOK_BACK)
_NAME_STARTS = tl.constexpr(NAME_STARTS)
_NOT_IN_NAMES = tl.constexpr(NOT_IN_NAMES)
_NOWHERE = tl.constexpr(1 << 20)
_FEW = tl.constexpr(triton.next_power_of_2(2 + MOST_EOS))
# Columns of a row of markers; those of the lists follow their lengths.
_START = tl.constexpr(0)
_END = tl.constexpr(1)
_HEADER_END = tl.constexpr(2)
_LINE_BREAKS = tl.constexpr(3)
_TAIL = tl.constexpr(5)
_AFTER = tl.constexpr(6 + MOST_TAIL)
_EOS = tl.constexpr(7 + 2 * MOST_TAIL)


@kernel
def _read_states(
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab: tl.tensor,
    slots: tl.tensor,
    local: tl.tensor,
    lengths: tl.tensor,
    inputs: tl.tensor,
    tokens: tl.tensor,
    tokens_stride: tl.tensor,
    rules: tl.tensor,
    paths: tl.tensor,
    starts: tl.tensor,
    markers: tl.tensor,
    classes: tl.tensor,
    records: tl.tensor,
    DRAFTS: tl.constexpr,
) -> None:
    """A record for each row. Message borders become impossible here, in CONTENT and in names; where all tokens that a
    record lists are impossible already, they become 0."""
    row = tl.program_id(0)
    record = records + row * _RECORD
    slot = tl.load(slots + row).to(tl.int64)
    rule = rules + slot * _RULE
    if tl.load(rule) == 0:
        tl.store(record, _CONTENT)
        return
    drafts = tl.load(local + row)
    length = tl.load(lengths + slot)
    end = length + drafts
    tokens += slot * tokens_stride
    inputs += row - drafts
    marker = markers + slot * _MARKERS
    logits += row.to(tl.int64) * logits_stride
    minimum = tl.load(rule + 5)
    border = _last_border(tokens, length, inputs, end, minimum, marker, DRAFTS)
    kind = token_at(tokens, length, inputs, border, border >= 0, DRAFTS)
    lane = tl.arange(0, _LONGEST)
    size = end - border - 1  # of what stands behind the border, of which the lanes are the first
    # Masks are made of comparisons of blocks alone: the interpreter takes no other.
    known = tl.where(border >= 0, tl.minimum(size, _LONGEST - 1), 0)
    held = lane < known
    behind = token_at(tokens, length, inputs, border + 1 + lane, held, DRAFTS)
    content = border + 1
    mode = _CONTENT
    if (border >= 0) & (kind == tl.load(marker + _END)):
        mode = _list_behind_end(behind, lane, size, marker, rule, classes, vocab, record, logits)
    elif border >= 0:
        breaks = has_bit(classes, behind, lane < known * tl.load(marker + _LINE_BREAKS), vocab)
        ends = held & ((behind == tl.load(marker + _HEADER_END)) | breaks)
        first = tl.min(tl.where(ends, lane, _NOWHERE), 0)
        tails = tl.load(marker + _TAIL - 1)
        depth = lane - first - 1
        in_tail = (depth >= 0) & (depth < tails)
        differs = in_tail & (behind != tl.load(marker + _TAIL + depth, mask=in_tail, other=0))
        over = tl.min(tl.where(differs, lane, _NOWHERE), 0)
        over = tl.minimum(tl.minimum(over, first + 1 + tails), known)
        inside = size < _LONGEST - 1
        if first < _NOWHERE:
            content = border + 1 + over
            inside = inside & (over == size) & (over - first - 1 < tails)
        if inside:
            own_paths, own_starts = paths + slot * _MOST_PATH_TOKENS, starts + slot * _STARTS
            mode = _follow_paths(behind, lane, size, marker, rule, own_paths, own_starts, vocab, record, logits)
    tl.store(record, mode)
    if (mode == _CONTENT) | (mode == _NAMES):
        _ban((end - content < minimum) | (mode == _NAMES), marker, rule, vocab, logits)


@kernel
def _last_border(
    tokens: tl.tensor,
    length: tl.tensor,
    inputs: tl.tensor,
    end: tl.tensor,
    minimum: tl.tensor,
    marker: tl.tensor,
    DRAFTS: tl.constexpr,
) -> tl.tensor:
    """The last message start or end, -1 where there is none. Further back than looked at, there are enough content
    tokens behind it, whatever it is."""
    start = tl.load(marker + _START)
    stop = tl.load(marker + _END)
    oldest = tl.maximum(end - minimum - _LONGEST - 2, 0)
    begin = end
    border = -1
    while (border < 0) & (begin > oldest):
        begin -= _BACK
        at = begin + tl.arange(0, _BACK)
        token = token_at(tokens, length, inputs, at, at >= 0, DRAFTS)
        border = tl.max(tl.where((at >= 0) & ((token == start) | (token == stop)), at, -1), 0)
    return border


@kernel
def _list_behind_end(
    behind: tl.tensor,
    lane: tl.tensor,
    size: tl.tensor,
    marker: tl.tensor,
    rule: tl.tensor,
    classes: tl.tensor,
    vocab: tl.tensor,
    record: tl.tensor,
    logits: tl.tensor,
) -> tl.tensor:
    """The mode behind a message end and the tokens `behind` it."""
    expected = tl.load(marker + _AFTER - 1)
    compared = (lane < size) & (lane < expected)
    told = tl.load(marker + _AFTER + lane, mask=compared, other=0)
    differs = tl.max((compared & (behind != told)).to(tl.int32), 0) > 0
    broken = tl.max(((lane == 0) & has_bit(classes, behind, lane < size, vocab)).to(tl.int32), 0) > 0
    complete = ((size == expected) & (differs == 0)) | ((size == 1) & broken)
    mode = _CONTENT
    if complete | ((size < expected) & (differs == 0)):
        following = tl.load(marker + _START)
        if complete == 0:
            following = tl.load(marker + _AFTER + size)
        number = tl.arange(0, _FEW) - 1
        count = tl.where(tl.load(rule + 4) == 0, tl.load(marker + _EOS - 1), 0)
        is_eos = (number >= 0) & (number < count)
        ids = tl.load(marker + _EOS + number, mask=is_eos, other=0)
        _list(tl.where(number < 0, following, ids), is_eos | (number < 0), vocab, record, logits)
        mode = _LISTED
    return mode


@kernel
def _follow_paths(
    behind: tl.tensor,
    lane: tl.tensor,
    size: tl.tensor,
    marker: tl.tensor,
    rule: tl.tensor,
    paths: tl.tensor,
    starts: tl.tensor,
    vocab: tl.tensor,
    record: tl.tensor,
    logits: tl.tensor,
) -> tl.tensor:
    """The mode inside of a header of which `size` tokens are written."""
    closed = tl.load(rule + 1)
    number = tl.arange(0, _MOST_PATHS)
    known = number < closed + tl.load(rule + 2)
    begin = tl.load(starts + number, mask=known, other=0)
    tokens = tl.load(starts + number + 1, mask=known, other=0) - begin
    compared = lane[None, :] < tl.minimum(tokens, size)[:, None]
    told = tl.load(paths + begin[:, None] + lane[None, :], mask=compared, other=0)
    differs = tl.max((compared & (told != behind[None, :])).to(tl.int32), 1)
    same = known & (differs == 0)
    opened = tl.max(tl.where(same & (number >= closed) & (tokens <= size), tokens, -1), 0)
    header_end = tl.load(marker + _HEADER_END)
    mode = _CONTENT
    if opened >= 0:
        names = size - opened
        at = tl.min(tl.where((lane >= opened) & (lane < size) & (behind == header_end), lane, _NOWHERE), 0)
        only = header_end
        mode = _NAMES
        if names == 0:
            mode = _NAMES_BEGIN
        elif at < _NOWHERE:
            mode = _LISTED
            only = tl.load(marker + _TAIL + (size - 1 - at))
        elif names >= _MOST_NAME_TOKENS:
            mode = _LISTED
        if mode == _LISTED:
            _list(only + number * 0, number == 0, vocab, record, logits)
        tl.store(record + 2, only)
    else:
        edges = same & (tokens > size)
        ids = tl.load(paths + begin + size, mask=edges, other=0)
        if tl.max(edges.to(tl.int32), 0) > 0:
            mode = _LISTED
            _list(ids, edges, vocab, record, logits)
    return mode


@kernel
def _list(ids: tl.tensor, listed: tl.tensor, vocab: tl.tensor, record: tl.tensor, logits: tl.tensor) -> None:
    """Write those `ids` that are `listed` into the record, and make them 0 where all of them are impossible."""
    place = tl.cumsum(listed.to(tl.int32), 0) + 1
    tl.store(record + 1, tl.sum(listed.to(tl.int32), 0))
    tl.store(record + place, ids, mask=listed)
    known = listed & (ids >= 0) & (ids < vocab)
    possible = tl.load(logits + ids, mask=known, other=float("-inf")) != float("-inf")
    if tl.max(possible.to(tl.int32), 0) == 0:
        tl.store(logits + ids, 0.0, mask=known)


@kernel
def _ban(early: tl.tensor, marker: tl.tensor, rule: tl.tensor, vocab: tl.tensor, logits: tl.tensor) -> None:
    """What CONTENT forbids: message starts, and ends that come too early, as all do in a name."""
    number = tl.arange(0, _FEW) - 2
    count = tl.where(early | (tl.load(rule + 4) != 0), tl.load(marker + _EOS - 1), 0)
    is_eos = (number >= 0) & (number < count)
    is_end = number == tl.where(early | (tl.load(rule + 3) != 0), -1, -3)
    ids = tl.load(marker + _EOS + number, mask=is_eos, other=0)
    ids = tl.where(number == -2, tl.load(marker + _START), tl.where(is_end, tl.load(marker + _END), ids))
    banned = (number == -2) | is_end | is_eos
    tl.store(logits + ids, float("-inf"), mask=banned & (ids >= 0) & (ids < vocab))


@kernel
def _write_rows(
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab: tl.tensor,
    classes: tl.tensor,
    classes_stride: tl.tensor,
    records: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """What a record does not allow becomes impossible, for a chunk of the vocabulary."""
    row = tl.program_id(0)
    record = records + row * _RECORD
    mode = tl.load(record)
    if mode == _CONTENT:
        return
    token = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = token < vocab
    banned = inside
    if mode == _LISTED:
        for number in range(tl.load(record + 1)):
            banned = banned & (token != tl.load(record + 2 + number))
    elif mode == _NAMES_BEGIN:
        banned = inside & (has_bit(classes + _NAME_STARTS * classes_stride, token, inside, vocab) == 0)
    else:
        banned = has_bit(classes + _NOT_IN_NAMES * classes_stride, token, inside, vocab)
        banned = banned & (token != tl.load(record + 2))
    tl.store(logits + row.to(tl.int64) * logits_stride + token, float("-inf"), mask=banned)
