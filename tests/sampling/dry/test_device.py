"""The device kernels of DRY equal the reference, whatever stands beside them in a batch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import Dry
from serving.sampling.dry.device import (
    LONGEST_SEQUENCE,
    Scratch,
    Tables,
    apply,
    penalty_row,
    sequence_rows,
    setting_row,
)
from serving.sampling.dry.params import Breakers
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.history import Rows, bitmap, copy_new, marker_row
from tests.sampling.dry.strategies import (
    CHATML,
    HEADER_END,
    HEADER_START,
    LINE_BREAK,
    LLAMA3,
    MESSAGE_START,
    NONE,
    SIZE,
    Case,
    cases,
    logits,
    vocabulary,
)
from tests.sampling.interpreter import DEVICE

TILE, SEQUENCE_TILE = 256, 512
"""As small as can be, so that everything happens at borders of tiles too."""
LONGEST = 2600
FEW = settings(max_examples=10, deadline=None)


@dataclass(frozen=True)
class Row:
    """A case of which the last `drafts` tokens have not been committed."""

    case: Case
    drafts: int = 0


def known(case: Case) -> Case:
    """A set of breakers is a bitmap over the vocabulary: it holds no token beyond."""
    ids = frozenset(token for token in case.breakers.ids if token < SIZE)
    return Case(case.token_ids, case.params, Breakers(ids, case.breakers.sequences), case.markers)


def tables(members: Sequence[Case | None]) -> Tables:
    """One slot and one set of breakers for each of `members`; None is a request without DRY."""
    sequences = [sequence_rows(case.breakers.sequences if case else ()) for case in members]
    width = max(1, *(len(joined) for joined, _ in sequences))
    off = Dry(multiplier=0)
    return Tables(
        _ints([setting_row(case.params if case else None, slot) for slot, case in enumerate(members)]),
        torch.tensor([penalty_row(case.params if case else off) for case in members], dtype=torch.float32).to(DEVICE),
        _ints([marker_row(case.markers if case else NONE) for case in members]),
        torch.stack([bitmap(case.breakers.ids if case else (), SIZE) for case in members]).to(DEVICE),
        _ints([[*joined, *[0] * (width - len(joined))] for joined, _ in sequences]),
        _ints([[*starts, *[0] * (66 - len(starts))] for _, starts in sequences]),
        bitmap(vocabulary().classes().line_break, SIZE).to(DEVICE),
    )


def row_of(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(DEVICE)


def _ints(values: list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(DEVICE)


def lowered(
    batch: Sequence[Row | None],
    given_logits: npt.NDArray[np.float32],
    order: Sequence[int] | None = None,
    values: int = 1 << 18,
    tile: int | None = TILE,
    longest: int = 0,
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """What the kernels make of `given_logits: [B, SIZE]`, one slot for each of `batch`. A row with drafts stands behind
    those of the same slot without them, as vLLM lays them out; only the last is looked at."""
    rng = random.Random(seed)
    order = order or range(len(batch))
    history = torch.full((len(batch), LONGEST), 7, dtype=torch.int32)
    lengths = torch.zeros(len(batch), dtype=torch.int32)
    slots: list[int] = []
    local: list[int] = []
    inputs: list[int] = []
    last = []
    for number in order:
        row = batch[number]
        ids = list(row.case.token_ids) if row else [rng.randrange(SIZE) for _ in range(50)]
        committed = len(ids) - (row.drafts if row else 0)
        history[number, :committed] = torch.tensor(ids[:committed], dtype=torch.int32)
        lengths[number] = committed
        slots += [number] * (len(ids) - committed + 1)
        local += range(len(ids) - committed + 1)
        inputs += [rng.randrange(SIZE), *ids[committed:]]
        last.append((number, len(slots) - 1))
    all_logits = logits(len(slots), seed)
    for number, at in last:
        all_logits[at] = given_logits[number]
    result = torch.from_numpy(all_logits).to(DEVICE)
    sequences = any(row is not None and row.case.breakers.sequences for row in batch)
    rows = Rows(history.to(DEVICE), lengths.to(DEVICE), row_of(slots), row_of(local), row_of(inputs), max(local) > 0)
    longest = longest or max(1, *(len(row.case.token_ids) if row else 50 for row in batch))
    scratch = Scratch(
        torch.full((values,), torch.nan).to(DEVICE),
        torch.full((values // TILE,), 9, dtype=torch.int32).to(DEVICE),
        torch.full((len(slots), 8), 9, dtype=torch.int32).to(DEVICE),
    )
    of = tables([row.case if row else None for row in batch])
    apply(result, rows, of, scratch, longest, sequences, SEQUENCE_TILE if sequences and tile == TILE else tile)
    return np.stack([result[at].cpu().numpy() for _, at in sorted(last)])


def expected(case: Case, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    row = row.copy()
    for token, penalty in penalties(case.token_ids, case.params, case.breakers, case.headers).items():
        if token < SIZE:
            row[token] -= np.float32(penalty)
    return row


def check(batch: Sequence[Row | None], **options: Any) -> None:  # noqa: ANN401
    given_logits = logits(len(batch), len(batch))
    result = lowered(batch, given_logits, **options)
    for row, before, after in zip(batch, given_logits, result, strict=True):
        wanted = expected(row.case, before) if row else before
        np.testing.assert_array_equal(after.view(np.int32), wanted.view(np.int32))


@st.composite
def rows(draw: st.DrawFn) -> Row | None:
    if draw(st.integers(0, 7)) == 0:
        return None
    case = known(draw(cases()))
    return Row(case, draw(st.integers(0, min(6, max(0, len(case.token_ids) - 1)))))


@FEW
@given(st.lists(rows(), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_equals_the_reference(batch: list[Row | None], shuffle: Any) -> None:  # noqa: ANN401
    """Mixed and absent parameters, drafts, masked logits, slots in any order."""
    order = list(range(len(batch)))
    shuffle.shuffle(order)
    check(batch, order=order, seed=shuffle.randrange(1 << 30))


def told(count: int, seed: int) -> list[int]:
    """Tokens as frequent as in prose, in which pieces are said again."""
    rng = random.Random(seed)
    ids: list[int] = []
    while len(ids) < count:
        begin = rng.randrange(len(ids)) if ids else 0
        ids += ids[begin : begin + rng.randrange(40)] if rng.random() < 0.3 else [min(int(rng.paretovariate(1)), 99)]
    return [id_ + 300 for id_ in ids[:count]]


@pytest.mark.parametrize("content", [1, 30, 49, 50])
def test_headers_near_the_border_of_a_tile(content: int) -> None:
    """A repetition reaches back over so much content into a header of the greatest length: there it ends."""
    inner = [1000 + number for number in range(LONGEST_HEADER_TOKENS)]
    written = [2000 + number for number in range(content)]
    tails = (
        (CHATML, [MESSAGE_START, *inner[1:]]),
        (CHATML, [MESSAGE_START, *inner[1:-1], LINE_BREAK]),
        (LLAMA3, [HEADER_START, *inner[1:-3], HEADER_END, LINE_BREAK, LINE_BREAK]),
        (LLAMA3, [HEADER_START, *inner[1:-1], HEADER_END]),
        (LLAMA3, [HEADER_START, *inner[1:-9], HEADER_END, LINE_BREAK]),
    )
    batch: list[Row | None] = []
    for number, (markers, header) in enumerate(tails):
        before = 1024 + number - 2 - len(header) - content  # so that 7 stands near a border
        ids = [*[9] * before, *header, *written, 7, 8, *header[-40:], *written]
        batch.append(Row(Case(tuple(ids), Dry(allowed_length=1), Breakers(), markers)))
    check(batch)


def test_long_texts_in_tiles_of_the_real_size() -> None:
    repeated = [300 + number % 7 for number in range(2500)]
    texts = (told(2500, 1), told(1700, 2), repeated, [300] * 2500, told(30, 3))
    cases_of_texts = [
        Case(tuple(text), Dry(range=number * 900), Breakers(), CHATML) for number, text in enumerate(texts)
    ]
    check([Row(case) for case in cases_of_texts], tile=None)


def test_rows_that_need_several_turns() -> None:
    """The scratch has room for two rows."""
    batch = [Row(Case(tuple(told(250, number)), Dry(allowed_length=1), Breakers(), NONE)) for number in range(5)]
    check(batch, values=2 * 4 * TILE)


def test_sequences_as_long_as_can_be() -> None:
    """Whether its beginning stands there decides about tokens far behind it, in another tile's reach."""
    sequence = tuple(told(LONGEST_SEQUENCE, 5))
    border = 5 * (SEQUENCE_TILE - 320)
    before = (9,) * (border - len(sequence))
    breakers = Breakers(sequences=(sequence, sequence[40:60], (10, 10)))
    texts = (
        (*before, *sequence, 7, 8, *sequence[-30:]),
        (*before, 9, *sequence[1:], 7, 8, *sequence[-30:]),
        (*sequence, 10, 10, 10, *sequence[100:200]),
    )
    check([Row(Case(ids, Dry(allowed_length=1), breakers, NONE)) for ids in texts])


