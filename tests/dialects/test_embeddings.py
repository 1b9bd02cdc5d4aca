"""Embeddings at OpenAI's address, over a scripted engine: shapes, bounds, money, and who is refused."""

import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.core import Price
from serving.core.tasks import Outcome, PreparedTask
from serving.engine.scripted_tasks import ScriptedTaskEngine, sums
from serving.errors import EngineFailed
from serving.settings import ModelSettings
from tests.dialects.test_connections import connection
from tests.service import KEY, SM, XL, Door, Running, bearer, listening, running, settings, until
from tests.tiny import make_tokenizer

PATHS = ("/v1/embeddings", "/api/openai/v1/embeddings", "/textgen/v1/embeddings")
EMBEDDER = "tiny-embedder"
AB = (2, 4, 48, 3)
"""Token ids of `ab`, and of them:"""
VECTOR = [4.0, 57.0, *struct.unpack("<f", struct.pack("<f", 1 / 3))]


@pytest.fixture(scope="module")
async def module_run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = make_tokenizer(tmp_path_factory.mktemp("embedder"))
    model = ModelSettings(EMBEDDER, str(folder), kind="embedding", price=Price(input_per_1k=1_000_000))
    data_dir = tmp_path_factory.mktemp("data")
    async with running(data_dir, models=(model, *settings(data_dir).models)) as run:
        yield run


@pytest.fixture
def run(module_run: Running) -> Running:
    module_run.play()
    engine = module_run.tasks[EMBEDDER]
    engine.script, engine.gate = sums, None
    engine.asked.clear()
    engine.endings.clear()
    return module_run


@pytest.fixture
def engine(run: Running) -> ScriptedTaskEngine:
    return run.tasks[EMBEDDER]


async def ask(run: Running, path: str = PATHS[0], key: str | None = None, **body: Any) -> httpx.Response:  # noqa: ANN401
    headers = bearer(key) if key else {}
    return await run.client.post(path, json={"model": EMBEDDER, **body}, headers=headers)


def error(response: httpx.Response) -> tuple[int, str | None, str]:
    """Status, field and code of an error in OpenAI's shape."""
    told = response.json()["error"]
    return response.status_code, told["param"], told["code"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_text_is_a_list_of_one_vector(run: Running, path: str) -> None:
    response = await ask(run, path, input="ab")
    assert response.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
        "model": EMBEDDER,
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    assert response.headers["content-type"] == "application/json"
    assert (run.used, run.open_holds) == (4 * 1000, 0)


@pytest.mark.parametrize(
    ("sent", "lists"),
    [
        (["ab", "ab"], (AB, AB)),
        ([7, 8, 9], ((7, 8, 9),)),
        ([[7, 8], [9]], ((7, 8), (9,))),
        (["ab", [7, 8]], (AB, (7, 8))),
    ],
)
async def test_every_kind_of_input(run: Running, engine: ScriptedTaskEngine, sent: Any, lists: Any) -> None:  # noqa: ANN401
    response = await ask(run, input=sent)
    assert [row["index"] for row in response.json()["data"]] == list(range(len(lists)))
    assert [task.work.token_ids for task in engine.asked] == [lists]
    units = sum(map(len, lists))
    assert response.json()["usage"] == {"prompt_tokens": units, "total_tokens": units}
    assert run.used == units * 1000


async def test_base64_is_little_endian_float32(run: Running) -> None:
    response = await ask(run, input=["ab", "a"], encoding_format="base64")
    first, _ = (row["embedding"] for row in response.json()["data"])
    assert list(struct.unpack("<3f", base64.b64decode(first))) == VECTOR


async def test_without_a_model_the_first_one_of_this_kind_answers(run: Running, engine: ScriptedTaskEngine) -> None:
    assert (await ask(run, model="", input="ab", dimensions=16)).json()["model"] == EMBEDDER
    assert engine.asked[0].work.dimensions == 16


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [1, True]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[1.5]]}, "input[0][0]"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "many"}, "dimensions"),
    ],
)
async def test_bad_input_names_its_field(run: Running, body: dict[str, Any], param: str) -> None:
    told = await ask(run, **body)
    status, named, code = error(told)
    assert (status, code) == (400, "invalid_request")
    assert (named or "").split("[")[0] == param.split("[")[0]
    assert (run.used, run.open_holds) == (0, 0)


