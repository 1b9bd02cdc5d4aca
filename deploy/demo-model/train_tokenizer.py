"""Trains the demo model's tokenizer on generated documents. Run: python deploy/demo-model/train_tokenizer.py"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import bpe
from generate import documents
from packing import LISTED_NAMES

FOLDER = Path(__file__).resolve().parents[2] / "serving" / "demo" / "opus-v1-sm"
SEED = 1000
DOCUMENTS = 6000
NAME_COUNT = 2000
VOCAB_SIZE = 2304
CONTEXT = 4096
SPECIAL_TOKENS = ["<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def pieces() -> Iterator[str]:
    """Headers and contents apart, as training and serving encode them."""
    for turns in islice(documents(SEED), DOCUMENTS):
        for turn in turns:
            yield turn.header + "\n"
            yield turn.content
    for name in LISTED_NAMES:  # each shall be one token, at the begin of a text and within it
        yield from [name, f" {name}"] * NAME_COUNT


def main() -> None:
    tokenizer = bpe.train_bpe(pieces(), VOCAB_SIZE, SPECIAL_TOKENS, bpe.DEMO_SPLIT)
    bpe.save(tokenizer, FOLDER, bos="<s>", eos="</s>", pad="<|pad|>", max_length=CONTEXT)
    print(f"{FOLDER}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
