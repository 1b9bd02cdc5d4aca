"""vLLM's Whisper in this process: what is said in a sound, behind the TaskEngine port.

The windows of a sound are done one after another, each with the end of the text before it as its context, as Whisper
does. vLLM's processes are `process`'s.

Importing this module imports vllm (about ten seconds): do it in a thread, as `registry.local_task` does.
"""

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.core.tasks import Outcome, PreparedTask, Segment, Speech, Transcribed
from serving.engine.process import VllmProcess
from serving.errors import EngineFailed, InvalidRequest

_STEP_S = 0.02
"""From one timestamp token to the next."""
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class Transcriber(VllmProcess):
    """One Whisper model."""

    async def _warm_up(self) -> None:
        if "transcription" not in await self._llm.get_supported_tasks():
            raise ValueError("the model cannot transcribe")
        fast = self._llm.get_tokenizer()
        self._tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        languages = {match[1]: id_ for token, id_ in vocabulary.items() if (match := _LANGUAGE.fullmatch(token))}
        self._languages = languages
        self._ids = {name: vocabulary[f"<|{name}|>"] for name in _NEEDED}
        silence = array("f", bytes(4 * 1600))
        await self.perform(PreparedTask("warm-up", Speech((silence,), 16_000, next(iter(languages))), 1))

    async def perform(self, task: PreparedTask[Speech]) -> Outcome:
        """What is said. Raises InvalidRequest, EngineFailed, Overloaded."""
        self._open()
        asked = task.work
        if asked.language is not None and asked.language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise InvalidRequest(f"language must be one of {known}.", param="language")
        language = asked.language or await self._language(task)
        segments: list[Segment] = []
        start_s, before = 0.0, self._text_ids(asked.prompt or "")
        for window in asked.windows:
            ids = await self._window(task, window, language, before)
            length_s = len(window) / asked.rate_hz
            made = list(self._segments(ids, start_s, length_s))
            segments += made
            start_s += length_s
            before = [token_id for token_id in ids if token_id < self._ids["endoftext"]]
        return Outcome(Transcribed(language, start_s, tuple(segments)), task.units)

    async def _language(self, task: PreparedTask[Speech]) -> str:
        """The likeliest language of the first window."""
        params = SamplingParams(temperature=0.0, max_tokens=1, allowed_token_ids=list(self._languages.values()))
        (told,) = await self._ask(task, task.work.windows[0], [self._ids["startoftranscript"]], params)
        return next(language for language, token_id in self._languages.items() if token_id == told)

    async def _window(
        self, task: PreparedTask[Speech], window: "array[float]", language: str, before: Sequence[int]
    ) -> list[int]:
        """Token ids of one window, its end of text left out."""
        context = self._llm.model_config.max_model_len
        ids = [self._ids["startofprev"], *before[-(context // 2 - 1) :]] if before else []
        ids += [self._ids["startoftranscript"], self._languages[language], self._ids["transcribe"]]
        if not task.work.timestamps:
            ids.append(self._ids["notimestamps"])
        params = SamplingParams(temperature=task.work.temperature, max_tokens=context - len(ids))
        told = await self._ask(task, window, ids, params)
        return [token_id for token_id in told if token_id != self._ids["endoftext"]]

    async def _ask(
        self, task: PreparedTask[Speech], window: "array[float]", ids: list[int], params: SamplingParams
    ) -> list[int]:
        params.output_kind = RequestOutputKind.FINAL_ONLY
        sound = (np.frombuffer(window, dtype=np.float32), task.work.rate_hz)
        encoder = {"prompt": "", "multi_modal_data": {"audio": sound}}
        prompt: Any = {"encoder_prompt": encoder, "decoder_prompt": {"prompt_token_ids": ids}}
        with self._asking(_invalid):
            # The spectrum is computed in vLLM's own thread, and not on the event loop.
            parsed = parse_model_prompt(self._llm.model_config, prompt)
            (rendered,) = await self._llm.renderer.render_cmpl_async([parsed])
            async for output in self._llm.generate(rendered, params, request_id=self._id(task.request_id)):
                told = list(output.outputs[0].token_ids)
        if not told:
            raise EngineFailed("The engine said nothing of this sound.")
        return told

    def _text_ids(self, text: str) -> list[int]:
        """A text before the sound: special tokens spelled in it are text, and timestamps are left out."""
        ids = self._tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids if text.strip() else []
        return [token_id for token_id in ids if token_id < self._ids["endoftext"]]

    def _segments(self, ids: Sequence[int], start_s: float, length_s: float) -> Iterator[Segment]:
        """What stands between two timestamps; all of a window where there are none."""
        first = self._ids["notimestamps"] + 1
        text: list[int] = []
        begin_s = 0.0
        for token_id in [*ids, first + math.ceil(length_s / _STEP_S)]:
            if token_id < first:
                text.append(token_id)
                continue
            # A model can say times that go back, or are behind the end.
            at_s = min(max((token_id - first) * _STEP_S, begin_s), length_s)
            words = [token_id for token_id in text if token_id < self._ids["endoftext"]]
            if words:
                said = self._tokenizer.decode(words)
                yield Segment(round(start_s + begin_s, 2), round(start_s + at_s, 2), said, tuple(words))
            text, begin_s = [], at_s


_NEEDED = ("endoftext", "startoftranscript", "startofprev", "transcribe", "notimestamps")


def _invalid(error: BaseException) -> InvalidRequest:
    """vLLM's refusals. Their texts can hold what the caller sent."""
    return InvalidRequest("The engine cannot take this sound.", param="file")
