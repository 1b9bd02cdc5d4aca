"""The host kernel equals the reference in every row of a batch, whatever its slots held before."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import Dry, LogitsRules, Markers
from serving.sampling.dry.host import HostDry
from serving.sampling.dry.params import MOST_INTEGER, Breakers
from serving.sampling.dry.reference import penalties
from serving.sampling.dry.sets import BreakerSets, Sequences
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.vocabulary import Vocabulary
from tests.sampling.dry.strategies import (
    ALPHABET,
    BEYOND,
    CHATML,
    HEADER_END,
    HEADER_START,
    LINE_BREAK,
    LLAMA3,
    MESSAGE_START,
    SIZE,
    Case,
    cases,
    encoded,
    logits,
    vocabulary,
)

SLOTS = 6
CONTEXT = 700


class Named(Vocabulary):
    """A vocabulary in which a breaker string is the name of a set that a test has made up."""

    sets: dict[str, Breakers]

    def marked(self, strings: Sequence[str], markers: Markers) -> tuple[npt.NDArray[np.uint8], Sequences]:
        breakers = self.sets[strings[0]] if strings else Breakers()
        return table(breakers.ids, self.size), breakers.sequences


def table(ids: Iterable[int], size: int) -> npt.NDArray[np.uint8]:
    made = np.zeros(size, np.uint8)
    made[[token for token in ids if 0 <= token < size]] = 1
    return made


@pytest.fixture(scope="module")
def named() -> Named:
    real = vocabulary()
    made = Named(real.kinds, real.texts, real.starts, real.tokenizer)
    object.__setattr__(made, "sets", {})
    return made


@pytest.fixture(scope="module")
def host(named: Named) -> HostDry:
    return HostDry(SLOTS, named)


class Batch:
    """Requests in slots and what has been written in them; what no request has written is noise."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.history = rng.integers(0, SIZE, (SLOTS, CONTEXT), dtype=np.int32)
        self.lengths = np.zeros(SLOTS, np.int32)

    def write(self, slot: int, token_ids: Sequence[int]) -> None:
        self.history[slot, : len(token_ids)] = token_ids
        self.lengths[slot] = len(token_ids)


def apply(host: HostDry, values: npt.NDArray[np.float32], members: list[tuple[int, int]], batch: Batch) -> None:
    """To each row of `members` as the history of its slot asks for."""
    rows, slots = np.array(members, np.int32).T.copy()
    host.apply(torch.from_numpy(values), rows, slots, batch.history, batch.lengths)


def added(host: HostDry, named: Named, slot: int, case: Case) -> bool:
    """Adds a case whose breakers have a name of their own, for equal breakers the same."""
    name = str(case.breakers)
    named.sets[name] = case.breakers
    rules = replace(case.rules, dry=replace(case.params, sequence_breakers=(name,)))
    return host.add(slot, rules)


def expected(values: npt.NDArray[np.float32], row: int, case: Case) -> None:
    for token, penalty in penalties(case.token_ids, case.params, case.breakers, case.headers).items():
        if 0 <= token < SIZE and np.float32(penalty) > 0:
            values[row, token] -= np.float32(penalty)


