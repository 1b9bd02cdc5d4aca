"""Hypothesis strategies for DRY: histories of every shape that a kernel could stumble over, with parameters, breakers
and headers. Nothing here knows a kernel.

All token ids are those of the demo model's tokenizer, so that made-up and natural histories fit into one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from serving.core import Dry, LogitsRules, Markers
from serving.sampling.dry.params import MOST_INTEGER, Breakers
from serving.sampling.headers import Headers
from serving.sampling.vocabulary import Vocabulary
from serving.settings import DEMO_MODEL_DIR

SIZE: Final = 3072
"""Width of a row of logits."""
MESSAGE_START: Final = 3
MESSAGE_END: Final = 4
LINE_BREAK: Final = 203
HEADER_START, HEADER_END, END_OF_TURN = 20, 21, 22
"""Plain tokens that play the Llama 3 markers."""

CHATML: Final = Markers(MESSAGE_START, MESSAGE_END, LINE_BREAK, line_breaks=True)
LLAMA3: Final = Markers(HEADER_START, END_OF_TURN, HEADER_END, header_tail=(LINE_BREAK, LINE_BREAK))
NO_TAIL: Final = Markers(HEADER_START, END_OF_TURN, HEADER_END)
NONE: Final = Markers(SIZE + 7, SIZE + 7, SIZE + 7)
"""Markers that stand in no history."""

SENTENCES: Final = (
    "The river rose, and nobody said a word.",
    '"Hello," said Mia, and laughed.',
    '"I am not good at this," said Lucifer. "Bring a flower."',
    "Mia *smiled*: it was a beginning.",
    "The stars were bright and cold, and the stars were far away.",
    "They talked until the candles were low.\n\nThen it was night.",
    "the the the the the",
    "Lucifer, the red-skinned, horned demon, is the embodiment of fallen grace.",
)
HEADERS: Final = ("text", "text names= Mia", "text names= Lucifer; Mia", "user", "system")


@dataclass(frozen=True)
class Case:
    """One row: what has been written so far and how DRY is to look at it."""

    token_ids: tuple[int, ...]
    params: Dry
    breakers: Breakers
    markers: Markers

    @property
    def headers(self) -> Headers | None:
        """None where the markers stand in no history."""
        return None if self.markers is NONE else Headers.of(self.markers, vocabulary().classes().line_break)

    @property
    def rules(self) -> LogitsRules:
        return LogitsRules(self.markers, dry=self.params)


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary.load(DEMO_MODEL_DIR, SIZE)


def encoded(text: str) -> list[int]:
    return list(vocabulary().tokenizer.encode(text, add_special_tokens=False).ids)


# ---- histories -------------------------------------------------------------------------------------------------------

ALPHABET = (5, 6, 7, 8, 9)
MARKS = (MESSAGE_START, MESSAGE_END, LINE_BREAK, HEADER_START, HEADER_END, END_OF_TURN)
BEYOND = (SIZE, SIZE + 1, 2**31 - 1)
"""Token ids that no row of logits has a place for."""


@st.composite
def drawn(draw: st.DrawFn, choices: Sequence[int], most: int) -> list[int]:
    """Up to `most` tokens, one after the other. From bytes, since lists of hypothesis are seldom long."""
    size = draw(st.integers(0, most))
    return [choices[byte % len(choices)] for byte in draw(st.binary(min_size=size, max_size=size))]


def plain(most: int) -> st.SearchStrategy[list[int]]:
    """Few different tokens, so that nearly everything has been there before."""
    return st.integers(1, len(ALPHABET)).flatmap(lambda letters: drawn(ALPHABET[:letters], most))


@st.composite
def periodic(draw: st.DrawFn, most: int) -> list[int]:
    """One piece again and again, perhaps cut short, with a few tokens changed."""
    piece = draw(drawn(ALPHABET, 60)) or [ALPHABET[0]]
    ids = (piece * (most // len(piece) + 1))[: draw(st.integers(0, most))]
    for at in draw(st.lists(st.integers(0, max(0, len(ids) - 1)), max_size=4)) if ids else ():
        ids[at] = draw(st.sampled_from((*ALPHABET, *MARKS, *BEYOND)))
    return ids


def marked(most: int) -> st.SearchStrategy[list[int]]:
    """Every token that means something, in any order: headers that never end, ends without a start."""
    return drawn((*ALPHABET[:2] * 3, *MARKS), most)


@st.composite
def long_headers(draw: st.DrawFn, most: int) -> list[int]:
    """Headers about as long as a header can be, with and without an end."""
    start, end = draw(st.sampled_from(((MESSAGE_START, (LINE_BREAK,)), (HEADER_START, (HEADER_END, LINE_BREAK)))))
    ids: list[int] = []
    for _ in range(draw(st.integers(1, 5))):
        inside = [draw(st.sampled_from(ALPHABET[:2]))] * draw(st.integers(0, 10) | st.integers(110, 130))
        ids += [*draw(plain(20)), start, *inside, *end[: draw(st.integers(0, 2))]]
    ids += draw(plain(20))
    return ids[-most:]


@st.composite
def told(draw: st.DrawFn, most: int) -> list[int]:
    """Prose as a model might have written it, which repeats some of its sentences."""
    sentences = draw(st.lists(st.sampled_from(SENTENCES), min_size=3, max_size=20))
    ids = encoded(" ".join(sentences))
    return ids[: draw(st.integers(0, min(most, len(ids))))]


@st.composite
def chats(draw: st.DrawFn, most: int) -> list[int]:
    """Messages in the format of the demo model; the last one may end anywhere, in its header too."""
    turn = st.tuples(st.sampled_from(HEADERS), st.lists(st.sampled_from(SENTENCES), max_size=3))
    turns = draw(st.lists(turn, min_size=2, max_size=8))
    text = "".join(f"<|im_start|>{header}\n{' '.join(content)}<|im_end|>\n" for header, content in turns)
    ids = encoded(text)[-most:]
    return ids[: len(ids) - draw(st.integers(0, min(30, len(ids))))]


@st.composite
def llama3_chats(draw: st.DrawFn, most: int) -> list[int]:
    """The same with start, role, end and two line breaks, of which the tail may lack one."""
    ids: list[int] = []
    for role in draw(st.lists(st.sampled_from(("user", "assistant", "writer")), min_size=2, max_size=8)):
        tail = [LINE_BREAK] * draw(st.integers(0, 2))
        ids += [HEADER_START, *encoded(role), HEADER_END, *tail]
        ids += [*encoded(draw(st.sampled_from(SENTENCES))), END_OF_TURN]
    ids = ids[-most:]
    return ids[: len(ids) - draw(st.integers(0, min(30, len(ids))))]


@st.composite
def histories(draw: st.DrawFn, most: int) -> list[int]:
    """Of at most `most` tokens; many end with a piece of what stands before."""
    kinds = (plain, periodic, marked, long_headers, told, chats, llama3_chats)
    ids: list[int] = draw(st.one_of(*(kind(most) for kind in kinds)))
    if draw(st.booleans()) and ids:
        begin = draw(st.integers(0, len(ids) - 1))
        ids += ids[begin : begin + draw(st.integers(1, 60))]
    return ids[-most:]


# ---- parameters and breakers -----------------------------------------------------------------------------------------


def params(most: int) -> st.SearchStrategy[Dry]:
    """The extremes of what is allowed beside what is usual; ranges around a history of `most` tokens."""
    return st.builds(
        Dry,
        multiplier=st.sampled_from((0.8, 1.0, 1000.0, 1e-3, 5e-324)) | st.floats(0, 1000),
        base=st.sampled_from((1.75, 1.0, 100.0)) | st.floats(1, 100),
        allowed_length=st.sampled_from((0, 1, 1, 2, 2, 3, 5, 20, 49, 50, 51, MOST_INTEGER)),
        sequence_breakers=st.just(()),
        range=st.sampled_from((0, 0, 0, 0, 0, 1, 2, 3, most, MOST_INTEGER)) | st.integers(most // 2, most),
    )


@st.composite
def breakers(draw: st.DrawFn, token_ids: list[int]) -> Breakers:
    """Breakers of one and of several tokens, most of which stand in `token_ids`."""
    tokens = st.sampled_from(token_ids or [0]) | st.sampled_from((*ALPHABET, *MARKS, *BEYOND))
    ids = draw(st.frozensets(tokens.filter(lambda token: token < SIZE), max_size=3))
    sequences: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, max(0, len(token_ids) - 2)))
        found = tuple(token_ids[begin : begin + draw(st.integers(2, 6))])
        sequences.append(found if len(found) > 1 else tuple(draw(st.lists(tokens, min_size=2, max_size=6))))
    return Breakers(ids, tuple(dict.fromkeys(sequences)))


@st.composite
def cases(draw: st.DrawFn, most: int = 300) -> Case:
    """Anything a row could be, with a history of at most `most` tokens."""
    token_ids = draw(histories(most))
    markers = draw(st.sampled_from((CHATML, LLAMA3, NO_TAIL, NONE)))
    broken = draw(st.just(Breakers()) | breakers(token_ids))
    return Case(tuple(token_ids), draw(params(len(token_ids))), broken, markers)


def logits(rows: int, seed: int) -> npt.NDArray[np.float32]:
    """`[rows, SIZE] float32`, of which some are masked, and some zeros of both signs."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 10, (rows, SIZE)).astype(np.float32)
    kinds = rng.random((rows, SIZE))
    values[kinds < 0.1] = -np.inf
    values[(kinds >= 0.1) & (kinds < 0.15)] = 0.0
    values[(kinds >= 0.15) & (kinds < 0.2)] = -0.0
    return values
