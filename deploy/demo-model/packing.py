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
REPEATED_ROW = 512
SORTED = 96

READ_WEIGHT = 0.25
NAME_WEIGHT, SPEAKER_WEIGHT = 2.0, 3.0
"""Who is spoken of and who speaks next is a small part of all tokens, and the hardest one."""
RECURRING_WEIGHT = 5.0
"""Of things, animals, places and the like that stood in the document before: a story is to keep to its own."""

LISTED_NAMES = (*GRAMMAR.rules["name.he"], *GRAMMAR.rules["name.she"])
RECURRING_LISTS = ("thing", "adj", "color", "animal", "food", "skill", "where", "where.adj", "job.he", "job.she")
RECURRING = frozenset(entry.split()[-1] for name in RECURRING_LISTS for entry in GRAMMAR.rules[name])
_RECURRING = re.compile(rf"\b(?:{'|'.join(sorted(RECURRING, key=len, reverse=True))})\b")

Encoded = tuple[list[int], list[float]]
Batch = tuple[torch.Tensor, torch.Tensor]


class Packer:
    """An endless stream of rows, each of which begins with a document's begin. A share `repeating` of them are random
    tokens that come again and again, from which a model learns to copy what it read."""

    def __init__(self, tokenizer: Tokenizer, seed: int, repeating: float = 0.0) -> None:
        self._tokenizer = tokenizer
        self._stream = documents(seed)
        self._waiting: list[Encoded] = []
        self._sorted: list[list[Encoded]] = []
        vocabulary = tokenizer.get_vocab()
        self._rng, self._share = random.Random(seed), repeating
        self._ordinary = sorted(set(vocabulary.values()) - {vocabulary[name] for name in SPECIAL_TOKENS})
        self._pad, self._bos, self._eos, self._start, self._end = (vocabulary[name] for name in SPECIAL_TOKENS)

    def encode(self, turns: list[Turn]) -> Encoded:
        ids, weights = [self._bos], [0.0]
        newline = self._tokenizer.encode("\n").ids
        people = {*LISTED_NAMES, *chain.from_iterable(turn.names for turn in turns)}
        names = re.compile("|".join(map(re.escape, sorted(people, key=len, reverse=True))))
        told: set[str] = set()
        for turn in turns:
            scale = READ_WEIGHT if turn.role in READ_ONLY else 1.0
            header, header_weights = self._weighted(turn.header + "\n", names, SPEAKER_WEIGHT, told)
            content, content_weights = self._weighted(turn.content, names, NAME_WEIGHT, told)
            ids += [self._start, *header, *content, self._end, *newline]
            weights += [0.0] * (1 + len(header)) if turn.role in READ_ONLY else [1.0, *header_weights]
            weights += [scale * weight for weight in (*content_weights, 1.0, *[1.0] * len(newline))]
        return [*ids, self._eos], [*weights, 1.0]

    def _weighted(
        self, text: str, names: re.Pattern[str], weight: float, told: set[str]
    ) -> tuple[list[int], list[float]]:
        """The ids of a text, and how much each counts: `weight` in a name, RECURRING_WEIGHT in one of RECURRING that is
        among those `told`, to which the others are added."""
        encoding = self._tokenizer.encode(text)
        of_letters = [1.0] * len(text)
        for found in _RECURRING.finditer(text):
            if found[0] in told:
                of_letters[found.start() : found.end()] = [RECURRING_WEIGHT] * len(found[0])
            told.add(found[0])
        for found in names.finditer(text):
            of_letters[found.start() : found.end()] = [weight] * len(found[0])
        return encoding.ids, [max(of_letters[begin:end], default=1.0) for begin, end in encoding.offsets]

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

    def packed(self, rows: int, length: int) -> Batch:
        """Rows of one length, each with as many whole documents as fit."""
        return _batch([self._row(length) for _ in range(rows)], self._pad)

    def alone(self, size: int) -> Batch:
        """About `size` tokens: documents of similar length, each in a row of its own, as it is when it is served."""
        if self._rng.random() < self._share:
            return _batch([self._repeating(REPEATED_ROW) for _ in range(size // REPEATED_ROW)], self._pad)
        if not self._sorted:
            documents = sorted((self.encode(next(self._stream)) for _ in range(SORTED)), key=lambda one: len(one[0]))
            while documents:
                count = max(1, size // len(documents[-1][0]))
                self._sorted.append(documents[-count:])
                del documents[-count:]
            self._rng.shuffle(self._sorted)
        return _batch(self._sorted.pop(), self._pad)


def _batch(documents: list[Encoded], pad: int) -> Batch:
    """`ids: [rows, length] int64`, `weights: [rows, length] float32`: how much the token there is to be learned."""
    longest = max(len(ids) for ids, _ in documents)
    ids = [ids + [pad] * (longest - len(ids)) for ids, _ in documents]
    return torch.tensor(ids), torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in documents])
