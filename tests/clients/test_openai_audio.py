"""The Python package `openai` sends speech that espeak-ng made to a Whisper whose weights are random.

What is heard means nothing. That speech is taken, short and long, told in every form and paid for by the second does.
"""

import math
import subprocess
import wave
from pathlib import Path

import openai
import pytest

from tests.clients.conftest import WHISPER
from tests.end_to_end.conftest import ServerProcess

TEXTS = ("Who is there?", "The ship was lost for seven years. " * 16)


def speech(folder: Path, text: str) -> tuple[Path, float]:
    """A wav file of spoken text, and how many seconds it lasts."""
    path = folder / "speech.wav"
    subprocess.run(["espeak-ng", "-v", "en", "-w", str(path), text], check=True, timeout=60)
    with wave.open(str(path)) as file:
        return path, file.getnframes() / file.getframerate()


@pytest.mark.parametrize("text", TEXTS, ids=["short", "longer than a window"])
def test_speech_is_transcribed_and_paid_by_the_second(tasks: ServerProcess, tmp_path: Path, text: str) -> None:
    path, seconds = speech(tmp_path, text)
    assert (seconds > 30) == (text == TEXTS[1])
    series = f'serving_task_units_total{{model="{WHISPER}"}}'
    with tasks.client() as client:
        plain = client.audio.transcriptions.create(model=WHISPER, file=path, language="en")
        before = tasks.metric(series)
        told = client.audio.transcriptions.create(model=WHISPER, file=path, response_format="verbose_json")
        assert tasks.metric(series) - before == math.ceil(seconds)
        assert told.duration == pytest.approx(seconds, abs=0.05)
        assert all(0 <= part.start <= part.end <= seconds + 0.05 for part in told.segments or ())
        assert client.audio.transcriptions.create(model=WHISPER, file=path, response_format="vtt").startswith("WEBVTT")
        events = list(client.audio.transcriptions.create(model=WHISPER, file=path, language="en", stream=True))
        *deltas, done = events
        assert done.type == "transcript.text.done"
        assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == done.text
        assert (done.text, len(deltas) > 1) == (plain.text, True)


def test_what_is_no_sound_is_refused(tasks: ServerProcess) -> None:
    with tasks.client() as client, pytest.raises(openai.BadRequestError) as told:
        client.audio.transcriptions.create(model=WHISPER, file=("a.mp3", b"no sound"))
    assert told.value.param == "file"


def test_times_of_words_are_refused(tasks: ServerProcess, tmp_path: Path) -> None:
    path, _ = speech(tmp_path, TEXTS[0])
    with tasks.client() as client, pytest.raises(openai.BadRequestError, match="times of words") as told:
        client.audio.transcriptions.create(
            model=WHISPER, file=path, response_format="verbose_json", timestamp_granularities=["word"]
        )
    assert told.value.param == "timestamp_granularities"
