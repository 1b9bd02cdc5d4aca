"""The role automaton against a grammar that says the same: what a whole continuation may look like.

The grammar is written from a rule and the markers alone, in xgrammar's EBNF, over a vocabulary in which every token is
one letter. Nothing of `roles/reference.py` is used to write it: that one reads a history backwards and knows no whole.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import Markers, RoleRule
from serving.sampling.roles.params import MOST_NAME_TOKENS
from serving.sampling.roles.reference import constraint
from tests.sampling.roles.strategies import CLASSES, END, START, VOCABULARY, WORDS, markers, rules

LETTERS = "abcdefghijklmnop"
"""How the tokens are spelled in the grammar."""
NEVER = "!"
"""No token spells it: with it every rule of a grammar can come to an end, also where messages cannot."""
ALL = frozenset(range(VOCABULARY))
STEPS = 150
STOP = VOCABULARY
"""xgrammar wants a token that ends a whole text; none of ours does."""


@dataclass(frozen=True)
class Situation:
    """A prompt, and the rule of the grammar that what follows it begins with."""

    prompt: tuple[int, ...]
    begin: str


def compiler() -> xgrammar.GrammarCompiler:
    spelled = [*LETTERS, "<stop>"]
    info = xgrammar.TokenizerInfo(
        spelled, vocab_type=xgrammar.VocabType.RAW, vocab_size=len(spelled), stop_token_ids=[STOP]
    )
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


COMPILER = compiler()


def one_of(tokens: Iterable[int]) -> str:
    return f"[{''.join(LETTERS[token] for token in sorted(tokens))}]"


def word(tokens: Iterable[int]) -> str:
    return "".join(f'"{LETTERS[token]}" ' for token in tokens)


def grammar(rule: RoleRule, of: Markers, begin: str) -> str:
    """All continuations that the rule allows, from the rule `begin` on."""
    eos = frozenset(of.eos) - {of.end}
    content, least = one_of(ALL - {of.start, of.end} - eos), rule.minimum_content
    stop = "" if rule.ignore_eos or not eos else f" | {one_of(eos)}"
    end = "" if rule.forbid_end else f' | "{LETTERS[of.end]}" after0'
    lines = [f"root ::= {begin}"]
    # A message that has c tokens so far, for the few numbers that matter; `message{least}` is long enough.
    lines += [f"message{count} ::= {content} message{count + 1}" for count in range(least)]
    lines.append(f'message{least} ::= {content} message{least}{end}{stop} | "{NEVER}"')
    lines += [
        f'after{number} ::= "{LETTERS[token]}" after{number + 1}{stop}' for number, token in enumerate(of.after_end)
    ]
    lines.append(f'after{len(of.after_end)} ::= "{LETTERS[of.start]}" header{stop}')
    in_name = one_of(ALL - CLASSES.line_break - CLASSES.special - {of.start, of.end, *of.eos})
    ending = word((of.header_end, *of.header_tail))
    # One token at least, since the first one begins with a space.
    lines.append(f"names ::= {one_of(CLASSES.name_start)} later {ending} message0")
    lines.append(f"later ::= {in_name}{{0,{MOST_NAME_TOKENS - 1}}}")
    headers = [f"{word(path)} message0" for path in rule.headers] + [f"{word(path)} names" for path in rule.open_names]
    lines.append(f"header ::= {' | '.join(headers)}")
    return "\n".join(lines)


def situations(rule: RoleRule, of: Markers) -> st.SearchStrategy[Situation]:
    """Prompts that end in a message, behind one, or in a header of the rule."""
    least, before = rule.minimum_content, (START, WORDS[0], WORDS[0])
    ending = (of.header_end, *of.header_tail)
    messages = [
        Situation((*opening, *[WORDS[1]] * count), f"message{min(count, least)}")
        for count in range(least + 2)
        for opening in ((), (*before, *ending))
    ]
    behind = [
        Situation((*before, *ending, END, *of.after_end[:count]), f"after{count}")
        for count in range(len(of.after_end) + 1)
    ]
    headers = [Situation((START,), "header")]
    headers += [Situation((WORDS[0], END, START, *path), "names") for path in rule.open_names]
    return st.sampled_from([*messages, *behind, *headers])


def allowed(matcher: xgrammar.GrammarMatcher) -> frozenset[int]:
    mask = xgrammar.allocate_token_bitmask(1, VOCABULARY + 1)
    matcher.fill_next_token_bitmask(mask)
    bits = int(mask[0, 0])
    return frozenset(token for token in ALL if bits >> token & 1)


def said(history: tuple[int, ...], rule: RoleRule, of: Markers) -> frozenset[int]:
    found = constraint(history, rule, of, CLASSES)
    return ALL - found.banned if found.only is None else found.only


@dataclass
class Walk:
    """A history that goes on at random through what the grammar allows."""

    rule: RoleRule
    of: Markers
    history: tuple[int, ...]
    rng: random.Random
    patience: float
    """How seldom the walker ends names and messages."""

    def compare(self, matcher: xgrammar.GrammarMatcher, seen: Counter[str]) -> None:
        """Step by step what the grammar allows and what the automaton does."""
        for _ in range(STEPS):
            expected = allowed(matcher)
            assert said(self.history, self.rule, self.of) == expected, (self.history, self.rule, self.of)
            token = self._next(expected)
            seen[self._step(expected, token)] += 1
            self.history += (token,)
            if token in self.of.eos and token != self.of.end:
                return
            assert matcher.accept_token(token)

    def _next(self, expected: frozenset[int]) -> int:
        borders = {self.of.end, self.of.header_end, *self.of.eos}
        patient = sorted(expected - borders)
        if patient and self.rng.random() < self.patience:
            return self.rng.choice(patient)
        return self.rng.choice(sorted(expected))

    def _step(self, expected: frozenset[int], token: int) -> str:
        if len(expected) > 3:
            return "ended" if token == self.of.end else "content"
        return "start" if token == self.of.start else "listed"


@st.composite
def walks(draw: st.DrawFn) -> tuple[Walk, str]:
    of = draw(markers)
    rule = draw(rules(of).filter(lambda rule: bool(rule.headers or rule.open_names) and rule.minimum_content < 100))
    situation = draw(situations(rule, of))
    rng = random.Random(draw(st.integers(0, 2**32)))
    patience = draw(st.sampled_from([0.0, 0.5, 0.99]))
    return Walk(rule, of, situation.prompt, rng, patience), grammar(rule, of, situation.begin)


def test_whatever_the_grammar_allows_and_nothing_else() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(walks())
    def walk(drawn: tuple[Walk, str]) -> None:
        walker, text = drawn
        walker.compare(xgrammar.GrammarMatcher(COMPILER.compile_grammar(text)), seen)

    walk()
    # Random walks that never left the first message would show little.
    assert min(seen[step] for step in ("content", "ended", "start", "listed")) > 200, seen


def test_the_grammar_forbids() -> None:
    """The oracle itself: an empty mask or a full one would agree with anything that is as wrong."""
    rule = RoleRule(headers=((8, 3),), minimum_content=1)
    of = Markers(START, END, 3, line_breaks=True, after_end=(3,), eos=(5,))
    matcher = xgrammar.GrammarMatcher(COMPILER.compile_grammar(grammar(rule, of, "message0")))
    assert allowed(matcher) == ALL - {START, END, 5}
    assert matcher.accept_token(9)
    assert allowed(matcher) == ALL - {START}
    assert matcher.accept_token(END)
    assert allowed(matcher) == {3, 5}
