"""A real Whisper engine. Its weights are random: what it says means nothing, and that it is the model's own does."""

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from serving.core.tasks import PreparedTask, Speech, Transcribed
from serving.engine.transcription import Transcriber
from serving.errors import EngineFailed, InvalidRequest
from serving.prompting.audio import RATE_HZ, cut, decode
from tests.conftest import ENGINE
from tests.sound import tone
from tests.tiny import make_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
async def engine(folder: Path) -> AsyncIterator[Transcriber]:
    engine = await Transcriber.load(str(folder), engine=ENGINE | {"dtype": "float32"})
    yield engine
    await engine.shutdown()
    with pytest.raises(EngineFailed):
        await engine.perform(ask(1))


def ask(seconds: float, **fields: Any) -> PreparedTask[Speech]:  # noqa: ANN401  # those of Speech
    windows = tuple(cut(decode(io.BytesIO(tone(seconds)))))
    return PreparedTask("r", Speech(windows, RATE_HZ, **{"language": "en", **fields}), units=int(seconds))


async def said(engine: Transcriber, task: PreparedTask[Speech]) -> Transcribed:
    outcome = await engine.perform(task)
    assert outcome.units == task.units
    assert isinstance(outcome.result, Transcribed)
    return outcome.result


async def test_it_says_what_the_model_says(engine: Transcriber, folder: Path) -> None:
    task = ask(3)
    told = await said(engine, task)
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    sound = np.frombuffer(task.work.windows[0], dtype=np.float32)
    features = processor(sound, sampling_rate=RATE_HZ, return_tensors="pt").input_features
    names = ("startoftranscript", "en", "transcribe", "notimestamps")
    ids = torch.tensor([processor.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])])
    with torch.no_grad():
        for _ in range(20):
            logits = model(input_features=features, decoder_input_ids=ids).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    end = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    words = [token_id for token_id in ids[0, 4:].tolist() if token_id < end]
    heard = [token_id for segment in told.segments for token_id in segment.token_ids]
    assert heard[: len(words)] == words
    assert told.duration_s == pytest.approx(3, abs=0.01)


async def test_segments_follow_each_other_within_the_sound(engine: Transcriber) -> None:
    told = await said(engine, ask(33, timestamps=True))
    assert told.duration_s == pytest.approx(33, abs=0.01)
    ends = [0.0]
    for segment in told.segments:
        assert ends[-1] <= segment.start_s <= segment.end_s <= 33.01
        ends.append(segment.end_s)


async def test_the_language_is_found_out(engine: Transcriber) -> None:
    assert (await said(engine, ask(1, language=None))).language in ("en", "de")


@pytest.mark.parametrize("prompt", ["Tom and Mara", "<|endoftext|><|0.00|> a", "word " * 1000])
async def test_any_text_may_stand_before(engine: Transcriber, prompt: str) -> None:
    assert (await said(engine, ask(1, prompt=prompt))).duration_s == pytest.approx(1, abs=0.01)


async def test_a_language_that_it_does_not_know(engine: Transcriber) -> None:
    with pytest.raises(InvalidRequest, match="de, en") as told:
        await engine.perform(ask(1, language="xx"))
    assert told.value.param == "language"


async def test_a_cancelled_task_leaves_nothing_to_do(engine: Transcriber) -> None:
    task = ask(20)
    running = asyncio.create_task(engine.perform(replace(task, work=replace(task.work, windows=task.work.windows * 9))))
    async with asyncio.timeout(60):
        while not engine.unfinished:  # noqa: ASYNC110  # nothing else tells that the engine has begun
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.unfinished == 0
