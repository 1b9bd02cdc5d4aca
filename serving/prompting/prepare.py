"""From what is asked to what an engine takes: GenerationRequest in, PreparedRequests out; nothing left to decide.

It does not: read wire models, know prices or plans, or read what the engine answers (`reader.py` does).

Laws: contents are data (a chat's are encoded by the splitting tokenizer, a raw prompt keeps its special tokens).
Long prompts are prepared in a thread: the event loop is never held longer than 20 ms. Contents appear in no error.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import ParamSpec, TypeVar

from serving.core import (
    ChatPrompt,
    GenerationRequest,
    PreparedRequest,
    Prompt,
    RawPrompt,
    Sampling,
    Stopping,
    TemplatePrompt,
    TokenPrompt,
)
from serving.errors import InvalidRequest, PromptTooLong
from serving.prompting.format import Format
from serving.prompting.jinja import render
from serving.prompting.reader import OpenHeader, TextReader
from serving.prompting.rules import RuleBook
from serving.prompting.tokenizer import TooManyTokens, model_folder

INLINE_CHARS = 2048
"""Work over so many characters goes to a thread: at worst (one emoji after another) they take about 6 ms."""

MOST_TEXT_TOKENS = 1_000_000
"""The most token ids that `Prompting.encode` makes of a text: more would hold the interpreter lock over 20 ms."""

_RESERVED_TOKENS = 512
"""What a prompt that is cut leaves for an answer whose length nobody said, where that is not most of the context."""

_BAN = -100.0
"""The strongest bias there is: such a token is as good as never drawn."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_THREADS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="prompting")


