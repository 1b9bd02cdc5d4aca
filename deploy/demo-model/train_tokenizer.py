"""Trains the demo model's tokenizer on generated documents. Run: python deploy/demo-model/train_tokenizer.py"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import bpe
from generate import documents

FOLDER = Path(__file__).resolve().parents[2] / "serving" / "demo" / "opus-v1-sm"
SEED = 1000
DOCUMENTS = 12000
VOCAB_SIZE = 3072
CONTEXT = 4096
SPECIAL_TOKENS = ["<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def pieces() -> Iterator[str]:
    """Headers and contents apart, as training and serving encode them."""
    for turns in islice(documents(SEED), DOCUMENTS):
        for turn in turns:
            yield turn.header + "\n"
            yield turn.content


def main() -> None:
    tokenizer = bpe.train_bpe(pieces(), VOCAB_SIZE, SPECIAL_TOKENS, bpe.DEMO_SPLIT)
    bpe.save(tokenizer, FOLDER, bos="<s>", eos="</s>", pad="<|pad|>", max_length=CONTEXT)
    print(f"{FOLDER}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
