"""Moderations at OpenAI's address, over a scripted classifier: shapes, categories and bounds."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.core import Price
from serving.core.tasks import Classified, Outcome, PreparedTask
from serving.dialects.openai.tasks import CATEGORIES
from serving.settings import ModelSettings, SettingsError
from tests.service import SM, Running, running, settings
from tests.tiny import make_tokenizer

CLASSIFIER = "tiny-classifier"
MEANING = {"harassment": "harassment", "threat": "harassment/threatening", "gore": "violence", "war": "violence"}
MEANING["spoiler"] = "spoiler"
SCORES = {"OK": 0.9, "harassment": 0.5, "threat": 0.4, "gore": 0.1, "war": 0.7, "spoiler": 0.2}
HARMLESS = dict.fromkeys(SCORES, 0.1)


def classes(task: PreparedTask[Any]) -> Outcome:
    """The first text is harmful, the others are not."""
    _, *others = task.work.token_ids
    return Outcome(Classified((SCORES, *(HARMLESS for _ in others))), task.units)


def model(folder: Path, **fields: Any) -> ModelSettings:  # noqa: ANN401
    make_tokenizer(folder)
    labels = ", ".join(f'"{number}": "{label}"' for number, label in enumerate(SCORES))
    (folder / "config.json").write_text(f'{{"id2label": {{{labels}}}}}')
    price = Price(input_per_1k=1_000_000)
    known = {"kind": "classification", "price": price, "categories": MEANING}
    return ModelSettings(CLASSIFIER, str(folder), **{**known, **fields})


@pytest.fixture(scope="module")
async def module_run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    data_dir = tmp_path_factory.mktemp("data")
    models = (*settings(data_dir).models, model(tmp_path_factory.mktemp("classifier")))
    async with running(data_dir, models=models) as run:
        run.tasks[CLASSIFIER].script = classes
        yield run


@pytest.fixture
def run(module_run: Running) -> Running:
    module_run.play()
    module_run.tasks[CLASSIFIER].asked.clear()
    return module_run


async def ask(run: Running, path: str = "/v1/moderations", **body: Any) -> httpx.Response:  # noqa: ANN401
    return await run.client.post(path, json=body)


@pytest.mark.parametrize("path", ["/v1/moderations", "/api/openai/v1/moderations"])
async def test_a_text_has_a_score_in_every_category(run: Running, path: str) -> None:
    told = (await ask(run, path, input="ab")).json()
    assert told["id"].startswith("modr-")
    assert told["model"] == CLASSIFIER
    (result,) = told["results"]
    known = {"harassment": 0.5, "harassment/threatening": 0.4, "violence": 0.7, "spoiler": 0.2}
    assert result["category_scores"] == dict.fromkeys(CATEGORIES, 0) | known
    assert set(result["categories"]) == {*CATEGORIES, "spoiler"}
    assert {category for category, applies in result["categories"].items() if applies} == {"harassment", "violence"}
    assert {category for category, kinds in result["category_applied_input_types"].items() if kinds} == set(known)
    assert result["flagged"] is True
    assert (run.used, run.open_holds) == (4 * 1000, 0)


async def test_each_text_of_a_list_has_its_result(run: Running) -> None:
    told = (await ask(run, input=["ab", "a"], model=CLASSIFIER)).json()
    assert [result["flagged"] for result in told["results"]] == [True, False]
    assert run.used == 7 * 1000


async def test_the_parts_of_a_text_are_one_text(run: Running) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert len((await ask(run, input=parts)).json()["results"]) == 1
    assert run.tasks[CLASSIFIER].asked[0].work.token_ids == ((2, 4, 48, 3),)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": ["a", {"type": "text", "text": "a"}]}, "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}, "input[0].type"),
        ({"input": [{"type": "text"}]}, "input[0].type"),
        ({"input": ["a"] * 2049}, "input"),
    ],
)
async def test_bad_input_names_its_field(run: Running, body: dict[str, Any], param: str) -> None:
    response = await ask(run, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert (run.used, run.open_holds) == (0, 0)


async def test_models_of_other_kinds_are_not_known_here(run: Running) -> None:
    assert (await ask(run, model=SM, input="a")).status_code == 404
    response = await run.client.post("/v1/embeddings", json={"input": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_a_label_that_the_model_does_not_have_is_found_at_the_start(tmp_path: Path) -> None:
    wrong = model(tmp_path, categories={"gora": "violence"})
    with pytest.raises(SettingsError, match="no label 'gora': OK, harassment"):
        async with running(tmp_path, models=(*settings(tmp_path).models, wrong)):
            pass
