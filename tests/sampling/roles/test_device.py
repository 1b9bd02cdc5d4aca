"""The device kernels of the roles equal the reference, whatever stands beside them in a batch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.sampling.history import Rows, bitmap, marker_row
from serving.sampling.roles.device import RECORD_FIELDS, STARTS, Tables, apply, path_rows, rule_row
from serving.sampling.roles.params import MOST_PATH_TOKENS
from serving.sampling.roles.reference import constrain, constraint
from tests.sampling.interpreter import DEVICE
from tests.sampling.roles.strategies import CLASSES, VOCABULARY, Case, cases, logits

LONGEST = 2048
FEW = settings(max_examples=40, deadline=None)


@dataclass(frozen=True)
class Row:
    """A case of which the last `drafts` tokens have not been committed; None is a request without a rule."""

    case: Case
    drafts: int = 0
    ruled: bool = True


def _padded(values: list[int], width: int) -> list[int]:
    return [*values, *[9] * (width - len(values))]


def row_of(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(DEVICE)


def _ints(values: list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(DEVICE)


def tables(batch: Sequence[Row]) -> Tables:
    """One slot for each of `batch`; what no rule uses is not 0."""
    paths = [path_rows(row.case.roles) for row in batch]
    classes = (CLASSES.line_break, CLASSES.line_break | CLASSES.special, CLASSES.name_start)
    return Tables(
        _ints([rule_row(row.case.roles if row.ruled else None) for row in batch]),
        _ints([_padded(joined, MOST_PATH_TOKENS) for joined, _ in paths]),
        _ints([_padded(starts, STARTS) for _, starts in paths]),
        _ints([marker_row(row.case.rules.markers) for row in batch]),
        torch.stack([bitmap(ids, VOCABULARY) for ids in classes]).to(DEVICE),
    )


def constrained(batch: Sequence[Row], given_logits: Sequence[list[float]], seed: int) -> list[list[float]]:
    """What the kernels make of the logits. A row with drafts stands behind those of the same slot without them."""
    rng = random.Random(seed)
    order = list(range(len(batch)))
    rng.shuffle(order)
    history = torch.full((len(batch), LONGEST), 9, dtype=torch.int32)
    lengths = torch.zeros(len(batch), dtype=torch.int32)
    slots: list[int] = []
    local: list[int] = []
    inputs: list[int] = []
    values: list[list[float]] = []
    last = {}
    for number in order:
        row = batch[number]
        ids = list(row.case.token_ids)
        committed = len(ids) - row.drafts
        history[number, :committed] = torch.tensor(ids[:committed], dtype=torch.int32)
        lengths[number] = committed
        slots += [number] * (row.drafts + 1)
        local += range(row.drafts + 1)
        inputs += [rng.randrange(VOCABULARY), *ids[committed:]]
        values += [[rng.random() for _ in range(VOCABULARY)] for _ in range(row.drafts)]
        last[number] = len(values)
        values.append(given_logits[number])
    rows = Rows(history.to(DEVICE), lengths.to(DEVICE), row_of(slots), row_of(local), row_of(inputs), max(local) > 0)
    result = torch.tensor(values).to(DEVICE)
    apply(result, rows, tables(batch), torch.full((len(values) + 1, RECORD_FIELDS), 9, dtype=torch.int32).to(DEVICE))
    return [result[last[number]].tolist() for number in range(len(batch))]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    case = draw(cases())
    drafts = draw(st.integers(0, min(6, max(0, len(case.token_ids) - 1))))
    return Row(case, drafts, draw(st.integers(0, 7)) > 0)


@FEW
@given(st.lists(st.tuples(rows(), logits), min_size=1, max_size=6), st.integers(0, 1 << 30))
def test_equals_the_reference(batch: list[tuple[Row, list[float]]], seed: int) -> None:
    """Mixed and absent rules, drafts, masked logits, slots in any order."""
    result = constrained([row for row, _ in batch], [before for _, before in batch], seed)
    for (row, before), after in zip(batch, result, strict=True):
        allowed = constraint(row.case.token_ids, row.case.roles, row.case.rules.markers, CLASSES)
        assert after == (constrain(before, allowed) if row.ruled else before)
