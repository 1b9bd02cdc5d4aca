"""A real Whisper engine. Its weights are random but for what it says: that this is the model's own is what matters."""

import asyncio
import io
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from serving.core.tasks import Heard, Hearing, PreparedTask, Segment, Speech, Transcribed
from serving.engine.base import OnHeard
from serving.engine.transcription import Transcriber
from serving.errors import EngineFailed, InvalidRequest
from serving.prompting.audio import RATE_HZ, cut, decode
from tests.conftest import ENGINE
from tests.service import Door
from tests.sound import tone
from tests.tiny import make_whisper

STARTS = ("startoftranscript", "en", "transcribe")
TEXT = " Hié Tom."


class Reference:
    """What transformers makes of the same sounds with the same weights."""

    def __init__(self, folder: Path) -> None:
        self.processor: Any = WhisperProcessor.from_pretrained(folder)
        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder)

    @cached_property
    def end(self) -> int:
        (end,) = self.ids("endoftext")
        return end

    def ids(self, *names: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
        return ids

    def text_ids(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def logprobs(self, task: PreparedTask[Speech], ids: list[int]) -> torch.Tensor:
        """Of every token behind these, in the first window."""
        sound = np.frombuffer(task.work.windows[0], dtype=np.float32)
        features = self.processor(sound, sampling_rate=RATE_HZ, return_tensors="pt").input_features
        with torch.no_grad():
            logits = self.model(input_features=features, decoder_input_ids=torch.tensor([ids])).logits
        return logits[0, -1].log_softmax(-1)

    def said(self, task: PreparedTask[Speech], ids: list[int]) -> Iterator[tuple[int, float]]:
        """The likeliest tokens of text behind these, and their logprobs."""
        while ids[-1] != self.end:
            logprobs = self.logprobs(task, ids)
            ids = [*ids, int(logprobs.argmax())]
            if ids[-1] < self.end:
                yield ids[-1], float(logprobs[ids[-1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@asynccontextmanager
async def loaded(folder: Path) -> AsyncIterator[Transcriber]:
    engine = await Transcriber.load(str(folder), engine=ENGINE | {"dtype": "float32"})
    try:
        yield engine
    finally:
        await engine.shutdown()


@pytest.fixture(scope="module")
async def engine(folder: Path) -> AsyncIterator[Transcriber]:
    async with loaded(folder) as engine:
        yield engine
    with pytest.raises(EngineFailed):
        await engine.perform(ask(1))


def ask(seconds: float, **fields: Any) -> PreparedTask[Speech]:  # noqa: ANN401  # those of Hearing
    windows = tuple(cut(decode(io.BytesIO(tone(seconds)))))
    return PreparedTask("r", Speech(windows, RATE_HZ, Hearing(**{"language": "en", **fields})), units=int(seconds))


async def said(engine: Transcriber, task: PreparedTask[Speech], on_heard: OnHeard | None = None) -> Transcribed:
    outcome = await engine.perform(task, on_heard)
    assert outcome.units == task.units
    assert isinstance(outcome.result, Transcribed)
    return outcome.result


async def test_it_says_what_the_model_says_and_how_sure_it_is(engine: Transcriber, reference: Reference) -> None:
    task = ask(3, logprobs=True)
    told = await said(engine, task)
    expected = list(reference.said(task, reference.ids(*STARTS, "notimestamps")))
    (segment,) = told.segments
    assert segment.token_ids == tuple(token_id for token_id, _ in expected) == tuple(reference.text_ids(TEXT))
    assert [token.token_id for token in segment.logprobs] == list(segment.token_ids)
    assert [token.logprob for token in segment.logprobs] == pytest.approx([value for _, value in expected], abs=1e-3)
    assert "".join(token.text for token in segment.logprobs) == segment.text == TEXT
    assert (segment.start_s, segment.end_s, told.duration_s) == (0, 3, 3)


@pytest.mark.parametrize("prompt", [None, "Tom"])
async def test_how_likely_there_is_no_speech(engine: Transcriber, reference: Reference, prompt: str | None) -> None:
    task = ask(3, no_speech=True, prompt=prompt)
    told = await said(engine, task)
    before = [*reference.ids("startofprev"), *reference.text_ids(" Tom")] if prompt else []
    logprobs = reference.logprobs(task, [*before, *reference.ids("startoftranscript")])
    (no_speech,) = reference.ids("nospeech")
    (segment,) = told.segments
    assert segment.no_speech == pytest.approx(float(logprobs[no_speech].exp()), rel=1e-3)


async def test_segments_have_the_times_that_the_model_says(engine: Transcriber) -> None:
    told = await said(engine, ask(3, timestamps=True))
    assert [(segment.start_s, segment.end_s, segment.text) for segment in told.segments] == [
        (0, 0.5, " Hié"),
        (0.5, 1.2, " Tom."),
    ]
    assert [len(segment.token_ids) for segment in told.segments] == [
        len(segment.text.encode()) for segment in told.segments
    ]
    assert [(segment.logprobs, segment.no_speech) for segment in told.segments] == [((), None)] * 2


async def test_segments_follow_each_other_within_the_sound(engine: Transcriber) -> None:
    task = ask(63, timestamps=True)
    told = await said(engine, task)
    assert told.duration_s == pytest.approx(63, abs=0.01)
    ends = [0.0]
    for segment in told.segments:
        assert ends[-1] <= segment.start_s <= segment.end_s <= 63.01
        ends.append(segment.end_s)
    lengths = [len(window) / RATE_HZ for window in task.work.windows]
    assert sorted({segment.window_s for segment in told.segments}) == [0, lengths[0], lengths[0] + lengths[1]]


async def test_the_language_is_the_likeliest(engine: Transcriber, reference: Reference) -> None:
    task = ask(1, language=None)
    logprobs = reference.logprobs(task, reference.ids("startoftranscript"))
    known = dict(zip(("en", "de"), logprobs[reference.ids("en", "de")].tolist(), strict=True))
    assert (await said(engine, task)).language == max(known, key=known.__getitem__) == "de"


@pytest.mark.parametrize("prompt", ["Tom and Mara", "<|endoftext|><|0.00|> a", "word " * 1000])
async def test_any_text_may_stand_before(engine: Transcriber, prompt: str) -> None:
    assert (await said(engine, ask(1, prompt=prompt))).duration_s == pytest.approx(1, abs=0.01)


async def test_a_language_that_it_does_not_know(engine: Transcriber) -> None:
    with pytest.raises(InvalidRequest, match="de, en") as told:
        await engine.perform(ask(1, language="xx"))
    assert told.value.param == "language"


async def test_a_model_of_english_alone_is_asked_for_no_language(tmp_path: Path) -> None:
    folder = make_whisper(tmp_path, multilingual=False)
    reference = Reference(folder)
    async with loaded(folder) as engine:
        task = ask(1, language=None)
        told = await said(engine, task)
        expected = [
            token_id for token_id, _ in reference.said(task, reference.ids("startoftranscript", "notimestamps"))
        ]
        heard = [token_id for segment in told.segments for token_id in segment.token_ids]
        assert (told.language, heard) == ("en", expected)
        with pytest.raises(InvalidRequest, match=r"one of en\."):
            await engine.perform(ask(1, language="de"))


# ---- as it is heard --------------------------------------------------------------------------------------------------


async def test_a_window_is_told_before_the_next_is_heard(engine: Transcriber) -> None:
    """While the first piece is told nothing of the second window can be done: it is not even begun."""
    task, door = ask(33, logprobs=True), Door()
    units = math.ceil(len(task.work.windows[0]) / RATE_HZ)
    heard: list[Heard] = []

    async def on_heard(part: Heard) -> None:
        heard.append(part)
        await door.wait()

    running = asyncio.create_task(said(engine, task, on_heard))
    await door.knocked.wait()
    (first,) = heard
    assert (first.units, running.done()) == (units, False)
    door.opened.set()
    told = await running
    assert "".join(part.text for part in heard) == "".join(segment.text for segment in told.segments)
    assert sum((part.logprobs for part in heard), ()) == told.logprobs
    assert [part.units for part in heard] == sorted(part.units for part in heard)
    assert {part.units for part in heard} == {units, 33}
    assert by_window(told.segments) == {0: TEXT, told.segments[-1].window_s: told.segments[-1].text}
    assert told == await said(engine, task)


def by_window(segments: tuple[Segment, ...]) -> dict[float, str]:
    return {segment.window_s: segment.text for segment in segments}


async def test_who_cannot_be_told_ends_it(engine: Transcriber) -> None:
    async def on_heard(part: Heard) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await engine.perform(ask(33), on_heard)
    assert engine.unfinished == 0


@pytest.mark.parametrize("listens", [False, True])
async def test_a_cancelled_task_leaves_nothing_to_do(engine: Transcriber, listens: bool) -> None:
    async def on_heard(part: Heard) -> None:
        """Told, and not waited for."""

    task = ask(20)
    task = replace(task, work=replace(task.work, windows=task.work.windows * 9))
    running = asyncio.create_task(engine.perform(task, on_heard if listens else None))
    async with asyncio.timeout(60):
        while not engine.unfinished:  # noqa: ASYNC110  # nothing else tells that the engine has begun
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.unfinished == 0
