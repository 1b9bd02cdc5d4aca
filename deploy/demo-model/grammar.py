"""A small text grammar: named lists, inline choices and slots, read from the files in data/.

Syntax: `<rule>` takes a random line of a rule, `{a|b}` chooses, `$slot` inserts; `$Slot` inserts with a capital. The
article "a" becomes "an" before a vowel, so that templates need not care. Knows nothing of stories.
"""

import random
import re
from collections.abc import Mapping
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"

_RULE = re.compile(r"<([a-z_.]+)>")
_CHOICE = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"\$([A-Za-z]\w*(?:\.[A-Za-z]\w*)?)")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU]|honest)(?!one|uni|use)")
_SPACES = re.compile(r"  +")

Slots = Mapping[str, str]


def sections(name: str) -> dict[str, list[str]]:
    """The blocks of a data file: heading -> lines. A heading may carry a list, separated by semicolons."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (DATA / name).read_text(encoding="utf-8").split("\n"):
        if line.startswith("["):
            heading, _, rest = line[1:].partition("]")
            lines = found.setdefault(heading, [])
            lines.extend(item.strip() for item in rest.split(";") if item.strip())
        elif line and not line.startswith("# "):
            lines.append(line)
    return found


def slot(slots: Slots, key: str) -> str:
    """The value for `key`; a key that begins its last part with a capital asks for a capitalised value."""
    if key in slots:
        return slots[key]
    owner, dot, last = key.rpartition(".")
    value = slots[owner + dot + last[0].lower() + last[1:]]
    return value[0].upper() + value[1:]


class Grammar:
    """The rules of several data files in one namespace."""

    def __init__(self, *files: str) -> None:
        self.rules: dict[str, list[str]] = {}
        for name in files:
            self.rules.update(sections(name))

    def pick(self, rng: random.Random, rule: str) -> str:
        return rng.choice(self.rules[rule])

    def expand(self, rng: random.Random, text: str, slots: Slots) -> str:
        """Rules first, then choices, then slots, so that a slot's value is never read as grammar."""
        while "<" in text and _RULE.search(text):
            text = _RULE.sub(lambda match: self.pick(rng, match[1]), text)
        while "{" in text:
            text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)
        text = text.replace("\\n", "\n")
        # Twice, since a slot may hold a sentence with slots of its own.
        for _ in range(2):
            text = _SLOT.sub(lambda match: slot(slots, match[1]), text)
        text = _ARTICLE.sub(r"\1n ", text)
        return _SPACES.sub(" ", text).strip(" ")
