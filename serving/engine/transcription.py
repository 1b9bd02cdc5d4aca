"""vLLM's Whisper in this process: what is said in a sound, behind the TaskEngine port.

The windows of a sound are done one after another, each with the end of the text before it as its context, as Whisper
does. Times of words would need the decoder's attention to the sound, which vLLM does not give. vLLM's processes are
`process`'s.

Importing this module imports vllm (about ten seconds): do it in a thread, as `registry.local_task` does.
"""

import contextlib
import math
import re
from array import array
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.core import TokenLogprob
from serving.core.tasks import Heard, Hearing, Outcome, PreparedTask, Segment, Speech, Transcribed
from serving.engine.base import OnHeard
from serving.engine.process import VllmProcess
from serving.engine.translate import finite, outputs
from serving.errors import EngineFailed, InvalidRequest

_STEP_S = 0.02
"""From one timestamp token to the next."""
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_ENGLISH_TOKENS = 51_864
"""A model with so many was taught English alone, though some of them are other languages'. Source: openai-whisper's
model.py, where a multilingual one has more."""
_NEEDED = ("endoftext", "startoftranscript", "startofprev", "transcribe", "notimestamps")


class _Window(NamedTuple):
    """Samples, and where in the sound they are. `units` are those of the sound to its end."""

    samples: "array[float]"
    start_s: float
    length_s: float
    units: int


class _Token(NamedTuple):
    """`text` is empty for what is no text; `logprob` None was not asked for."""

    id: int
    text: str = ""
    logprob: float | None = None


