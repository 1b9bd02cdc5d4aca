"""Generates the training documents: an endless, seeded stream of stories, role-play and helper chats.

The same seed gives the same documents on every machine. Run: python deploy/demo-model/generate.py --seed 1 --count 5
"""

import argparse
import random
from collections.abc import Iterator

from chats import chat
from roleplay import role_play
from stories import arc_story, event_story
from turns import Turn

KINDS = (arc_story, event_story, role_play, chat)
SHARES = (0.42, 0.13, 0.35, 0.1)


def documents(seed: int) -> Iterator[list[Turn]]:
    rng = random.Random(seed)
    while True:
        yield rng.choices(KINDS, SHARES)[0](rng)


def as_text(turns: list[Turn]) -> str:
    """The document as a person reads it; training encodes the turns piece by piece instead."""
    body = "".join(f"<|im_start|>{turn.header}\n{turn.content}<|im_end|>\n" for turn in turns)
    return f"<s>{body}</s>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5)
    arguments = parser.parse_args()
    stream = documents(arguments.seed)
    for _ in range(arguments.count):
        print(as_text(next(stream)), end="\n\n")


if __name__ == "__main__":
    main()
