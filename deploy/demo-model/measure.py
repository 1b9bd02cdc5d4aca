"""Counts how well the model takes turns: it tells stories to prompts that it has not seen, and each message is checked.
Then how well it keeps to what was told: in documents that it has not seen, whether its first guess of each word that
stood there before is right.

Prompts and documents are the generator's, of seeds that training does not use. Run: python deploy/demo-model/measure.py
"""

import argparse
import random
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer

from generate import documents
from packing import RECURRING_LISTS, RECURRING_WEIGHT, Packer
from sample import FOLDER, Writer, load
from sample_prompts import Prompt
from stories import arc_story
from turns import GRAMMAR, Turn

SEED = 777_000
STORIES, DOCUMENTS = 50, 110
_MESSAGE = re.compile(r"<\|im_start\|>([^\n]*)\n(.*?)<\|im_end\|>", re.DOTALL)
_TELLS = re.compile(r'[,?!]" (?:said|asked|cried|whispered|answered|laughed) ((?:[A-Z]\w+ ?)+)')
HEADER = "text names= "


@dataclass
class Share:
    """How many of how many."""

    what: str
    found: int = 0
    of: int = 0

    def add(self, held: bool) -> None:
        self.found += held
        self.of += 1

    def __str__(self) -> str:
        return f"{self.what}: {self.found} of {self.of} ({100 * self.found / max(self.of, 1):.1f} %)"


@dataclass
class Shares:
    ended: Share = field(default_factory=lambda: Share("stories that ended by themselves"))
    turns: Share = field(default_factory=lambda: Share("named messages whose speaker differs from the one before"))
    speech: Share = field(default_factory=lambda: Share("named messages with a spoken line"))
    tells: Share = field(default_factory=lambda: Share("spoken lines whose `said X` names the header's speaker"))
    cast: Share = field(default_factory=lambda: Share("speakers that the prompt names"))

    def count(self, given: str, story: str, ended: bool) -> None:
        """`story`: its messages as written, each with its header."""
        self.ended.add(ended)
        last = ""
        for header, content in _MESSAGE.findall(story):
            if not header.startswith(HEADER):
                continue
            name = header.removeprefix(HEADER)
            if last:
                self.turns.add(name != last)
            last = name
            self.speech.add('"' in content)
            self.cast.add(name in given)
            for told in _TELLS.findall(content):
                self.tells.add(told.strip() == name)


def unseen_prompts(seed: int, count: int) -> list[Turn]:
    rng = random.Random(seed)
    prompts: list[Turn] = []
    while len(prompts) < count:
        first = arc_story(rng)[0]
        if first.role == "system":
            prompts.append(first)
    return prompts


@torch.no_grad()  # type: ignore[untyped-decorator]
def words_told_again(writer: Writer, folder: Path, seed: int, count: int) -> list[Share]:
    """By list of words, how many of those that stood in a document before are the model's first guess there."""
    packer = Packer(Tokenizer.from_file(str(folder / "tokenizer.json")), seed)
    shares = {name: Share(f"words of [{name}] told again") for name in RECURRING_LISTS}
    list_of = {entry.split()[-1]: name for name in RECURRING_LISTS for entry in GRAMMAR.rules[name]}
    for document in islice(documents(seed), count):
        ids, weights = packer.encode(document)
        guesses = writer.model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        for guess, read, weight in zip(guesses, ids[1:], weights[1:], strict=False):
            if weight == RECURRING_WEIGHT:
                shares[list_of[writer.tokenizer.decode([read]).strip()]].add(guess == read)
    return list(shares.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--show", action="store_true", help="print the stories, too")
    arguments = parser.parse_args()
    writer, shares = load(arguments.folder), Shares()
    for number, given in enumerate(unseen_prompts(SEED, STORIES)):
        text, ended = writer.write(Prompt("", (given,), "text", whole_story=True), number)
        story = f"<|im_start|>text\n{text}"
        shares.count(given.content, story, ended)
        if arguments.show:
            print(given.content, story, sep="\n\n", end="\n\n")
    for share in (*vars(shares).values(), *words_told_again(writer, arguments.folder, SEED + 1, DOCUMENTS)):
        print(share)


if __name__ == "__main__":
    main()
