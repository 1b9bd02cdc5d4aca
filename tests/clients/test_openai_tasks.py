"""The official client, against a real server process, where there is no token stream."""

import base64
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.conftest import CLASSIFIER, EMBEDDER, PAINTER, WHISPER
from tests.end_to_end.conftest import MODEL, ServerProcess
from tests.painter import DOT
from tests.sound import tone
from tests.tiny import CONTEXT_TOKENS, DIMENSIONS

PER_UNIT = 1000
"""Microcredits of a token, of every model here."""


@pytest.fixture(scope="module")
def client(tasks: ServerProcess) -> Iterator[openai.OpenAI]:
    with tasks.client() as client:
        yield client


class Charged:
    """What a model's requests cost, by the server's own books, since this was made."""

    def __init__(self, server: ServerProcess, model: str) -> None:
        self._series = [
            f'{name}_total{{model="{model}"}}' for name in ("serving_task_units", "serving_charged_microcredits")
        ]
        self._server = server
        self._before = self._now()

    def _now(self) -> list[float]:
        return [self._server.metric(series) for series in self._series]

    def assert_units(self, units: int, price: int = PER_UNIT) -> None:
        assert [now - before for now, before in zip(self._now(), self._before, strict=True)] == [
            units,
            units * price,
        ]


def test_embeddings(client: openai.OpenAI, tasks: ServerProcess) -> None:
    """The client asks for base64 by itself, and decodes it."""
    client.embeddings.create(model=EMBEDDER, input="warm")
    charged = Charged(tasks, EMBEDDER)
    told = client.embeddings.create(model=EMBEDDER, input=["the ship", "the sea", "the ship"])
    first, second, third = (row.embedding for row in told.data)
    assert len(first) == DIMENSIONS
    assert sum(number * number for number in first) == pytest.approx(1, abs=1e-2)
    assert first == pytest.approx(third, abs=1e-3)
    assert first != pytest.approx(second, abs=1e-2)
    assert told.usage.prompt_tokens == told.usage.total_tokens == 9 + 8 + 9
    charged.assert_units(told.usage.total_tokens)


def test_embeddings_as_numbers_and_of_token_ids(client: openai.OpenAI) -> None:
    ids = [2, 23, 11, 3]
    told: Any = client.embeddings.create(model=EMBEDDER, input=[ids, ids[::-1]], encoding_format="float")
    assert [len(row.embedding) for row in told.data] == [DIMENSIONS, DIMENSIONS]
    assert told.usage.prompt_tokens == 8


def test_a_text_that_is_too_long_and_dimensions_it_cannot_have(client: openai.OpenAI, tasks: ServerProcess) -> None:
    charged = Charged(tasks, EMBEDDER)
    with pytest.raises(openai.BadRequestError) as told:
        client.embeddings.create(model=EMBEDDER, input="a " * CONTEXT_TOKENS)
    assert (told.value.param, told.value.code) == ("input", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as told:
        client.embeddings.create(model=EMBEDDER, input="a", dimensions=16)
    assert told.value.param == "dimensions"
    charged.assert_units(0)


def test_moderations(client: openai.OpenAI, tasks: ServerProcess) -> None:
    """The weights are random: what is flagged means nothing, and how it is told does."""
    client.moderations.create(model=CLASSIFIER, input="warm")
    charged = Charged(tasks, CLASSIFIER)
    told = client.moderations.create(model=CLASSIFIER, input=["the ship", "the sea"])
    assert len(told.results) == 2
    for result in told.results:
        scores = result.category_scores
        assert 0 < scores.harassment + scores.violence_graphic < 1
        assert (scores.hate, result.categories.hate, result.category_applied_input_types.hate) == (0, False, [])
        assert result.categories.harassment == (scores.harassment >= 0.9)
        assert result.flagged == (result.categories.harassment or result.categories.violence_graphic)
    charged.assert_units(9 + 8)


def test_transcriptions(client: openai.OpenAI, tasks: ServerProcess) -> None:
    """The weights are random but for what is heard, which means nothing; its forms and its price do."""
    sound = ("tone.wav", tone(2.2))
    told = client.audio.transcriptions.create(model=WHISPER, file=sound, language="en")
    charged = Charged(tasks, WHISPER)
    assert client.audio.transcriptions.create(model=WHISPER, file=sound, language="en").text == told.text
    text = client.audio.transcriptions.create(model=WHISPER, file=sound, language="en", response_format="text")
    assert text == f"{told.text}\n"
    verbose = client.audio.transcriptions.create(
        model=WHISPER, file=sound, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert verbose.duration == pytest.approx(2.2, abs=0.01)
    assert (verbose.language, verbose.text) == ("de", told.text)
    assert verbose.segments
    for number, part in enumerate(verbose.segments):
        assert (part.id, part.seek, part.temperature) == (number, 0, 0)
        assert 0 <= part.start <= part.end <= 2.21
        assert (part.avg_logprob < 0 < part.compression_ratio, 0 < part.no_speech_prob < 1) == (True, True)
    subtitles = client.audio.transcriptions.create(model=WHISPER, file=sound, response_format="vtt")
    assert subtitles.startswith("WEBVTT\n\n")
    events = list(client.audio.transcriptions.create(model=WHISPER, file=sound, language="en", stream=True))
    *deltas, done = events
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == done.text == told.text
    sure = client.audio.transcriptions.create(model=WHISPER, file=sound, language="en", include=["logprobs"])
    assert "".join(token.token or "" for token in sure.logprobs or ()).strip() == sure.text == told.text
    charged.assert_units(6 * 3)


def test_images(client: openai.OpenAI, tasks: ServerProcess) -> None:
    """The image server is a small one of the tests, which paints one dot."""
    client.images.generate(model=PAINTER, prompt="a ship")
    charged = Charged(tasks, PAINTER)
    told = client.images.generate(model=PAINTER, prompt="a ship", n=2, size="512x512", response_format="b64_json")
    assert told.data
    assert [base64.b64decode(image.b64_json or "") for image in told.data] == [DOT, DOT]
    charged.assert_units(2, 160_000)
    told = client.images.generate(model=PAINTER, prompt="a ship", response_format="url")
    assert told.data
    assert (told.data[0].url or "").startswith("data:image/png;base64,")
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model=PAINTER, prompt="a ship", size="1024x1024")
    assert refused.value.param == "size"


def test_models_that_generate_come_first(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed[0] == MODEL
    assert listed[-4:] == [EMBEDDER, CLASSIFIER, WHISPER, PAINTER]
