"""The reference equals a transcription of the definition that shares nothing with it, and does what readers expect."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from serving.core import Dry
from serving.sampling.dry.params import MOST_BASE, MOST_INTEGER, MOST_MULTIPLIER, MOST_PENALTY, Breakers, check
from serving.sampling.dry.reference import longest_repetitions, penalties
from serving.sampling.headers import LONGEST_HEADER_TOKENS, Headers
from tests.sampling.dry.strategies import CHATML, LINE_BREAK, MESSAGE_START, Case, cases, encoded, vocabulary

A, B, C, D, E, F = 10, 11, 12, 13, 14, 15
START, END = 1, 2
DRY = Dry(multiplier=1.0, base=2.0, allowed_length=1, sequence_breakers=())
NONE = Breakers()
PLAIN = Headers(START, frozenset({END}))


# ---- the definition, written again -----------------------------------------------------------------------------------


def broken(case: Case, begin: int) -> set[int]:
    """Positions of the history, from `begin` on, that nothing may run through."""
    ids = case.token_ids
    found = {at for at in range(begin, len(ids)) if ids[at] in case.breakers.ids}
    for sequence in case.breakers.sequences:
        size = len(sequence)
        for at in range(begin, len(ids)):
            if ids[at : at + size] == sequence:
                found |= set(range(at, at + size))
    if case.headers is not None:
        found |= in_headers(ids, case.headers)
    return found


def in_headers(ids: tuple[int, ...], headers: Headers) -> set[int]:
    """Each stretch from one message start to before the next is a header up to its first end and the tail behind it,
    or, without an end, up to its longest."""
    starts = [at for at, token in enumerate(ids) if token == headers.start]
    found = set()
    for start, over in zip(starts, [*starts[1:], len(ids)], strict=False):
        stretch = ids[start : min(over, start + LONGEST_HEADER_TOKENS)]
        ends = [at for at, token in enumerate(stretch) if at > 0 and token in headers.ends]
        size = ends[0] + 1 if ends else len(stretch)
        if ends:
            size += max(k for k in range(len(headers.tail) + 1) if stretch[size : size + k] == headers.tail[:k])
        found |= set(range(start, start + size))
    return found


def by_definition(case: Case) -> dict[int, float]:
    """All pairs of an end and a length, compared as slices."""
    ids, dry = case.token_ids, case.params
    size = len(ids)
    begin = max(0, size - dry.range) if dry.range else 0
    never = broken(case, begin)
    longest: dict[int, int] = {}
    for length in range(1, 51):
        suffix = range(size - length, size)
        if suffix.start < begin or never & set(suffix):
            break
        for end in range(begin + length, size):
            same = ids[end - length : end] == ids[suffix.start :]
            if same and not never & set(range(end - length, end + 1)):
                longest[ids[end]] = length
    off = {t: min(dry.multiplier * dry.base ** (m - dry.allowed_length), 1e30) for t, m in longest.items()}
    return {t: off[t] for t, m in longest.items() if m >= dry.allowed_length and dry.multiplier > 0}


@settings(max_examples=400, deadline=None)
@given(cases(most=160))
def test_the_reference_is_the_definition(case: Case) -> None:
    assert penalties(case.token_ids, case.params, case.breakers, case.headers) == by_definition(case)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_neutral_parameters_take_nothing_off(case: Case) -> None:
    for neutral in (replace(case.params, multiplier=0.0), replace(case.params, allowed_length=51)):
        assert penalties(case.token_ids, neutral, case.breakers, case.headers) == {}


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_what_would_prolong_a_repetition_costs_more_the_longer_it_is() -> None:
    ids = [A, B, C, D, B, E, C, F, A, B, C]
    assert longest_repetitions(ids, DRY, NONE) == {D: 3, F: 1}
    assert penalties(ids, DRY, NONE) == {D: 4.0, F: 1.0}
    assert penalties(ids, replace(DRY, allowed_length=2), NONE) == {D: 2.0}


def test_the_longest_repetition_counts_and_not_how_many_there_are() -> None:
    ids = [B, C, D, A, B, C, D, C, D, C, D, E, A, B, C]
    assert penalties(ids, DRY, NONE) == {D: 4.0}


def test_a_repetition_may_overlap_itself() -> None:
    assert longest_repetitions([A] * 5, DRY, NONE) == {A: 4}
    assert longest_repetitions([A, B, A, B, A], DRY, NONE) == {B: 3}


@pytest.mark.parametrize("ids", [[], [A], [A, B], [A, B, C]])
def test_without_a_repetition_there_is_nothing_to_take_off(ids: list[int]) -> None:
    assert penalties(ids, DRY, NONE) == {}


def test_at_most_fifty_tokens_count() -> None:
    piece = list(range(100, 200))
    ids = piece + piece
    assert longest_repetitions(ids, DRY, NONE) == {100: 50}
    assert penalties(ids, replace(DRY, allowed_length=50), NONE) == {100: 1.0}
    assert penalties(ids, replace(DRY, allowed_length=51), NONE) == {}
    assert penalties(ids, replace(DRY, allowed_length=MOST_INTEGER), NONE) == {}


def test_with_an_allowed_length_of_zero_one_token_is_above_it() -> None:
    assert penalties([A, B, A], replace(DRY, allowed_length=0), NONE) == {B: 2.0}


def test_the_range_is_what_is_looked_at() -> None:
    ids = [A, B, C, A, B, D, A, B]
    assert longest_repetitions(ids, DRY, NONE) == {C: 2, D: 2}
    assert longest_repetitions(ids, replace(DRY, range=8), NONE) == {C: 2, D: 2}
    assert longest_repetitions(ids, replace(DRY, range=7), NONE) == {C: 1, D: 2}
    assert longest_repetitions(ids, replace(DRY, range=4), NONE) == {D: 1}
    assert longest_repetitions(ids, replace(DRY, range=1), NONE) == {}
    assert longest_repetitions(ids, replace(DRY, range=MOST_INTEGER), NONE) == {C: 2, D: 2}


def test_a_penalty_is_always_finite() -> None:
    most = Dry(MOST_MULTIPLIER, MOST_BASE, 0, ())
    check(most)
    assert penalties([A] * 60, most, NONE) == {A: MOST_PENALTY} == {A: 1e30}
    assert penalties([A] * 13, most, NONE) == {A: pytest.approx(1e27)}


def test_a_base_of_one_takes_the_multiplier_off() -> None:
    assert penalties([A] * 9, replace(DRY, base=1.0, multiplier=0.25), NONE) == {A: 0.25}


def test_a_breaker_is_not_matched_not_crossed_and_not_penalised() -> None:
    ids = [A, B, C, D, A, B, C]
    assert longest_repetitions(ids, DRY, Breakers(frozenset({B}))) == {D: 1}
    assert longest_repetitions(ids, DRY, Breakers(frozenset({C}))) == {}
    assert longest_repetitions(ids, DRY, Breakers(frozenset({D}))) == {}


def test_every_position_of_a_sequence_is_a_breaker_and_its_tokens_elsewhere_are_none() -> None:
    ids = [A, C, D, A, B, C, E, A, B, C]
    assert longest_repetitions(ids, DRY, NONE) == {D: 1, E: 3}
    # A B is broken wherever it stands; the first A is followed by another token, and no part of it.
    assert longest_repetitions(ids, DRY, Breakers(sequences=((A, B),))) == {D: 1, E: 1}
    assert longest_repetitions(ids, DRY, Breakers(sequences=((C, E),))) == {D: 1}
    assert longest_repetitions(ids, DRY, Breakers(sequences=((A, F), (B, A)))) == {D: 1, E: 3}


def test_sequences_overlap_and_are_looked_for_in_the_range_only() -> None:
    ids = [A, A, A, B, C, A, A, A, B, A]
    assert longest_repetitions(ids, DRY, Breakers(sequences=((A, A),))) == {}
    cut = [A, B, C, D, B, C]
    assert longest_repetitions(cut, DRY, Breakers(sequences=((A, B),))) == {D: 1}
    assert longest_repetitions(cut, replace(DRY, range=5), Breakers(sequences=((A, B),))) == {D: 2}


def test_nothing_happens_in_a_header_and_no_repetition_runs_through_one() -> None:
    turn = [START, A, B, END, C, D]
    assert longest_repetitions(turn + turn, DRY, NONE) == {START: 6}
    assert longest_repetitions(turn + turn, DRY, NONE, PLAIN) == {}
    assert longest_repetitions([*turn, E, *turn], DRY, NONE, PLAIN) == {E: 2}
    for inside in range(1, 5):
        assert longest_repetitions(turn + turn[:inside], DRY, NONE, PLAIN) == {}
    # What stands in a header is no occurrence of what follows it.
    assert longest_repetitions([START, A, B, END, A], DRY, NONE, PLAIN) == {}


def test_the_tail_of_a_header_belongs_to_it() -> None:
    turn = [START, A, END, C, C, C, D]
    assert longest_repetitions([*turn, E, C], DRY, NONE, Headers(START, frozenset({END}), (C, C))) == {D: 1}
    assert longest_repetitions([*turn, E, C], DRY, NONE, PLAIN) == {C: 1, D: 1}


def test_a_header_without_an_end_is_over_some_time() -> None:
    ids = [START, *[A] * LONGEST_HEADER_TOKENS, B]
    assert longest_repetitions([*ids, A], DRY, NONE, PLAIN) == {B: 1}
    assert longest_repetitions([*ids[1:], A], DRY, NONE, PLAIN) == {A: 1, B: 1}
    assert longest_repetitions([START, *ids[2:], A], DRY, NONE, PLAIN) == {}


def test_a_header_that_began_before_the_range_is_one() -> None:
    ids = [START, A, B, END, C, A]
    assert longest_repetitions(ids, replace(DRY, range=5), NONE, PLAIN) == {}
    assert longest_repetitions(ids, replace(DRY, range=5), NONE) == {B: 1}


def test_names_in_a_chat_may_come_again() -> None:
    turn = '<|im_start|>text names= Mia\n"I am not good at this."<|im_end|>\n'
    ids = encoded(turn * 3 + "<|im_start|>text names=")
    (mia,) = encoded(" Mia")
    broken = vocabulary().breakers(Dry().sequence_breakers, CHATML)
    assert {MESSAGE_START, LINE_BREAK} <= broken.ids
    assert mia in penalties(ids, Dry(), broken)
    headers = Headers.of(CHATML, vocabulary().classes().line_break)
    assert penalties(ids, Dry(), broken, headers) == {}
    (good,) = encoded(" good")
    inside = encoded(turn * 2 + "<|im_start|>text\nSo I am not")
    assert set(penalties(inside, Dry(), broken, headers)) == {good}
