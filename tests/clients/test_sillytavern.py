"""SillyTavern's own backend against the server, both as processes: each type that a user can choose."""

import json
from typing import Any

import pytest

from tests.clients.page import Page
from tests.clients.tavern import TYPES, Tavern, read_events
from tests.end_to_end.conftest import MODEL, ServerProcess

PROMPT = "<|im_start|>system\nA story about a lost ship.<|im_end|>\n<|im_start|>text names= Mara\n"
EVERY = pytest.mark.parametrize("api", TYPES)
RUNNING = "serving_running_choices"
ABORT_S = 20

GENERATE = "backends/text-completions/generate"
CHAT = "backends/chat-completions/generate"


def prompted(page: Page, server: ServerProcess, api: str, **change: object) -> dict[str, Any]:
    """A request with the fields that this version's page sends for `api`, and an answer that is always the same."""
    body = {"api_server": server.url, "prompt": PROMPT, "model": f"{MODEL}/text", "temperature": 0, "max_tokens": 16}
    return page.bodies[api] | body | change


# ---- connecting ------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("suffix", ["", "/v1"])
def test_models_are_listed_the_default_first(tavern: Tavern, server: ServerProcess, api: str, suffix: str) -> None:
    told = tavern.status(api, server.url + suffix)
    assert told.status_code == 200
    assert told.json()["result"] == MODEL
    assert [model["id"] for model in told.json()["data"]] == [MODEL, f"{MODEL}/text", f"{MODEL}/assistant"]
    assert ("x-supports-tokenization" in told.headers) == (api == "ooba")


@pytest.mark.parametrize("api", ["ooba", "aphrodite", "vllm", "tabby"])
def test_tokens_are_counted_as_they_are_charged(tavern: Tavern, page: Page, server: ServerProcess, api: str) -> None:
    told = tavern.generate(prompted(page, server, api, prompt="Where is the ship?", max_tokens=1))
    without_bos = api == "tabby" and tavern.version == "1.19"  # which asks for that
    counted = tavern.count(api, server.url, "Where is the ship?", MODEL)
    assert counted + without_bos == told["usage"]["prompt_tokens"]


# ---- generating ------------------------------------------------------------------------------------------------------


@EVERY
def test_a_stream_is_the_whole_answer_in_parts(tavern: Tavern, page: Page, server: ServerProcess, api: str) -> None:
    # Longer than the stop strings, as whose beginnings text is held back; the type generic sends no minimum.
    body = prompted(page, server, api, max_tokens=60, min_tokens=40)
    whole = tavern.generate(body)["choices"][0]["text"]
    events = tavern.stream(body)
    assert whole
    assert len(events) > (1 if api == "generic" else 2)
    assert "".join(event["choices"][0]["text"] for event in events) == whole
    assert not any(event.keys() & {"error", "message", "detail"} for event in events), "the page takes these for errors"


DREAMGEN_1_12_6 = {
    "api_type": "dreamgen",
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0.1,
    "repetition_penalty": 1.05,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "stop": ["<|im_end|>", "\n<|im_start|>", "### User", "## User"],
    "minimum_message_content_tokens": 10,
}
"""The fields that versions before 1.12.7 let through for DreamGen."""


