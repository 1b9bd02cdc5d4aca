"""Transcriptions at OpenAI's address, over a scripted engine: forms, every format, and seconds that are paid."""

import itertools
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core import Price, TokenLogprob
from serving.core.tasks import Heard, Hearing, Outcome, PreparedTask, Segment, Speech, Transcribed
from serving.dialects.openai.speech import Events
from serving.dialects.openai.task_wire import TranscriptionRequest
from serving.errors import EngineFailed
from serving.settings import ModelSettings
from tests.service import KEY, SM, Door, Running, bearer, listening, running, settings, until
from tests.sound import tone

WHISPER = "tiny-whisper"
PATH = "/v1/audio/transcriptions"
WHO, TOM = (
    (TokenLogprob(1, " Who is\n\n", -0.5), TokenLogprob(2, "thére?", -1.5)),
    (TokenLogprob(3, " Tom.", -9999.0), TokenLogprob(4, " ", -0.25)),
)
SEGMENTS = (
    Segment(0, 1.5, " Who is\n\nthére?", (1, 2), 0.0, WHO, 0.125),
    Segment(1.5, 3723.04, " Tom. ", (3, 4), 1.25, TOM, 0.5),
)
LOGPROBS_TOO: dict[str, Any] = {"include[]": "logprobs"}
SOUND = tone(2.2)
TEXT = "Who is\n\nthére? Tom."
LOGPROBS = [
    {"token": token.text, "bytes": list(token.text.encode()), "logprob": token.logprob} for token in (*WHO, *TOM)
]


def hear(task: PreparedTask[Speech]) -> Outcome:
    return Outcome(Transcribed(task.work.hearing.language or "en", 2.2, SEGMENTS), task.units)


@pytest.fixture(scope="module")
async def module_run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    data_dir = tmp_path_factory.mktemp("data")
    model = ModelSettings(WHISPER, "nowhere", kind="transcription", price=Price(input_per_1k=1_000_000))
    async with running(data_dir, models=(*settings(data_dir).models, model), max_form_bytes=200_000) as run:
        run.tasks[WHISPER].script = hear
        yield run


@pytest.fixture
def run(module_run: Running) -> Running:
    module_run.play()
    engine = module_run.tasks[WHISPER]
    engine.gate = None
    engine.asked.clear()
    engine.endings.clear()
    return module_run


async def ask(run: Running, path: str = PATH, file: bytes = SOUND, **fields: Any) -> httpx.Response:  # noqa: ANN401
    return await run.client.post(path, data=fields, files={"file": ("a.wav", file)})


@pytest.mark.parametrize("path", [PATH, "/api/openai/v1/audio/transcriptions"])
async def test_what_is_said_and_what_it_costs(run: Running, path: str) -> None:
    response = await ask(run, path, model=WHISPER, language="de", prompt="Tom", temperature="0.5")
    assert response.json() == {"text": TEXT, "usage": {"seconds": 3, "type": "duration"}}
    (task,) = run.tasks[WHISPER].asked
    assert task.work.hearing == Hearing("de", "Tom", 0.5)
    assert (run.used, run.open_holds) == (3 * 1000, 0)


FORMATS = {
    "text": ("text/plain; charset=utf-8", f"{TEXT}\n"),
    "srt": (
        "application/x-subrip",
        "1\n00:00:00,000 --> 00:00:01,500\nWho is thére?\n\n2\n00:00:01,500 --> 01:02:03,040\nTom.\n\n",
    ),
    "vtt": (
        "text/vtt",
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nWho is thére?\n\n00:00:01.500 --> 01:02:03.040\nTom.\n\n",
    ),
}


@pytest.mark.parametrize("form", FORMATS)
async def test_texts_and_subtitles(run: Running, form: str) -> None:
    response = await ask(run, response_format=form)
    assert (response.headers["content-type"], response.text) == FORMATS[form]
    assert run.tasks[WHISPER].asked[0].work.hearing == Hearing(timestamps=form != "text")


async def test_verbose_json_has_segments(run: Running) -> None:
    asked: dict[str, Any] = {"response_format": "verbose_json", "timestamp_granularities[]": "segment"}
    told = (await ask(run, **asked)).json()
    assert {key: told[key] for key in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "en",
        "duration": 2.2,
        "text": TEXT,
    }
    assert run.tasks[WHISPER].asked[0].work.hearing == Hearing(timestamps=True, logprobs=True, no_speech=True)
    text = " Who is\n\nthére?"
    first = {"id": 0, "seek": 0, "start": 0, "end": 1.5, "text": text, "tokens": [1, 2], "temperature": 0}
    sure = {"avg_logprob": -1.0, "no_speech_prob": 0.125}
    ratio = len(text.encode()) / len(zlib.compress(text.encode()))
    assert told["segments"][0] == first | sure | {"compression_ratio": ratio}
    assert (len(told["segments"]), told["segments"][1]["seek"], told["segments"][1]["id"]) == (2, 125, 1)


async def test_a_ratio_tells_repetition(run: Running) -> None:
    said = replace(SEGMENTS[0], text=" Tom." * 100)
    run.tasks[WHISPER].script = lambda task: Outcome(Transcribed("en", 2.2, (said,)), task.units)
    told = (await ask(run, response_format="verbose_json")).json()
    run.tasks[WHISPER].script = hear
    assert told["segments"][0]["compression_ratio"] > 2.4


