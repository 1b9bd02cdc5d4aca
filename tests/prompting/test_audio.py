"""Files of sound -> windows of samples."""

import io
from array import array
from pathlib import Path

import pytest

from serving.core.tasks import Hearing, Speech, TaskRequest, Transcribe
from serving.errors import InvalidRequest
from serving.prompting.audio import MOST_S, RATE_HZ, cut, decode, prepare
from tests.sound import tone


@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_a_sound_is_one_channel_of_its_length(rate_hz: int, channels: int) -> None:
    samples = decode(io.BytesIO(tone(2, rate_hz=rate_hz, channels=channels)))
    assert len(samples) == pytest.approx(2 * RATE_HZ, abs=50)
    assert 0.48 < max(samples) < 0.72  # two channels that say the same are louder as one


def test_a_file_can_be_read_again() -> None:
    file = io.BytesIO(tone(1))
    assert decode(file) == decode(file)


async def test_units_are_seconds_and_a_begun_one_counts() -> None:
    hearing = Hearing("en", "before", 0.5, timestamps=True)
    prepared = await prepare(TaskRequest("r", "m", Transcribe(io.BytesIO(tone(2.2)), hearing)))
    (window,) = prepared.work.windows
    assert prepared.work == Speech((window,), RATE_HZ, hearing)
    assert (prepared.units, prepared.request_id) == (3, "r")


def test_a_long_sound_is_cut_where_it_is_quiet() -> None:
    samples = array("f", [0.5]) * (70 * RATE_HZ)
    quiet = range(29 * RATE_HZ, 29 * RATE_HZ + RATE_HZ // 10)
    for at in quiet:
        samples[at] = 0.0
    windows = cut(samples)
    assert len(windows[0]) in quiet
    assert [len(window) <= 30 * RATE_HZ for window in windows] == [True] * 3
    assert sum(windows, array("f")) == samples


def playlist(tmp_path: Path) -> bytes:
    """What makes FFmpeg open another file."""
    (tmp_path / "secret.wav").write_bytes(tone(1))
    return f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n".encode()


def stream_list(tmp_path: Path) -> bytes:
    (tmp_path / "secret.wav").write_bytes(tone(1))
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n".encode()


@pytest.mark.parametrize("make", [playlist, stream_list])
def test_a_file_that_names_others_opens_none(tmp_path: Path, make: object) -> None:
    assert callable(make)
    with pytest.raises(InvalidRequest) as told:
        decode(io.BytesIO(make(tmp_path)))
    assert told.value.param == "file"


@pytest.mark.parametrize("content", [b"", b"xyzzy" * 1000, tone(1)[:40], tone(0)])
def test_what_holds_no_sound_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="no sound") as told:
        decode(io.BytesIO(content))
    assert told.value.param == "file"


def test_more_than_half_an_hour_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="longer than 30 minutes"):
        decode(io.BytesIO(tone(MOST_S + 2, rate_hz=100)))
