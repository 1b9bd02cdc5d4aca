"""From a file of sound to what a Whisper model takes: samples, cut into windows of half a minute.

Decoding is FFmpeg's (PyAV): wav, mp3, ogg, flac, m4a, webm and more. It runs in a thread, and stops where a file is
longer than a request may be: a small file can hold hours.
"""

import asyncio
import math
from array import array
from typing import BinaryIO

from serving.core.tasks import PreparedTask, Speech, TaskRequest, Transcribe
from serving.errors import InvalidRequest

RATE_HZ = 16_000
MOST_S = 1800
_WINDOW = 30 * RATE_HZ
_SEARCHED = 2 * RATE_HZ
"""A window ends where it is quietest in its last so many samples, so that few words are cut."""
_QUIET = RATE_HZ // 10
_OPTIONS = {
    "format_whitelist": "aac,aiff,amr,caf,flac,matroska,webm,mov,mp4,m4a,mp3,mpeg,ogg,wav,w64",
    "protocol_whitelist": "none",
}
"""Lists of files to play are sounds to FFmpeg, too: a caller's must open no file of this machine, nor an address."""


async def prepare(request: TaskRequest[Transcribe]) -> PreparedTask[Speech]:
    """Its units are seconds, begun ones too. Raises InvalidRequest for what holds no sound, or too much."""
    samples = await asyncio.to_thread(decode, request.work.file)
    windows = tuple(await asyncio.to_thread(cut, samples))
    work = Speech(windows, RATE_HZ, request.work.hearing)
    return PreparedTask(request.request_id, work, units=math.ceil(len(samples) / RATE_HZ))


def decode(file: BinaryIO) -> "array[float]":
    """One channel of float32 samples at `RATE_HZ`, from the file's beginning. Raises InvalidRequest."""
    import av  # here: it takes FFmpeg with it, which only who transcribes needs

    samples = array("f")
    file.seek(0)  # it was read before where a plan changed meanwhile
    try:
        with av.open(file, mode="r", metadata_errors="ignore", options=_OPTIONS) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
            for frame in container.decode(audio=0):
                for part in resampler.resample(frame):
                    samples.frombytes(part.to_ndarray().tobytes())
                if len(samples) > MOST_S * RATE_HZ:
                    message = f"file is longer than {MOST_S // 60} minutes, the most of one request: send it in parts."
                    raise InvalidRequest(message, param="file")
            for part in resampler.resample(None):
                samples.frombytes(part.to_ndarray().tobytes())
    except (av.FFmpegError, IndexError, ValueError):
        raise InvalidRequest("file holds no sound that can be read.", param="file") from None
    if not samples:
        raise InvalidRequest("file holds no sound.", param="file")
    return samples


def cut(samples: "array[float]") -> list["array[float]"]:
    """Windows of at most half a minute that are all of the samples."""
    windows, start = [], 0
    while len(samples) - start > _WINDOW:
        end = start + _WINDOW
        tail = range(end - _SEARCHED, end - _QUIET + 1, _QUIET)
        quietest = min(tail, key=lambda at: sum(map(abs, samples[at : at + _QUIET])))
        end = quietest + _QUIET // 2
        windows.append(samples[start:end])
        start = end
    return [*windows, samples[start:]]
