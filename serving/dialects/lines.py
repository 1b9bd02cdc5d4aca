"""JSON that every reader of lines takes for one line.

JSON leaves U+0085, U+2028 and U+2029 as they are, and many readers of lines (Python's `str.splitlines`, so httpx)
break a line at them: a model that writes one would cut a frame in two. They are written as escapes.
"""

import msgspec

_encode = msgspec.json.Encoder().encode
_BREAKS = (("\u0085".encode(), b"\\u0085"), ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))


def encode(value: object) -> bytes:
    """`value` as JSON on one line."""
    text = _encode(value)
    if not text.isascii():
        for character, escape in _BREAKS:
            text = text.replace(character, escape)
    return text
