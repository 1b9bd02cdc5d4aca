"""Histories and rules that reach every state of the role automaton, over a vocabulary of sixteen tokens."""

from dataclasses import dataclass

from hypothesis import strategies as st

from serving.core import LogitsRules, Markers, RoleRule
from serving.sampling.headers import LONGEST_HEADER_TOKENS
from serving.sampling.roles.params import MOST_NAME_TOKENS, check
from serving.sampling.roles.reference import TokenClasses

VOCABULARY = 16
START, END, HEADER_END, NEWLINE, BLANK_LINE, EOS, OTHER_EOS, SPACE = range(8)
WORDS = range(8, VOCABULARY)
"""8 to 11 begin with a space: names may begin with them."""
CLASSES = TokenClasses(
    line_break=frozenset({NEWLINE, BLANK_LINE}),
    special=frozenset({START, HEADER_END, OTHER_EOS}),  # not all tokenizers flag the others
    name_start=frozenset(range(8, 12)),
)
CHATML = Markers(START, END, NEWLINE, line_breaks=True, after_end=(NEWLINE,), eos=(EOS,))
SENTENCEPIECE = Markers(START, END, NEWLINE, line_breaks=True, after_end=(SPACE, NEWLINE), eos=(EOS, OTHER_EOS))
LLAMA3 = Markers(START, END, HEADER_END, header_tail=(NEWLINE, NEWLINE), eos=(END, EOS))
SPACED_LLAMA3 = Markers(START, END, HEADER_END, header_tail=(SPACE, NEWLINE, NEWLINE), eos=(END,))


@dataclass(frozen=True)
class Case:
    """One row: what has been written, and what is asked."""

    token_ids: tuple[int, ...]
    rules: LogitsRules

    @property
    def roles(self) -> RoleRule:
        assert self.rules.roles is not None
        return self.rules.roles


markers = st.sampled_from([CHATML, SENTENCEPIECE, LLAMA3, SPACED_LLAMA3])


@st.composite
def rules(draw: st.DrawFn, of: Markers) -> RoleRule:
    """A rule whose paths a history can follow."""
    ending = (of.header_end, *of.header_tail)
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(tuple)
    headers = tuple(dict.fromkeys(path + ending for path in draw(st.lists(words, max_size=3))))
    opened = tuple(dict.fromkeys(draw(st.lists(words, max_size=2))))
    opened = tuple(path for path in opened if not any(other[: len(path)] == path for other in headers))
    opened = tuple(path for path in opened if not any(o != path and o[: len(path)] == path for o in opened))
    minimum = draw(st.sampled_from([0, 0, 1, 3, 200]))
    rule = RoleRule(headers, opened, draw(st.booleans()), minimum, draw(st.booleans()))
    check(rule)
    return rule


def _pieces(rule: RoleRule, of: Markers) -> st.SearchStrategy[tuple[int, ...]]:
    """Whole headers, ends, content and rubbish."""
    paths = [(START, *path) for path in (*rule.headers, *rule.open_names)] or [(START,)]
    ending = (of.header_end, *of.header_tail)
    names = st.lists(st.sampled_from(WORDS), min_size=1, max_size=MOST_NAME_TOKENS + 4).map(tuple)
    long = st.integers(1, 2 * LONGEST_HEADER_TOKENS).map(lambda count: (WORDS[0],) * count)
    endings = st.sampled_from([(), *(ending[:count] for count in range(1, len(ending) + 1))])
    named = st.tuples(st.sampled_from(paths[::-1]), names | long, endings).map(lambda p: (*p[0], *p[1], *p[2]))
    return st.one_of(
        st.sampled_from([*paths, (START,), ending, (NEWLINE,)]),
        st.sampled_from([(END,), (END, *of.after_end), (END, BLANK_LINE)]),
        named,
        st.lists(st.integers(0, VOCABULARY - 1), max_size=6).map(tuple),
        names | long,
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Histories made of what a model writes, cut anywhere, with rubbish in between."""
    of = draw(markers)
    rule = draw(rules(of))
    pieces = _pieces(rule, of)
    past = draw(st.lists(pieces, max_size=4))
    token_ids = tuple(token for piece in (*past, draw(pieces)) for token in piece)
    cut = draw(st.sampled_from([0, 0, 0, 1, 2, 3, 4]))
    return Case(token_ids[: max(0, len(token_ids) - cut)], LogitsRules(of, roles=rule))


logits = st.lists(st.sampled_from([-1.5, 0.0, 2.0, 7.25, float("-inf")]), min_size=VOCABULARY, max_size=VOCABULARY)
