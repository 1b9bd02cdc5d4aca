"""The Lua scripts as they are sent: each put together from its own file and the parts it names, so that a call makes
no function that it does not use.

A folder has one script in each `*.lua`, shared parts in `parts/*.lua`, of which `start` begins every script and those
after `-- Parts:` in a script's head follow, and the layout of records in `layout.toml`: there `$account` gets the names
of an account's fields, in their order.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "lua"
_PARTS = re.compile(r"^-- Parts: (.*)$", re.MULTILINE)
_RECORD = re.compile(r"\$(\w+)")


@dataclass(frozen=True, slots=True)
class Script:
    """`sha` is how EVALSHA calls it."""

    sha: str
    text: str


def read_layout(folder: Path = SCRIPTS) -> Mapping[str, Mapping[str, str]]:
    """By record: its fields in order, and what each means."""
    return tomllib.loads((folder / "layout.toml").read_text(encoding="utf-8"))


def read_scripts(folder: Path = SCRIPTS) -> Mapping[str, Script]:
    """By name. Raises KeyError, OSError when a part or a record is not there."""
    layout = read_layout(folder)

    def script(own: str) -> Script:
        named = _PARTS.search(own)
        parts = ("start", *(named[1].split() if named else ()))
        shared = "".join((folder / f"parts/{part}.lua").read_text(encoding="utf-8") for part in parts)
        text = _RECORD.sub(lambda record: ", ".join(layout[record[1]]), shared + own)
        return Script(hashlib.sha1(text.encode()).hexdigest(), text)

    return {path.stem: script(path.read_text(encoding="utf-8")) for path in folder.glob("*.lua")}
