"""Bad input, each kind at every generating endpoint: refused in the dialect's shape, never a 500, nothing generated."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.app import DIALECTS
from serving.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    PromptTooLong,
    ServingError,
    Unauthenticated,
    UnknownModel,
)
from tests.dialects.adapters import ADAPTERS, Adapter
from tests.dialects.test_connections import connection
from tests.service import KEY, SM, XL, Running, bearer, running

NEVER = "xyzzy"
"""Stands in bodies where an error could repeat it, and must not."""

MALFORMED = [
    b"",
    b" ",
    b"{",
    b"nul",
    b"[]",
    b"null",
    b'"xyzzy"',
    b"{'xyzzy': 1}",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"{}{}",
]
MALFORMED += [b'{"a": tru}', b'{"a": 01}', b'{"a": NaN}', b'{"a": Infinity}', b'{"a": "\\x"}', b'{"a": "\n"}', b"\x00"]
MALFORMED += [b'{"a": "\xc3"}', b'{"a": "\xed\xa0\x80"}', b'{"a": 1,}', b'{"a" 1}', b"[" * 100_000, b'{"a":' * 100_000]
DEEP = "[" * 100_000 + "]" * 100_000


def refused(adapter: Adapter, response: httpx.Response, kind: type[ServingError] = InvalidRequest) -> str:
    """The message of an error that has the status and the shape it should have."""
    assert response.status_code == adapter.errors.status(kind), response.text
    told = adapter.errors.complaint(response.json())
    again = kind(told.message, param=told.param)
    again.code = told.code or kind.code  # type: ignore[misc]  # subclasses of `kind` have other codes
    assert response.json() == adapter.errors.body(again)
    assert response.headers["content-type"] == "application/json"
    assert NEVER not in response.text
    return told.message


async def post(run: Running, adapter: Adapter, content: bytes | str) -> httpx.Response:
    response = await run.client.post(adapter.path, content=content)
    assert all(not stage.engine.asked for stage in run.stages.values())
    assert run.open_holds == 0
    return response


async def post_json(run: Running, adapter: Adapter, body: object) -> httpx.Response:
    return await post(run, adapter, json.dumps(body, ensure_ascii=False, separators=(",", ":")))


def prompt_of(adapter: Adapter, text: object) -> dict[str, Any]:
    """A body whose prompt is `text`, which may be no text at all."""
    body: dict[str, Any] = adapter.body("MARK", stream=True)
    told: dict[str, Any] = json.loads(json.dumps(body).replace('"MARK"', json.dumps(text)))
    return told


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", MALFORMED, ids=lambda content: repr(content[:12]))
async def test_malformed_json(run: Running, adapter: Adapter, content: bytes) -> None:
    refused(adapter, await post(run, adapter, content))


@pytest.mark.parametrize("field", ["prompt", "unknown"])
async def test_deep_nesting(run: Running, adapter: Adapter, field: str) -> None:
    body = adapter.body("MARK", stream=True)
    text = json.dumps({**body, "unknown": "MARK"} if field == "unknown" else body)
    refused(adapter, await post(run, adapter, text.replace('"MARK"', DEEP)))


async def test_nesting_as_deep_as_the_decoder_goes(run: Running, adapter: Adapter) -> None:
    """What is decoded is also encoded and rendered: no depth may pass the first and break the others."""
    run.play(script=lambda request: ["{}"])
    statuses = set()
    for depth in (10, 100, 300, *range(600, 1100, 4), 2000, 10_000):
        schema = '{"a":' * depth + "1" + "}" * depth
        body = {
            **adapter.body(stream=False),
            "response_format": {"type": "json_schema", "json_schema": {"schema": "MARK"}},
        }
        response = await run.client.post(adapter.path, content=json.dumps(body).replace('"MARK"', schema))
        statuses.add(response.status_code)
    assert statuses <= {200, adapter.errors.status(InvalidRequest)}


SURROGATES = ["\\ud800", "a\\udfff", "\\udc00\\ud800", "\\ud83d\\ud83d\\ude00"]


@pytest.mark.parametrize("escaped", SURROGATES)
async def test_a_lone_surrogate(run: Running, adapter: Adapter, escaped: str) -> None:
    for body in (adapter.body("MARK", stream=True), adapter.body(stream=True, model="MARK")):
        refused(adapter, await post(run, adapter, json.dumps(body).replace("MARK", escaped)))
    if adapter.stops:
        body = adapter.body(stream=True, stop=("MARK",))
        refused(adapter, await post(run, adapter, json.dumps(body).replace("MARK", escaped)))


async def test_invalid_utf8(run: Running, adapter: Adapter) -> None:
    content = json.dumps(adapter.body("MARK", stream=True)).encode().replace(b"MARK", b"\xf0\x9f")
    refused(adapter, await post(run, adapter, content))


# ---- sizes -----------------------------------------------------------------------------------------------------------


async def test_a_prompt_over_the_context_says_both_numbers(run: Running, adapter: Adapter) -> None:
    run.play(context_tokens=32)
    message = refused(adapter, await post_json(run, adapter, adapter.body("river " * 40, stream=True)), PromptTooLong)
    numbers = [int(number) for number in re.findall(r"\d+", message)]
    assert 32 in numbers
    assert max(numbers) > 40


@pytest.mark.parametrize("text", ["a" * 2_000_000, " " * 2_000_000, "🌊" * 500_000, "<|im_start|>" * 100_000])
async def test_a_huge_prompt(run: Running, adapter: Adapter, text: str) -> None:
    message = refused(adapter, await post_json(run, adapter, adapter.body(text, stream=True)), PromptTooLong)
    assert "8192" in message


STOPPING = pytest.mark.parametrize("name", [name for name, adapter in ADAPTERS.items() if adapter.stops])


@STOPPING
async def test_a_million_stop_strings(run: Running, name: str) -> None:
    adapter = ADAPTERS[name]
    body = json.dumps(adapter.body(stream=True, stop=("MARK",)))
    for stop in ('"a",' * 1_000_000 + '"a"', '"' + "a" * 2_000_000 + '"', ",".join(['"abc"'] * 257)):
        content = body.replace('"MARK"', stop)
        assert len(content) < 4 * 1024 * 1024
        refused(adapter, await post(run, adapter, content))


@STOPPING
async def test_as_many_stop_strings_as_may_be(run: Running, name: str) -> None:
    adapter = ADAPTERS[name]
    stop = tuple(f"{number:>1024}" for number in range(256))
    response = await run.client.post(adapter.path, json=adapter.body(stream=False, stop=stop))
    assert response.status_code == 200


@pytest.mark.parametrize(
    "prompt", [[7] * 1_000_000, ["a"] * 129, [[1]] * 129, [[]] * 200_000, [""] * 100_000], ids=lambda p: str(len(p))
)
async def test_a_prompt_of_too_many_values(run: Running, adapter: Adapter, prompt: list[object]) -> None:
    refused(adapter, await post_json(run, adapter, prompt_of(adapter, prompt)))


@pytest.mark.parametrize("count", [0, 4097, 60_000, 100_000])
async def test_too_few_or_too_many_messages(run: Running, count: int) -> None:
    adapter = ADAPTERS["openai chat.completions"]
    body = {"messages": [{"role": "user", "content": "x"}] * count}
    refused(adapter, await post_json(run, adapter, body))


async def test_a_schema_over_its_limit(run: Running) -> None:
    for adapter in (ADAPTERS["openai chat.completions"], ADAPTERS["openai completions"]):
        schema = {"description": "x" * 33_000}
        body = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        message = refused(adapter, await post_json(run, adapter, {**adapter.body(stream=True), **body}))
        assert "response_format.json_schema.schema" in message


@pytest.fixture(scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A service that takes bodies up to 1,000 bytes."""
    async with running(tmp_path_factory.mktemp("data"), max_body_bytes=1000) as run:
        yield run


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    small: Running, adapter: Adapter, announced: bool
) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 100
            yield b" " * 100

    headers = {"content-length": "100000"} if announced else {}
    response = await small.client.post(adapter.path, content=body(), headers=headers)
    assert "1000 bytes" in refused(adapter, response, PayloadTooLarge)
    assert response.headers["connection"] == "close"
    assert read <= (100 if announced else 1100)