def same_bits(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> bool:
    return bool((left.view(np.int32) == right.view(np.int32)).all())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(cases(most=600), min_size=1, max_size=SLOTS),
    st.permutations(range(SLOTS)),
    st.permutations(range(SLOTS + 2)),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_a_batch_is_as_the_reference_says(
    host: HostDry, named: Named, batch: list[Case], slots: list[int], rows: list[int], seed: int, wide: bool
) -> None:
    """Some rows have no DRY and some slots no row; `host` keeps what the examples before have left in its slots."""
    own = Batch(seed)
    values = logits(SLOTS + 2, seed)
    whole = np.concatenate((values, values), axis=1) if wide else values.copy()
    members = []
    for case, slot, row in zip(batch, slots, rows, strict=False):
        own.write(slot, case.token_ids)
        if added(host, named, slot, case):
            members.append((row, slot))
        expected(values, row, case)
    if members:
        apply(host, whole[:, :SIZE], members, own)
    assert same_bits(whole[:, :SIZE], values)
    assert not wide or same_bits(whole[:, SIZE:], logits(SLOTS + 2, seed))


@pytest.mark.parametrize("letters", [1, 2, 3])
@pytest.mark.parametrize("marks", [(), (MESSAGE_START, LINE_BREAK, LINE_BREAK)])
@pytest.mark.parametrize("sequences", [(), ((5, 6, 5), (6, 6)), ((7, 5, 5), (6, 5, 6, 5, 5))])
def test_repetitions_within_repetitions(
    host: HostDry, named: Named, letters: int, marks: tuple[int, ...], sequences: tuple[tuple[int, ...], ...]
) -> None:
    """Without the many histories in which nothing is found: every length that the kernel takes from an earlier one."""
    rng = np.random.default_rng(letters)
    choices = ALPHABET[:letters] * 6 + marks
    own, values, wanted = Batch(0), logits(120, 0), logits(120, 0)
    for row in range(120):
        ids = tuple(rng.choice(choices, rng.integers(2, 250)).tolist())
        dry = Dry(base=1.1, allowed_length=1, range=int(rng.integers(0, 2) * rng.integers(1, 30)))
        case = Case(ids, dry, Breakers(frozenset(), sequences), CHATML)
        own.write(1, ids)
        assert added(host, named, 1, case)
        expected(wanted, row, case)
        apply(host, values, [(row, 1)], own)
    assert same_bits(values, wanted)


@pytest.mark.parametrize("inside", range(LONGEST_HEADER_TOKENS - 4, LONGEST_HEADER_TOKENS + 1))
def test_the_tail_of_the_longest_header_is_cut(host: HostDry, named: Named, inside: int) -> None:
    own, values, wanted = Batch(0), logits(1, 0), logits(1, 0)
    ids = (HEADER_START, *[5] * inside, HEADER_END, LINE_BREAK, LINE_BREAK, 8, 9, LINE_BREAK, 6, LINE_BREAK)
    case = Case(ids, Dry(allowed_length=1), Breakers(), LLAMA3)
    own.write(1, ids)
    assert added(host, named, 1, case)
    expected(wanted, 0, case)
    apply(host, values, [(0, 1)], own)
    assert same_bits(values, wanted)


def test_a_header_may_begin_long_before_the_range(host: HostDry, named: Named) -> None:
    own, values, wanted = Batch(0), logits(140, 0), logits(140, 0)
    ids = (MESSAGE_START, *[6, 7] * 60, 8, 9, 5, 6, 7, 6, 8, 5, 6)
    for row in range(140):
        case = Case(ids, Dry(allowed_length=1, range=row), Breakers(), CHATML)
        own.write(1, ids)
        assert added(host, named, 1, case)
        expected(wanted, row, case)
        apply(host, values, [(row, 1)], own)
    assert same_bits(values, wanted)


@pytest.mark.parametrize("dry", [None, Dry(multiplier=0.0), Dry(allowed_length=51), Dry(allowed_length=MOST_INTEGER)])
def test_where_dry_changes_nothing_there_is_nothing_to_do(host: HostDry, dry: Dry | None) -> None:
    assert not host.add(0, LogitsRules(CHATML, dry=dry))


def test_a_slot_forgets_who_had_it(host: HostDry, named: Named) -> None:
    ids = tuple(encoded("So Mia said nothing, and Mia said"))
    batch, first, second = Batch(0), logits(1, 0), logits(1, 0)
    batch.write(0, ids)
    plain = Case(ids, Dry(), Breakers(), CHATML)
    assert added(host, named, 0, plain)
    apply(host, first, [(0, 0)], batch)
    assert not same_bits(first, second)
    strict = Case(ids, Dry(3.0, range=5), Breakers(frozenset(ids[:1]), ((ids[-2], ids[-1]),)), CHATML)
    assert added(host, named, 0, strict)
    apply(host, second, [(0, 0)], batch)
    assert same_bits(second, logits(1, 0))
    assert added(host, named, 0, plain)
    apply(host, second, [(0, 0)], batch)
    assert same_bits(first, second)


def test_breakers_are_those_of_the_vocabulary() -> None:
    host, batch, values, wanted = HostDry(2, vocabulary()), Batch(0), logits(2, 0), logits(2, 0)
    turn = '<|im_start|>text names= Mia\n"Hello," said Mia: it was late and very cold.<|im_end|>\n'
    ids = tuple(encoded(turn * 3 + turn[: turn.index(" cold")]))
    for slot, strings in enumerate((Dry().sequence_breakers, ("it was",))):
        case = Case(ids, Dry(sequence_breakers=strings), vocabulary().breakers(strings, CHATML), CHATML)
        batch.write(slot, ids)
        assert host.add(slot, case.rules)
        expected(wanted, slot, case)
    apply(host, values, [(0, 0), (1, 1)], batch)
    assert same_bits(values, wanted)
    assert (values != logits(2, 0)).any(axis=1).all()


@given(st.lists(st.sampled_from((-1, -5, 5, 6, *BEYOND)), max_size=300), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_ids_that_are_no_tokens_do_no_harm(host: HostDry, named: Named, ids: list[int], seed: int) -> None:
    batch, values, wanted = Batch(seed), logits(1, seed), logits(1, seed)
    batch.write(3, ids)
    case = Case(tuple(ids), Dry(allowed_length=1), Breakers(frozenset({6})), CHATML)
    assert added(host, named, 3, case)
    expected(wanted, 0, case)
    apply(host, values, [(0, 3)], batch)
    assert same_bits(values, wanted)


@given(st.lists(cases(), min_size=1, max_size=SLOTS), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_logits_elsewhere_are_told_the_same(host: HostDry, named: Named, batch: list[Case], seed: int) -> None:
    own, values, wanted = Batch(seed), torch.from_numpy(logits(SLOTS, seed)), logits(SLOTS, seed)
    for slot, case in enumerate(batch):
        own.write(slot, case.token_ids)
    members = [(slot, slot) for slot, case in enumerate(batch) if added(host, named, slot, case)]
    if members:
        apply(host, wanted, members, own)
        rows, slots = np.array(members, np.int32).T.copy()
        host._apply_elsewhere(values, rows, slots, own.history, own.lengths)
    assert same_bits(values.numpy(), wanted)


# ---- interned sets ---------------------------------------------------------------------------------------------------


def test_equal_breakers_are_one_set_and_no_more_are_kept_than_slots() -> None:
    made: list[int] = []
    sets = BreakerSets(slots=3, size=100)

    def hold(slot: int, key: int) -> int:
        def make() -> tuple[npt.NDArray[np.uint8], Sequences]:
            made.append(key)
            return table({key}, 100), ((key, key + 1),)

        return sets.hold(slot, key, make)

    assert hold(0, 7) == hold(1, 7) != hold(2, 8)
    assert made == [7, 8]
    for key in range(99):
        number = hold(key % 3, key)
        tables = sets.tables
        assert np.flatnonzero(tables.bitmaps[number]).tolist() == [key]
        begin = tables.starts[tables.first[number]]
        assert tables.tokens[begin : begin + 2].tolist() == [key + 1, key]
        assert len(sets) <= 3
        assert len(tables.tokens) <= 6
    for slot in range(3):
        sets.release(slot)
    assert hold(0, 98) == hold(1, 98)
    assert made.count(98) == 1


def test_requests_with_the_same_breaker_strings_share_them_in_any_order(host: HostDry, named: Named) -> None:
    own = HostDry(4, vocabulary())
    before = len(own._sets)
    for slot, strings in enumerate((("\n", ":"), (":", "\n"), ("\n", ":", ":"), ("\n",))):
        assert own.add(slot, LogitsRules(CHATML, dry=Dry(sequence_breakers=strings)))
    assert len(own._sets) == before + 2
