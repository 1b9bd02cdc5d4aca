"""The tables of the documentation are those of the code, and all of them are on a page."""

from dataclasses import fields

import msgspec
import pytest

from docs.generate import FOLDER, PAGES, filled, names, tables
from serving.app import DIALECTS
from serving.dialects.base import posted
from serving.errors import ServingError
from serving.settings import Settings


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_up_to_date(page: str) -> None:
    text = (FOLDER / page).read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m docs.generate"


def test_a_stale_page_would_be_seen() -> None:
    text = (FOLDER / "operating.md").read_text(encoding="utf-8")
    stale = text.replace("| Port to listen on. |", "| Another port. |")
    assert stale != text
    assert filled(stale) == text


def test_every_table_is_on_a_page() -> None:
    shown = [name for page in PAGES for name in names((FOLDER / page).read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(tables())


def test_nothing_is_left_out() -> None:
    made = tables()
    assert all(f"`{field.name}`" in made["settings"] for field in fields(Settings))
    assert all(f"`{child.code}`" in made["errors"] for child in ServingError.__subclasses__())


def test_every_field_of_a_request_has_a_meaning() -> None:
    for dialect in DIALECTS:
        for endpoint in posted(dialect):
            _, _, *rows = tables()[f"{dialect.name} {endpoint.name}"].splitlines()
            cells = [row.removesuffix(" |").split(" | ") for row in rows]
            assert len(cells) >= len(msgspec.structs.fields(endpoint.wire))
            assert [cell[0] for cell in cells if not cell[-1].strip()] == []