async def test_logprobs_are_included(run: Running) -> None:
    told = (await ask(run, **LOGPROBS_TOO)).json()
    assert told == {"text": TEXT, "logprobs": LOGPROBS, "usage": {"seconds": 3, "type": "duration"}}
    assert run.tasks[WHISPER].asked[0].work.hearing == Hearing(logprobs=True)


@pytest.mark.parametrize("language", ["", " DE "])
async def test_a_language_may_be_empty_or_in_capitals(run: Running, language: str) -> None:
    await ask(run, language=language)
    assert run.tasks[WHISPER].asked[0].work.hearing.language == (language.strip().lower() or None)


def events_of(told: str) -> list[dict[str, Any]]:
    """The events of a stream that ended well."""
    *frames, last, nothing = told.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


async def test_events(run: Running) -> None:
    response = await ask(run, stream="true")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events_of(response.text) == [
        {"type": "transcript.text.delta", "delta": "Who is\n\nthére?"},
        {"type": "transcript.text.delta", "delta": " Tom."},
        {"type": "transcript.text.done", "text": TEXT, "usage": {"seconds": 3, "type": "duration"}},
    ]
    assert (run.used, run.open_holds) == (3 * 1000, 0)


async def test_events_with_logprobs(run: Running) -> None:
    *deltas, done = events_of((await ask(run, stream="true", **LOGPROBS_TOO)).text)
    assert [token for delta in deltas for token in delta["logprobs"]] == done["logprobs"] == LOGPROBS


@given(st.lists(st.text(alphabet=" \n\tab\u00a0")))
def test_deltas_together_are_the_text(texts: list[str]) -> None:
    """Whatever the pieces are; none is empty, and none that can be told waits."""
    events = Events(TranscriptionRequest(file="", stream=True), lambda error: b"")
    told = ""
    for text in texts:
        if frame := events.tell(Heard(text, 1)):
            delta = json.loads(frame.removeprefix(b"data: "))["delta"]
            assert delta
            told += delta
    assert told == "".join(texts).strip()


def behind_the_first_piece(act: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A gate of an engine, which acts when the first piece was told."""
    calls = itertools.count()

    async def gate() -> None:
        if next(calls) == 1:
            await act()

    return gate


@asynccontextmanager
async def streaming(run: Running) -> AsyncIterator[httpx.Response]:
    """A stream as it comes over a socket."""
    async with listening(run.service) as (host, port), httpx.AsyncClient(headers=bearer(KEY)) as client:
        url = f"http://{host}:{port}{PATH}"
        async with client.stream("POST", url, data={"stream": "true"}, files={"file": SOUND}) as response:
            yield response


async def test_a_delta_comes_before_the_rest_is_heard(run: Running) -> None:
    door, engine = Door(), run.tasks[WHISPER]
    engine.gate = behind_the_first_piece(door.wait)
    async with streaming(run) as response:
        lines = response.aiter_lines()
        assert json.loads((await anext(lines)).removeprefix("data: "))["delta"] == "Who is\n\nthére?"
        assert (engine.endings, run.open_holds) == ([], 1)
        door.opened.set()
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
    assert engine.endings == ["finished"]


async def test_a_client_that_goes_ends_it_and_pays_what_it_was_told(run: Running) -> None:
    engine = run.tasks[WHISPER]
    engine.gate = behind_the_first_piece(Door().wait)
    async with streaming(run) as response:
        await anext(response.aiter_lines())
        await response.aclose()
        await until(lambda: engine.endings == ["aborted"] and run.open_holds == 0)
    assert run.used == 1000


@pytest.mark.parametrize("path", [PATH, "/textgen/v1/audio/transcriptions"])
async def test_an_engine_that_fails_behind_the_first_delta_ends_the_stream_with_an_error(
    run: Running, path: str
) -> None:

    async def fail() -> None:
        raise EngineFailed("It broke.")

    run.tasks[WHISPER].gate = behind_the_first_piece(fail)
    response = await ask(run, path, stream="true")
    delta, error, nothing = response.text.split("\n\n")
    assert "Who is" in delta
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "It broke."
    assert (response.status_code, nothing, run.used) == (200, "", 1000)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": "maybe"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"include[]": "logprobs", "response_format": "verbose_json"}, "include"),
        ({"include[]": "words"}, "include"),
        ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"timestamp_granularities[]": "segment"}, "timestamp_granularities"),
        ({"language": "x" * 17}, "language"),
        ({"file": b"no sound"}, "file"),
    ],
)
async def test_bad_input_names_its_field(run: Running, fields: dict[str, Any], param: str) -> None:
    response = await ask(run, **fields)
    assert (response.status_code, response.json()["error"]["param"].split("[")[0]) == (400, param)
    assert (run.used, run.open_holds, run.tasks[WHISPER].asked) == (0, 0, [])


@pytest.mark.parametrize("name", ["file", "model"])
async def test_a_form_without_a_file(run: Running, name: str) -> None:
    response = await run.client.post(PATH, files={name: (None, "a.wav")})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")


async def test_a_form_over_the_limit(run: Running) -> None:
    response = await ask(run, file=b"x" * 200_001)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


async def test_a_model_of_another_kind(run: Running) -> None:
    assert (await ask(run, model=SM)).status_code == 404
