"""The published Python SDK `livepeer-ai`: an answer of the demo model, and every error as the SDK decodes it.

The errors that a request cannot bring about are raised by a scripted engine behind a real socket.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
from livepeer_ai import Livepeer
from livepeer_ai.models.errors import HTTPError, HTTPValidationError, SDKError

from serving.errors import ServingError
from tests.dialects.adapters import ADAPTERS
from tests.dialects.test_conformance import errors
from tests.end_to_end.conftest import MODEL, ServerProcess
from tests.service import KEY, Running, listening, running

LLM = ADAPTERS["livepeer llm"]
MESSAGES = [{"role": "user", "content": "Who is there?"}]
DECODED = {400: HTTPError, 401: HTTPError, 422: HTTPValidationError, 500: HTTPError}
"""What the SDK has classes for; any other status is an SDKError."""
OTHERS = {402, 403, 404, 405, 409, 413, 429, 501, 503, 504}


@pytest.fixture(scope="module")
def livepeer(server: ServerProcess) -> Iterator[Livepeer]:
    with Livepeer(http_bearer=server.key, server_url=server.url) as client:
        yield client


@pytest.mark.parametrize(
    "asked", [{}, {"model": MODEL, "temperature": 0.0, "max_tokens": 20, "top_p": 0.9, "top_k": 5}]
)
def test_an_answer(livepeer: Livepeer, asked: dict[str, object]) -> None:
    answer = livepeer.generate.llm(request={"messages": MESSAGES, **asked}).llm_response
    assert answer is not None
    assert (answer.model, len(answer.choices)) == (MODEL, 1)
    choice, usage = answer.choices[0], answer.usage
    assert choice.finish_reason in ("stop", "length")
    assert choice.delta is None
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert 0 < usage.completion_tokens <= asked.get("max_tokens", 256)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_an_unknown_model_is_an_http_error(livepeer: Livepeer) -> None:
    with pytest.raises(HTTPError) as refused:
        livepeer.generate.llm(request={"messages": MESSAGES, "model": "meta-llama/llama-3.1-8B-Instruct"})
    assert MODEL in refused.value.data.detail.msg


def test_a_wrong_key_is_an_http_error(server: ServerProcess) -> None:
    with Livepeer(http_bearer="sk-wrong", server_url=server.url) as stranger, pytest.raises(HTTPError) as refused:
        stranger.generate.llm(request={"messages": MESSAGES})
    assert "key" in refused.value.data.detail.msg


def test_an_impossible_field_is_a_validation_error(livepeer: Livepeer) -> None:
    with pytest.raises(HTTPValidationError) as refused:
        livepeer.generate.llm(request={"messages": [*MESSAGES, {"role": "bard", "content": "Hi"}]})
    (told,) = refused.value.data.detail
    assert told.loc == ["body", "messages", 1, "role"]
    assert "role must be one of" in told.msg


def test_the_sdk_reads_no_streams(livepeer: Livepeer) -> None:
    """As its users find it with Livepeer's own servers."""
    with pytest.raises(SDKError, match="text/event-stream"):
        livepeer.generate.llm(request={"messages": MESSAGES, "max_tokens": 2, "stream": True})


@pytest.fixture(scope="module")
async def scripted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Running, str]]:
    async with running(tmp_path_factory.mktemp("data")) as run, listening(run.service) as (host, port):
        yield run, f"http://{host}:{port}"


@pytest.mark.parametrize("kind", list(errors()), ids=lambda kind: kind.__name__)
async def test_every_error_is_decoded(scripted: tuple[Running, str], kind: type[ServingError]) -> None:
    run, url = scripted
    run.play(refuse=lambda request: kind("A word about it."))
    async with Livepeer(http_bearer=KEY, server_url=url) as client:
        with pytest.raises((HTTPError, HTTPValidationError, SDKError)) as raised:
            await client.generate.llm_async(request={"messages": MESSAGES})
    assert type(raised.value) is DECODED.get(LLM.errors.status(kind), SDKError)
    assert "A word about it." in str(raised.value)
    if isinstance(raised.value, SDKError):
        assert raised.value.status_code == kind.status


def test_every_status_is_listed() -> None:
    assert {LLM.errors.status(kind) for kind in errors()} == {*DECODED, *OTHERS}
