"""LoRA adapters as callers and admins see them, over scripted engines; `tests/engine/test_adapted.py` has real ones."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.core import PreparedRequest, Price, Usage
from serving.dialects.catalog import Catalog, ModelInfo
from serving.errors import UnknownModel
from serving.settings import DEMO_MODEL_DIR, ModelSettings
from tests.dialects.adapters import ADAPTERS, Adapter
from tests.dialects.test_connections import metric
from tests.service import LLAMA3, PRICE, SM, XL, Door, Running, bearer, running

ADMIN = bearer("the admin key of these tests")
LIST, LOAD, UNLOAD = (f"/v1/internal/lora/{act}" for act in ("list", "load", "unload"))
PLAIN = "opus-v1-plain"


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 8}))


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Running]:
    """A model with adapters, one with another, and one without. `torn` is one that the engine cannot use."""
    put(tmp_path / "sm", "mara", "ron", "torn")
    put(tmp_path / "xl", "ida")
    put(tmp_path, "outside")
    (tmp_path / "sm/notes").mkdir()
    models = (
        ModelSettings(SM, str(DEMO_MODEL_DIR), "chatml-text", price=PRICE, loras=tmp_path / "sm"),
        ModelSettings(XL, str(LLAMA3), "llama3-writer", price=PRICE, loras=tmp_path / "xl"),
        ModelSettings(PLAIN, str(DEMO_MODEL_DIR), "chatml-text", price=PRICE, standby=True),
    )
    key = ADMIN["authorization"].removeprefix("Bearer ")
    async with running(tmp_path, admin_key=key, models=models) as run:
        run.play(adapters={"mara", "ron", "new"})
        run.play(XL, adapters={"ida"})
        yield run


async def change(run: Running, path: str, status: int = 200, **body: Any) -> Any:  # noqa: ANN401  # JSON
    response = await run.client.post(path, json=body, headers=ADMIN)
    assert response.status_code == status, response.text
    return response.json()


async def listed(run: Running, key: dict[str, str] | None = None) -> list[str]:
    names = (await run.client.get(LIST, headers=key)).json()["lora_names"]
    assert isinstance(names, list)
    return names


async def loaded(run: Running) -> list[str]:
    names = (await run.client.get("/v1/internal/model/info")).json()["lora_names"]
    assert isinstance(names, list)
    return names


async def ask(run: Running, model: str = SM) -> httpx.Response:
    adapter = ADAPTERS["openai completions"]
    return await run.client.post(adapter.path, json=adapter.body(stream=False, model=model))


def asked(run: Running, model: str = SM) -> str | None:
    """With which adapter the engine was asked last."""
    return run.stages[model].engine.asked[-1].adapter


# ---- by the name of the model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"{SM}:mara", f"{SM}:mara/text", "opus-v1-sm%3Amara"])
async def test_every_dialect_takes_an_adapter_behind_the_models_id(run: Running, adapter: Adapter, name: str) -> None:
    requests = f'serving_requests_total{{dialect="{adapter.dialect.name}",endpoint="{adapter.endpoint.name}",'
    requests += f'model="{SM}",status="200"}}'
    before = await metric(run.client, requests)
    response = await run.client.post(adapter.path, json=adapter.body(stream=True, model=name))
    told = adapter.read(response.text)
    assert (response.status_code, told.done) == (200, True)
    assert asked(run) == "mara"
    # In metrics, prices and books it is the model itself.
    assert await metric(run.client, requests) == before + 1
    assert run.used == PRICE.cost(Usage(told.prompt_tokens, 0, told.completion_tokens))
    await run.client.post(adapter.path, json=adapter.body(stream=True, model=SM))
    assert asked(run) is None


async def test_one_that_is_not_there_is_an_unknown_model(run: Running, adapter: Adapter) -> None:
    for name in (f"{SM}:none", f"{SM}:", f"{SM}:../xl/ida", f"{SM}:notes", f"{XL}:mara", ":mara"):
        response = await run.client.post(adapter.path, json=adapter.body(stream=False, model=name))
        if adapter.dialect.name == "textgen":  # any name is a model
            assert (response.status_code, asked(run)) == (200, None)
        else:
            assert response.status_code == adapter.dialect.render_error(UnknownModel(""))[0]
            assert f"{SM}:mara" in response.text


async def test_one_that_cannot_be_used_is_told_before_the_first_part(run: Running, adapter: Adapter) -> None:
    response = await run.client.post(adapter.path, json=adapter.body(stream=True, model=f"{SM}:torn"))
    assert response.status_code in (400, 422)
    assert "The adapter torn cannot be loaded" in response.text
    assert (run.used, run.open_holds) == (0, 0)


async def test_the_listing_has_each_with_its_suffixes(run: Running) -> None:
    ids = [model["id"] for model in (await run.client.get("/v1/models")).json()["data"]]
    names = [SM, *(f"{SM}:{name}" for name in ("mara", "ron", "torn")), XL, f"{XL}:ida"]
    assert ids == [name + suffix for name in names for suffix in ("", "/text", "/assistant")]
    for name in ids:
        assert (await run.client.get(f"/v1/models/{name}")).json()["id"] == name


async def test_whoever_may_use_the_model_may_use_its_adapters(run: Running) -> None:
    key, _ = await run.key_of("unlimited", models=(XL,))
    assert await listed(run, bearer(key)) == ["ida"]
    body = {"prompt": "Once", "model": f"{SM}:mara"}
    assert (await run.client.post("/v1/completions", json=body, headers=bearer(key))).status_code == 404
    body["model"] = f"{XL}:ida"
    assert (await run.client.post("/v1/completions", json=body, headers=bearer(key))).status_code == 200


def test_a_models_own_id_is_stronger_than_an_adapters_name() -> None:
    first, second = (ModelInfo(name, 0, Price(), adapters=("b", "c")) for name in ("a", "a:b"))
    for models in ((first, second), (second, first)):
        found = [Catalog(models).resolve(name) for name in ("a", "a:b", "a:c", "a:b:c/text")]
        told = [(info.id, info.adapter, suffix) for info, suffix in found]
        assert told == [("a", None, None), ("a:b", None, None), ("a", "c", None), ("a:b", "c", "text")]


# ---- as text-generation-webui has it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/v1", "/api/openai/v1", "/textgen/v1"])
async def test_the_default_model_answers_with_what_is_loaded(run: Running, prefix: str) -> None:
    lora = f"{prefix}/internal/lora"
    assert (await run.client.get(f"{lora}/list", headers=ADMIN)).json() == {"lora_names": ["mara", "ron", "torn"]}
    assert await loaded(run) == []
    assert await change(run, f"{lora}/load", lora_names=["mara"]) == "OK"
    assert run.stages[SM].engine.read == ["mara"]
    assert await loaded(run) == ["mara"]
    for name, expected in ((SM, "mara"), ("", "mara"), (f"{SM}/text", "mara"), (f"{SM}:ron", "ron")):
        assert (await ask(run, name)).json()["model"] == SM
        assert asked(run) == expected
    assert (await ask(run, XL)).status_code == 200
    assert asked(run, XL) is None
    await change(run, f"{lora}/load", lora_names=["ron"])
    assert await loaded(run) == ["ron"]
    assert await change(run, f"{lora}/unload") == "OK"
    assert await loaded(run) == []
    await ask(run)
    assert asked(run) is None
    await change(run, f"{lora}/load", lora_names=["ron"])
    assert await change(run, f"{lora}/load", lora_names=[]) == "OK"
    assert await loaded(run) == []


@pytest.mark.parametrize(
    ("names", "status", "said"),
    [
        (["mara", "ron"], 400, "may hold one name"),
        (["ron", "ron"], 400, "may hold one name"),
        (["none"], 404, f"Adapters of {SM}: mara, ron, torn."),
        (["ida"], 404, "Adapters of"),
        (["notes"], 404, "Adapters of"),
        ([""], 404, "Adapters of"),
        ([".."], 404, "Adapters of"),
        (["../outside"], 404, "Adapters of"),
        (["mara/../ron"], 404, "Adapters of"),
        (["torn"], 400, "The adapter torn cannot be loaded: the script has none"),
        (["mara", 1], 400, "lora_names[1]: expected `str`"),
        (None, 400, "expected `array`"),
    ],
)
async def test_what_cannot_be_loaded_leaves_what_is(run: Running, names: Any, status: int, said: str) -> None:  # noqa: ANN401
    await change(run, LOAD, lora_names=["ron"])
    error = (await change(run, LOAD, status, lora_names=names))["error"]
    assert error["param"].startswith("lora_names")
    assert said in error["message"]
    assert await loaded(run) == ["ron"]
    assert run.stages[SM].engine.read == ["ron"]


async def test_under_textgen_errors_have_its_shape(run: Running) -> None:
    path = "/textgen/v1/internal/lora/load"
    (place,) = (await change(run, path, 422, lora_names=["mara", "ron"]))["detail"]
    assert (place["loc"], "one name" in place["msg"]) == (["body", "lora_names"], True)
    assert "Adapters of" in (await change(run, path, 404, lora_names=["none"]))["error"]["message"]


async def test_the_admin_key_alone_loads(run: Running) -> None:
    for path, body in ((LOAD, {"lora_names": ["mara"]}), (UNLOAD, {})):
        assert (await run.client.post(path, json=body)).status_code == 403
        assert (await run.client.post(path, json=body, headers=bearer("none"))).status_code == 401
    assert (await run.client.get(LIST, headers=bearer("none"))).status_code == 401
    assert await listed(run) == ["mara", "ron", "torn"]
    assert await loaded(run) == []


async def test_what_is_put_there_later_can_be_asked_for_once_it_was_listed(run: Running, tmp_path: Path) -> None:
    put(tmp_path / "sm", "new")
    assert (await ask(run, f"{SM}:new")).status_code == 404
    assert await listed(run) == ["mara", "new", "ron", "torn"]
    assert (await ask(run, f"{SM}:new")).status_code == 200
    shutil.rmtree(tmp_path / "sm/new")
    assert (await change(run, LOAD, 404, lora_names=["new"]))["error"]["param"] == "lora_names"
    assert (await ask(run, f"{SM}:new")).status_code == 404


async def test_what_runs_keeps_what_it_began_with(run: Running) -> None:
    door = Door()

    async def gate(request: PreparedRequest, number: int) -> None:
        await door.wait()

    engine = run.play(script=lambda request: ["One"], gate=gate, adapters={"mara"})
    first = asyncio.create_task(ask(run))
    await door.knocked.wait()
    await change(run, LOAD, lora_names=["mara"])
    second = asyncio.create_task(ask(run))
    door.opened.set()
    assert [(await answer).status_code for answer in (first, second)] == [200, 200]
    assert [request.adapter for request in engine.asked] == [None, "mara"]


async def test_a_model_that_is_loaded_anew_has_no_adapter(run: Running) -> None:
    await change(run, LOAD, lora_names=["mara"])
    await change(run, "/v1/internal/model/load", model_name=SM)
    assert await loaded(run) == []
    assert await listed(run) == ["mara", "ron", "torn"]
    await change(run, "/v1/internal/model/load", model_name=PLAIN, settings={"replaces": SM})
    assert await listed(run) == []
    error = (await change(run, LOAD, 404, lora_names=["mara"]))["error"]
    assert error["message"] == f"Adapters of {PLAIN}: none."
    for model in (PLAIN, XL):
        await change(run, "/v1/internal/model/unload", model_name=model)
    assert await listed(run, ADMIN) == []
    assert (await change(run, LOAD, 404, lora_names=["mara"]))["error"]["message"] == "No model is served."