@pytest.mark.parametrize("range_", [1, 2, 3, 4, 5, 6, 7])
def test_nothing_before_the_window_counts(range_: int) -> None:
    ids = (5, 6, 7, 5, 6, 8, 5, 6)
    check([Row(Case(ids, Dry(allowed_length=1, range=range_), Breakers(), NONE))])


def test_what_was_taken_back_or_is_not_computed_yet_harms_nothing() -> None:
    """Drafts of -1, and a slot whose tokens are more than this step looks at."""
    ids = (5, 6, -1, 5, 6)
    long = Row(Case(tuple(told(900, 4)), Dry(allowed_length=1), Breakers(), CHATML))
    batch = [Row(Case(ids, Dry(allowed_length=1), Breakers(), CHATML), drafts=4), long]
    given_logits = logits(2, 1)
    result = lowered(batch, given_logits, longest=300)
    wanted = given_logits[0].copy()
    np.testing.assert_array_equal(result[0], wanted)
    assert (result[1] <= given_logits[1]).all()


def test_a_copy_follows_its_histories() -> None:
    source = row_of(list(range(4 * 3000))).view(4, 3000)
    copy = torch.full_like(source, -5)
    copied = row_of([0, -1, 0, 7]).view(4, 1)
    copy_new(source, row_of([2500, 10, 0, 9]), copy, copied, row_of([3, 0, 1, 2]))
    assert copied.flatten().tolist() == [2500, -1, 0, 9]
    assert copy[0, :2500].tolist() == source[0, :2500].tolist()
    assert copy[3, 7:9].tolist() == source[3, 7:9].tolist()
    assert (copy[0, 2500:] == -5).all()
    assert (copy[1:3] == -5).all()
    assert (copy[3, :7] == -5).all()
    copy_new(source, row_of([2501, 10, 1, 9]), copy, copied, row_of([0, 2]))
    assert copied.flatten().tolist() == [2501, -1, 1, 9]
    assert copy[0, 2500:2502].tolist() == [2500, -5]
    assert copy[2, :2].tolist() == [6000, -5]
