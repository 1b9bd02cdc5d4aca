"""Where a field stands in a body, as FastAPI tells it. For the dialects whose errors name fields so."""

import re


def location(param: str | None) -> list[str | int]:
    """`messages[3].role` as the way to it from the body: `["body", "messages", 3, "role"]`."""
    steps = re.findall(r"[^.\[\]]+", param or "")
    return ["body", *(int(step) if step.isdecimal() else step for step in steps)]
