"""The shape of a document: turns, and the helpers that write system prompts and instructions for it."""

import random
from dataclasses import dataclass

from grammar import Grammar, Slots
from world import Person

GRAMMAR = Grammar("world.txt", "phrases.txt", "prompts.txt", "chat.txt")


@dataclass(frozen=True)
class Turn:
    """One message. `role` is system, user, assistant or text; `names` only for text."""

    role: str
    content: str
    names: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        return f"{self.role} names= {'; '.join(self.names)}" if self.names else self.role


def word_count(text: str) -> int:
    """Words, to the nearest five, as the `Length:` instruction counts them."""
    return max(5, round(len(text.split()) / 5) * 5)


def instruction(rng: random.Random, content: str, plot: str, names: tuple[str, ...]) -> Turn:
    """What a user would have written to get `content`. At least one of the keys is there."""
    lines = []
    if rng.random() < 0.65:
        lines.append(f"Length: {word_count(content)} words")
    if rng.random() < 0.85 or not lines:
        lines.append(f"Plot: {plot}")
    if names and rng.random() < 0.3:
        key = "Speaker" if len(names) == 1 and content.startswith('"') else "Characters"
        lines.append(f"{key}: {', '.join(names)}")
    return Turn("user", "\n".join(lines))


def card(rng: random.Random, person: Person, slots: Slots) -> str:
    """A description of one character, some with the name as a heading and some without."""
    text = GRAMMAR.expand(rng, GRAMMAR.pick(rng, "card"), {**slots, **person.slots("p")})
    return text.replace("woman", "man") if person.gender == "he" else text.replace(" man...", " woman...")


def system_prompt(rng: random.Random, task: str, plot: str, style: str, cast: list[Person], slots: Slots) -> Turn:
    """Task, plot, style and characters under headings; sections may be missing or change places."""
    gap = rng.choice(("\n\n", "\n\n", "\n\n\n"))
    after = rng.choice(("\n\n", "\n\n", "\n"))
    parts = []
    if rng.random() < 0.93:
        parts.append(GRAMMAR.pick(rng, "head.plot") + after + plot)
    if rng.random() < 0.5:
        parts.append(GRAMMAR.pick(rng, "head.style") + after + style)
    if rng.random() < 0.75 or not parts:
        cards = [f"### {person.name}{after}{card(rng, person, slots)}" for person in cast]
        parts.append(GRAMMAR.pick(rng, "head.chars") + gap + gap.join(cards))
    if rng.random() < 0.15:
        rng.shuffle(parts)
    intro = GRAMMAR.expand(rng, GRAMMAR.pick(rng, task), slots)
    if rng.random() < 0.12:
        return Turn("system", plot if rng.random() < 0.3 else f"{intro} {plot}")
    return Turn("system", gap.join([intro, *parts] if rng.random() < 0.95 else parts))
