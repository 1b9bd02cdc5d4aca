"""Turns documents into training rows of token ids and labels.

Headers and contents are encoded apart and special tokens by id, exactly as the serving templates do it. What
the system and the user say counts little: the model shall not write it, but names recur there, and so it learns from it
how to copy. Their headers count nothing, so it never opens such a turn by itself.
"""

import random
import re
from itertools import chain

import torch
from tokenizers import Tokenizer

from generate import documents
from turns import GRAMMAR, Turn

READ_ONLY = frozenset({"system", "user"})
BUFFER = 48
SMALLEST_REST = 48
SPECIAL_TOKENS = ("<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")

REPEATED = (8, 96)

READ_WEIGHT = 0.25
NAME_WEIGHT = 4.0
"""Who speaks and who is spoken of is a small part of all tokens, and the hardest one."""

COMMON_NAMES = (*GRAMMAR.rules["name.he"], *GRAMMAR.rules["name.she"])

Encoded = tuple[list[int], list[float]]


class Packer:
    """An endless stream of rows. Each begins with a document's begin and holds as many whole ones as fit; a share
    `repeating` of them are random tokens that come again and again, from which a model learns to copy what it read."""

    def __init__(self, tokenizer: Tokenizer, seed: int, repeating: float = 0.0) -> None:
        self._tokenizer = tokenizer
        self._stream = documents(seed)
        self._waiting: list[Encoded] = []
        vocabulary = tokenizer.get_vocab()
        self._rng, self._share = random.Random(seed), repeating
        self._ordinary = sorted(set(vocabulary.values()) - {vocabulary[name] for name in SPECIAL_TOKENS})
        self._pad, self._bos, self._eos, self._start, self._end = (vocabulary[name] for name in SPECIAL_TOKENS)

    def encode(self, turns: list[Turn]) -> Encoded:
        ids, weights = [self._bos], [0.0]
        newline = self._tokenizer.encode("\n").ids
        people = {*COMMON_NAMES, *chain.from_iterable(turn.names for turn in turns)}
        names = re.compile("|".join(map(re.escape, sorted(people, key=len, reverse=True))))
        for turn in turns:
            scale = READ_WEIGHT if turn.role in READ_ONLY else 1.0
            header, header_weights = self._weighted(turn.header + "\n", names)
            content, content_weights = self._weighted(turn.content, names)
            ids += [self._start, *header, *content, self._end, *newline]
            weights += [0.0] * (1 + len(header)) if turn.role in READ_ONLY else [1.0, *header_weights]
            weights += [scale * weight for weight in (*content_weights, 1.0, *[1.0] * len(newline))]
        return [*ids, self._eos], [*weights, 1.0]

    def _weighted(self, text: str, names: re.Pattern[str]) -> tuple[list[int], list[float]]:
        """The ids of a text, and how much each counts: more where it is part of a name."""
        encoding = self._tokenizer.encode(text)
        inside = bytearray(len(text) + 1)
        for found in names.finditer(text):
            inside[found.start() : found.end()] = b"\1" * (found.end() - found.start())
        weights = [NAME_WEIGHT if any(inside[begin:end]) else 1.0 for begin, end in encoding.offsets]
        return encoding.ids, weights

    def _repeating(self, length: int) -> Encoded:
        """Random tokens, again and again. What comes again is learned."""
        period = self._rng.choices(self._ordinary, k=self._rng.randint(*REPEATED))
        ids = (period * (length // len(period) + 1))[:length]
        return ids, [0.0] * len(period) + [1.0] * (length - len(period))

    def _row(self, length: int) -> Encoded:
        if self._rng.random() < self._share:
            return self._repeating(length)
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            while len(self._waiting) < BUFFER:
                self._waiting.append(self.encode(next(self._stream)))
            rest = length - len(ids)
            fitting = next((n for n, document in enumerate(self._waiting) if len(document[0]) <= rest), None)
            if fitting is None and ids and rest < SMALLEST_REST:
                return ids + [self._pad] * rest, weights + [0.0] * rest
            document = self._waiting.pop(fitting or 0)
            ids += document[0][:rest]
            weights += document[1][:rest]
        return ids, weights

    def batch(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`ids: [rows, length] int64`, `weights: [rows, length] float32`: how much the token there is to be learned."""
        packed = [self._row(length) for _ in range(rows)]
        return torch.tensor([row[0] for row in packed]), torch.tensor([row[1] for row in packed])
