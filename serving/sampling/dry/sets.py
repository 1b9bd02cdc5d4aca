"""The breakers of the requests in a batch as arrays that kernels read: one set for all that break at the same.

There are never more sets than slots. Knows neither kernels nor vLLM.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Sequences = tuple[tuple[int, ...], ...]


class SetTables(NamedTuple):
    """`bitmaps: [sets, V] uint8`: 1 for each token that is a breaker.

    The sequences of set n are those from `first[n]` to before `first[n + 1]`; sequence s lies, its last token first, in
    `tokens` from `starts[s]` to before `starts[s + 1]`. `falls` there: how long a beginning of the sequence (so turned)
    ends with that token, not counting the whole.
    """

    bitmaps: npt.NDArray[np.uint8]
    first: Ints
    starts: Ints
    tokens: Ints
    falls: Ints


class SetNumbers:
    """Numbers below `slots` for the sets that slots hold. Equal sets share one, so as many as slots are enough; a set
    that no slot holds keeps its number until another needs it."""

    def __init__(self, slots: int) -> None:
        self._held: list[Hashable | None] = [None] * slots
        self._numbers: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def hold(self, slot: int, key: Hashable) -> tuple[int, bool]:
        """The number of the set `key`, which `slot` then holds; and whether it was not known before."""
        self._held[slot] = key
        if key in self._numbers:
            return self._numbers[key], False
        number = len(self._numbers)
        if number == len(self._held):
            held = set(self._held)
            number = self._numbers.pop(next(other for other in self._numbers if other not in held))
        self._numbers[key] = number
        return number, True

    def release(self, slot: int) -> None:
        """`slot` holds no set any more."""
        self._held[slot] = None


class BreakerSets:
    """At most one set for each of `slots`, over a vocabulary of `size` tokens."""

    def __init__(self, slots: int, size: int) -> None:
        self._numbers = SetNumbers(slots)
        self._sequences: list[Sequences] = [()] * slots  # by set
        # Memory that no set has written yet is not there.
        self._bitmaps = np.zeros((slots, size), np.uint8)
        self.tables = self._laid_out()

    def __len__(self) -> int:
        return len(self._numbers)

    def hold(self, slot: int, key: Hashable, make: Callable[[], tuple[npt.NDArray[np.uint8], Sequences]]) -> int:
        """The number of the set `key`, which `slot` then holds; it is made if it is not known."""
        number, new = self._numbers.hold(slot, key)
        if new:
            self._bitmaps[number], sequences = make()
            self._lay_out(number, tuple(sequence for sequence in sequences if sequence))
        return number

    def release(self, slot: int) -> None:
        """`slot` holds no set any more."""
        self._numbers.release(slot)

    def _lay_out(self, number: int, sequences: Sequences) -> None:
        if sequences != self._sequences[number]:
            self._sequences[number] = sequences
            self.tables = self._laid_out()

    def _laid_out(self) -> SetTables:
        turned = [sequence[::-1] for sequences in self._sequences for sequence in sequences]
        first = np.cumsum([0, *map(len, self._sequences)], dtype=np.int32)
        starts = np.cumsum([0, *map(len, turned)], dtype=np.int32)
        tokens = np.array([token for sequence in turned for token in sequence], np.int32)
        falls = np.array([fall for sequence in turned for fall in _falls(sequence)], np.int32)
        return SetTables(self._bitmaps, first, starts, tokens, falls)


def _falls(sequence: Sequence[int]) -> list[int]:
    """For each place the length of the longest beginning of `sequence` that ends there, other than all up to it.

    Source: Knuth, Morris and Pratt, "Fast pattern matching in strings", 1977.
    """
    falls = [0] * len(sequence)
    length = 0
    for at in range(1, len(sequence)):
        while length and sequence[at] != sequence[length]:
            length = falls[length - 1]
        length += sequence[at] == sequence[length]
        falls[at] = length
    return falls