def test_the_fields_of_the_first_dreamgen_type(tavern: Tavern, server: ServerProcess) -> None:
    body = DREAMGEN_1_12_6 | {"api_server": server.url, "prompt": PROMPT, "model": MODEL, "max_tokens": 40}
    assert tavern.generate(body)["usage"]["completion_tokens"] >= 10
    assert tavern.stream(body)[-1]["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("api", ["dreamgen", "ooba", "aphrodite", "vllm", "tabby"])
def test_min_length_is_kept(tavern: Tavern, page: Page, server: ServerProcess, api: str) -> None:
    """The page sends it as `min_tokens`, and as whatever else the type knows it by."""
    lengths = {name: 30 for name in page.bodies[api] if name in LENGTHS}
    assert lengths
    body = prompted(page, server, api, prompt="<|im_start|>text\nOh.", max_tokens=40, **lengths)
    assert tavern.generate(body)["usage"]["completion_tokens"] >= 30


LENGTHS = ("min_tokens", "min_length", "minimum_message_content_tokens")


@pytest.mark.parametrize(("api", "most"), [("ooba", 10), ("vllm", 5)])
def test_probabilities_are_in_the_shape_that_is_read(
    tavern: Tavern, page: Page, server: ServerProcess, api: str, most: int
) -> None:
    (told,) = tavern.generate(prompted(page, server, api, logprobs=most, max_tokens=1))["choices"]
    (likeliest,) = told["logprobs"]["top_logprobs"]
    assert len(likeliest) == most
    assert told["text"] in likeliest


# ---- the chat completion source "custom" -----------------------------------------------------------------------------


def chat(server: ServerProcess, **change: object) -> dict[str, Any]:
    body = {
        "chat_completion_source": "custom",
        "custom_url": f"{server.url}/v1",
        "custom_include_body": "role_config:\n  assistant:\n    role: text\n    name: Mara\ndry:\n  multiplier: 0.8\n",
        "messages": [
            {"role": "system", "content": "A role-play between Mara and Tom."},
            {"role": "system", "name": "example_user", "content": "Is it far?"},
            {"role": "user", "name": "Tom", "content": "Who is there?"},
        ],
        "model": MODEL,
        "temperature": 0,
        "max_tokens": 16,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stop": [],
    }
    return body | change


def test_a_custom_source_lists_models(tavern: Tavern, server: ServerProcess) -> None:
    told = tavern.post("backends/chat-completions/status", chat(server))
    assert [model["id"] for model in told.json()["data"]] == [MODEL, f"{MODEL}/text", f"{MODEL}/assistant"]


def test_a_custom_source_chats_with_role_config_and_dry(tavern: Tavern, server: ServerProcess) -> None:
    whole = tavern.post(CHAT, chat(server)).json()["choices"][0]["message"]
    events = tavern.stream(chat(server), CHAT)
    assert whole["content"]
    assert "name" not in whole, "the role config of the included body names the speaker"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == whole["content"]


# ---- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
def test_closing_the_page_s_connection_aborts_the_engine(
    tavern: Tavern, page: Page, server: ServerProcess, streamed: bool
) -> None:
    endless = prompted(page, server, "ooba", max_tokens=3000, ignore_eos=True, ban_eos_token=True)
    with tavern.asking(GENERATE, endless | ({"stream": True} if streamed else {})) as connection:
        if streamed:
            assert connection.getresponse().read1().startswith(b"data: ")
        server.until(RUNNING, 1, ABORT_S)
    server.until(RUNNING, 0, ABORT_S)


def test_closing_a_chat_s_connection_aborts_the_engine(tavern: Tavern, server: ServerProcess) -> None:
    with tavern.asking(CHAT, chat(server, max_tokens=3000, min_tokens=3000, stream=True)) as connection:
        assert connection.getresponse().read1().startswith(b"data: ")
        server.until(RUNNING, 1, ABORT_S)
    server.until(RUNNING, 0, ABORT_S)


# ---- errors ----------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"model": "lucid-v1-max"}, 404, "model_not_found"),
    ({"prompt": "Once " * 5000, "truncation_length": 0}, 400, "context_length_exceeded"),
]
"""A change of a request, the status it is answered with, and the code."""


@pytest.mark.parametrize(("change", "status", "code"), REFUSED)
def test_a_refused_request_is_told(
    tavern: Tavern, page: Page, server: ServerProcess, change: dict[str, object], status: int, code: str
) -> None:
    body = prompted(page, server, "ooba", **change)
    whole = tavern.generate(body)
    assert (whole["error"], whole["status"]) == (True, status)
    assert code in whole["response"]  # the page shows the whole body
    streamed = tavern.post(GENERATE, body | {"stream": True})
    assert streamed.status_code == status
    assert streamed.json()["error"]["message"]  # the page shows this


@EVERY
def test_a_wrong_key_is_no_connection(tavern: Tavern, page: Page, server: ServerProcess, api: str) -> None:
    with tavern.wrong_key(api):
        assert tavern.status(api, server.url).status_code == 400
        whole = tavern.generate(prompted(page, server, api))
        streamed = tavern.post(GENERATE, prompted(page, server, api, stream=True))
    assert (whole["error"], whole["status"]) == (True, 401)
    assert streamed.status_code == 400  # it keeps 401 for its own log-in
    assert "API key is not valid" in streamed.json()["error"]["message"]


def test_a_wrong_key_of_a_custom_source(tavern: Tavern, server: ServerProcess) -> None:
    with tavern.wrong_key("custom"):
        assert tavern.post("backends/chat-completions/status", chat(server)).json()["error"] is True
        whole = tavern.post(CHAT, chat(server)).json()
        streamed = tavern.post(CHAT, chat(server, stream=True))
    assert whole == {"error": {"message": "Unauthorized"}, "quota_error": False}
    assert "API key is not valid" in streamed.json()["error"]["message"]


def test_an_engine_that_breaks_ends_the_stream_with_an_error(
    tavern: Tavern, page: Page, scripted: ServerProcess
) -> None:
    body = prompted(page, scripted, "ooba", model="opus-v1-lg", prompt="Once", stop=[])
    events = tavern.post(GENERATE, body | {"stream": True}).text
    assert "The tide" in events
    *_, last = read_events(events)
    assert json.loads(last)["error"]["message"]
    assert tavern.generate(body)["status"] == 500