async def test_a_model_of_another_kind_is_unknown_here_and_this_one_elsewhere(run: Running) -> None:
    assert error(await ask(run, model=SM, input="a")) == (404, "model", "model_not_found")
    chat = {"model": EMBEDDER, "messages": [{"role": "user", "content": "a"}]}
    assert error(await run.client.post("/v1/chat/completions", json=chat)) == (404, "model", "model_not_found")


async def test_without_a_model_of_this_kind_the_address_says_so(run: Running) -> None:
    key, _ = await run.key_of("unlimited", models=[SM])
    response = await ask(run, key=key, input="a")
    assert error(response) == (404, None, "not_found")
    assert "There is no embedding model" in response.json()["error"]["message"]


async def test_models_that_generate_are_listed_first_and_stay_the_default(run: Running) -> None:
    listed = (await run.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [
        *(f"{model}{suffix}" for model in (SM, XL) for suffix in ("", "/text", "/assistant")),
        EMBEDDER,
    ]
    assert [model.get("display_type") for model in listed] == [None] * 6 + ["embedding"]
    assert (await run.client.get(f"/v1/models/{EMBEDDER}")).json() == listed[-1]
    chat = {"messages": [{"role": "user", "content": "a"}]}
    assert (await run.client.post("/v1/chat/completions", json=chat)).json()["model"] == SM


async def test_credit_that_does_not_pay_for_all_is_refused_before_the_engine(
    run: Running, engine: ScriptedTaskEngine
) -> None:
    key, record = await run.key_of("unlimited", cap=5_000)
    assert (await ask(run, key=key, input="ab")).status_code == 200
    assert error(await ask(run, key=key, input="ab")) == (402, None, "insufficient_credit")
    (row,) = await run.ledger.usage(record.account, "0", "9")
    assert (row.model, row.requests, row.usage.prompt_tokens, row.cost) == (EMBEDDER, 1, 4, 4_000)
    assert len(engine.asked) == 1


async def test_an_engine_that_fails_is_told_of_and_costs_nothing(run: Running, engine: ScriptedTaskEngine) -> None:
    def fail(task: PreparedTask[Any]) -> Outcome:
        raise EngineFailed("The engine died.")

    engine.script = fail
    assert error(await ask(run, input="ab")) == (500, None, "engine_failed")
    assert (run.used, run.open_holds) == (0, 0)


async def test_a_client_that_goes_away_ends_the_work(run: Running, engine: ScriptedTaskEngine) -> None:
    door = Door()
    engine.gate = door.wait
    content = b'{"input": "ab"}'
    head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(content)}"
    async with listening(run.service) as address, connection(address, f"{head}\r\n\r\n".encode() + content):
        await door.knocked.wait()
    await until(lambda: engine.endings == ["aborted"] and run.open_holds == 0)
    assert run.used == 0


async def test_a_revoked_key_ends_the_work(run: Running, engine: ScriptedTaskEngine) -> None:
    key, record = await run.key_of("unlimited")

    async def revoke() -> None:
        await run.keys.revoke(record.account, record.id)
        await Door().wait()

    engine.gate = revoke
    assert error(await ask(run, key=key, input="ab")) == (401, None, "invalid_api_key")
    assert (engine.endings, run.open_holds, run.used) == (["aborted"], 0, 0)


async def test_text_generation_webui_takes_any_model(run: Running) -> None:
    """Its manner: a model that is not served means the one there is."""
    told = [await ask(run, "/textgen/v1/embeddings", input="ab", model=name) for name in ("", "text-embedding-ada-002")]
    assert [response.status_code for response in told] == [200, 200]
    assert [response.json()["model"] for response in told] == [EMBEDDER, EMBEDDER]
    assert (await ask(run, "/v1/embeddings", input="ab", model="text-embedding-ada-002")).status_code == 404
