"""What every generating endpoint of every dialect must keep, whatever its wire format."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.core import PreparedRequest, Usage
from serving.edge.headers import error_headers
from serving.engine.scripted import Chunk
from serving.errors import ServingError
from tests.dialects.adapters import Adapter
from tests.service import PRICE, SM, XL, Running

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["é", "🌊", "\n\n", "\u2028", '"\\']
)
CHUNKS = st.lists(st.tuples(TEXT, st.lists(st.integers(10, 800), max_size=3).map(tuple)), max_size=12)
LIMITS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def errors(kind: type[ServingError] = ServingError) -> Iterator[type[ServingError]]:
    """Every error there is."""
    yield kind
    for child in kind.__subclasses__():
        yield from errors(child)


EVERY_ERROR = pytest.mark.parametrize("kind", list(errors()), ids=lambda kind: kind.__name__)


async def post(run: Running, adapter: Adapter, **asked: Any) -> httpx.Response:  # noqa: ANN401  # as `body` takes
    return await run.client.post(adapter.path, json=adapter.body(**asked))


@LIMITS
@given(chunks=CHUNKS, max_tokens=st.none() | st.integers(1, 12), stop=st.sampled_from([(), ("a",), ("é", "\n")]))
async def test_the_fold_of_the_stream_is_the_whole_answer(
    run: Running, adapter: Adapter, chunks: list[Chunk], max_tokens: int | None, stop: tuple[str, ...]
) -> None:
    told = []
    for stream in (True, False):
        engine = run.play(script=lambda request: chunks)
        response = await post(run, adapter, stream=stream, max_tokens=max_tokens, stop=stop)
        answer = adapter.read(response.text)
        assert answer.done
        assert answer.error is None
        assert run.used == PRICE.cost(Usage(answer.prompt_tokens, 0, answer.completion_tokens))
        assert answer.prompt_tokens == len(engine.asked[0].token_ids)
        told.append((answer.text, answer.reason, answer.usage))
    assert told[0] == told[1]


async def test_usage_counts_token_ids_not_chunks(run: Running, adapter: Adapter) -> None:
    run.play(script=lambda request: [("ab", (10, 11)), ("", (12,)), ("c", ())], cached_tokens=1)
    for stream in (True, False):
        answer = adapter.read((await post(run, adapter, stream=stream)).text)
        assert (answer.text, answer.completion_tokens) == ("abc", 3)


async def test_cached_tokens_cost_less(run: Running, adapter: Adapter) -> None:
    run.play(script=lambda request: ["a"], cached_tokens=2)
    answer = adapter.read((await post(run, adapter, prompt="Once upon", stream=True)).text)
    assert run.used == PRICE.cost(Usage(answer.prompt_tokens, 2, 1))


async def test_a_character_split_over_tokens_arrives_whole(run: Running, adapter: Adapter) -> None:
    run.play(script=lambda request: [("", (10,)), ("", (11,)), ("🌊", (12,)), ("é", (13,))])
    response = await post(run, adapter, stream=True)
    answer = adapter.read(response.content.decode("utf-8"))
    assert answer.text == "🌊é"
    assert set(answer.parts) <= {"", "🌊", "é"}


@EVERY_ERROR
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_byte(
    run: Running, adapter: Adapter, kind: type[ServingError], stream: bool
) -> None:
    error = kind("A word about it.", retry_after_s=1.2)
    engine = run.play(refuse=lambda request: error)
    response = await post(run, adapter, stream=stream)
    assert response.status_code == adapter.errors.status(kind)
    assert response.headers.items() >= error_headers(error).items()
    assert response.json() == adapter.errors.body(error)
    assert response.headers["retry-after"] == "2"
    assert len(engine.asked) == 1
    assert (run.used, run.open_holds) == (0, 0)


@EVERY_ERROR
async def test_an_error_in_mid_stream(run: Running, adapter: Adapter, kind: type[ServingError]) -> None:
    error = kind("A word about it.")

    def script(request: PreparedRequest) -> Iterator[Chunk]:
        yield "One"
        yield " two"
        raise error

    run.play(script=script)
    response = await post(run, adapter, stream=True)
    answer = adapter.read(response.text)
    assert (response.status_code, answer.text) == (200, "One two")
    assert answer.error == adapter.errors.frame(error)
    assert not answer.done
    assert answer.reason is None
    assert run.used == PRICE.cost(Usage(_prompt_tokens(run), 0, 2))
    assert run.open_holds == 0


@EVERY_ERROR
async def test_an_error_in_an_answer_that_is_not_streamed(
    run: Running, adapter: Adapter, kind: type[ServingError]
) -> None:
    error = kind("A word about it.")

    def script(request: PreparedRequest) -> Iterator[Chunk]:
        yield "One"
        raise error

    run.play(script=script)
    response = await post(run, adapter, stream=False)
    assert (response.status_code, response.json()) == (adapter.errors.status(kind), adapter.errors.body(error))
    assert run.used == PRICE.cost(Usage(_prompt_tokens(run), 0, 1))


@pytest.mark.parametrize("after", [0, 1])
async def test_a_mistake_of_ours_is_told_without_its_words(run: Running, adapter: Adapter, after: int) -> None:
    def script(request: PreparedRequest) -> Iterator[Chunk]:
        yield from ["One"] * after
        raise LookupError("private words")

    run.play(script=script)
    for stream in (True, False):
        response = await post(run, adapter, stream=stream)
        # A stream may begin before its first text: with the role of a chat's answer.
        assert response.status_code in {(False, 0): (500,), (False, 1): (500,), (True, 0): (200, 500)}.get(
            (stream, after), (200,)
        )
        assert "The server made a mistake. Try again." in json.dumps(adapter.read(response.text).error)
        assert "private" not in response.text


async def test_a_dead_engine_fails_what_is_in_flight_and_what_follows(run: Running, adapter: Adapter) -> None:
    run.play(script=lambda request: ["One", " two", " three"], die_after=3)
    answer = adapter.read((await post(run, adapter, stream=True)).text)
    assert (answer.text, answer.done) == ("One two", False)
    assert answer.error is not None
    response = await post(run, adapter, stream=True)
    assert response.status_code == 500
    assert run.used == PRICE.cost(Usage(_prompt_tokens(run), 0, 2))


async def test_what_is_told_of_a_response(run: Running, adapter: Adapter) -> None:
    streamed = await post(run, adapter, stream=True)
    whole = await post(run, adapter, stream=False)
    assert streamed.headers["content-type"] in adapter.endpoint.stream_media_types
    assert streamed.headers["cache-control"] == "no-cache"
    assert streamed.headers["x-accel-buffering"] == "no"
    assert whole.headers["content-type"] in adapter.endpoint.whole_media_types
    assert "cache-control" not in whole.headers
    assert len({streamed.headers["x-request-id"], whole.headers["x-request-id"]}) == 2


@pytest.mark.parametrize("model", [SM, XL, ""])
async def test_the_model_that_is_asked_for_answers(run: Running, adapter: Adapter, model: str) -> None:
    engines = {name: run.play(name, script=lambda request: ["Hi"]) for name in (SM, XL)}
    await post(run, adapter, stream=False, model=model)
    asked = {name for name, engine in engines.items() if engine.asked}
    assert asked == {model or SM}


@pytest.mark.parametrize("prefix", [0, -1])
async def test_every_prefix_serves_the_same(run: Running, adapter: Adapter, prefix: int) -> None:
    path = adapter.dialect.prefixes[prefix] + adapter.endpoint.path
    response = await run.client.post(path, json=adapter.body(stream=False))
    assert adapter.read(response.text).done


def _prompt_tokens(run: Running) -> int:
    return len(run.stages[SM].engine.asked[0].token_ids)