@dataclass(frozen=True, slots=True)
class Prompting:
    """Prepares the requests of one model, and gives the readers of their answers."""

    format: Format
    book: RuleBook

    @classmethod
    def load(cls, source: str, revision: str | None = None, template: str = "chatml-text") -> "Prompting":
        """From a local folder or a hub id. Blocks (files, perhaps a download): call it in a thread.

        Raises FileNotFoundError without a tokenizer.json, ValueError for a template that the model cannot write.
        """
        form = Format.load(model_folder(source, revision), template)
        return cls(form, RuleBook(form))

    # ---- the request -------------------------------------------------------------------------------------------------

    async def prepare(self, request: GenerationRequest, context_tokens: int) -> list[PreparedRequest]:
        """`n` choices for each prompt, prompt-major. Raises InvalidRequest, PromptTooLong, Overloaded."""
        prompts = [await self._rendered(prompt) for prompt in request.prompts]
        return await _off_loop(sum(map(_weight, prompts)), self._prepare, request, prompts, context_tokens)

    async def _rendered(self, prompt: Prompt | TemplatePrompt) -> Prompt:
        """The prompt with its template filled, if it has one."""
        if not isinstance(prompt, TemplatePrompt):
            return prompt
        form = self.format
        bos = "" if form.bos_id is None else form.hidden.get(form.bos_id, "")
        return await render(prompt, form.hidden.values(), bos=bos, eos=form.template.message_end)

    async def text_of(self, prompt: Prompt | TemplatePrompt) -> str:
        """The prompt as text, for people. Raises as `prepare` does."""
        rendered = await self._rendered(prompt)
        return await _off_loop(_weight(rendered), self._echo, rendered, True)

    def _prepare(
        self, request: GenerationRequest, prompts: Sequence[Prompt], context_tokens: int
    ) -> list[PreparedRequest]:
        prepared: list[PreparedRequest] = []
        for prompt in prompts:
            first = self._prepare_prompt(request, self._closed_if_needed(request, prompt), context_tokens)
            for choice in range(request.n):
                index = len(prepared)
                sampling = _seeded(first.sampling, choice)
                request_id = f"{request.request_id}-{index}"
                prepared.append(
                    replace(first, request_id=request_id, index=index, sampling=sampling, first_of_prompt=choice == 0)
                )
        return prepared

    def _prepare_prompt(self, request: GenerationRequest, prompt: Prompt, context_tokens: int) -> PreparedRequest:
        ids = tuple(self._ids(request, prompt, context_tokens))
        rules = self.book.resolve(request, prompt, ids)
        ends = self.format.ends(
            at_message_end=request.stopping.at_message_end or request.answer_format is not None,
            ignore_eos=request.stopping.ignore_eos,
        )
        max_tokens = _max_tokens(request, len(ids), context_tokens, _param(prompt))
        return PreparedRequest(
            request_id=request.request_id,
            index=0,
            token_ids=ids,
            sampling=self._sampling(request.sampling, max_tokens),
            max_tokens=max_tokens,
            stop=request.stopping.stop,
            include_stop=request.stopping.include_stop,
            stop_token_ids=ends.stop_token_ids,
            ignore_eos=ends.ignore_eos,
            answer_format=request.answer_format,
            rules=rules,
            logprobs=request.logprobs,
            prompt_logprobs=request.echo and request.logprobs is not None,
            distribution=request.distribution,
            adapter=request.adapter,
            open_header=isinstance(prompt, ChatPrompt) and prompt.header.open,
            keep_special_tokens=request.keep_special_tokens,
            echo_text=self._echo(prompt, request.keep_special_tokens) if request.echo else None,
        )

    def _sampling(self, sampling: Sampling, max_tokens: int) -> Sampling:
        """Raises InvalidRequest for a banned token that the model has not."""
        self._known(sampling.banned_tokens, "banned_tokens")
        bias = {**sampling.logit_bias, **dict.fromkeys(sampling.banned_tokens, _BAN)}
        min_tokens = min(sampling.min_tokens, max_tokens)
        return replace(sampling, logit_bias=bias, banned_tokens=(), min_tokens=min_tokens)

    def _closed_if_needed(self, request: GenerationRequest, prompt: Prompt) -> Prompt:
        """Closes an open header that a grammar cannot write, or in which a stop string would end the choice."""
        if not isinstance(prompt, ChatPrompt) or not prompt.header.open:
            return prompt
        template = self.format.template
        header = f"{template.names_marker} {template.names_join}{template.header_end_token}{template.header_end_text}"
        if request.answer_format is None and not any(not s.strip() or s in header for s in request.stopping.stop):
            return prompt
        return replace(prompt, header=replace(prompt.header, open=False))

    def _echo(self, prompt: Prompt, keep_special_tokens: bool) -> str:
        if isinstance(prompt, RawPrompt):
            return prompt.text.replace(prompt.seam, "") if prompt.seam else prompt.text
        if isinstance(prompt, TokenPrompt):
            return self.format.tokens.decode(prompt.token_ids, keep_special_tokens=keep_special_tokens)
        return self.format.template.render_text(prompt.messages, prompt.header)

    # ---- token ids ---------------------------------------------------------------------------------------------------

    def _ids(self, request: GenerationRequest, prompt: Prompt, context_tokens: int) -> Sequence[int]:
        most = MOST_TEXT_TOKENS if request.cut_prompt else context_tokens
        with _bounded(most, _param(prompt)):
            ids = self._encoded(prompt, most, add_bos=request.add_bos)
        if request.cut_prompt:
            ids = self.format.cut(ids, _room(request.stopping, context_tokens), prompt)
        if not ids:
            raise InvalidRequest("the prompt is empty, and this model has no token to begin with", param=_param(prompt))
        if len(ids) >= context_tokens:
            raise too_long(len(ids), context_tokens, _param(prompt))
        return ids

    def _encoded(self, prompt: Prompt, most: int, *, add_bos: bool) -> Sequence[int]:
        if isinstance(prompt, ChatPrompt):
            ids: Sequence[int] = self.format.render(prompt, most)
            return ids if add_bos or self.format.bos_id is None else ids[1:]
        if isinstance(prompt, RawPrompt):
            parts = prompt.text.split(prompt.seam) if prompt.seam else [prompt.text]
            ids = list(chain.from_iterable(self.format.tokens.encode_raw_parts(parts, most, prompt.param)))
        elif len(prompt.token_ids) > most:
            raise TooManyTokens(len(prompt.token_ids), exact=True)
        else:
            ids = self._known(prompt.token_ids)
        return self.format.with_bos(ids) if add_bos else ids

    def _known(self, ids: Sequence[int], param: str = "prompt") -> Sequence[int]:
        if ids and not (min(ids) >= 0 and max(ids) < self.format.tokens.vocabulary_size):
            message = f"token ids must lie between 0 and {self.format.tokens.vocabulary_size - 1} on this model"
            raise InvalidRequest(message, param=param)
        return ids

    # ---- behind the engine, and beside requests ----------------------------------------------------------------------

    def reader(self, prepared: PreparedRequest) -> TextReader | None:
        """What the choice's events must pass through before they are told; None when that would change nothing."""
        hidden: Mapping[int, str] = {} if prepared.keep_special_tokens else self.format.hidden
        if not prepared.open_header:
            return TextReader(prepared.index, hidden) if hidden else None
        begun = self.format.read_tail(prepared.token_ids).unfinished
        header = OpenHeader(self.format.template, begun if isinstance(begun, str) else "")
        return TextReader(prepared.index, hidden, header)

    async def encode(self, text: str, *, bos: bool = True, special: bool = True, param: str = "text") -> list[int]:
        """Ids of a text in the model's format, BOS included unless `bos` is False; not `special`: all of it is plain.
        Raises InvalidRequest, PromptTooLong (over a million)."""
        return await _off_loop(len(text), self._encode_text, text, bos, special, param)

    def _encode_text(self, text: str, bos: bool, special: bool, param: str) -> list[int]:
        tokens = self.format.tokens
        with _bounded(MOST_TEXT_TOKENS, param):
            if special:
                ids = tokens.encode_raw(text, MOST_TEXT_TOKENS, param)
            else:
                (ids,) = tokens.encode_split([text], MOST_TEXT_TOKENS, param)
        return list(self.format.with_bos(ids)) if bos else ids

    async def encode_chat(self, prompt: ChatPrompt, *, answered: bool = True) -> list[int]:
        """Ids of a chat; not `answered`: without the header of its answer. Raises as `encode` does."""
        return await _off_loop(_weight(prompt), self._encode_chat, prompt, answered)

    def _encode_chat(self, prompt: ChatPrompt, answered: bool) -> list[int]:
        with _bounded(MOST_TEXT_TOKENS, "messages"):
            return self.format.render(prompt, MOST_TEXT_TOKENS, answered=answered)

    async def decode(self, ids: Sequence[int], *, keep_special_tokens: bool = True) -> str:
        """The text of token ids. Raises InvalidRequest for ids outside the vocabulary."""
        return await _off_loop(4 * len(ids), self._decode_ids, ids, keep_special_tokens)

    def _decode_ids(self, ids: Sequence[int], keep_special_tokens: bool) -> str:
        return self.format.tokens.decode(self._known(ids, "tokens"), keep_special_tokens=keep_special_tokens)

    async def spell(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells each of these ids. Raises InvalidRequest for ids outside of it."""
        return await _off_loop(4 * len(ids), self.format.tokens.spell, self._known(ids, "tokens"))


@contextmanager
def _bounded(most: int, param: str) -> Iterator[None]:
    """Tells of too many tokens as of a prompt that is too long."""
    try:
        yield
    except TooManyTokens as error:
        raise too_long(error.tokens, most, param, exact=error.exact) from None


def too_long(tokens: int, context_tokens: int, param: str, *, exact: bool = True) -> PromptTooLong:
    """The error for a prompt that leaves no room for an answer; not `exact`: it has at least so many tokens."""
    least = "" if exact else "at least "
    message = f"the prompt has {least}{tokens} tokens, and the context of this model is {context_tokens}: shorten it"
    return PromptTooLong(message, param=param)


def _max_tokens(request: GenerationRequest, input_tokens: int, context_tokens: int, param: str) -> int:
    """What may be generated: the least of what was asked and what fits."""
    stopping = request.stopping
    if stopping.max_tokens is not None and stopping.max_tokens < (0 if request.echo else 1):
        raise InvalidRequest("max_tokens must be at least 1 (or 0 with echo)", param="max_tokens")
    most = context_tokens - input_tokens
    if stopping.max_total_tokens is not None:
        if input_tokens >= stopping.max_total_tokens:
            message = f"the prompt has {input_tokens} tokens, and max_total_tokens is {stopping.max_total_tokens}"
            raise PromptTooLong(f"{message}: shorten it, or raise the limit", param="max_total_tokens")
        most = min(most, stopping.max_total_tokens - input_tokens)
    return most if stopping.max_tokens is None else min(most, stopping.max_tokens)


def _room(stopping: Stopping, context_tokens: int) -> int:
    """The most tokens that a prompt may have beside its answer."""
    most = min(context_tokens, stopping.max_total_tokens or context_tokens)
    answer = min(_RESERVED_TOKENS, most // 2) if stopping.max_tokens is None else stopping.max_tokens
    if answer >= most:
        message = f"max_tokens {answer} leaves no room for a prompt: prompt and answer may have {most} tokens together"
        raise InvalidRequest(message, param="max_tokens")
    return most - answer


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Choices of a seeded request differ, and each is reproducible: seed + choice, within int64."""
    if sampling.seed is None or choice == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice + 2**63) % 2**64 - 2**63)


def _param(prompt: Prompt) -> str:
    if isinstance(prompt, RawPrompt):
        return prompt.param
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"


def _weight(prompt: Prompt) -> int:
    """Characters of work, roughly."""
    if isinstance(prompt, RawPrompt):
        return len(prompt.text)
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    many = 64 * len(prompt.messages)
    if many > INLINE_CHARS:
        return many
    texts = sum(len(message.content) + sum(map(len, message.names)) for message in prompt.messages)
    return many + texts + sum(map(len, prompt.header.names)) + len(prompt.header.begun)


async def _off_loop(weight: int, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Runs work inline, or in a thread if it is heavy."""
    if weight <= INLINE_CHARS:
        return work(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: work(*args, **kwargs))
