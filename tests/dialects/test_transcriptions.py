"""Transcriptions at OpenAI's address, over a scripted engine: forms, every format, and seconds that are paid."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.core import Price
from serving.core.tasks import Outcome, PreparedTask, Segment, Speech, Transcribed
from serving.settings import ModelSettings
from tests.service import SM, Running, running, settings
from tests.sound import tone

WHISPER = "tiny-whisper"
PATH = "/v1/audio/transcriptions"
SEGMENTS = (Segment(0, 1.5, " Who is\n\nthere?", (1, 2)), Segment(1.5, 3723.04, " Tom.", (3,)))
SOUND = tone(2.2)
TEXT = "Who is\n\nthere? Tom."


def hear(task: PreparedTask[Speech]) -> Outcome:
    return Outcome(Transcribed(task.work.language or "en", 2.2, SEGMENTS), task.units)


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
    module_run.tasks[WHISPER].asked.clear()
    return module_run


async def ask(run: Running, path: str = PATH, file: bytes = SOUND, **fields: Any) -> httpx.Response:  # noqa: ANN401
    return await run.client.post(path, data=fields, files={"file": ("a.wav", file)})


@pytest.mark.parametrize("path", [PATH, "/api/openai/v1/audio/transcriptions"])
async def test_what_is_said_and_what_it_costs(run: Running, path: str) -> None:
    response = await ask(run, path, model=WHISPER, language="de", prompt="Tom", temperature="0.5")
    assert response.json() == {"text": TEXT, "usage": {"seconds": 3, "type": "duration"}}
    (task,) = run.tasks[WHISPER].asked
    asked = task.work
    assert (asked.language, asked.prompt, asked.temperature, asked.timestamps) == ("de", "Tom", 0.5, False)
    assert (run.used, run.open_holds) == (3 * 1000, 0)


FORMATS = {
    "text": ("text/plain; charset=utf-8", f"{TEXT}\n"),
    "srt": (
        "application/x-subrip",
        "1\n00:00:00,000 --> 00:00:01,500\nWho is there?\n\n2\n00:00:01,500 --> 01:02:03,040\nTom.\n\n",
    ),
    "vtt": (
        "text/vtt",
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nWho is there?\n\n00:00:01.500 --> 01:02:03.040\nTom.\n\n",
    ),
}


@pytest.mark.parametrize("form", FORMATS)
async def test_texts_and_subtitles(run: Running, form: str) -> None:
    response = await ask(run, response_format=form)
    assert (response.headers["content-type"], response.text) == FORMATS[form]
    assert run.tasks[WHISPER].asked[0].work.timestamps == (form != "text")


async def test_verbose_json_has_segments(run: Running) -> None:
    asked: dict[str, Any] = {"response_format": "verbose_json", "timestamp_granularities[]": "segment"}
    told = (await ask(run, **asked)).json()
    assert {key: told[key] for key in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "en",
        "duration": 2.2,
        "text": TEXT,
    }
    first = {"id": 0, "start": 0, "end": 1.5, "text": " Who is\n\nthere?", "tokens": [1, 2], "temperature": 0}
    assert told["segments"][0] == first
    assert len(told["segments"]) == 2


async def test_events(run: Running) -> None:
    response = await ask(run, stream="true")
    assert response.headers["content-type"].startswith("text/event-stream")
    *frames, last, nothing = response.text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    events = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert [event["type"] for event in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(event["delta"] for event in events[:2]).strip() == events[2]["text"] == TEXT
    assert run.used == 3 * 1000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": "maybe"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
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
