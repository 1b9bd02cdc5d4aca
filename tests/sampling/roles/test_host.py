"""The host kernels of the roles equal the reference, whatever stands beside them in a batch."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.core import LogitsRules
from serving.sampling.roles.host import HostRoles
from serving.sampling.roles.reference import constrain, constraint
from serving.sampling.vocabulary import LINE_BREAK, NAME_START, SPECIAL
from tests.sampling.roles.strategies import CHATML, CLASSES, VOCABULARY, Case, cases, logits

SLOTS = 8


def kinds() -> Any:  # noqa: ANN401
    """The classes of the tests' vocabulary as a table."""
    table = np.zeros(VOCABULARY, np.uint8)
    for bit, ids in ((LINE_BREAK, CLASSES.line_break), (SPECIAL, CLASSES.special), (NAME_START, CLASSES.name_start)):
        table[sorted(ids)] |= bit
    return table


ROLES = HostRoles(SLOTS, SimpleNamespace(kinds=kinds()))  # type: ignore[arg-type]  # all that it reads


def expected(case: Case, row: list[float]) -> list[float]:
    return constrain(row, constraint(case.token_ids, case.roles, case.rules.markers, CLASSES))


@given(st.lists(st.tuples(cases(), logits), min_size=1, max_size=SLOTS), st.randoms(use_true_random=False))
def test_equals_the_reference(batch: list[tuple[Case, list[float]]], shuffle: Any) -> None:  # noqa: ANN401
    """Rows stand in any order, slots too, and both have been used before."""
    slots, rows = list(range(SLOTS)), list(range(SLOTS))
    shuffle.shuffle(slots)
    shuffle.shuffle(rows)
    history = np.full((SLOTS, 2048), 7, np.int32)
    lengths = np.zeros(SLOTS, np.int32)
    given_logits = torch.full((SLOTS, VOCABULARY), 0.5)
    for (case, row_logits), slot, row in zip(batch, slots, rows, strict=False):
        assert ROLES.add(slot, case.rules)
        history[slot, : len(case.token_ids)] = case.token_ids
        lengths[slot] = len(case.token_ids)
        given_logits[row] = torch.tensor(row_logits)
    count = len(batch)
    ROLES.apply(given_logits, np.array(rows[:count], np.int32), np.array(slots[:count], np.int32), history, lengths)
    for (case, row_logits), row in zip(batch, rows, strict=False):
        assert given_logits[row].tolist() == expected(case, row_logits)
    assert all((given_logits[row] == 0.5).all() for row in rows[count:])


def test_no_rule_is_nothing_to_do() -> None:
    assert not ROLES.add(0, LogitsRules(CHATML))
