"""The device kernels of the roles equal the reference, whatever stands beside them in a batch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import LogitsRules, Markers, RoleRule
from serving.sampling.history import Rows, bitmap, marker_row
from serving.sampling.roles.device import RECORD_FIELDS, STARTS, Tables, apply, path_rows, rule_row
from serving.sampling.roles.params import MOST_PATH_TOKENS
from serving.sampling.roles.reference import constrain, constraint
from tests.sampling.interpreter import DEVICE
from tests.sampling.roles.strategies import (
    CHATML,
    CLASSES,
    LLAMA3,
    SENTENCEPIECE,
    VOCABULARY,
    WORDS,
    Case,
    cases,
    logits,
)

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
    check([row for row, _ in batch], [before for _, before in batch], seed)


def check(batch: Sequence[Row], given_logits: Sequence[list[float]], seed: int) -> None:
    result = constrained(batch, given_logits, seed)
    for row, before, after in zip(batch, given_logits, result, strict=True):
        allowed = constraint(row.case.token_ids, row.case.roles, row.case.rules.markers, CLASSES)
        assert after == (constrain(before, allowed) if row.ruled else before)


@pytest.mark.parametrize("markers", [CHATML, SENTENCEPIECE, LLAMA3], ids=["chatml", "sentencepiece", "llama3"])
def test_every_state_of_a_conversation(markers: Markers) -> None:
    """All beginnings of messages with a fixed header and with names of the model's choice, and with one letter more."""
    ending = (markers.header_end, *markers.header_tail)
    fixed, opened = (WORDS[1], WORDS[2]), (WORDS[1], WORDS[3])
    rules = LogitsRules(markers, roles=RoleRule((fixed + ending,), (opened,), minimum_content=2))
    messages = ((*fixed, *ending, 9, 9, 9), (*opened, 9, 10, *ending, 9), (*opened, *[9] * 33, *ending))
    ids = [token for message in messages for token in (markers.start, *message, markers.end, *markers.after_end)]
    prefixes = [tuple(ids[:count]) for count in range(1, len(ids) + 1)]
    batch = [Row(Case(prefix, rules)) for prefix in (*prefixes, *((*prefix, WORDS[7]) for prefix in prefixes))]
    check(batch, [[float(token) for token in range(VOCABULARY)]] * len(batch), 1)


@pytest.mark.parametrize("minimum", [299, 300, 301, 5000])
def test_content_is_counted_from_afar(minimum: int) -> None:
    """The header lies further back than one look reaches."""
    header = (WORDS[1], LLAMA3.header_end, *LLAMA3.header_tail)
    rules = LogitsRules(LLAMA3, roles=RoleRule((header,), minimum_content=minimum))
    row = Row(Case((9, LLAMA3.start, *header, *[WORDS[0]] * 300), rules))
    check([row], [[1.0] * VOCABULARY], 1)
