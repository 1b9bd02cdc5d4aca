"""What an operator may turn off of Livepeer's protocol. What it is otherwise: `golden/livepeer.json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.service import Running, running

ANSWERS = ["One ", "day ", "it ", "rained."]


async def told(run: Running, **asked: Any) -> tuple[list[str], str]:  # noqa: ANN401  # JSON
    """How a stream ends, from the `finish_reason` on, and the `finish_reason` of a whole answer."""
    run.play(script=lambda request: ANSWERS)
    body = {"messages": [{"role": "user", "content": "Hi"}], **asked}
    streamed = await run.client.post("/llm", json=body | {"stream": True})
    frames = [frame.removeprefix("data: ") for frame in streamed.text.split("\n\n")[:-1]]
    ends = [frame if frame == "[DONE]" else reason_of(json.loads(frame)) for frame in frames]
    whole = await run.client.post("/llm", json=body)
    return [end for end in ends if end], reason_of(whole.json())


def reason_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["finish_reason"] or "")


@pytest.mark.parametrize(
    ("values", "cut", "ended"),
    [
        ({}, ["length", "[DONE]"], ["stop", "[DONE]"]),
        ({"livepeer_done": False}, ["length"], ["stop"]),
        ({"livepeer_length": False}, ["stop", "[DONE]"], ["stop", "[DONE]"]),
        ({"livepeer_done": False, "livepeer_length": False}, ["stop"], ["stop"]),
    ],
)
async def test_the_end_is_told_as_the_operator_chose(
    values: dict[str, bool], cut: list[str], ended: list[str], tmp_path: Path
) -> None:
    async with running(tmp_path, **values) as run:
        assert await told(run, max_tokens=2) == (cut, cut[0])
        assert await told(run) == (ended, "stop")
