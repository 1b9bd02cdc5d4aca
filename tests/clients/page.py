"""SillyTavern's page in a browser: what `sillytavern.mjs` does there, and what it saw."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.tavern import TYPES, Tavern
from tests.end_to_end.conftest import KEY

HERE = Path(__file__).parent
PRESETS = HERE.parents[1] / "deploy/sillytavern"
CHATML, LLAMA3 = (str(PRESETS / f"{name}.json") for name in ("chatml-text", "llama3-writer"))
SHIPPED_CHATML, SHIPPED_LLAMA3 = "DreamGen Role-Play V1 ChatML", "DreamGen Role-Play V1 Llama3"
"""What 1.12 ships for these templates."""

VISIT_S = 300

USER, CHARACTER = "Tom", "Mara"
CARD = json.loads((HERE / "mara.json").read_text())["data"]
SAID = (
    "Please do not send me home! I am so hungry.",
    "Thank you! Where are we?",
    "And where do we go?",
    "Then let us go there.",
)


@dataclass(frozen=True)
class Turn:
    """A turn of the chat: which server is asked, and with which presets, a file's or those that ship under a name."""

    server: str
    preset: str


@dataclass(frozen=True)
class Seen:
    """What one turn showed. `status`: the name beside the green light; `sent`: the body that the page sent to its
    backend; `grown`: the answer as it was seen, each time that it changed; `answer`: as it is kept, without a look."""

    status: str
    sent: dict[str, Any]
    grown: list[str]
    answer: str


@dataclass(frozen=True)
class Page:
    """`turns` by preset. `bodies`: what the page would send of the same settings with each type. `error`: what it says
    of an unknown model."""

    turns: dict[str, Seen]
    bodies: dict[str, dict[str, Any]]
    error: str


def visit(tavern: Tavern, turns: list[Turn], pictures: Path) -> Page:
    """Connect, load a character, and chat."""
    asked = {
        "tavern": tavern.url,
        "key": KEY,
        "user": USER,
        "character": CHARACTER,
        "card": str(HERE / "mara.json"),
        "types": TYPES,
        "turns": [
            {"server": turn.server, "preset": turn.preset, "say": said} for turn, said in zip(turns, SAID, strict=False)
        ],
        "pictures": str(pictures),
    }
    told = subprocess.run(
        ["node", "sillytavern.mjs", json.dumps(asked)], cwd=HERE, capture_output=True, text=True, timeout=VISIT_S
    )
    assert told.returncode == 0, told.stderr
    seen = json.loads(told.stdout)
    shown = {turn.preset: Seen(**told) for turn, told in zip(turns, seen["turns"], strict=True)}
    return Page(shown, seen["bodies"], seen["error"])
