"""A number spelled in tokens is read again, bit by bit, and one that was lost on its way is noticed."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.sampling.normalizer.digits import LOST, bits_of, places, read, token

SIZES = st.sampled_from([63, 257, 2048, 4096, 32_000, 65_536, 128_256, 2**32])


def spelled(number: float, size: int) -> list[int]:
    count, base = places(size)
    return [token(bits_of(number), place, base) for place in range(count)]


@given(st.floats(width=32, allow_nan=False), SIZES)
def test_a_number_is_read_again(number: float, size: int) -> None:
    tokens = spelled(number, size)
    assert all(0 <= token_id < size for token_id in tokens)
    told = read(tokens, size)
    assert (told, math.copysign(1, told)) == (number, math.copysign(1, number))


@pytest.mark.parametrize(("size", "count"), [(64, 16), (4096, 4), (32_000, 3), (128_256, 3), (151_936, 2)])
def test_few_tokens_are_enough(size: int, count: int) -> None:
    assert places(size)[0] == count


@given(st.floats(0, 100, width=32), SIZES.filter(lambda size: places(size)[0] > 1), st.data())
def test_a_number_that_was_lost_is_noticed(number: float, size: int, data: st.DataObject) -> None:
    tokens = spelled(number, size)
    kept = data.draw(st.integers(1, len(tokens) - 1))
    for told in (tokens[:kept], [*tokens[:kept], *[LOST] * (len(tokens) - kept)], [*tokens[kept:], *tokens[:kept]]):
        with pytest.raises(ValueError, match="lost"):
            read(told, size)


@pytest.mark.parametrize("size", [0, 1, 2, 60, 62])
def test_a_vocabulary_may_be_too_small(size: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        places(size)


def test_what_is_more_than_32_bits_is_no_number() -> None:
    count, base = places(128_256)
    with pytest.raises(ValueError, match="lost"):
        read([place * base + base - 1 for place in range(count)], 128_256)
    assert bits_of(1.0) == struct.unpack("<I", struct.pack("<f", 1.0))[0]
