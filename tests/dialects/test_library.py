"""Files of characters, templates and presets: each kind is read, and no name leads out of its folder."""

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.dialects import library
from serving.dialects.library import Character, Library
from serving.errors import InvalidRequest

CARD: dict[str, Any] = {
    "name": "Mara",
    "description": "{{char}} keeps the lighthouse.",
    "personality": "Quiet.",
    "scenario": "A storm.",
    "first_mes": "You are late, {{user}}.",
    "mes_example": "",
}
_WHO = "### {{char}}\n\n{{char}} keeps the lighthouse.\n\nQuiet."
CONTEXT = f"## Overall plot description:\n\nA storm.\n\n\n## Characters:\n\n{_WHO}"
MARA = Character("Mara", CONTEXT, "You are late, {{user}}.")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("characters", "instruction-templates", "presets"):
        (tmp_path / name).mkdir()
    return tmp_path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(**texts: object) -> bytes:
    """A picture of one pixel with a chunk of text for each keyword: bytes as they are, else JSON in Base64."""
    told = b"".join(
        chunk(b"tEXt", name.encode() + b"\0" + (text if isinstance(text, bytes) else encoded(text)))
        for name, text in texts.items()
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + told + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def encoded(card: object) -> bytes:
    return base64.b64encode(json.dumps(card).encode())


V2 = {"spec": "chara_card_v2", "spec_version": "2.0", "data": CARD}
V3 = {"spec": "chara_card_v3", "spec_version": "3.0", "data": CARD}
OTHER = {**V2, "data": {**CARD, "name": "Another"}}
FILES: dict[str, tuple[str, bytes]] = {
    "V1 as JSON": ("json", json.dumps(CARD).encode()),
    "V2 as JSON": ("json", json.dumps(V2).encode()),
    "V3 as JSON": ("json", json.dumps(V3).encode()),
    "with a byte order mark": ("json", b"\xef\xbb\xbf" + json.dumps(V2).encode()),
    "V2 as PNG": ("png", png(Comment=b"a picture", chara=V2)),
    "V3 as PNG": ("png", png(ccv3=V3)),
    "V3 is better": ("png", png(chara=OTHER, ccv3=V3)),
    "YAML": ("yaml", json.dumps({"name": "Mara", "context": CONTEXT, "greeting": CARD["first_mes"]}).encode()),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_character(root: Path, kind: str) -> None:
    suffix, content = FILES[kind]
    (root / f"characters/A name, with ünusual letters.{suffix}").write_bytes(content)
    assert Library(root).character("A name, with ünusual letters") == MARA


def test_parts_of_a_card(root: Path) -> None:
    parts = {"system_prompt": "Write well.", "mes_example": "<START>", "char_name": "Ann", "description": 5}
    (root / "characters/a.json").write_text(json.dumps(parts))
    plot = "## Overall plot description:\n\nConversation between {{char}} and {{user}}."
    context = f"Write well.\n\n\n{plot}\n\n\n## Example dialogue:\n\n<START>"
    assert Library(root).character("a") == Character("Ann", context)
    (root / "characters/b.yml").write_text("context: Here.\nyour_name: ' Tom '\n")
    assert Library(root).character("b") == Character("b", "Here.", "", "Tom")


def test_templates_and_presets(root: Path) -> None:
    (root / "instruction-templates/a.yaml").write_text("instruction_template: |-\n  {{ 1 }}\n")
    (root / "instruction-templates/b.jinja").write_text("{{ 2 }}")
    (root / "presets/a.yaml").write_text("temperature: 0.5\n")
    files = Library(root)
    assert (files.instruction_template("a"), files.instruction_template("b")) == ("{{ 1 }}", "{{ 2 }}")
    assert files.preset("a") == {"temperature": 0.5}


BROKEN: dict[str, tuple[str, bytes]] = {
    "no JSON": ("json", b"{private"),
    "no object": ("json", b"[]"),
    "too deep": ("json", b"[" * 100_000),
    "no UTF-8": ("json", b"\xff"),
    "no YAML": ("yaml", b"private: ["),
    "YAML that makes objects": ("yaml", b"!!python/object/apply:os.system ['true']"),
    "no PNG": ("png", b"private"),
    "a PNG without a card": ("png", png(Comment=b"private")),
    "a PNG cut short": ("png", png(chara=V2)[:-30]),
    "a card that is no Base64": ("png", png(chara=b"\xff!")),
    "a card that is no JSON": ("png", png(chara=base64.b64encode(b"private"))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_is_told_without_its_words(root: Path, kind: str) -> None:
    suffix, content = BROKEN[kind]
    (root / f"characters/a.{suffix}").write_bytes(content)
    with pytest.raises(InvalidRequest) as error:
        Library(root).character("a")
    assert error.value.param == "character"
    assert "cannot be used" in error.value.message
    assert "private" not in error.value.message


def test_a_template_that_is_none(root: Path) -> None:
    (root / "instruction-templates/a.yaml").write_text("user: USER\n")
    with pytest.raises(InvalidRequest, match="cannot be used"):
        Library(root).instruction_template("a")


def test_a_file_over_the_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "presets/a.yaml").write_text("temperature: 0.5\n")
    monkeypatch.setattr(library, "MOST_BYTES", 5)
    with pytest.raises(InvalidRequest, match="cannot be used"):
        Library(root).preset("a")


HOSTILE = st.sampled_from(
    [
        "../secret",
        "..",
        ".",
        "",
        "/",
        "secret.yaml",
        "../presets/../secret",
        "a/../../secret",
        "..\\secret",
        "a\0",
        "*",
        "~",
    ]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE)
def test_no_name_leads_out_of_the_folder(root: Path, name: str) -> None:
    for place in ("secret.yaml", "presets/a.txt", "characters/secret.yaml"):
        (root / place).write_text("temperature: 0.5\n")
    with pytest.raises(InvalidRequest, match="no preset of this name") as error:
        Library(root).preset(name)
    assert error.value.param == "preset"
    with pytest.raises(InvalidRequest):
        Library(root / "presets").preset(name)


def test_without_a_folder_there_is_nothing() -> None:
    with pytest.raises(InvalidRequest, match="no character of this name"):
        Library().character("a")
