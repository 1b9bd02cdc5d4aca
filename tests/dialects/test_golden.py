"""Every golden wire case: see `golden.py`."""

from typing import Any

import pytest

from tests.dialects.golden import cases, play
from tests.service import Running

CASES = cases()


@pytest.mark.parametrize("name", CASES)
async def test_the_service_answers_as_recorded(run: Running, name: str) -> None:
    case: dict[str, Any] = CASES[name]
    asked: dict[str, Any] = {key: case[key] for key in ("request", "says") if key in case}
    assert asked | await play(run, asked) == case
