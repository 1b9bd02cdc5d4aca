"""What `serving/dialects/lines.py` promises."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from serving.dialects.lines import encode


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\x0b\x0c\x1c\x85\u2028\u2029—")))
def test_text_is_one_line_and_comes_back(text: str) -> None:
    line = encode({"text": text})
    assert line.decode().splitlines() == [line.decode()]
    assert msgspec.json.decode(line) == {"text": text}
