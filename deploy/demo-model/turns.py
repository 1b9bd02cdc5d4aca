"""The shape of a document: turns, and the helpers that write system prompts and instructions for it."""

import random
from dataclasses import dataclass

from grammar import Grammar, Slots
from world import Person

GRAMMAR = Grammar("words.txt", "prompts.txt", "chat.txt")


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


def instruction(rng: random.Random, told: Turn, plot: str, people: tuple[str, ...]) -> Turn:
    """What a user would have written to get the turn `told`. A plot is always there."""
    lines = [f"Length: {word_count(told.content)} words"] if rng.random() < 0.7 else []
    lines.append(f"Plot: {plot}")
    if people and rng.random() < 0.4:
        lines.append(f"{'Speaker' if len(told.names) == 1 else 'Characters'}: {', '.join(people)}")
    return Turn("user", "\n".join(lines))


def card(rng: random.Random, person: Person) -> str:
    """A description of one character, sometimes with words that mean nothing to the story."""
    rules = ("card", "card.more") if rng.random() < 0.15 else ("card",)
    return GRAMMAR.expand(rng, " ".join(GRAMMAR.pick(rng, rule) for rule in rules), person.slots("p"))


def system_prompt(rng: random.Random, kind: str, plot: str, cast: list[Person], slots: Slots) -> Turn:
    """Task, plot, style and characters under headings; or the task and the plot in one line."""
    task = GRAMMAR.expand(rng, GRAMMAR.pick(rng, f"task.{kind}"), slots)
    if rng.random() < 0.35:
        return Turn("system", f"{task} {plot}")
    gap = rng.choice(("\n\n\n", "\n\n\n", "\n\n"))
    parts = [task, GRAMMAR.pick(rng, "head.plot") + "\n\n" + plot]
    if rng.random() < 0.2:
        style = GRAMMAR.expand(rng, GRAMMAR.pick(rng, f"style.{kind}"), slots)
        parts.append(GRAMMAR.pick(rng, "head.style") + "\n\n" + style)
    if rng.random() < 0.75:
        cards = "\n\n".join(f"### {person.name}\n\n{card(rng, person)}" for person in cast)
        parts.append(GRAMMAR.pick(rng, "head.chars") + "\n\n" + cards)
    return Turn("system", gap.join(parts))
