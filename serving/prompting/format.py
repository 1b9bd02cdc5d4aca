"""A template bound to a checkpoint: its special tokens as ids, turns to token ids and back, and what ends a choice.

It does not: know requests, or decide in which thread it runs (`prepare.py` does).

Law: the ids of a chat equal those of its written text wherever contents spell no special token; `Format.load` refuses a
tokenizer for which a probe says otherwise.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from serving.core import ChatPrompt, Header, Message, Prompt
from serving.prompting.templates import TEMPLATES, Template, Transcript
from serving.prompting.tokenizer import FILES, TokenizerPair, TooManyTokens

PROBE = ChatPrompt(
    (Message("system", " \u00e9 3 < 4\n\n"), Message("text", "\n Hello,  world! ", ("Ann", "Bo")), Message("user", "")),
    Header("text", open=True),
)
"""Ordinary text that shows how a tokenizer treats white space beside special tokens."""


@dataclass(frozen=True, slots=True)
class Ends:
    """When a choice ends, in an engine's terms."""

    stop_token_ids: tuple[int, ...]
    ignore_eos: bool


@dataclass(frozen=True, slots=True)
class Format:
    """`eos_ids` is what the engine's own list of ends holds; `other_ends` every end of sequence but the message end;
    `hidden` the special tokens, by id, that a text without special tokens does not show."""

    template: Template
    tokens: TokenizerPair
    bos_id: int | None
    message_end_id: int
    eos_ids: frozenset[int]
    other_ends: tuple[int, ...]
    hidden: Mapping[int, str]

    @classmethod
    def load(cls, folder: Path, template: str) -> "Format":
        """Raises FileNotFoundError without a tokenizer.json; ValueError for an unknown template, and for a tokenizer
        that lacks its tokens or cannot write it as text."""
        if template not in TEMPLATES:
            raise ValueError(f"unknown template {template!r}; there are: {', '.join(TEMPLATES)}")
        loaded = _resolve(TEMPLATES[template], TokenizerPair.load(folder), *_checkpoint_says(folder))
        written = loaded.template.render_text(PROBE.messages, PROBE.header)
        if loaded.with_bos(loaded.tokens.encode_raw(written, 10_000)) != loaded.render(PROBE, 10_000):
            raise ValueError(f"this tokenizer encodes the turns of {template} differently in parts and as a whole")
        return loaded

    # ---- turns to ids and back ---------------------------------------------------------------------------------------

    def render(self, prompt: ChatPrompt, most: int, *, answered: bool = True) -> list[int]:
        """The token ids of a chat; not `answered`: without the header of its answer. Raises InvalidRequest,
        TooManyTokens (over `most`)."""
        if 2 * len(prompt.messages) > most:  # each has a start and an end at least: do not even write them
            raise TooManyTokens(2 * len(prompt.messages), exact=False)
        pairs = self.template.pairs(prompt.messages, prompt.header if answered else None)
        texts = [text for _, text in pairs if text]
        specials = len(pairs) + (self.bos_id is not None)
        try:
            encoded = iter(self.tokens.encode_split(texts, most - specials, "messages"))
        except TooManyTokens as error:
            raise TooManyTokens(error.tokens + specials, exact=error.exact) from None
        ids = [] if self.bos_id is None else [self.bos_id]
        for special, text in pairs:
            ids.append(self.tokens.special_ids[special])
            if text:
                ids += next(encoded)
        return ids

    def read(self, ids: Sequence[int]) -> Transcript:
        """The turns that token ids write, and what they are in the middle of."""
        boundaries = {self.tokens.special_ids[s] for s in (self.template.message_start, self.template.message_end)}
        boundaries |= self.eos_ids.union(self.other_ends)
        if self.template.header_end_token:
            boundaries.add(self.tokens.special_ids[self.template.header_end_token])
        cuts = [at for at, token in enumerate(ids) if token in boundaries]
        spans = [ids[start + 1 : end] for start, end in pairwise([*cuts, len(ids)])]
        texts = self.tokens.decode_fragments(spans)
        specials = (self.hidden.get(ids[at], self.template.message_end) for at in cuts)
        return self.template.read(zip(specials, texts, strict=True))

    def read_tail(self, ids: Sequence[int]) -> Transcript:
        """As `read`, of the last turn alone."""
        start = self.tokens.special_ids[self.template.message_start]
        last = next((at for at in range(len(ids) - 1, -1, -1) if ids[at] == start), 0)
        return self.read(ids[last:])

    def with_bos(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids, behind the one BOS that the model was trained to begin with, if any."""
        if self.bos_id is None or (ids and ids[0] == self.bos_id):
            return ids
        return [self.bos_id, *ids]

    def cut(self, ids: Sequence[int], room: int, prompt: Prompt) -> Sequence[int]:
        """The ids of `prompt` without its beginning, at most `room` of them.

        A chat loses its oldest turns, but none of the system turns at its head, and never its last message: it may
        stay longer than `room`. A text loses all in front but BOS.
        """
        if len(ids) <= room:
            return ids
        if not isinstance(prompt, ChatPrompt):
            head = 1 if ids[0] == self.bos_id else 0
            return [*ids[:head], *ids[len(ids) - max(room - head, 0) :]]
        start = self.tokens.special_ids[self.template.message_start]
        turns = [at for at, token in enumerate(ids) if token == start]
        systems = next((at for at, m in enumerate(prompt.messages) if m.role != "system"), len(prompt.messages))
        head = turns[systems]
        last = max(len(prompt.messages) - 1, systems)
        kept = next((at for at in turns[systems:last] if head + len(ids) - at <= room), turns[last])
        return [*ids[:head], *ids[kept:]]

    # ---- ends --------------------------------------------------------------------------------------------------------

    def ends(self, *, at_message_end: bool, ignore_eos: bool) -> Ends:
        """M is the message end, E the engine's own ends, O every end of sequence but M; with `ignore_eos` the role rule
        forbids O.

        | at_message_end | ignore_eos | M not in E (ChatML)                | M in E (Llama 3)                      |
        |----------------|------------|------------------------------------|---------------------------------------|
        | yes            | no         | stop at M, O and E                 | stop at M, O and E                    |
        | yes            | yes        | E off, stop at M                   | E off, stop at M                      |
        | no             | no         | stop at O and E; M is passed       | E off, stop at O; M is passed         |
        | no             | yes        | E off; nothing stops               | E off; nothing stops                  |
        """
        if ignore_eos:
            stop = (self.message_end_id,) if at_message_end else ()
            return Ends(stop, ignore_eos=True)
        if at_message_end:
            return Ends((self.message_end_id, *self.other_ends), ignore_eos=False)
        return Ends(self.other_ends, ignore_eos=self.message_end_id in self.eos_ids)


# ---- resolving a checkpoint ------------------------------------------------------------------------------------------


def _resolve(template: Template, tokens: TokenizerPair, bos: str | int | None, ends: list[str | int]) -> Format:
    own = [token for token in (template.message_start, template.header_end_token, template.message_end) if token]
    for spelling in own:
        if spelling not in tokens.special_ids:
            raise ValueError(f"the template {template.name} needs the token {spelling}, which this tokenizer has not")
    if bos == "":
        bos = template.bos
    bos_id = tokens.special_ids.get(bos) if isinstance(bos, str) else bos
    if bos_id == tokens.special_ids[template.message_start]:
        bos_id = None  # such a checkpoint begins with the first turn itself
    message_end_id = tokens.special_ids[template.message_end]
    resolved = (tokens.special_ids.get(end) if isinstance(end, str) else end for end in ends)
    eos_ids = frozenset(end for end in resolved if end is not None)
    known = {tokens.special_ids[end] for end in template.ends if end in tokens.special_ids}
    others = tuple(sorted((eos_ids | known) - {message_end_id}))
    hidden = {**tokens.hidden, **{tokens.special_ids[token]: token for token in own}}
    return Format(template, tokens, bos_id, message_end_id, eos_ids, others, hidden)


def _checkpoint_says(folder: Path) -> tuple[str | int | None, list[str | int]]:
    """BOS (None: there is none; "": nothing is said) and the ends of sequence, by a model's configuration files.

    Source: transformers: `add_bos_token` false means that the model was trained without one, whatever `bos_token` is;
    vllm 0.32.0 merges the ends of generation_config.json into the tokenizer's own.
    """
    tokenizer, config, generation = (_json(folder / name) for name in FILES[1:])
    ends: list[str | int] = []
    for value in (_spelling(tokenizer.get("eos_token")), config.get("eos_token_id"), generation.get("eos_token_id")):
        ends += [end for end in (value if isinstance(value, list) else [value]) if end is not None]
    if tokenizer.get("add_bos_token") is False:
        return None, ends
    if "bos_token" in tokenizer:
        return _spelling(tokenizer["bos_token"]), ends
    return config.get("bos_token_id", ""), ends


def _json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return data if isinstance(data, dict) else {}


def _spelling(token: object) -> str | None:
    """A token of tokenizer_config.json: a string, or an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
