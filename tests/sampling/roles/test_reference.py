"""The role automaton by hand: every state, every way from one to the next, and that the strategies reach them all."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from serving.core import Markers, RoleRule
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.roles.params import MOST_NAME_TOKENS
from serving.sampling.roles.reference import Constraint, constrain, constraint
from tests.sampling.roles.strategies import (
    BLANK_LINE,
    CHATML,
    CLASSES,
    END,
    EOS,
    HEADER_END,
    LLAMA3,
    NEWLINE,
    OTHER_EOS,
    SENTENCEPIECE,
    SPACE,
    START,
    Case,
    cases,
)

A, B, C, D, E, F = 8, 9, 12, 13, 14, 15
"""Words. A and B begin names, C to F do not."""
TEXT, WRITER = (D, E), (D,)
"""Behind these the model names who speaks."""
CHATML_RULE = RoleRule(headers=((A, B, NEWLINE), (A, C, C, NEWLINE)), open_names=(TEXT,))
LLAMA3_RULE = RoleRule(headers=((A, HEADER_END, NEWLINE, NEWLINE),), open_names=(WRITER,))
IN_NAME = (CLASSES.line_break | CLASSES.special | {END, EOS}) - {NEWLINE}
IN_LLAMA3_NAME = (CLASSES.line_break | CLASSES.special | {END, EOS}) - {HEADER_END}


def only(*tokens: int) -> Constraint:
    return Constraint(frozenset(tokens), rescued=True)


def all_but(*tokens: int) -> Constraint:
    return Constraint(banned=frozenset(tokens))


BEGINS_NAME = Constraint(CLASSES.name_start)

CHATML_CASES: list[tuple[str, tuple[int, ...], Constraint]] = [
    ("content, of a prompt without markers", (), all_but(START)),
    ("content, of a prompt without markers, longer", (C, NEWLINE, EOS, BLANK_LINE), all_but(START)),
    ("after end", (C, END), only(NEWLINE, EOS)),
    ("after end, whatever was before", (START, A, END), only(NEWLINE, EOS)),
    ("after end, twice", (C, END, END), only(NEWLINE, EOS)),
    ("between", (END, NEWLINE), only(START, EOS)),
    ("between, by another token with a line break", (END, BLANK_LINE), only(START, EOS)),
    ("behind an end something else: content", (END, SPACE), all_but(START)),
    ("behind an end too much: content", (END, NEWLINE, NEWLINE), all_but(START)),
    ("behind an end a word and the line break: content", (END, C, NEWLINE), all_but(START)),
    ("header", (END, NEWLINE, START), only(A, D)),
    ("header, the prompt's", (START,), only(A, D)),
    ("header, a start behind a start", (START, A, START), only(A, D)),
    ("header, paths part", (START, A), only(B, C)),
    ("header, one path", (START, A, C), only(C)),
    ("header, its end", (START, A, B), only(NEWLINE)),
    ("header, before names", (START, D), only(E)),
    ("header that is none of the rule's: content", (START, C), all_but(START)),
    ("header that leaves the rule's: content", (START, A, B, B), all_but(START)),
    ("header that ends early: content", (START, A, NEWLINE), all_but(START)),
    ("header written in full: content", (START, A, B, NEWLINE), all_but(START)),
    ("header ended by another line break: content", (START, A, B, BLANK_LINE), all_but(START)),
    ("names begin", (START, *TEXT), BEGINS_NAME),
    ("names, one", (START, *TEXT, A), all_but(*IN_NAME)),
    ("names, as the prompt begins them", (START, *TEXT, C, SPACE), all_but(*IN_NAME)),
    ("names, nearly the longest", (START, *TEXT, *[A] * (MOST_NAME_TOKENS - 1)), all_but(*IN_NAME)),
    ("names, the longest", (START, *TEXT, *[A] * MOST_NAME_TOKENS), only(NEWLINE)),
    ("names, longer by the prompt", (START, *TEXT, *[A] * (MOST_NAME_TOKENS + 9)), only(NEWLINE)),
    ("names ended: content", (START, *TEXT, A, NEWLINE), all_but(START)),
    ("names ended by another line break: content", (START, *TEXT, A, BLANK_LINE), all_but(START)),
    ("no names at all: content", (START, *TEXT, NEWLINE), all_but(START)),
    ("content behind names", (START, *TEXT, A, NEWLINE, NEWLINE, C), all_but(START)),
    ("longest header", (START, *TEXT, *[A] * (LONGEST_HEADER_TOKENS - 4)), only(NEWLINE)),
    ("over the longest header: content", (START, *TEXT, *[A] * (LONGEST_HEADER_TOKENS - 3)), all_but(START)),
    ("a header's end too late", (START, *TEXT, *[A] * (LONGEST_HEADER_TOKENS - 3), NEWLINE), all_but(START)),
]

LLAMA3_CASES: list[tuple[str, tuple[int, ...], Constraint]] = [
    ("between, at once", (C, END), only(START, EOS)),
    ("between, by a line break", (C, END, NEWLINE), only(START, EOS)),
    ("behind an end too much: content", (C, END, NEWLINE, NEWLINE), all_but(START)),
    ("header", (END, START), only(A, D)),
    ("header, its end", (START, A), only(HEADER_END)),
    ("header, its tail", (START, A, HEADER_END), only(NEWLINE)),
    ("header, more of its tail", (START, A, HEADER_END, NEWLINE), only(NEWLINE)),
    ("header written in full: content", (START, A, HEADER_END, NEWLINE, NEWLINE), all_but(START)),
    ("a header without its tail: content", (START, A, HEADER_END, C), all_but(START)),
    ("a header with half of its tail: content", (START, A, HEADER_END, NEWLINE, C), all_but(START)),
    ("a line break ends no header", (START, A, NEWLINE), all_but(START)),
    ("names begin", (START, *WRITER), BEGINS_NAME),
    ("names", (START, *WRITER, B, F), all_but(*IN_LLAMA3_NAME)),
    ("names, the longest", (START, *WRITER, *[B] * MOST_NAME_TOKENS), only(HEADER_END)),
    ("names' tail", (START, *WRITER, B, HEADER_END), only(NEWLINE)),
    ("names' tail, more", (START, *WRITER, B, HEADER_END, NEWLINE), only(NEWLINE)),
    ("names' tail, without any names", (START, *WRITER, HEADER_END), only(NEWLINE)),
    ("names written in full: content", (START, *WRITER, B, HEADER_END, NEWLINE, NEWLINE), all_but(START)),
    ("names without their tail: content", (START, *WRITER, B, HEADER_END, HEADER_END), all_but(START)),
    ("another header waits for its tail: content", (START, C, HEADER_END), all_but(START)),
    ("longest header that waits", (START, *WRITER, *[B] * (LONGEST_HEADER_TOKENS - 4), HEADER_END), only(NEWLINE)),
    ("too long a header waits for nothing", (START, *WRITER, *[B] * 125, HEADER_END), all_but(START)),
]

SENTENCEPIECE_CASES: list[tuple[str, tuple[int, ...], Constraint]] = [
    ("after end", (END,), only(SPACE, EOS, OTHER_EOS)),
    ("after end, later", (END, SPACE), only(NEWLINE, EOS, OTHER_EOS)),
    ("between", (END, SPACE, NEWLINE), only(START, EOS, OTHER_EOS)),
    ("between, by one line break", (END, NEWLINE), only(START, EOS, OTHER_EOS)),
    ("a line break of another kind too late: content", (END, SPACE, BLANK_LINE), all_but(START)),
]


@pytest.mark.parametrize(("history", "expected"), [case[1:] for case in CHATML_CASES], ids=[c[0] for c in CHATML_CASES])
def test_chatml(history: tuple[int, ...], expected: Constraint) -> None:
    assert constraint(history, CHATML_RULE, CHATML, CLASSES) == expected


@pytest.mark.parametrize(("history", "expected"), [case[1:] for case in LLAMA3_CASES], ids=[c[0] for c in LLAMA3_CASES])
def test_llama3(history: tuple[int, ...], expected: Constraint) -> None:
    assert constraint(history, LLAMA3_RULE, LLAMA3, CLASSES) == expected


@pytest.mark.parametrize(
    ("history", "expected"), [case[1:] for case in SENTENCEPIECE_CASES], ids=[c[0] for c in SENTENCEPIECE_CASES]
)
def test_more_behind_an_end(history: tuple[int, ...], expected: Constraint) -> None:
    assert constraint(history, CHATML_RULE, SENTENCEPIECE, CLASSES) == expected


@pytest.mark.parametrize("before", [(), (START, C, C), (START, F, NEWLINE, C, END, NEWLINE)])
def test_the_past_does_not_matter(before: tuple[int, ...]) -> None:
    for _, history, expected in CHATML_CASES:
        if START in history or END in history:
            assert constraint((*before, *history), CHATML_RULE, CHATML, CLASSES) == expected


# ---- what is counted, and what it forbids ----------------------------------------------------------------------------

EARLY = {START, END, EOS}
COUNTS: list[tuple[str, Markers, tuple[int, ...], int]] = [
    ("a prompt without markers", CHATML, (C, C), 2),
    ("the prompt's open message", CHATML, (START, F, NEWLINE, C, NEWLINE), 2),
    ("from the header's end", CHATML, (START, A, B, NEWLINE), 0),
    ("from the header's end, by another line break", CHATML, (START, A, B, BLANK_LINE, C), 1),
    ("anew at each header", CHATML, (START, F, NEWLINE, C, C, C, END, NEWLINE, START, A, B, NEWLINE, C), 1),
    ("anew without an end before", CHATML, (START, F, NEWLINE, C, C, C, START, *TEXT, A, NEWLINE, C, C), 2),
    ("from the start, where no header can be read", CHATML, (START, C, C), 2),
    ("from the start, where a header is too long", CHATML, (START, *[C] * LONGEST_HEADER_TOKENS, NEWLINE), 129),
    ("from the end, where nothing can be read", CHATML, (START, F, NEWLINE, C, C, C, END, C), 1),
    ("EOS in the prompt is content", CHATML, (START, F, NEWLINE, EOS), 1),
    ("from the tail's end", LLAMA3, (START, A, HEADER_END, NEWLINE, NEWLINE, NEWLINE), 1),
    ("from where a tail breaks off", LLAMA3, (START, A, HEADER_END, NEWLINE, C), 1),
    ("from a header's end without a tail", LLAMA3, (START, F, HEADER_END, C, C), 2),
    ("of a header of another rule that waits", LLAMA3, (START, F, HEADER_END), 0),
    ("from the start, a line break is no end", LLAMA3, (START, F, NEWLINE, C), 3),
]


@pytest.mark.parametrize(("markers", "history", "count"), [case[1:] for case in COUNTS], ids=[c[0] for c in COUNTS])
def test_content_is_counted(markers: Markers, history: tuple[int, ...], count: int) -> None:
    rule = LLAMA3_RULE if markers is LLAMA3 else CHATML_RULE
    enough, early = replace(rule, minimum_content=count), replace(rule, minimum_content=count + 1)
    assert constraint(history, enough, markers, CLASSES) == all_but(START)
    assert constraint(history, early, markers, CLASSES) == all_but(*EARLY)


@pytest.mark.parametrize(
    ("markers", "changes", "banned"),
    [
        (CHATML, {}, {START}),
        (CHATML, {"forbid_end": True}, {START, END}),
        (CHATML, {"ignore_eos": True}, {START, EOS}),
        (CHATML, {"forbid_end": True, "ignore_eos": True}, {START, END, EOS}),
        (CHATML, {"minimum_content": 2}, {START, END, EOS}),
        (CHATML, {"minimum_content": 1, "forbid_end": True}, {START, END}),
        (SENTENCEPIECE, {"minimum_content": 2}, {START, END, EOS, OTHER_EOS}),
        (SENTENCEPIECE, {"ignore_eos": True}, {START, EOS, OTHER_EOS}),
        # Here the message end is an end of sequence too: it stays possible.
        (LLAMA3, {"ignore_eos": True}, {START, EOS}),
        (LLAMA3, {"forbid_end": True}, {START, END}),
        (LLAMA3, {"minimum_content": 2}, {START, END, EOS}),
    ],
)
def test_what_content_forbids(markers: Markers, changes: dict[str, Any], banned: set[int]) -> None:
    history = (START, F, markers.header_end, *markers.header_tail, C)
    rule = replace(RoleRule(), **changes)
    assert constraint(history, rule, markers, CLASSES) == all_but(*banned)


@pytest.mark.parametrize(
    ("markers", "history", "left"),
    [
        (CHATML, (END,), {NEWLINE}),
        (CHATML, (END, NEWLINE), {START}),
        (SENTENCEPIECE, (END, SPACE), {NEWLINE}),
        (LLAMA3, (END,), {START}),
    ],
)
def test_ignored_eos_does_not_end_a_conversation(markers: Markers, history: tuple[int, ...], left: set[int]) -> None:
    assert constraint(history, replace(CHATML_RULE, ignore_eos=True), markers, CLASSES) == only(*left)


def test_counts_do_not_matter_in_headers() -> None:
    rule = replace(CHATML_RULE, minimum_content=9, forbid_end=True, ignore_eos=True)
    assert constraint((START, A), rule, CHATML, CLASSES) == only(B, C)
    assert constraint((START, *TEXT, A), rule, CHATML, CLASSES) == all_but(*IN_NAME)


def test_without_headers_any_history_can_go_on() -> None:
    """A rule that names no header at all holds no one to one: what follows a start is content."""
    assert constraint((START,), RoleRule(minimum_content=1), CHATML, CLASSES) == all_but(*EARLY)
    assert constraint((START, C), RoleRule(minimum_content=1), CHATML, CLASSES) == all_but(START)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_keeps_what_is_allowed() -> None:
    assert constrain([1.0, -inf, 3.0, 4.0], only(1, 2)) == [-inf, -inf, 3.0, -inf]
    assert constrain([1.0, -inf, 3.0, 4.0], all_but(1, 2)) == [1.0, -inf, -inf, 4.0]


def test_a_row_that_would_be_empty_is_rescued() -> None:
    assert constrain([1.0, -inf, 3.0, -inf], only(1, 3)) == [-inf, 0.0, -inf, 0.0]


# ---- the strategies --------------------------------------------------------------------------------------------------


def _after(case: Case, token: int) -> bool:
    return case.token_ids[-1:] == (token,)


def _names(case: Case) -> tuple[int, ...] | None:
    """What stands behind the last start and an open path of the rule; None without one."""
    if START not in case.token_ids:
        return None
    at = len(case.token_ids) - 1 - case.token_ids[::-1].index(START)
    written = case.token_ids[at + 1 :]
    return next((written[len(path) :] for path in case.roles.open_names if written[: len(path)] == path), None)


def _listed(case: Case, found: Constraint) -> bool:
    """Inside of a header of the rule, where tokens are listed."""
    eos = set(case.rules.markers.eos)
    return found.rescued and found.only is not None and not found.only & {START, *eos} and not _behind_end(case)


def _behind_end(case: Case) -> bool:
    return END in case.token_ids[-1 - len(case.rules.markers.after_end) :]


STATES: dict[str, Callable[[Case, Constraint], bool]] = {
    "after end": lambda case, found: _after(case, END) and START not in (found.only or {START}),
    "after end, later": lambda case, found: _after(case, SPACE) and found.rescued and NEWLINE in (found.only or ()),
    "between": lambda case, found: START in (found.only or ()) and not _after(case, BLANK_LINE),
    "between, by another line break": lambda case, found: START in (found.only or ()) and _after(case, BLANK_LINE),
    "between, EOS ignored": lambda case, found: found.only == frozenset({START}),
    "header, its first tokens": lambda case, found: _listed(case, found) and _after(case, START),
    "header, several edges": lambda case, found: _listed(case, found) and len(found.only or ()) > 1,
    "header, later": lambda case, found: _listed(case, found) and not _after(case, START) and _names(case) is None,
    "header, its tail": lambda case, found: _listed(case, found) and HEADER_END in case.token_ids[-2:],
    "names begin": lambda _, found: found.only == CLASSES.name_start and not found.rescued,
    "names, later": lambda _, found: BLANK_LINE in found.banned,
    "names, the longest": lambda case, found: found.rescued and len(_names(case) or ()) >= MOST_NAME_TOKENS,
    "names, their tail": lambda case, found: found.rescued and HEADER_END in (_names(case) or ()),
    "content": lambda _, found: found.banned == {START},
    "content, too little": lambda case, found: END in found.banned and not case.roles.forbid_end,
    "content, enough": lambda case, found: found.banned == {START} and case.roles.minimum_content > 0,
    "content, much is needed": lambda case, found: found.banned == {START} and case.roles.minimum_content == 200,
    "content, ends forbidden": lambda case, found: found.banned == {START, END} and case.roles.forbid_end,
    "content, EOS ignored": lambda case, found: EOS in found.banned and END not in found.banned,
    "content, behind an unreadable end": lambda case, found: not found.only and _behind_end(case),
    "content, by an unreadable header": lambda case, found: not found.only and _after(case, START),
    "content, by too long a header": lambda case, found: (
        not found.only and len(_names(case) or ()) > LONGEST_HEADER_TOKENS and NEWLINE not in case.token_ids
    ),
}


def test_the_strategies_reach_every_state() -> None:
    """The laws of the kernels are checked with these cases: a state that none reaches would not be checked."""
    reached: set[str] = set()

    @settings(
        max_examples=2_000, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases())
    def look(case: Case) -> None:
        found = constraint(case.token_ids, case.roles, case.rules.markers, CLASSES)
        reached.update(state for state, holds in STATES.items() if holds(case, found))

    look()
    assert reached == set(STATES)
