"""Sounds that tests make for themselves, as wav files."""

import io
import wave
from array import array
from math import pi, sin


def tone(seconds: float, *, rate_hz: int = 16_000, channels: int = 1, loud: float = 0.5) -> bytes:
    """A wav file of a tone of 440 Hz."""
    samples = array("h")
    for at in range(round(seconds * rate_hz)):
        samples.extend([round(32_767 * loud * sin(2 * pi * 440 * at / rate_hz))] * channels)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(samples.tobytes())
    return file.getvalue()
