"""The tokenizer endpoints: what they say is what an engine would be asked. Their shapes are in `golden/tokens.json`."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service import KEY, SM, XL, Running, bearer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(["<|im_end|>", "é\n\n", "🌊"])
LIMITS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ENCODE, DECODE = "/v1/token/encode", "/v1/token/decode"
PATHS = [
    *(prefix + path for prefix in ("", "/api/openai", "/textgen", "/v1") for path in ("/tokenize", "/detokenize")),
    *(prefix + path for prefix in ("/v1", "/api/openai/v1") for path in ("/token/encode", "/token/decode")),
    *(f"/v1/internal/{name}" for name in ("encode", "decode", "token-count")),
]
BODY = {"prompt": "Once", "text": "Once", "tokens": [10]}


async def post(run: Running, path: str, **body: Any) -> Any:  # noqa: ANN401  # JSON
    response = await run.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@LIMITS
@given(text=TEXT)
async def test_a_text_comes_back(run: Running, text: str) -> None:
    for model in (SM, XL):
        for special in (True, False):
            told = await post(run, ENCODE, model=model, text=text, add_bos_token=False, encode_special_tokens=special)
            assert told["length"] == len(told["tokens"])
            assert await post(run, DECODE, model=model, tokens=told["tokens"]) == {"text": text}


@LIMITS
@given(text=TEXT)
async def test_all_count_the_same(run: Running, text: str) -> None:
    encoded = await post(run, "/v1/internal/encode", text=text)
    assert await post(run, "/v1/internal/token-count", text=text) == {"length": encoded["length"]}
    assert await post(run, ENCODE, text=text) == encoded
    assert (await post(run, "/tokenize", prompt=text))["tokens"] == encoded["tokens"]


@pytest.mark.parametrize("model", [SM, XL, f"{SM}/text"])
async def test_the_tokens_are_those_that_the_engine_is_asked_for(run: Running, model: str) -> None:
    engine = run.play(XL if model == XL else SM, script=lambda request: ["a"])
    messages = [{"role": "user", "content": "Who <|im_end|> is there?"}]
    await post(run, "/v1/chat/completions", model=model, messages=messages)
    await post(run, "/v1/completions", model=model, prompt="Once upon<|eot_id|>")
    chat, text = (list(choice.token_ids) for choice in engine.asked)
    assert (await post(run, "/tokenize", model=model, messages=messages))["tokens"] == chat
    assert (await post(run, "/tokenize", model=model, prompt="Once upon<|eot_id|>"))["tokens"] == text
    begun = (await post(run, ENCODE, model=model, text=messages))["tokens"]
    assert chat[: len(begun)] == begun
    assert len(begun) < len(chat)


@pytest.mark.parametrize("path", PATHS)
async def test_a_key_is_needed_and_may_be_sent_alone(run: Running, path: str) -> None:
    assert (await run.client.post(path, json=BODY)).status_code == 200
    alone = {"authorization": "", "x-api-key": KEY}
    assert (await run.client.post(path, json=BODY, headers=alone)).status_code == 200
    for headers in ({"authorization": ""}, alone | {"x-api-key": "none"}, alone | bearer("none")):
        response = await run.client.post(path, json=BODY, headers=headers)
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize("path", PATHS)
async def test_what_cannot_be_is_told(run: Running, path: str) -> None:
    unknown = await run.client.post(path, json=BODY | {"model": "none"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")
    broken = await run.client.post(path, content=b"{")
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    large = await run.client.post(path, content=b" " * (4 * 1024 * 1024 + 1))
    assert large.status_code == 413
    listed = await run.client.get(path)
    assert (listed.status_code, listed.headers["allow"]) == (405, "POST")


async def test_a_key_sees_the_models_it_may_use(run: Running) -> None:
    key, _ = await run.key_of("unlimited", models=(XL,))
    told = (await run.client.get("/v1/model", headers=bearer(key))).json()
    assert (told["id"], told["parameters"]["prompt_template"]) == (XL, "llama3-writer")
    response = await run.client.post("/tokenize", json={"model": SM, "prompt": "a"}, headers=bearer(key))
    assert response.status_code == 404


async def test_nothing_is_charged(run: Running) -> None:
    run.play()
    for path in PATHS:
        await run.client.post(path, json=BODY)
    assert (run.used, run.open_holds) == (0, 0)
