"""schemathesis over the app's own OpenAPI document: no 5xx but 501 and 503, and answers as they are described."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from serving.app import build
from serving.settings import ModelSettings
from tests.dialects import test_images, test_moderations, test_transcriptions
from tests.dialects.adapters import ADAPTERS, Adapter
from tests.service import SM, XL, Running, running
from tests.service import settings as service_settings
from tests.tiny import make_tokenizer

LEFT_OUT = [
    not_a_server_error,  # 501 and 503 are answers of ours: asserted below instead
    positive_data_acceptance,  # a schema cannot say which models, tokens, names or lengths of a prompt there are
    negative_data_rejection,  # unknown fields are ignored on purpose, whatever they hold
    ignored_auth,  # it sends requests of its own; every endpoint without a key: tests/dialects/test_bad_input.py
]

DOCUMENT = build(service_settings(Path("nowhere"), key_pepper="pepper"), {}).app.openapi()
OPERATIONS = {
    found.ok().label: found.ok()
    for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
    if isinstance(found, Ok)
}


@pytest.fixture(scope="module")
async def module_run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    data_dir = tmp_path_factory.mktemp("data")
    embedder = ModelSettings("e", str(make_tokenizer(tmp_path_factory.mktemp("embedder"))), kind="embedding")
    classifier = test_moderations.model(tmp_path_factory.mktemp("classifier"))
    painter = ModelSettings("i", "http://nowhere", kind="image", sizes=test_images.SIZES)
    whisper = ModelSettings("t", "nowhere", kind="transcription")
    models = (*service_settings(data_dir).models, embedder, classifier, painter, whisper)
    async with running(data_dir, models=models) as run:
        run.tasks[classifier.id].script = test_moderations.classes
        run.tasks["i"].script, run.tasks["t"].script = test_images.paint, test_transcriptions.hear
        for model in (SM, XL):
            run.play(model, script=lambda request: ["Once", " upon"])
        yield run


def test_every_operation_is_here() -> None:
    assert len(OPERATIONS) == sum(len(path) for path in DOCUMENT["paths"].values()) > 15


def written(value: object) -> Any:  # noqa: ANN401  # what httpx takes for a field of a form
    """A part of a form as text: numbers and lists are no files."""
    if isinstance(value, tuple):
        return (value[0], written(value[1]), *value[2:])
    return value if isinstance(value, str | bytes) else str(value)


@pytest.mark.parametrize("label", OPERATIONS)
@settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
async def test_answers_are_as_described(module_run: Running, label: str, data: st.DataObject) -> None:
    case = data.draw(OPERATIONS[label].as_strategy())
    asked: dict[str, Any] = case.as_transport_kwargs(base_url="http://here")
    known = {key: asked[key] for key in ("method", "url", "params", "json", "data", "files", "content") if key in asked}
    if "files" in known:
        fields = known["files"].items() if isinstance(known["files"], dict) else known["files"]
        known["files"] = [(name, written(value)) for name, value in fields]
    response = await module_run.client.request(**known)
    await response.request.aread()  # a form was streamed, and the checks show it
    assert response.status_code < 500 or response.status_code in (501, 503), response.text
    case.validate_response(response, excluded_checks=LEFT_OUT)


@pytest.mark.parametrize("adapter", list(ADAPTERS.values()), ids=list(ADAPTERS))
async def test_a_whole_answer_is_as_described(module_run: Running, adapter: Adapter) -> None:
    """Also where the schema is of a line, which schemathesis does not look into."""
    response = await module_run.client.post(adapter.path, json=adapter.body(stream=False))
    answer = msgspec.json.decode(response.content, type=adapter.endpoint.answer)
    assert msgspec.json.encode(answer) == response.content.rstrip()
    OPERATIONS[f"POST {adapter.path}"].validate_response(response)


async def test_an_answer_that_is_not_as_described_would_be_seen(module_run: Running) -> None:
    adapter = ADAPTERS["openai chat.completions"]
    response = await module_run.client.post(adapter.path, json=adapter.body(stream=False))
    wrong = httpx.Response(200, json={**response.json(), "choices": "none"})
    wrong.request, wrong.elapsed = response.request, response.elapsed
    with pytest.raises((Failure, FailureGroup)):
        OPERATIONS[f"POST {adapter.path}"].validate_response(wrong)
