"""A float32 as token ids: its bits in a few digits, and each digit's place in the id, so that a lost one is noticed.

It knows neither torch nor vLLM.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

KEY: Final = "tell_normalizer"
"""In vLLM's `extra_args`: true for a request that draws the digits."""

LOST: Final = 0
"""Drawn behind the first place when the number is not known any more, and behind the last: a digit of the first."""

_NUMBERS: Final = 2**32


def places(vocab_size: int) -> tuple[int, int]:
    """How many tokens tell a number, and how many values each of them may have. Raises ValueError for a vocabulary that
    is too small, of fewer than 63 tokens."""
    for count in range(1, vocab_size):
        if (vocab_size // count) ** count >= _NUMBERS:
            return count, vocab_size // count
    raise ValueError(f"{vocab_size} tokens are too few to tell a number with")


def asked(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether a request draws digits. Raises ValueError when it is impossible."""
    told = (extra_args or {}).get(KEY, False)
    if type(told) is not bool:
        raise ValueError(f"{KEY} must be true or false")
    return told


def bits_of(number: float) -> int:
    """The bits of a float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    return int(bits)


def token(bits: int, place: int, base: int) -> int:
    """The token that tells the digit of a place, the lowest first."""
    digit: int = bits // base**place % base
    return place * base + digit


def read(token_ids: Sequence[int], vocab_size: int) -> float:
    """The number. Raises ValueError when the tokens tell none."""
    count, base = places(vocab_size)
    digits = [token_id - place * base for place, token_id in enumerate(token_ids)]
    if len(digits) != count or not all(0 <= digit < base for digit in digits):
        raise ValueError("the number was lost on its way")
    bits = sum(digit * base**place for place, digit in enumerate(digits))
    if bits >= _NUMBERS:
        raise ValueError("the number was lost on its way")
    (number,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(number)
