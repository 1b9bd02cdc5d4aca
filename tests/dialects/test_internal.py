"""text-generation-webui's own endpoints: which model, stopping, and one model in the place of another.

The engines are scripted: `tests/end_to_end` has the same on real ones. The shapes are in `golden/internal.json`.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.core import PreparedRequest
from serving.settings import DEMO_MODEL_DIR, ModelSettings
from tests.dialects.adapters import ADAPTERS
from tests.service import LLAMA3, PRICE, SM, XL, Door, Running, bearer, running, until

ADMIN = bearer("the admin key of these tests")
LOAD, UNLOAD, LIST = (f"/v1/internal/model/{act}" for act in ("load", "unload", "list"))
SPARE = "opus-v1-spare"
MODELS = (
    ModelSettings(SM, str(DEMO_MODEL_DIR), "chatml-text", price=PRICE),
    ModelSettings(XL, str(LLAMA3), "llama3-writer", price=PRICE),
    ModelSettings(SPARE, str(DEMO_MODEL_DIR), "chatml-text", price=PRICE, standby=True),
)


@asynccontextmanager
async def shop(tmp_path: Path, **values: Any) -> AsyncIterator[Running]:  # noqa: ANN401  # those of Settings
    """A service with an admin key, a model on standby, and a folder with another one and a broken one."""
    folder = tmp_path / "models"
    shutil.copytree(LLAMA3, folder / "tiny")
    (folder / "broken").mkdir()
    (folder / "broken/config.json").write_text("{}")
    (folder / "notes").mkdir()
    key = ADMIN["authorization"].removeprefix("Bearer ")
    async with running(tmp_path, admin_key=key, models=MODELS, models_dir=folder, **values) as run:
        yield run


@pytest.fixture
async def open_shop(tmp_path: Path) -> AsyncIterator[Running]:
    async with shop(tmp_path) as run:
        yield run


async def change(run: Running, path: str, status: int = 200, **body: Any) -> Any:  # noqa: ANN401  # JSON
    response = await run.client.post(path, json=body, headers=ADMIN)
    assert response.status_code == status, response.text
    return response.json()


async def served(run: Running) -> list[str]:
    told = (await run.client.get(LIST)).json()["model_names"]
    assert (await run.client.get("/v1/internal/model/info")).json()["model_name"] == (told or ["None"])[0]
    listed = (await run.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed if not model["id"].endswith(("/text", "/assistant"))] == told
    assert isinstance(told, list)
    return told


async def ask(run: Running, model: str, *, stream: bool = False) -> httpx.Response:
    adapter = ADAPTERS["openai completions"]
    return await run.client.post(adapter.path, json=adapter.body(stream=stream, model=model))


# ---- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_key_stops_its_own_generations(open_shop: Running, stream: bool) -> None:
    run, door = open_shop, Door()

    async def gate(request: PreparedRequest, number: int) -> None:
        if number == 1:
            await door.wait()

    engine = run.play(script=lambda request: ["One", " two", " three", " four"], gate=gate)
    answer = asyncio.create_task(ask(run, SM, stream=stream))
    await door.knocked.wait()
    other, _ = await run.key_of("unlimited")
    assert (await run.client.post("/v1/internal/stop-generation", headers=bearer(other))).json() == "OK"
    assert not any(running.stopped for running in _running(run))
    assert (await run.client.post("/v1/internal/stop-generation")).json() == "OK"
    door.opened.set()
    told = ADAPTERS["openai completions"].read((await answer).text)
    assert (told.text, told.reason, told.done, told.completion_tokens) == ("One two", "stop", True, 2)
    assert engine.endings == ["aborted"]
    assert run.used == PRICE.cost(_usage(told.prompt_tokens, 2))
    assert run.open_holds == 0
    assert not _running(run)


async def test_all_choices_stop_and_the_next_generation_does_not(open_shop: Running) -> None:
    run, door = open_shop, Door()

    async def gate(request: PreparedRequest, number: int) -> None:
        if request.index == 2 or number == 1:
            await door.wait()

    run.play(script=lambda request: ["a", "b", "c"], gate=gate)
    body = {"prompt": "Once", "n": 3, "model": SM}
    answer = asyncio.create_task(run.client.post("/v1/completions", json=body))
    await door.knocked.wait()
    await run.client.post("/v1/internal/stop-generation")
    door.opened.set()
    told = (await answer).json()
    assert [choice["finish_reason"] for choice in told["choices"]] == ["stop"] * 3
    assert 0 < told["usage"]["completion_tokens"] < 9
    assert (await ask(run, SM)).json()["choices"][0]["text"] == "abc"


def _running(run: Running) -> list[Any]:
    pipeline = run.service.backing.backend().pipeline
    return [running for each in pipeline._running.values() for running in each]


def _usage(prompt_tokens: int, completion_tokens: int) -> Any:  # noqa: ANN401
    from serving.core import Usage

    return Usage(prompt_tokens, 0, completion_tokens)


# ---- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/v1", "/api/openai/v1", "/textgen/v1"])
async def test_all_of_it_answers_under_each_prefix(run: Running, prefix: str) -> None:
    for path in ("model", "model/list", "internal/health", "internal/model/info", "internal/model/list"):
        assert (await run.client.get(f"{prefix}/{path}")).status_code == 200
    for path in ("encode", "decode", "token-count", "stop-generation", "logits"):
        body = {"text": "Once", "tokens": [10], "prompt": "Once"}
        assert (await run.client.post(f"{prefix}/internal/{path}", json=body)).status_code == 200
    for path in ("load", "unload"):
        response = await run.client.post(f"{prefix}/internal/model/{path}", json={"model_name": SM})
        assert response.status_code == 403


async def test_any_model_is_the_default_one_under_textgen(run: Running) -> None:
    told = (await run.client.post("/textgen/v1/internal/encode", json={"text": "Once", "model": "none"})).json()
    assert told == (await run.client.post("/v1/internal/encode", json={"text": "Once"})).json()
    logits = await run.client.post("/textgen/v1/internal/logits", json={"prompt": "Once", "model": "none"})
    assert len(logits.json()) == 50
    wrong = await run.client.post("/textgen/v1/internal/logits", json={"prompt": "Once", "top_logits": 0})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "top_logits"])


# ---- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_the_admin_key_alone_changes_what_is_served(open_shop: Running, path: str) -> None:
    run, body = open_shop, {"model_name": SM}
    response = await run.client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    response = await run.client.post(path, json=body, headers=bearer("none"))
    assert response.status_code == 401
    # The admin key has no account: it generates nothing.
    assert (await run.client.post("/v1/completions", json={"prompt": "a"}, headers=ADMIN)).status_code == 401
    assert await served(run) == [SM, XL]


async def test_without_an_admin_key_nobody_is_an_admin(run: Running) -> None:
    for headers in ({"authorization": "Bearer "}, ADMIN):
        assert (await run.client.post(LOAD, json={"model_name": SM}, headers=headers)).status_code == 401
    response = await run.client.post(LOAD, json={"model_name": SM})
    assert (response.status_code, "no admin key" in response.text) == (403, True)


async def test_a_key_sees_its_models_and_the_admin_what_can_be_loaded(open_shop: Running) -> None:
    run = open_shop
    key, _ = await run.key_of("unlimited", models=(XL,))
    assert (await run.client.get(LIST, headers=bearer(key))).json() == {"model_names": [XL]}
    told = (await run.client.get(LIST, headers=ADMIN)).json()
    assert told == {"model_names": [SM, XL, SPARE, "broken", "tiny"]}


# ---- one in the place of another -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False])
async def test_a_model_takes_the_place_of_another(tmp_path: Path, beside: bool) -> None:
    async with shop(tmp_path, replace_beside=beside) as run:
        assert (await ask(run, SPARE)).status_code == 404
        assert await change(run, LOAD, model_name=SPARE) == "OK"
        assert await served(run) == [SPARE, XL]
        assert (await ask(run, SPARE)).status_code == (await ask(run, "")).status_code == 200
        assert (await ask(run, SM)).status_code == 404
        assert (await run.client.post("/tokenize", json={"prompt": "a"})).status_code == 200
        assert (await run.client.get("/health/ready")).json()["models"] == {SPARE: "ready", XL: "ready"}
        # As it was, and then the other one.
        await change(run, LOAD, model_name=SM)
        await change(run, LOAD, model_name=SPARE, settings={"replaces": XL, "truncation_length": 4096})
        assert await served(run) == [SM, SPARE]


@pytest.mark.parametrize("beside", [True, False])
async def test_what_runs_finishes_first_and_others_go_on(tmp_path: Path, beside: bool) -> None:
    async with shop(tmp_path, replace_beside=beside) as run:
        door = Door()

        async def gate(request: PreparedRequest, number: int) -> None:
            await door.wait()

        old = run.play(script=lambda request: ["One", " two"], gate=gate)
        answer = asyncio.create_task(ask(run, SM, stream=True))
        await door.knocked.wait()
        loading = asyncio.create_task(change(run, LOAD, model_name=SPARE))
        registry = run.service.engines
        if beside:
            await loading
            assert await served(run) == [SPARE, XL]
            assert (await ask(run, SPARE)).status_code == 200
        else:
            await until(lambda: registry.state(SM) == "loading")
            assert (await ask(run, SM)).status_code == 503
        assert (await ask(run, XL)).status_code == 200
        await old.check_health()
        busy = await change(run, LOAD, 409, model_name=SM)
        assert busy["error"]["code"] == "conflict"
        door.opened.set()
        told = ADAPTERS["openai completions"].read((await answer).text)
        assert (told.text, told.done) == ("One two", True)
        await loading
        await until(old._dead.is_set)
        assert await served(run) == [SPARE, XL]
        assert run.open_holds == 0


@pytest.mark.parametrize("beside", [True, False])
async def test_a_failed_load_leaves_the_old_one_serving(tmp_path: Path, beside: bool) -> None:
    async with shop(tmp_path, replace_beside=beside) as run:
        run.stages[SPARE].failing = OSError("No weights in /models/spare.")
        error = (await change(run, LOAD, 500, model_name=SPARE))["error"]
        assert error["code"] == "engine_failed"
        assert f"{SM} serves as before" in error["message"]
        assert await served(run) == [SM, XL]
        assert (await ask(run, SM)).status_code == (200 if beside else 500)  # a scripted engine stays ended
        run.stages[SPARE].failing = ValueError("max_model_len is too large")
        error = (await change(run, LOAD, 400, model_name=SPARE, args={"max_model_len": 10**9}))["error"]
        assert (error["param"], "max_model_len" in error["message"]) == ("args", True)
        run.stages[SPARE].failing = None
        await change(run, LOAD, model_name=SPARE)
        assert await served(run) == [SPARE, XL]


async def test_a_folder_is_like_what_it_replaces(open_shop: Running) -> None:
    run = open_shop
    await change(run, LOAD, model_name="tiny", settings={"replaces": XL})
    assert await served(run) == [SM, "tiny"]
    answer = (await ask(run, "tiny")).json()["usage"]
    assert run.used == PRICE.cost(_usage(answer["prompt_tokens"], answer["completion_tokens"]))
    key, _ = await run.key_of("unlimited", models=("tiny",))
    assert (await run.client.get("/v1/model", headers=bearer(key))).json()["parameters"]["prompt_template"] == (
        "llama3-writer"
    )


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "model_name"),
        ({"model_name": "none"}, 404, "model_name"),
        ({"model_name": "notes"}, 404, "model_name"),
        ({"model_name": "../models/tiny"}, 404, "model_name"),
        ({"model_name": ".."}, 404, "model_name"),
        ({"model_name": "broken"}, 400, "model_name"),
        ({"model_name": "tiny"}, 400, "model_name"),  # the demo model's template is not its own
        ({"model_name": "tiny", "settings": {"template": "none", "replaces": XL}}, 400, "model_name"),
        ({"model_name": SPARE, "settings": {"replaces": "none"}}, 404, "settings.replaces"),
        ({"model_name": XL, "settings": {"replaces": SM}}, 409, "settings.replaces"),
        ({"model_name": SPARE, "args": {"trust_remote_code": True}}, 400, "args"),
        ({"model_name": SPARE, "args": {"load_in_4bit": True}}, 400, "args"),
        ({"model_name": SPARE, "args": []}, 400, "args"),
    ],
)
async def test_a_load_that_cannot_be(open_shop: Running, body: dict[str, Any], status: int, param: str) -> None:
    error = (await change(open_shop, LOAD, status, **body))["error"]
    assert error["param"] == param
    assert await served(open_shop) == [SM, XL]


async def test_unloaded_models_are_served_no_longer(open_shop: Running) -> None:
    run = open_shop
    assert await change(run, UNLOAD) == "OK"
    assert await served(run) == [XL]
    assert (await ask(run, "")).status_code == 200
    assert (await change(run, UNLOAD, 404, model_name=SM))["error"]["param"] == "model_name"
    await change(run, UNLOAD, model_name=XL)
    assert await served(run) == []
    assert (await ask(run, "")).status_code == 404
    assert (await change(run, UNLOAD, 404))["error"]["param"] == "model_name"
    assert (await change(run, LOAD, 400, model_name="tiny"))["error"]["param"] == "model_name"
    await change(run, LOAD, model_name=XL)
    assert await served(run) == [XL]


async def test_a_change_goes_on_when_nobody_waits(open_shop: Running) -> None:
    run = open_shop
    door = run.stages[SPARE].opening = Door()
    loading = asyncio.create_task(change(run, LOAD, model_name=SPARE))
    await door.knocked.wait()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    assert await served(run) == [SM, XL]
    door.opened.set()
    await until(lambda: SPARE in run.service.engines.models)
    assert await served(run) == [SPARE, XL]


def test_what_is_loaded_at_the_start(tmp_path: Path) -> None:
    from serving.settings import SettingsError, load

    config = tmp_path / "serving.toml"
    table = '[[models]]\nid = "m"\npath = "/m"\ntemplate = "chatml-text"\n'
    config.write_text(table + "standby = true\n")
    with pytest.raises(SettingsError, match="standby"):
        load({"SERVING_CONFIG": str(config)})
    config.write_text(json.dumps("models_dir")[1:-1] + f' = "{tmp_path / "none"}"\n' + table)
    with pytest.raises(SettingsError, match="models_dir"):
        load({"SERVING_CONFIG": str(config)})
