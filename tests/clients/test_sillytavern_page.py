"""SillyTavern's page, driven in a browser: connecting, the presets of deploy/sillytavern, a streamed chat, an error."""

import json
from itertools import pairwise

import httpx
import pytest

from serving.core import Header, Message
from serving.prompting.format import Format
from serving.prompting.templates import Transcript
from serving.settings import DEMO_MODEL_DIR
from tests.clients.page import (
    CARD,
    CHARACTER,
    CHATML,
    LLAMA3,
    PRESETS,
    SAID,
    SHIPPED_CHATML,
    SHIPPED_LLAMA3,
    USER,
    Page,
)
from tests.clients.scripted_server import LINE
from tests.clients.tavern import Tavern
from tests.end_to_end.conftest import LLAMA3_DIR, MODEL, ServerProcess

FORMATS = {
    CHATML: Format.load(DEMO_MODEL_DIR, "chatml-text"),
    SHIPPED_CHATML: Format.load(DEMO_MODEL_DIR, "chatml-text"),
    LLAMA3: Format.load(LLAMA3_DIR, "llama3-writer"),
    SHIPPED_LLAMA3: Format.load(LLAMA3_DIR, "llama3-writer"),
}
OURS = pytest.mark.parametrize("preset", [CHATML, LLAMA3], ids=["ChatML+Text", "Llama 3 writer"])


def test_the_connection_shows_the_default_model(page: Page) -> None:
    assert page.turns[CHATML].status == MODEL
    assert page.turns[LLAMA3].status == "opus-v1-xl"


def test_answers_are_seen_as_they_grow(page: Page) -> None:
    assert page.turns[CHATML].grown  # a short answer of the demo model may come at once
    assert len(page.turns[LLAMA3].grown) > 2
    assert page.turns[LLAMA3].grown[-1] == LINE
    for turn in page.turns.values():
        assert all(len(before) <= len(after) for before, after in pairwise(turn.grown))


@OURS
def test_a_prompt_of_our_presets_is_the_chat_as_the_model_knows_it(page: Page, preset: str) -> None:
    """Read back, it is the turns of the chat and the header of the next one; written again, it is the same."""
    prompt = page.turns[preset].sent["prompt"]
    found = read(prompt, preset)
    system, *turns = found.turns
    assert system.role == "system"
    assert all(part in system.content for part in (CARD["description"], CARD["scenario"], f"### {USER}"))
    assert turns == [
        text(USER, '"Is it far?"'),
        text(CHARACTER, '"Far enough to be home late," said Mara.'),
        Message("user", f"Begin the role-play between {CHARACTER} and {USER}."),
        *chat(page, preset),
    ]
    assert found.unfinished == text(CHARACTER, "")
    assert prompt == FORMATS[preset].template.render_text(found.turns, Header("text", (CHARACTER,)))


def test_the_prompts_of_the_presets_that_1_12_ships_are_understood(page: Page, tavern: Tavern) -> None:
    shipped = [preset for preset in page.turns if preset in (SHIPPED_CHATML, SHIPPED_LLAMA3)]
    assert len(shipped) == (2 if tavern.version == "1.12" else 0)
    for preset in shipped:
        found = read(page.turns[preset].sent["prompt"], preset)
        said = chat(page, preset)
        assert list(found.turns[-len(said) :]) == said
        assert found.unfinished == text(CHARACTER, "")
        assert page.turns[preset].answer


def read(prompt: str, preset: str) -> Transcript:
    found = FORMATS[preset]
    return found.read(found.tokens.encode_raw(prompt, 4096))


def chat(page: Page, preset: str) -> list[Message]:
    """What was said before the answer of a preset's turn."""
    said = [text(CHARACTER, CARD["first_mes"])]
    for (name, turn), words in zip(page.turns.items(), SAID, strict=False):
        said.append(text(USER, words))
        if name == preset:
            break
        said.append(text(CHARACTER, turn.answer))
    return said


def text(name: str, content: str) -> Message:
    return Message("text", content, (name,))


@OURS
def test_our_presets_set_up_the_samplers(page: Page, preset: str) -> None:
    sent = page.turns[preset].sent
    assert (sent["dry_multiplier"], sent["dry_base"], sent["dry_allowed_length"]) == (0.8, 1.75, 2)
    assert json.loads(sent["dry_sequence_breakers"]) == ["\n", ":", '"', "*"]
    assert sent["min_tokens"] == 10
    assert sent["model"].endswith("/text")
    assert sent["stream"] is True


@pytest.mark.parametrize("api", ["ooba", "aphrodite", "tabby", "dreamgen"])
def test_no_sampler_of_our_presets_is_ignored(page: Page, server: ServerProcess, api: str) -> None:
    body = page.bodies[api] | {"prompt": "Once", "max_tokens": 1, "model": MODEL}
    with server.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.status_code == httpx.codes.OK, answer.text
    assert "x-ignored-parameters" not in answer.headers


def test_an_error_is_shown_in_the_words_of_the_server(page: Page) -> None:
    assert page.error.startswith("There is no such model for this key. Models it may use: opus-v1-xl")


def test_a_file_holds_all_that_is_imported_at_once() -> None:
    """Sections of one name are selected together."""
    for path in PRESETS.glob("*.json"):
        sections = json.loads(path.read_text())
        assert set(sections) == {"instruct", "context", "sysprompt", "preset"}
        assert len({sections[name]["name"] for name in ("instruct", "context", "preset")}) == 1
