"""How long the tables of a vocabulary of 128,000 tokens take at start-up, and the breakers of a request afterwards.

The tokenizer is made up: byte-level, random words, no merges, which decoding does not need. Target: 2 s at first.
Run: python -m loadtests.vocabulary_tables [--json]
"""

import argparse
import json
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from serving.core import Dry, Markers
from serving.sampling.vocabulary import Vocabulary

SIZE = 128_000
TARGET_S = 2.0
MARKERS = Markers(SIZE - 2, SIZE - 1, 0)


def make_tokenizer(folder: Path) -> None:
    dice = random.Random(1)
    pieces = dict.fromkeys(pre_tokenizers.ByteLevel.alphabet())
    letters = string.ascii_letters + ":.,;\"'*-\u010a"
    while len(pieces) < SIZE - 2:
        word = "".join(dice.choices(letters, k=dice.randint(2, 10)))
        pieces[f"\u0120{word}" if dice.random() < 0.6 else word] = None
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))


def timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        make_tokenizer(folder)
        first = timed(lambda: Vocabulary.load(folder, SIZE, cache))
        again = statistics.median(timed(lambda: Vocabulary.load(folder, SIZE, cache)) for _ in range(5))
        vocabulary = Vocabulary.load(folder, SIZE, cache)
        usual = timed(lambda: vocabulary.marked(Dry().sequence_breakers, MARKERS))
        known = timed(lambda: vocabulary.marked(Dry().sequence_breakers, MARKERS))
        worst = timed(lambda: vocabulary.marked([f"{letter}" for letter in string.ascii_letters], MARKERS))
    return {
        "first_start_s": round(first, 3),
        "later_start_s": round(again, 3),
        "target_s": TARGET_S,
        "default_breakers_ms": round(usual * 1e3, 2),
        "known_breakers_ms": round(known * 1e3, 2),
        "all_52_letters_as_breakers_ms": round(worst * 1e3, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    told = measure()
    if parser.parse_args().json:
        print(json.dumps(told))
    else:
        for key, value in told.items():
            print(f"{key:<32}{value}")


if __name__ == "__main__":
    main()
