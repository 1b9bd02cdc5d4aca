"""Message contents are never logged, stored, measured or told in errors: a marked prompt is looked for everywhere."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.core import PreparedRequest
from serving.engine.scripted import Chunk
from serving.errors import EngineFailed
from tests.dialects.adapters import ADAPTERS
from tests.dialects.test_connections import Gate, connection, request_bytes
from tests.service import KEY, SM, Running, bearer, listening, running, until

CANARY = "canary7f3a"
"""Stands in prompts. What else must never be written are the texts of keys."""

NATIVE, CHAT, TEXT, LLM = "/api/v1/model/completion", "/v1/chat/completions", "/v1/completions", "/llm"
SAID = [{"role": "user", "name": CANARY, "content": CANARY}]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data") as run:
        yield run


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that any logger says."""
    with caplog.at_level(logging.DEBUG):
        yield caplog


def requests() -> Iterator[tuple[str, object]]:
    """Requests that pass, and requests that fail in every way, all with the canary in them."""
    openai = {"stop": [CANARY], "user": CANARY}
    for stream in (True, False):
        yield NATIVE, {"input": CANARY, "stream": stream, "samplingParams": {"stopSequences": [CANARY]}}
        yield CHAT, {"messages": SAID, "stream": stream, **openai}
        yield CHAT, {"messages": SAID, "model": f"{SM}/text", "stream": stream, "n": 2, **openai}
        yield TEXT, {"prompt": [CANARY, CANARY], "stream": stream, "echo": True, "logprobs": 1, **openai}
        yield LLM, {"messages": SAID, "stream": stream, **openai}
    broken: list[dict[str, Any]] = [
        {"model": CANARY},
        {"model": f"{SM}/{CANARY}"},
        {"model": f"{SM}/" + json.dumps({"assistant": {"role": CANARY}})},
        {"temperature": CANARY},
        {"logit_bias": {CANARY: 1}},
        {"stop": [[CANARY]]},
        {"stop": CANARY * 200},
        {"response_format": {"type": CANARY}},
        {"response_format": {"type": f"it's {CANARY}"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {CANARY: "x" * 40_000}}}},
        {"role_config": {"assistant": {"role": CANARY}}},
        {"role_config": {"assistant": {"role": "text", "name": f"{CANARY}\n"}}},
        {"dry": {"multiplier": CANARY}},
        {"dry": {"multiplier": 1, "sequence_breakers": [CANARY]}},
        {"dry_sequence_breakers": {CANARY: CANARY}, "dry_multiplier": 1},
        {"minimum_message_content_tokens": 5},
        {"max_tokens": CANARY},
        {CANARY: CANARY},
    ]
    for part in broken:
        yield CHAT, {"messages": SAID, **part}
        yield TEXT, {"prompt": CANARY, **part}
        yield NATIVE, {"input": CANARY, "modelId": part.get("model"), "samplingParams": part}
        yield LLM, {"messages": SAID, **part}
    for path in (CHAT, LLM):
        yield path, {"messages": [{"role": CANARY, "content": CANARY}]}
    yield CHAT, {"messages": [{"role": "user", "content": [{"type": CANARY, "text": CANARY}]}]}
    yield CHAT, {"messages": [{"role": "user", "content": CANARY * 20_000}]}
    yield TEXT, {"prompt": CANARY * 20_000}
    yield TEXT, {"prompt": [CANARY, 5]}
    yield NATIVE, {"input": CANARY * 20_000}
    yield NATIVE, {"input": CANARY, "outputMode": f"{CANARY}'"}
    yield NATIVE, {"input": CANARY, "samplingParams": {"kind": f"{CANARY}'", "allowedRoles": [CANARY]}}
    yield NATIVE, {"input": CANARY, "samplingParams": {"allowedRoles": [CANARY]}}


