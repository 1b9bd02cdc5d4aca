"""The tokens behind a row of logits, as Triton kernels see them, and where headers stand among them.

What both samplers' device versions share: the layout of their tables, a token by its position, positions in headers,
and a copy of histories in device memory. Knows no sampler's rule and no vLLM. Nothing here is carried from step to
step but that copy, which can be made again from nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from serving.core import Markers
from serving.sampling.arguments import MOST_EOS, MOST_TAIL
from serving.sampling.headers import LONGEST_HEADER_TOKENS

kernel: Callable[[Callable[..., Any]], Any] = triton.jit

MARKER_FIELDS: Final = 24
"""Columns of a table of markers, as `marker_row` fills them."""
_COPY_TOKENS: Final = 1024

_START = tl.constexpr(0)
_HEADER_END = tl.constexpr(2)
_LINE_BREAKS = tl.constexpr(3)
_TAILS = tl.constexpr(4)
_TAIL = tl.constexpr(5)
_MOST_TAIL = tl.constexpr(MOST_TAIL)
_LONGEST_HEADER = tl.constexpr(LONGEST_HEADER_TOKENS)
_NOTHING = tl.constexpr(-2)
"""Where there is no token: never equal to one, nor to the -1 of a draft that was taken back."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows of one step continue, on the device: `tokens: [slots, longest] int32`, of which the first
    `lengths: [slots] int32` hold; `slots: [B] int32` and `local: [B] int32`, the place of a row among those of its
    slot; `inputs: [B]`, what was fed to the model at each row. A row with `local` q > 0 continues q draft tokens more,
    which are the inputs of its slot's rows 1 to q. `drafts`: whether there is such a row.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    local: torch.Tensor
    inputs: torch.Tensor
    drafts: bool


def marker_row(markers: Markers) -> list[int]:
    """The markers of one request as `MARKER_FIELDS` int32 values."""
    eos = [token for token in markers.eos if token != markers.end]
    row = [markers.start, markers.end, markers.header_end, int(markers.line_breaks)]
    for ids, most in ((markers.header_tail, MOST_TAIL), (markers.after_end, MOST_TAIL), (eos, MOST_EOS)):
        row += [len(ids), *ids, *[0] * (most - len(ids))]
    return row + [0] * (MARKER_FIELDS - len(row))


def bitmap(ids: Iterable[int], size: int) -> torch.Tensor:
    """`[ceil(size / 32)] int32`: bit t % 32 of word t // 32 is set for each t of `ids`; those beyond are left out."""
    table = torch.zeros(size, dtype=torch.uint8)
    table[[token for token in ids if 0 <= token < size]] = 1
    return packed(table)


