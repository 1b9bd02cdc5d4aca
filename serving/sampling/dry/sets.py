"""The breakers of the requests in a batch as arrays that kernels read: one set for all that break at the same.

A set lives as long as a slot holds it, so there are never more sets than slots. Knows neither kernels nor vLLM.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.sampling.dry.params import Breakers
from serving.sampling.vocabulary import bitmap

Ints = npt.NDArray[np.int32]


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


class BreakerSets:
    """At most one set for each of `slots`, over a vocabulary of `size` tokens."""

    def __init__(self, slots: int, size: int) -> None:
        self._keys: list[Hashable | None] = [None] * slots  # by slot
        self._numbers: dict[Hashable, int] = {}
        self._free = list(range(slots))[::-1]
        self._sequences: list[tuple[tuple[int, ...], ...]] = [()] * slots  # by set
        # Memory that no set has written yet is not there.
        self._bitmaps = np.zeros((slots, size), np.uint8)
        self.tables = self._laid_out()

    def __len__(self) -> int:
        return len(self._numbers)

    def hold(self, slot: int, key: Hashable, make: Callable[[], Breakers]) -> int:
        """The number of the set `key`, which `slot` then holds; it is made if no slot holds it yet."""
        self.release(slot)
        self._keys[slot] = key
        number = self._numbers.get(key)
        if number is None:
            breakers = make()
            number = self._numbers[key] = self._free.pop()
            self._bitmaps[number] = bitmap(breakers.ids, self._bitmaps.shape[1])
            self._lay_out(number, tuple(sequence for sequence in breakers.sequences if sequence))
        return number

    def release(self, slot: int) -> None:
        """`slot` holds no set any more."""
        key, self._keys[slot] = self._keys[slot], None
        if key is not None and key not in self._keys:
            self._free.append(self._numbers.pop(key))

    def _lay_out(self, number: int, sequences: tuple[tuple[int, ...], ...]) -> None:
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
