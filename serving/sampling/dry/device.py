"""DRY on the device: Triton kernels that equal `reference.py` on every input, in float32.

Three launches. The first reads, for each row, how many tokens of its end can be repeated. The second looks at each
position whose predecessor equals the last token, counts how far back the history repeats, and writes the lowered logit
of the token there to a scratch. The third takes the least of them into the logits. The second reads only untouched
logits, x - p falls as p grows, and a minimum does not ask for an order: the result is the same in every run. Nothing is
carried from step to step, so preemption, slots used again and draft tokens need no care. Never waits for the device.

Does not know vLLM: `v2.py` keeps the tables.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from serving.core import Dry
from serving.sampling.dry.params import MOST_BREAKERS, MOST_LENGTH, penalty_table
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.history import (
    MARKER_FIELDS,
    Rows,
    has_bit,
    in_headers,
    kernel,
    latest,
    token_at,
)

LONGEST_SEQUENCE: Final = 256
"""Tokens of a run that breaks repetitions. The longest string allowed has fewer in any tokenizer of bytes."""
SETTING_FIELDS: Final = 4
PENALTIES: Final = MOST_LENGTH + 1
SEQUENCE_STARTS: Final = MOST_BREAKERS + 2
"""Columns of `Tables.starts`: how many sequences, where each begins, and where the last one ends."""

TILE: Final = 2048
SHORT_TILE: Final = 512
"""Positions of one program, its look-back included, for long histories and for those that fit into this."""
_MOST_VALUES: Final = 16 << 20
_RECORD_FIELDS: Final = 8


def _look_back(sequences: bool) -> int:
    """How far before a position its repetition can reach, and what decides whether a position there is broken."""
    reach = MOST_LENGTH + max(LONGEST_HEADER_TOKENS, LONGEST_SEQUENCE if sequences else 0)
    return -(-reach // 64) * 64


@dataclass(frozen=True, slots=True)
class Tables:
    """What the kernels know of requests and of the vocabulary, on the device, int32 unless said otherwise:
    `settings: [slots, 4]` as `setting_row` says, `penalties: [slots, 51] float32`, `markers: [slots, MARKER_FIELDS]`;
    for each set of breakers `breakers: [sets, ceil(V / 32)]` as bits, `sequences: [sets, any]` joined and
    `starts: [sets, SEQUENCE_STARTS]`; `line_breaks: [ceil(V / 32)]` as bits."""

    settings: torch.Tensor
    penalties: torch.Tensor
    markers: torch.Tensor
    breakers: torch.Tensor
    sequences: torch.Tensor
    starts: torch.Tensor
    line_breaks: torch.Tensor


@dataclass(frozen=True, slots=True)
class Scratch:
    """Room for the lowered logits: `values` float32, a `flags` for each tile of them, and a record for each row."""

    values: torch.Tensor
    flags: torch.Tensor
    records: torch.Tensor

    @classmethod
    def of(cls, rows: int, longest: int, device: torch.device, most_values: int = _MOST_VALUES) -> "Scratch":
        """For up to `rows` rows of up to `longest` tokens; beyond `most_values` they are taken in several turns."""
        single = max(_values_of_row(longest, sequences) for sequences in (False, True))
        size = max(single, min(rows * single, most_values))
        return cls(
            torch.empty(size, dtype=torch.float32, device=device),
            torch.empty(size // SHORT_TILE + 1, dtype=torch.int32, device=device),
            torch.empty((rows, _RECORD_FIELDS), dtype=torch.int32, device=device),
        )


def setting_row(dry: Dry | None, breaker_set: int) -> list[int]:
    """A row of `Tables.settings`: whether DRY is on, its range, and which set of breakers it uses."""
    on = dry is not None and dry.multiplier > 0
    return [int(on), dry.range if dry else 0, breaker_set, 0]


def penalty_row(dry: Dry) -> list[float]:
    """A row of `Tables.penalties`."""
    return list(penalty_table(dry))


def sequence_rows(sequences: tuple[tuple[int, ...], ...]) -> tuple[list[int], list[int]]:
    """The beginning of a row of `Tables.sequences`, and of one of `Tables.starts`."""
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence))
    return [token for sequence in sequences for token in sequence], [len(sequences), *starts]


def apply(
    logits: torch.Tensor,
    rows: Rows,
    tables: Tables,
    scratch: Scratch,
    longest: int,
    sequences: bool = False,
    tile: int | None = None,
) -> None:
    """Lower `logits: [B, V] float32` in place.

    No row with DRY continues more than `longest` tokens; `sequences`: whether one of them has breaker sequences. `tile`
    is for tests.
    """
    tile = tile or _tile(longest, sequences)
    back = _look_back(sequences)
    blocks = triton.cdiv(longest, tile - back)
    at_once = min(scratch.values.numel() // (blocks * tile), scratch.flags.numel() // blocks, len(scratch.records))
    warps = 8 if tile >= TILE else 4
    history = (rows.inputs, rows.tokens, rows.tokens.stride(0))
    of_rows = (rows.slots, rows.local, rows.lengths, tables.settings)
    of_slots = (tables.penalties, tables.markers)
    of_sets = (tables.breakers, tables.breakers.stride(0), tables.sequences, tables.sequences.stride(0), tables.starts)
    vocabulary = (tables.line_breaks, logits.shape[1])
    target = (logits, logits.stride(0))
    scratches = (scratch.records, scratch.flags, scratch.values)
    for first in range(0, logits.shape[0], at_once):
        count = min(at_once, logits.shape[0] - first)
        _read_ends[(count,)](
            first, *of_rows, *history, *of_slots, *of_sets, *vocabulary, scratch.records,
            LANES=512 if sequences else 256, SEQUENCES=sequences, DRAFTS=rows.drafts,
        )  # fmt: skip
        _find_repetitions[(count, blocks)](
            first, blocks, *target, *history, *of_slots, *of_sets, *vocabulary, *scratches,
            TILE=tile, BACK=back, SEQUENCES=sequences, DRAFTS=rows.drafts, num_warps=warps,
        )  # fmt: skip
        _take_least[(count, blocks)](
            first, blocks, *target, *history, *scratches,
            TILE=tile, BACK=back, DRAFTS=rows.drafts, num_warps=warps,
        )  # fmt: skip


def _tile(longest: int, sequences: bool) -> int:
    return SHORT_TILE if longest <= SHORT_TILE and not sequences else TILE


def _values_of_row(longest: int, sequences: bool) -> int:
    tile = _tile(longest, sequences)
    return int(triton.cdiv(longest, tile - _look_back(sequences))) * tile


_launched: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=["first_row", "blocks"])
"""Compiled once, however many rows and blocks there are."""
_MOST_LENGTH = tl.constexpr(MOST_LENGTH)
_PENALTIES = tl.constexpr(PENALTIES)
_SETTINGS = tl.constexpr(SETTING_FIELDS)
_MARKERS = tl.constexpr(MARKER_FIELDS)
_STARTS = tl.constexpr(SEQUENCE_STARTS)
_RECORD = tl.constexpr(_RECORD_FIELDS)
_LEAST = tl.constexpr(-(2**31))


@kernel
def _in_sequences(
    tokens: tl.tensor,
    length: tl.tensor,
    inputs: tl.tensor,
    at: tl.tensor,
    token: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    sequences: tl.tensor,
    starts: tl.tensor,
    DRAFTS: tl.constexpr,
) -> tl.tensor:
    """Which of the consecutive positions `at`, that hold `token`, belong to a sequence that begins among them and lies
    within `begin` and `end`."""
    reach = tl.zeros_like(at)
    for number in range(tl.load(starts)):
        first = tl.load(starts + 1 + number)
        size = tl.load(starts + 2 + number) - first
        same = (at >= begin) & (at + size <= end) & (token == tl.load(sequences + first))
        known = 1
        going = tl.max(same.to(tl.int32), 0)
        while (known < size) & (going > 0):
            told = token_at(tokens, length, inputs, at + known, same, DRAFTS)
            same = same & (told == tl.load(sequences + first + known))
            known += 1
            going = tl.max(same.to(tl.int32), 0)
        reach = tl.maximum(reach, tl.where(same, at + size, 0))
    return at < latest(reach)


@_launched
def _read_ends(
    first_row: tl.tensor,
    slots: tl.tensor,
    local: tl.tensor,
    lengths: tl.tensor,
    settings: tl.tensor,
    inputs: tl.tensor,
    tokens: tl.tensor,
    tokens_stride: tl.tensor,
    penalties: tl.tensor,
    markers: tl.tensor,
    breakers: tl.tensor,
    breakers_stride: tl.tensor,
    sequences: tl.tensor,
    sequences_stride: tl.tensor,
    starts: tl.tensor,
    line_breaks: tl.tensor,
    vocab: tl.tensor,
    records: tl.tensor,
    LANES: tl.constexpr,
    SEQUENCES: tl.constexpr,
    DRAFTS: tl.constexpr,
) -> None:
    """A record for each row: how many tokens at its end can be repeated, 0 where nothing can come of it; where its
    history ends, its window begins and its drafts begin; its slot, its last token, and its set of breakers."""
    row = first_row + tl.program_id(0)
    record = records + tl.program_id(0) * _RECORD
    slot = tl.load(slots + row).to(tl.int64)
    setting = settings + slot * _SETTINGS
    if tl.load(setting) == 0:
        tl.store(record, 0)
        return
    drafts = tl.load(local + row)
    length = tl.load(lengths + slot)
    end = length + drafts
    tokens += slot * tokens_stride
    inputs += row - drafts
    window = tl.load(setting + 1)
    begin = 0
    if window > 0:
        begin = tl.maximum(end - window, 0)
    breaker_set = tl.load(setting + 2).to(tl.int64)
    at = end - LANES + tl.arange(0, LANES)
    token = token_at(tokens, length, inputs, at, at >= 0, DRAFTS)
    broken = has_bit(breakers + breaker_set * breakers_stride, token, at >= 0, vocab)
    marker = markers + slot * _MARKERS
    if tl.max((token == tl.load(marker)).to(tl.int32), 0) > 0:
        broken = broken | in_headers(tokens, length, inputs, at, token, marker, line_breaks, vocab, DRAFTS)
    if SEQUENCES:
        own = sequences + breaker_set * sequences_stride
        broken = broken | _in_sequences(
            tokens, length, inputs, at, token, begin, end, own, starts + breaker_set * _STARTS, DRAFTS
        )
    broken_at = tl.max(tl.where(broken, at, -1), 0)
    most = tl.minimum(tl.minimum(end - 1 - broken_at, end - 1 - begin), _MOST_LENGTH)
    most = tl.maximum(most, 0)
    if tl.load(penalties + slot * _PENALTIES + most) <= 0:  # the longest costs the most
        most = 0
    tl.store(record, most)
    tl.store(record + 1, end)
    tl.store(record + 2, begin)
    tl.store(record + 3, length)
    tl.store(record + 4, slot.to(tl.int32))
    tl.store(record + 5, tl.max(tl.where(at == end - 1, token, _LEAST), 0))
    tl.store(record + 6, breaker_set.to(tl.int32))


@_launched
def _find_repetitions(
    first_row: tl.tensor,
    blocks: tl.tensor,
    logits: tl.tensor,
    logits_stride: tl.tensor,
    inputs: tl.tensor,
    tokens: tl.tensor,
    tokens_stride: tl.tensor,
    penalties: tl.tensor,
    markers: tl.tensor,
    breakers: tl.tensor,
    breakers_stride: tl.tensor,
    sequences: tl.tensor,
    sequences_stride: tl.tensor,
    starts: tl.tensor,
    line_breaks: tl.tensor,
    vocab: tl.tensor,
    records: tl.tensor,
    flags: tl.tensor,
    values: tl.tensor,
    TILE: tl.constexpr,
    BACK: tl.constexpr,
    SEQUENCES: tl.constexpr,
    DRAFTS: tl.constexpr,
) -> None:
    """The lowered logit of each token that would prolong a repetition, or infinity, for a tile of positions; and a flag
    whether there is any. The first `BACK` lanes only tell where a repetition is broken."""
    row = first_row + tl.program_id(0)
    record = records + tl.program_id(0) * _RECORD
    block = tl.program_id(0) * blocks + tl.program_id(1)
    tl.store(flags + block, 0)
    most = tl.load(record)
    if most == 0:
        return
    end = tl.load(record + 1)
    begin = tl.load(record + 2)
    lowest = tl.program_id(1) * (TILE - BACK)
    if (lowest >= end) | (lowest + TILE - BACK <= begin):
        return
    length = tl.load(record + 3)
    slot = tl.load(record + 4).to(tl.int64)
    last = tl.load(record + 5)
    breaker_set = tl.load(record + 6).to(tl.int64)
    tokens += slot * tokens_stride
    inputs += row + length - end
    lane = tl.arange(0, TILE)
    at = lowest - BACK + lane
    token = token_at(tokens, length, inputs, at, (at >= 0) & (at < end), DRAFTS)
    follows = (lane >= BACK) & (at > begin) & (at < end)
    follows = follows & (token_at(tokens, length, inputs, at - 1, follows, DRAFTS) == last)
    if tl.max(follows.to(tl.int32), 0) == 0:
        return

    marker = markers + slot * _MARKERS
    broken = has_bit(breakers + breaker_set * breakers_stride, token, follows, vocab)
    broken_at = tl.full([TILE], -1, tl.int32)
    # Breakers among the earlier positions end a repetition by themselves: what they would have to equal is none.
    opened = tl.max((token == tl.load(marker)).to(tl.int32), 0) > 0
    if SEQUENCES:
        own = sequences + breaker_set * sequences_stride
        joined = _in_sequences(
            tokens, length, inputs, at, token, begin, end, own, starts + breaker_set * _STARTS, DRAFTS
        )
        if opened:
            joined = joined | in_headers(tokens, length, inputs, at, token, marker, line_breaks, vocab, DRAFTS)
        broken_at = latest(tl.where(joined, at, -1))
    elif opened:
        inside = in_headers(tokens, length, inputs, at, token, marker, line_breaks, vocab, DRAFTS)
        broken_at = latest(tl.where(inside, at, -1))
    follows = follows & (broken == 0) & (broken_at < at - 1)
    limit = tl.minimum(tl.minimum(at - 1 - broken_at, at - begin), most)

    count = follows.to(tl.int32)
    step = 1
    active = follows & (limit > 1)
    going = tl.max(active.to(tl.int32), 0)
    while going > 0:
        wanted = token_at(tokens, length, inputs, end - 1 - step, end > step, DRAFTS)
        active = active & (token_at(tokens, length, inputs, at - 1 - step, active, DRAFTS) == wanted)
        count += active.to(tl.int32)
        step += 1
        active = active & (limit > step)
        going = tl.max(active.to(tl.int32), 0)

    known = follows & (token >= 0) & (token < vocab)
    penalty = tl.load(penalties + slot * _PENALTIES + count, mask=known, other=0.0)
    lowered = penalty > 0
    if tl.max(lowered.to(tl.int32), 0) == 0:
        return
    logit = tl.load(logits + row.to(tl.int64) * logits_stride + token, mask=lowered, other=0.0)
    value = tl.where(lowered, logit - penalty, float("inf"))
    tl.store(values + block.to(tl.int64) * TILE + lane, value)
    tl.store(flags + block, 1)


@_launched
def _take_least(
    first_row: tl.tensor,
    blocks: tl.tensor,
    logits: tl.tensor,
    logits_stride: tl.tensor,
    inputs: tl.tensor,
    tokens: tl.tensor,
    tokens_stride: tl.tensor,
    records: tl.tensor,
    flags: tl.tensor,
    values: tl.tensor,
    TILE: tl.constexpr,
    BACK: tl.constexpr,
    DRAFTS: tl.constexpr,
) -> None:
    """Lower the logits to the least value found for each token."""
    block = tl.program_id(0) * blocks + tl.program_id(1)
    if tl.load(flags + block) == 0:
        return
    row = first_row + tl.program_id(0)
    record = records + tl.program_id(0) * _RECORD
    end = tl.load(record + 1)
    length = tl.load(record + 3)
    slot = tl.load(record + 4).to(tl.int64)
    lane = tl.arange(0, TILE)
    at = tl.program_id(1) * (TILE - BACK) - BACK + lane
    value = tl.load(values + block.to(tl.int64) * TILE + lane)
    found = value < float("inf")
    token = token_at(tokens + slot * tokens_stride, length, inputs + (row + length - end), at, found, DRAFTS)
    logit = logits + row.to(tl.int64) * logits_stride + token
    # Logits only fall, so a value that is not below a stale one is not below the present one either: a loop in the
    # text asks for few writes.
    lower = found & (value < tl.load(logit, mask=found, other=float("-inf")))
    tl.atomic_min(logit, value, mask=lower, sem="relaxed")
