"""Images at OpenAI's address, over a scripted image server: shapes, sizes and their prices."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.core.tasks import Draw, Drawn, Outcome, PreparedTask
from serving.settings import ModelSettings
from tests.service import Running, running, settings

PAINTER = "painter"
SIZES = {"512x512": 20_000, "1024x1024": 40_000}
PNG, JPEG = "iVBORw0KGgo=", "/9j/4AAQSkY="


def paint(task: PreparedTask[Draw]) -> Outcome:
    """A PNG, and then JPEGs."""
    return Outcome(Drawn((PNG, *[JPEG] * (task.units - 1))), task.units)


@pytest.fixture(scope="module")
async def module_run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    data_dir = tmp_path_factory.mktemp("data")
    model = ModelSettings(PAINTER, "http://nowhere/v1", kind="image", sizes=SIZES)
    async with running(data_dir, models=(*settings(data_dir).models, model)) as run:
        run.tasks[PAINTER].script = paint
        yield run


@pytest.fixture
def run(module_run: Running) -> Running:
    module_run.play()
    module_run.tasks[PAINTER].asked.clear()
    return module_run


async def ask(run: Running, path: str = "/v1/images/generations", **body: Any) -> httpx.Response:  # noqa: ANN401
    return await run.client.post(path, json=body)


@pytest.mark.parametrize("path", ["/v1/images/generations", "/api/openai/v1/images/generations"])
async def test_an_image_of_the_first_size(run: Running, path: str) -> None:
    told = (await ask(run, path, prompt="a ship")).json()
    assert (told["data"], type(told["created"])) == ([{"b64_json": PNG}], int)
    assert [task.work for task in run.tasks[PAINTER].asked] == [Draw("a ship", 1, "512x512")]
    assert (run.used, run.open_holds) == (20_000, 0)


async def test_each_size_has_its_price(run: Running) -> None:
    told = (await ask(run, prompt="a ship", n=3, size="1024x1024", quality="hd", model=PAINTER)).json()
    assert [image["b64_json"] for image in told["data"]] == [PNG, JPEG, JPEG]
    assert [task.work for task in run.tasks[PAINTER].asked] == [Draw("a ship", 3, "1024x1024", "hd")]
    assert run.used == 3 * 40_000


async def test_a_url_holds_the_image(run: Running) -> None:
    told = (await ask(run, prompt="a ship", n=2, size="auto", response_format="url")).json()
    assert told["data"] == [{"url": f"data:image/png;base64,{PNG}"}, {"url": f"data:image/jpeg;base64,{JPEG}"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 11}, "n"),
        ({"prompt": "a", "size": "2x2"}, "size"),
        ({"prompt": "a", "size": 512}, "size"),
        ({"prompt": "a", "response_format": "png"}, "response_format"),
        ({"prompt": "a", "quality": "best"}, "quality"),
    ],
)
async def test_bad_input_names_its_field(run: Running, body: dict[str, Any], param: str) -> None:
    response = await ask(run, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert (run.used, run.open_holds, run.tasks[PAINTER].asked) == (0, 0, [])


async def test_credit_for_two_images_pays_for_no_three(run: Running) -> None:
    key, _ = await run.key_of("unlimited", cap=50_000)
    headers = {"authorization": f"Bearer {key}"}
    body = {"prompt": "a ship", "n": 3}
    response = await run.client.post("/v1/images/generations", json=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (402, "insufficient_credit")
    response = await run.client.post("/v1/images/generations", json={**body, "n": 2}, headers=headers)
    assert response.status_code == 200
    assert run.used == 40_000


async def test_an_image_model_is_listed_as_one(run: Running) -> None:
    *_, last = (await run.client.get("/v1/models")).json()["data"]
    assert (last["id"], last["display_type"]) == (PAINTER, "image")