class Transcriber(VllmProcess):
    """One Whisper model."""

    @staticmethod
    def _configure(config: Any) -> None:  # noqa: ANN401  # VllmConfig, which has no types here
        # Of a token that may not be sampled, as that of no speech where a language must be, nothing else tells.
        config.model_config.logprobs_mode = "raw_logprobs"

    async def _warm_up(self) -> None:
        if "transcription" not in await self._llm.get_supported_tasks():
            raise ValueError("the model cannot transcribe")
        fast = self._llm.get_tokenizer()
        self._tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._ids = {name: vocabulary[f"<|{name}|>"] for name in _NEEDED}
        languages = {match[1]: id_ for token, id_ in vocabulary.items() if (match := _LANGUAGE.fullmatch(token))}
        self._multilingual = self._llm.model_config.get_vocab_size() != _ENGLISH_TOKENS
        self._languages = languages if self._multilingual else {"en": languages["en"]}
        silence = PreparedTask("warm-up", Speech((array("f", bytes(4 * 1600)),), 16_000), 1)
        # With logprobs: torch compiles them when the first are asked for, 16 s on two cores, and all wait for that.
        await self._beginning(silence, next(_windows(silence.work)), [])

    async def perform(self, task: PreparedTask[Speech], on_heard: OnHeard | None = None) -> Outcome:
        """What is said. Raises InvalidRequest, EngineFailed, Overloaded."""
        self._open()
        how = task.work.hearing
        if how.language is not None and how.language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise InvalidRequest(f"language must be one of {known}.", param="language")
        windows = list(_windows(task.work))
        language = how.language or (await self._beginning(task, windows[0], []))[0]
        segments: list[Segment] = []
        before = self._text_ids(how.prompt or "")
        for window in windows:
            no_speech = (await self._beginning(task, window, before))[1] if how.no_speech else None
            said = await self._said(task, window, language, before, on_heard)
            segments += self._segments(said, window, how, no_speech)
            before = [token.id for token in said if self._is_text(token)]
        last = windows[-1]
        return Outcome(Transcribed(language, last.start_s + last.length_s, tuple(segments)), last.units)

    async def _beginning(self, task: PreparedTask[Speech], window: _Window, before: Sequence[int]) -> tuple[str, float]:
        """The likeliest language of a window, and the probability that there is no speech in it.

        Source: Whisper's decoding, which reads both behind the token that starts a transcript. It is a pass of its own,
        since of a position inside a prompt vLLM tells the likeliest tokens alone.
        """
        # Its name differs between checkpoints, its place does not. Source: transformers 5, generation_whisper.py.
        no_speech = self._ids["notimestamps"] - 1
        languages = {token_id: language for language, token_id in self._languages.items()}
        params = SamplingParams(
            temperature=0.0, max_tokens=1, allowed_token_ids=list(languages), logprob_token_ids=[no_speech]
        )
        async with contextlib.aclosing(self._ask(task, window, self._prompt(before), params)) as parts:
            async for part in parts:
                (token_id,), (logprobs,) = part.token_ids, part.logprobs
        return languages[token_id], math.exp(logprobs[no_speech].logprob)

    async def _said(
        self,
        task: PreparedTask[Speech],
        window: _Window,
        language: str,
        before: Sequence[int],
        on_heard: OnHeard | None,
    ) -> list[_Token]:
        """The tokens of one window."""
        how = task.work.hearing
        ids = self._prompt(before)
        if self._multilingual:
            ids += [self._languages[language], self._ids["transcribe"]]
        if not how.timestamps:
            ids.append(self._ids["notimestamps"])
        params = SamplingParams(
            temperature=how.temperature,
            max_tokens=self._llm.model_config.max_model_len - len(ids),
            logprobs=0 if how.logprobs else None,
            output_kind=RequestOutputKind.FINAL_ONLY if on_heard is None else RequestOutputKind.DELTA,
        )
        said: list[_Token] = []
        stream = DecodeStream(skip_special_tokens=False)
        async with contextlib.aclosing(self._ask(task, window, ids, params)) as parts:
            async for part in parts:
                new = list(self._read(part, stream))
                said += new
                if on_heard is not None:
                    text = "".join(token.text for token in new)
                    await on_heard(Heard(text, window.units, self._logprobs(new) if how.logprobs else ()))
        return said

    def _prompt(self, before: Sequence[int]) -> list[int]:
        """What stands before every transcript: the end of the text before it, which has half of the context."""
        most = self._llm.model_config.max_model_len // 2 - 1
        prefix = [self._ids["startofprev"], *before[-most:]] if before else []
        return [*prefix, self._ids["startoftranscript"]]

    async def _ask(
        self, task: PreparedTask[Speech], window: _Window, ids: list[int], params: SamplingParams
    ) -> AsyncGenerator[Any, None]:
        """vLLM's parts of an answer, which is aborted when this is closed."""
        params.detokenize = False
        sound = (np.frombuffer(window.samples, dtype=np.float32), task.work.rate_hz)
        encoder = {"prompt": "", "multi_modal_data": {"audio": sound}}
        prompt: Any = {"encoder_prompt": encoder, "decoder_prompt": {"prompt_token_ids": ids}}
        with self._asking(_invalid):
            # The spectrum is computed in vLLM's own thread, and not on the event loop.
            parsed = parse_model_prompt(self._llm.model_config, prompt)
            (rendered,) = await self._llm.renderer.render_cmpl_async([parsed])
            # vLLM puts one more start before a text that comes before. Source: vLLM 0.32, inputs/engine.py.
            rendered["decoder_prompt"]["prompt_token_ids"] = ids
            said = outputs(self._llm, rendered, params, self._id(task.request_id), None)
            async with contextlib.aclosing(said):
                async for output in said:
                    (part,) = output.outputs
                    if part.finish_reason not in (None, "stop", "length"):
                        raise EngineFailed("The engine stopped this transcription before its end.")
                    yield part

    def _read(self, part: Any, stream: DecodeStream) -> Iterator[_Token]:  # noqa: ANN401
        """The tokens of a part; a character split over tokens is the text of the last of them."""
        for number, token_id in enumerate(part.token_ids):
            logprob = finite(part.logprobs[number][token_id].logprob) if part.logprobs else None
            token = _Token(token_id, "", logprob)
            yield token._replace(text=stream.step(self._tokenizer, token_id) or "") if self._is_text(token) else token

    def _is_text(self, token: _Token) -> bool:
        return token.id < self._ids["endoftext"]

    def _logprobs(self, said: Sequence[_Token]) -> tuple[TokenLogprob, ...]:
        """Those of the text alone."""
        return tuple(TokenLogprob(*token) for token in said if self._is_text(token))

    def _text_ids(self, text: str) -> list[int]:
        """A text before the sound: special tokens spelled in it are text, and timestamps are left out."""
        ids = self._tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids if text.strip() else []
        return [token_id for token_id in ids if token_id < self._ids["endoftext"]]

    def _segments(
        self, said: Sequence[_Token], window: _Window, how: Hearing, no_speech: float | None
    ) -> Iterator[Segment]:
        """What stands between two timestamps; all of a window where there are none, or none are asked for."""
        first = self._ids["notimestamps"] + 1
        end = _Token(first + math.ceil(window.length_s / _STEP_S))
        words: list[_Token] = []
        begin_s = 0.0
        for token in (*said, end):
            if self._is_text(token):
                words.append(token)
            elif token is end or (token.id >= first and how.timestamps):
                # A model can say times that go back, or are behind the end.
                at_s = min(max((token.id - first) * _STEP_S, begin_s), window.length_s)
                if words:
                    yield Segment(
                        round(window.start_s + begin_s, 2),
                        round(window.start_s + at_s, 2),
                        "".join(word.text for word in words),
                        tuple(word.id for word in words),
                        window.start_s,
                        self._logprobs(words) if how.logprobs else (),
                        no_speech,
                    )
                words, begin_s = [], at_s


def _windows(work: Speech) -> Iterator[_Window]:
    at = 0
    for samples in work.windows:
        end = at + len(samples)
        yield _Window(samples, at / work.rate_hz, len(samples) / work.rate_hz, -(-end // work.rate_hz))
        at = end


def _invalid(error: BaseException) -> InvalidRequest:
    """vLLM's refusals. Their texts can hold what the caller sent."""
    return InvalidRequest("The engine cannot take this sound.", param="file")
