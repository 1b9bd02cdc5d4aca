"""The Python package `openai` sends speech that espeak-ng made to a Whisper of random weights.

What is heard means nothing. That speech is taken, short and long, told in every form and paid for by the second does.
"""

import math
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from serving.settings import DEMO_MODEL_DIR
from tests.end_to_end.conftest import MODEL, ServerProcess, ended, start, wait_ready
from tests.tiny import make_whisper

WHISPER = "whisper"
CONFIG = f"""
[[models]]
id = "{MODEL}"
path = "{DEMO_MODEL_DIR}"
template = "chatml-text"

[[models]]
id = "{WHISPER}"
path = "whisper"
kind = "transcription"
price = {{ input_per_1k = 1_000_000 }}
engine = {{ kv_cache_memory_bytes = 67_108_864 }}
"""
TEXTS = ("Who is there?", "The ship was lost for seven years. " * 16)


@pytest.fixture(scope="module")
def whisper() -> Iterator[ServerProcess]:
    with tempfile.TemporaryDirectory() as folder:
        make_whisper(Path(folder) / "whisper")
        config = Path(folder) / "serving.toml"
        config.write_text(CONFIG)
        server = start(["-m", "serving", "serve", "--config", str(config)], Path(folder))
        try:
            wait_ready(server)
            yield server
        finally:
            ended(server)


def speech(folder: Path, text: str) -> tuple[Path, float]:
    """A wav file of spoken text, and how many seconds it lasts."""
    path = folder / "speech.wav"
    subprocess.run(["espeak-ng", "-v", "en", "-w", str(path), text], check=True, timeout=60)
    with wave.open(str(path)) as file:
        return path, file.getnframes() / file.getframerate()


@pytest.mark.parametrize("text", TEXTS, ids=["short", "longer than a window"])
def test_speech_is_transcribed_and_paid_by_the_second(whisper: ServerProcess, tmp_path: Path, text: str) -> None:
    path, seconds = speech(tmp_path, text)
    assert (seconds > 30) == (text == TEXTS[1])
    series = f'serving_task_units_total{{model="{WHISPER}"}}'
    with whisper.client() as client:
        plain = client.audio.transcriptions.create(model=WHISPER, file=path, language="en")
        before = whisper.metric(series)
        told = client.audio.transcriptions.create(model=WHISPER, file=path, response_format="verbose_json")
        assert whisper.metric(series) - before == math.ceil(seconds)
        assert told.duration == pytest.approx(seconds, abs=0.05)
        assert all(0 <= part.start <= part.end <= seconds + 0.05 for part in told.segments or ())
        assert client.audio.transcriptions.create(model=WHISPER, file=path, response_format="vtt").startswith("WEBVTT")
        events = list(client.audio.transcriptions.create(model=WHISPER, file=path, language="en", stream=True))
        assert events[-1].type == "transcript.text.done"
        assert events[-1].text == plain.text


def test_what_is_no_sound_is_refused(whisper: ServerProcess) -> None:
    with whisper.client() as client, pytest.raises(openai.BadRequestError) as told:
        client.audio.transcriptions.create(model=WHISPER, file=("a.mp3", b"no sound"))
    assert told.value.param == "file"