def packed(table: torch.Tensor) -> torch.Tensor:
    """`table: [size]` as `[ceil(size / 32)] int32`: bit t % 32 of word t // 32 is set where it is not 0."""
    bits = torch.zeros(-(-len(table) // 32) * 32, dtype=torch.int64)
    bits[: len(table)] = table != 0
    words = (bits.view(-1, 32) << torch.arange(32)).sum(1)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def copy_new(
    source: torch.Tensor, lengths: torch.Tensor, copy: torch.Tensor, copied: torch.Tensor, requests: torch.Tensor
) -> None:
    """Bring `copy: [slots, longest] int32` up to the first `lengths: [slots] int32` tokens of `source`, which is shaped
    alike, for the slots `requests: [N] int32`.

    `copied: [slots, 1] int32` is how much of each is there: 0 for a new request, -1 for one that is not copied. What
    was committed never changes, so a step copies a token or a few.
    """
    strides = source.stride(0), copy.stride(0)
    _copy_new[(len(requests),)](source, copy, *strides, lengths, copied, requests, BLOCK=_COPY_TOKENS)


@kernel
def _copy_new(
    source: tl.tensor,
    copy: tl.tensor,
    source_stride: tl.tensor,
    copy_stride: tl.tensor,
    lengths: tl.tensor,
    copied: tl.tensor,
    requests: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    slot = tl.load(requests + tl.program_id(0)).to(tl.int64)
    length = tl.load(lengths + slot)
    begin = tl.load(copied + slot)
    if begin < 0:
        return
    while begin < length:
        at = begin + tl.arange(0, BLOCK)
        token = tl.load(source + slot * source_stride + at, mask=at < length)
        tl.store(copy + slot * copy_stride + at, token, mask=at < length)
        begin += BLOCK
    tl.store(copied + slot, length)


@kernel
def token_at(
    tokens: tl.tensor, length: tl.tensor, inputs: tl.tensor, at: tl.tensor, mask: tl.tensor, DRAFTS: tl.constexpr
) -> tl.tensor:
    """The tokens at the positions `at`, where `mask` holds: the first `length` stand in `tokens`, those of the slot;
    behind them come the drafts, from the second of `inputs` on, those of the slot's rows."""
    if DRAFTS:
        token = tl.load(tokens + at, mask=mask & (at < length), other=_NOTHING)
        draft = tl.load(inputs + (at - length + 1), mask=mask & (at >= length), other=_NOTHING)
        token = tl.where(at < length, token, draft.to(tl.int32))
    else:
        token = tl.load(tokens + at, mask=mask, other=_NOTHING)
    return token


@kernel
def has_bit(bits: tl.tensor, token: tl.tensor, mask: tl.tensor, vocab: tl.tensor) -> tl.tensor:
    """Whether the bitmap `bits` over `vocab` tokens holds each of `token`; only where `mask` holds."""
    known = mask & (token >= 0) & (token < vocab)
    word = tl.load(bits + (token >> 5), mask=known, other=0)
    return ((word >> (token & 31)) & 1) != 0


@kernel
def _larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return tl.maximum(a, b)


@kernel
def latest(values: tl.tensor) -> tl.tensor:
    """The largest of `values` up to each."""
    return tl.associative_scan(values, 0, _larger)


@kernel
def in_headers(
    tokens: tl.tensor,
    length: tl.tensor,
    inputs: tl.tensor,
    at: tl.tensor,
    token: tl.tensor,
    markers: tl.tensor,
    line_breaks: tl.tensor,
    vocab: tl.tensor,
    DRAFTS: tl.constexpr,
) -> tl.tensor:
    """Which of the consecutive positions `at`, that hold `token`, belong to a header that begins among them.

    As `Headers.positions`: what belongs to it is a question about the last message start before a position, the first
    end behind that start, and the tokens behind that end. `markers` is the slot's row.
    """
    start = tl.load(markers + _START)
    begun = latest(tl.where(token == start, at, -1))
    near = (begun >= 0) & (at - begun < _LONGEST_HEADER) & (token != _NOTHING)
    behind_start = near & (at > begun)
    ends = behind_start & (token == tl.load(markers + _HEADER_END))
    if tl.load(markers + _LINE_BREAKS) != 0:
        ends = ends | has_bit(line_breaks, token, behind_start, vocab)
    # The first end is that with the most left of the longest header. Keys grow with the start, so one of an earlier
    # header never counts.
    left = tl.where(ends, _LONGEST_HEADER - (at - begun), 0)
    first = latest(begun * 256 + left) & 255
    end = begun + _LONGEST_HEADER - first
    inside = near & ((first == 0) | (at <= end))
    tails = tl.load(markers + _TAILS)
    if tails > 0:
        behind = at - end
        matched = near & (first > 0) & (behind > 0) & (behind <= tails)
        for number in tl.static_range(_MOST_TAIL):
            told = token_at(tokens, length, inputs, end + 1 + number, matched & (behind > number), DRAFTS)
            matched = matched & ((behind <= number) | (told == tl.load(markers + _TAIL + number)))
        inside = inside | matched
    return inside
