"""Bytes of a body: read up to a limit, decoded at a bounded cost, and errors that name fields and repeat nothing."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serving.edge.body import ClientGone, decode, describe, read_body
from serving.errors import InvalidRequest, PayloadTooLarge


class Inner(msgspec.Struct):
    word: Literal["one", "two"] | None = None
    numbers: list[int] = []
    table: dict[int, float] = {}


class Wire(msgspec.Struct):
    name: str
    inner: Inner | None = None
    anything: Any = None


def receiving(messages: list[Message]) -> tuple[Receive, list[Message]]:
    """A `receive` that hands out messages, and the list of those it has not yet."""

    async def receive() -> Message:
        return messages.pop(0)

    return receive, messages


def chunks(*parts: bytes) -> list[Message]:
    told: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    return [*told, {"type": "http.request"}]


async def test_a_body_is_put_together() -> None:
    receive, rest = receiving(chunks(b"ab", b"", b"cd"))
    assert await read_body(Headers(), receive, 4) == b"abcd"
    assert rest == []


async def test_a_body_is_read_no_further_than_its_limit() -> None:
    receive, rest = receiving(chunks(b"abc", b"def", b"ghi"))
    with pytest.raises(PayloadTooLarge, match="5 bytes"):
        await read_body(Headers(), receive, 5)
    assert len(rest) == 2


async def test_an_announced_length_is_believed_when_too_large() -> None:
    receive, rest = receiving(chunks(b"a"))
    with pytest.raises(PayloadTooLarge):
        await read_body(Headers({"content-length": "6"}), receive, 5)
    assert len(rest) == 2


@pytest.mark.parametrize("announced", ["5", "1", "-1", "x", "", "²"])
async def test_an_announced_length_that_says_nothing_is_not_believed(announced: str) -> None:
    receive, _ = receiving(chunks(b"abcde"))
    assert await read_body(Headers({"content-length": announced}), receive, 5) == b"abcde"


async def test_a_client_that_goes_away() -> None:
    receive, _ = receiving([*chunks(b"ab")[:1], {"type": "http.disconnect"}])
    with pytest.raises(ClientGone):
        await read_body(Headers(), receive, 5)


def refusal(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as error:
        decode(Wire, body)
    return error.value


WRONG = {
    b"{}": "name",
    b'{"name": 5}': "name",
    b'{"name": null}': "name",
    b'{"name": "secret", "inner": 5}': "inner",
    b'{"name": "secret", "inner": {"word": "secret"}}': "inner.word",
    b'{"name": "secret", "inner": {"word": "it\'s a secret"}}': "inner.word",
    b'{"name": "secret", "inner": {"word": "a \\"secret\\" - at `$.x`"}}': "inner.word",
    b'{"name": "secret", "inner": {"word": "\\nsecret\\n"}}': "inner.word",
    b'{"name": "secret", "inner": {"numbers": [1, 2, "secret"]}}': "inner.numbers[2]",
    b'{"name": "secret", "inner": {"table": {"secret": 1}}}': "inner.table",
    b'{"name": "secret", "inner": {"table": {"1": "secret"}}}': "inner.table[...]",
}


@pytest.mark.parametrize("body", WRONG)
def test_an_error_names_the_field_and_repeats_nothing(body: bytes) -> None:
    error = refusal(body)
    assert error.param == WRONG[body]
    assert WRONG[body] in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize("body", [b"", b"{", b"secret", b'{"secret', b"\xff", b'{"name": "\xff secret"}', b"[" * 10**6])
def test_what_is_no_json_has_no_field(body: bytes) -> None:
    error = refusal(body)
    assert error.param is None
    assert "secret" not in error.message


def test_unknown_fields_are_ignored_whatever_they_hold() -> None:
    body = b'{"name": "a", "x": [1, {"y": null}], "name2": 1e5, "z": "' + b"z" * 100_000 + b'"}'
    assert decode(Wire, body) == Wire("a")


def many_values() -> Iterator[bytes]:
    yield b'{"name": "a", "anything": [' + b'"",' * 200_000 + b'""]}'
    yield b'{"name": "a", "anything": [' + b"1," * 270_000 + b"1]}"
    yield b'{"name": "a", "anything": [' + b"{}," * 90_000 + b"1]}"
    yield b'{"name": "a", "anything": [' + b"[]," * 90_000 + b"1]}"


@pytest.mark.parametrize("body", list(many_values()), ids=["strings", "numbers", "objects", "lists"])
def test_a_body_of_very_many_values_is_refused_undecoded(body: bytes) -> None:
    assert "too many values" in refusal(body).message


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("body", [b'{"name": "a"}', b'{"name": 1}'])
def test_the_garbage_collector_is_left_as_it_was(collecting: bool, body: bytes) -> None:
    (gc.enable if collecting else gc.disable)()
    try:
        with contextlib.suppress(InvalidRequest):
            decode(Wire, body)
        assert gc.isenabled() == collecting
    finally:
        gc.enable()


def test_a_long_text_passes() -> None:
    assert decode(Wire, b'{"name": "' + b"a" * 3_000_000 + b'"}').name == "a" * 3_000_000


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ("Expected `int` <= 5 - at `$.a`", "a"),
        ("Expected `str`, got `int` - at `$.a[0].b`", "a[0].b"),
        ("Expected `int`, got `str` - at `key` in `$.a`", "a"),
        ("Object missing required field `b` - at `$.a`", "a.b"),
        ("Object missing required field `b`", "b"),
        ("Expected `object`, got `array`", None),
    ],
)
def test_what_the_decoder_says_is_read(said: str, param: str | None) -> None:
    sentence, found = describe(said)
    assert found == param
    assert sentence.endswith(".")
    assert "$" not in sentence