def told_in_errors(response: httpx.Response) -> bool:
    """Whether an error, before or in the stream, repeats the canary."""
    parts = [line.removeprefix("data: ") for line in response.text.splitlines()]
    errors = [part for part in parts if response.status_code >= 400 or '"error"' in part or '"success":false' in part]
    return any(CANARY in error for error in errors)


async def assert_nowhere(
    run: Running, logs: pytest.LogCaptureFixture, tmp_path: Path, secrets: tuple[str, ...] = (CANARY, KEY)
) -> None:
    metrics = (await run.client.get("/metrics")).text
    assert not [secret for secret in secrets if secret in metrics]
    assert_not_written(logs, tmp_path, secrets)


def assert_not_written(
    logs: pytest.LogCaptureFixture, tmp_path: Path, secrets: tuple[str, ...] = (CANARY, KEY)
) -> None:
    for record in logs.records:
        said = logging.Formatter().format(record) + repr(record.__dict__)
        assert not [secret for secret in secrets if secret in said], record.name
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [secret for secret in secrets if any(secret.encode() in content for content in files)]


async def test_requests_that_pass_and_that_fail(run: Running, logs: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    statuses = set()
    for path, body in requests():
        response = await run.client.post(path, json=body)
        statuses.add(response.status_code)
        assert not told_in_errors(response), (body, response.text)
        content = json.dumps(body)
        for broken in (content[:-1], content + CANARY, content.replace(CANARY, f"{CANARY}\\ud800")):
            response = await run.client.post(path, content=broken)
            assert not told_in_errors(response), (broken, response.text)
    assert statuses == {200, 400, 404, 422}
    await run.client.post(CHAT, json={"messages": SAID}, headers={"authorization": f"Bearer {CANARY}"})
    assert any(record.name.startswith("serving") for record in logs.records)
    await assert_nowhere(run, logs, tmp_path)


@pytest.mark.parametrize(
    "error", [EngineFailed("It broke."), ValueError(f"bad prompt: {CANARY}")], ids=["told", "ours"]
)
async def test_an_engine_that_fails(
    run: Running, logs: pytest.LogCaptureFixture, tmp_path: Path, error: Exception
) -> None:
    def script(request: PreparedRequest) -> Iterator[Chunk]:
        yield CANARY
        raise error

    run.play(script=script)
    for path, body in requests():
        response = await run.client.post(path, json=body)
        assert not told_in_errors(response), response.text
    await assert_nowhere(run, logs, tmp_path)


@pytest.mark.parametrize("plan", ["broke", "poor", "slow", "single", "short", "closed"])
async def test_callers_with_limits(run: Running, logs: pytest.LogCaptureFixture, tmp_path: Path, plan: str) -> None:
    key, record = await run.key_of(plan)
    statuses = set()
    for path, body in requests():
        response = await run.client.post(path, json=body, headers=bearer(key))
        statuses.add(response.status_code)
        assert not told_in_errors(response), response.text
    listed = [await run.client.get(path, headers=bearer(key)) for path in ("/api/v1/key", "/v1/billing/usage")]
    await run.keys.revoke(record.account, record.id)
    response = await run.client.post(CHAT, json={"messages": SAID}, headers=bearer(key))
    assert response.status_code == 401
    assert key not in "".join(answer.text for answer in [*listed, response])
    assert statuses & {402, 403, 429} or plan in ("single", "short")
    await assert_nowhere(run, logs, tmp_path, (CANARY, key))


@pytest.mark.parametrize("name", ADAPTERS)
async def test_a_client_that_goes_away(run: Running, logs: pytest.LogCaptureFixture, tmp_path: Path, name: str) -> None:
    gate = Gate(1)
    engine = run.play(script=lambda request: [CANARY, CANARY], gate=gate)
    adapter = ADAPTERS[name]
    async with listening(run.service) as address:
        body = adapter.body(CANARY, stream=True, stop=(CANARY + "!",))
        async with connection(address, request_bytes(adapter, body)):
            await gate.door.knocked.wait()
        await until(lambda: engine.endings == ["aborted"])
    await assert_nowhere(run, logs, tmp_path)
