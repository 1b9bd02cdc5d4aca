"""Turns documents into training rows of token ids and labels.

Headers and contents are encoded apart and special tokens by id, exactly as the serving templates do it. System and
user turns are read but not learned: the labels there are IGNORE, so the model's small capacity goes into writing.
"""

import torch
from tokenizers import Tokenizer

from generate import documents
from turns import Turn

IGNORE = -100
READ_ONLY = frozenset({"system", "user"})
BUFFER = 48
SMALLEST_REST = 48
SPECIAL_TOKENS = ("<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")

Encoded = tuple[list[int], list[int]]


class Packer:
    """An endless stream of rows. Each row begins with a document's begin and holds as many whole ones as fit."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._stream = documents(seed)
        self._waiting: list[Encoded] = []
        vocabulary = tokenizer.get_vocab()
        self._pad, self._bos, self._eos, self._start, self._end = (vocabulary[name] for name in SPECIAL_TOKENS)

    def encode(self, turns: list[Turn]) -> Encoded:
        ids, labels = [self._bos], [IGNORE]
        newline = self._tokenizer.encode("\n").ids
        for turn in turns:
            header = self._tokenizer.encode(turn.header + "\n").ids
            piece = [self._start, *header, *self._tokenizer.encode(turn.content).ids, self._end, *newline]
            ids += piece
            labels += [IGNORE] * len(piece) if turn.role in READ_ONLY else piece
        return [*ids, self._eos], [*labels, self._eos]

    def _row(self, length: int) -> Encoded:
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            while len(self._waiting) < BUFFER:
                self._waiting.append(self.encode(next(self._stream)))
            rest = length - len(ids)
            fitting = next((n for n, document in enumerate(self._waiting) if len(document[0]) <= rest), None)
            if fitting is None and ids and rest < SMALLEST_REST:
                return ids + [self._pad] * rest, labels + [IGNORE] * rest
            document = self._waiting.pop(fitting or 0)
            ids += document[0][:rest]
            labels += document[1][:rest]
        return ids, labels

    def batch(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`ids, labels: [rows, length] int64`; labels stand at the position of their own token."""
        packed = [self._row(length) for _ in range(rows)]
        return torch.tensor([row[0] for row in packed]), torch.tensor([row[1] for row in packed])