async def test_a_body_of_the_largest_size_passes(small: Running, adapter: Adapter) -> None:
    content = json.dumps(adapter.body(stream=False))
    response = await small.client.post(adapter.path, content=content + " " * (1000 - len(content)))
    assert response.status_code == 200
    response = await small.client.post(adapter.path, content=content + " " * (1001 - len(content)))
    refused(adapter, response, PayloadTooLarge)


async def test_an_announced_flood_is_answered_at_once(session_address: tuple[str, int], adapter: Adapter) -> None:
    """On a real socket: the answer comes though not a byte of the body was sent, and the connection is closed."""
    head = f"POST {adapter.path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\n"
    sent = f"{head}Content-Length: 99999999999\r\n\r\n".encode()
    async with connection(session_address, sent) as (reader, _), asyncio.timeout(10):
        told = await reader.read()
    assert told.startswith(b"HTTP/1.1 413 ")


# ---- models and roles ------------------------------------------------------------------------------------------------


STRICT = pytest.mark.parametrize("name", [name for name, adapter in ADAPTERS.items() if adapter.strict])


@STRICT
@pytest.mark.parametrize("model", ["opus-v9", "opus-v1-sm2", "/", "../opus-v1-sm", "%", "OPUS-V1-SM", " opus-v1-sm"])
async def test_an_unknown_model(run: Running, name: str, model: str) -> None:
    adapter = ADAPTERS[name]
    response = await post_json(run, adapter, adapter.body(stream=True, model=model))
    message = refused(adapter, response, UnknownModel)
    assert SM in message
    assert XL in message


