"""Characters, instruction templates and presets: files of the operator's, found by the names that callers give.

The folder is laid out as text-generation-webui's `user_data`. It does not: decide what a file's values mean for a
request, or write files. All of it blocks: call it in a thread.

Laws: a name is compared with those of the files in a folder, and never becomes part of a path. A file that cannot be
used is told by its name alone.
Source: text-generation-webui for the YAML files; the V2 and V3 specifications of character cards for JSON and PNG.
"""

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serving.errors import InvalidRequest

MOST_BYTES = 16 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNKS = (b"ccv3", b"chara")
"""Keywords of the PNG chunks that hold a card, the better one first."""

Kind = str
_FOLDERS: Mapping[Kind, tuple[str, tuple[str, ...]]] = {
    "character": ("characters", (".yaml", ".yml", ".json", ".png")),
    "instruction_template": ("instruction-templates", (".yaml", ".yml", ".jinja")),
    "preset": ("presets", (".yaml", ".yml")),
}


@dataclass(frozen=True, slots=True)
class Character:
    """Who answers, and what is known of them. `user` is who asks, where the file says it. `{{char}}` and `{{user}}`
    stand for the names."""

    name: str
    context: str = ""
    greeting: str = ""
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Library:
    """The files of one folder, which may be missing. Raises InvalidRequest, naming the field that has the name."""

    root: Path | None = None

    def character(self, name: str) -> Character:
        """From YAML, or from a card as JSON or PNG."""
        return _character(self._read("character", name), name)

    def instruction_template(self, name: str) -> str:
        """A Jinja template."""
        template = self._read("instruction_template", name).get("instruction_template")
        if not isinstance(template, str):
            raise _unusable("instruction_template")
        return template

    def preset(self, name: str) -> Mapping[str, Any]:
        """Options of a request, by name."""
        return self._read("preset", name)

    def _read(self, kind: Kind, name: str) -> Mapping[str, Any]:
        path = self._find(kind, name)
        try:
            if path.stat().st_size > MOST_BYTES:
                raise _unusable(kind)
            data = _parsed(path.suffix, path.read_bytes())
        except (OSError, ValueError, RecursionError, yaml.YAMLError, struct.error):
            raise _unusable(kind) from None
        if not isinstance(data, dict):
            raise _unusable(kind)
        return data

    def _find(self, kind: Kind, name: str) -> Path:
        folder, suffixes = _FOLDERS[kind]
        if self.root is not None and (self.root / folder).is_dir():
            for path in sorted((self.root / folder).iterdir()):
                if path.stem == name and path.suffix in suffixes:
                    return path
        raise InvalidRequest(f"This server has no {kind} of this name.", param=kind)


def _unusable(kind: Kind) -> InvalidRequest:
    return InvalidRequest(f"The file of this {kind} cannot be used. Tell the operator of this server.", param=kind)


def _parsed(suffix: str, content: bytes) -> object:
    """What a file says. Raises ValueError and the like."""
    if suffix == ".png":
        return _card(content)
    text = content.decode("utf-8-sig")
    if suffix == ".jinja":
        return {"instruction_template": text}
    return json.loads(text) if suffix == ".json" else yaml.safe_load(text)


def _card(content: bytes) -> object:
    """The card in a PNG: JSON in Base64, in a chunk of text."""
    found = dict(_texts(content))
    chunk = next((found[keyword] for keyword in _CHUNKS if keyword in found), None)
    if chunk is None:
        raise ValueError("no card")
    return json.loads(base64.b64decode(chunk))


def _texts(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keyword and text of each tEXt chunk."""
    if not content.startswith(_PNG):
        raise ValueError("no PNG")
    at = len(_PNG)
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        if kind == b"tEXt":
            keyword, _, text = content[at + 8 : at + 8 + size].partition(b"\0")
            yield keyword, text
        at += 12 + size


def _character(data: Mapping[str, Any], name: str) -> Character:
    """From the fields of text-generation-webui's files, or of a card (its own, or under `data`)."""
    inner = data.get("data")
    fields = inner if isinstance(inner, dict) else data

    def text(*names: str) -> str:
        values = (fields.get(each) for each in names)
        return next((value for value in values if isinstance(value, str) and value.strip()), "")

    called = text("name", "char_name", "bot").strip() or name
    context = text("context") or _described(
        text("system_prompt"),
        text("scenario", "world_scenario"),
        text("description", "char_persona"),
        text("personality"),
        text("mes_example", "example_dialogue"),
    )
    greeting = text("greeting", "first_mes", "char_greeting")
    return Character(called, context, greeting, text("your_name", "user").strip() or None)


def _described(system: str, scenario: str, description: str, personality: str, examples: str) -> str:
    """A card as the models' own system turn has it: the plot, and then the characters."""
    who = "\n\n".join(part.strip() for part in (description, personality) if part.strip())
    parts = [
        system.strip(),
        f"## Overall plot description:\n\n{scenario.strip() or 'Conversation between {{char}} and {{user}}.'}",
        f"## Characters:\n\n### {{{{char}}}}\n\n{who}" if who else "",
        f"## Example dialogue:\n\n{examples.strip()}" if examples.strip() else "",
    ]
    return "\n\n\n".join(part for part in parts if part)