@STRICT
async def test_a_model_that_the_key_may_not_use_is_unknown(run: Running, name: str) -> None:
    adapter = ADAPTERS[name]
    key, _ = await run.key_of("unlimited", models=(XL,))
    told = []
    for model in (SM, "opus-v9"):
        response = await run.client.post(adapter.path, json=adapter.body(stream=True, model=model), headers=bearer(key))
        told.append(refused(adapter, response, UnknownModel))
    assert told[0] == told[1]
    assert XL in told[0]
    assert SM not in told[0]
    engine = run.play(XL, script=lambda request: ["Hi"])
    response = await run.client.post(adapter.path, json=adapter.body(stream=False, model=""), headers=bearer(key))
    assert response.status_code == 200
    assert engine.endings == ["finished"]
    listed = (await run.client.get("/v1/models", headers=bearer(key))).json()["data"]
    assert {model["id"].startswith(XL) for model in listed} == {True}
    assert (await run.client.get(f"/v1/models/{SM}", headers=bearer(key))).status_code == 404


@pytest.mark.parametrize("name", ["%0A", "%0D%0A", f"{SM}%0A", "%00", "%20"])
async def test_an_odd_name_is_of_no_model(run: Running, name: str) -> None:
    response = await run.client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == UnknownModel.code


SUFFIXES = ["bard", "", "{", "[]", "1", '"text"', "{}x", '{"assistant":{"role":"user"}}', '{"assistant":1}']
SUFFIXES += ['{"assistant":{"role":"text","name":5}}', '{"assistant":{"role":"text","open":1}}', "[" * 5000]
SUFFIXES += ['{"user":{"role":"text","name":"a\\nb"}}', "%7B%22assistant%22%3A%7B%7D%7D", '{"assistant":{"name":"x"}}']


@pytest.mark.parametrize("suffix", SUFFIXES, ids=lambda suffix: suffix[:20])
async def test_a_bad_role_config_behind_the_model(run: Running, adapter: Adapter, suffix: str) -> None:
    response = await post_json(run, adapter, adapter.body(stream=True, model=f"{SM}/{suffix}"))
    message = refused(adapter, response)
    assert "modelId" in message or adapter.errors.complaint(response.json()).param == "model"


# ---- addresses and keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_a_wrong_method(run: Running, adapter: Adapter, method: str) -> None:
    response = await run.client.request(method, adapter.path)
    refused(adapter, response, MethodNotAllowed)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("name", [name for name, adapter in ADAPTERS.items() if all(adapter.dialect.prefixes)])
async def test_an_unknown_address_below_a_dialect(run: Running, name: str) -> None:
    adapter = ADAPTERS[name]
    for prefix in adapter.dialect.prefixes:
        for path in ("/nope", "/chat", "/", "/model/completion/x", "/%ff"):
            refused(adapter, await run.client.post(prefix + path), NotFound)


@pytest.mark.parametrize("path", ["/", "/nope", "/api", "/v11/chat/completions", "/v1", "/llm/nope", "/llmx"])
async def test_an_unknown_address_elsewhere(run: Running, path: str) -> None:
    response = await run.client.get(path)
    assert (response.status_code, response.json()) == (404, {"detail": f"There is no {path} here."})


HEADERS: list[dict[str, str | bytes]] = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer  "},
    {"authorization": KEY},
    {"authorization": f"Basic {KEY}"},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer {KEY} {KEY}"},
    {"authorization": b"Bearer \xff\xfe"},
    {"authorization": "Bearer " + "x" * 7000},
    {"x-api-key": f"{KEY}x"},
]


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: str(headers)[:40])
async def test_a_missing_or_bad_key(run: Running, adapter: Adapter, headers: dict[str, str]) -> None:
    del run.client.headers["authorization"]
    try:
        response = await run.client.post(adapter.path, content=b"not even JSON", headers=headers)
        listed = await run.client.get("/v1/models", headers=headers)
    finally:
        run.client.headers.update(bearer(KEY))
    message = refused(adapter, response, Unauthenticated)
    assert KEY not in message
    assert response.headers["www-authenticate"] == "Bearer"
    assert (listed.status_code, listed.headers["www-authenticate"]) == (401, "Bearer")


async def test_the_scheme_of_a_key_has_no_case(run: Running, adapter: Adapter) -> None:
    response = await run.client.post(
        adapter.path, json=adapter.body(stream=False), headers={"authorization": f"bEARER  {KEY} "}
    )
    assert response.status_code == 200


def test_all_dialects_are_here() -> None:
    assert {adapter.dialect.name for adapter in ADAPTERS.values()} == {dialect.name for dialect in DIALECTS}
