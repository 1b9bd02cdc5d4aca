"""Draws the people and the things of one document from the closed lists in data/words.txt.

Every listed name has one gender, and so has an invented one by its ending, so that pronouns can be told from names. A
few names are invented; those must stand in the prompt, since a model can only copy them.
"""

import random
from dataclasses import dataclass

from grammar import Grammar

PERSON_LISTS = ("trait", "look", "like", "fear", "wish")
THINGS = ("thing", "adj", "animal", "color", "food", "dish", "skill")
PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "person": "man"},
    "she": {"he": "she", "him": "her", "his": "her", "person": "woman"},
}
INVENTED_NAMES, TITLED_NAMES, ADJECTIVES = 0.03, 0.01, 0.25


@dataclass(frozen=True)
class Person:
    """One member of the cast. `facts` holds job, trait, look and the like, as templates name them."""

    name: str
    gender: str
    facts: dict[str, str]
    listed: bool

    def slots(self, key: str) -> dict[str, str]:
        values = self.facts | PRONOUNS[self.gender]
        return {key: self.name} | {f"{key}.{fact}": value for fact, value in values.items()}


def _invented(rng: random.Random, grammar: Grammar, gender: str) -> str:
    syllables = [grammar.pick(rng, "syllable") for _ in range(rng.choice((1, 1, 2)))]
    return ("".join(syllables) + grammar.pick(rng, f"last.{gender}")).capitalize()


def draw_person(rng: random.Random, grammar: Grammar) -> Person:
    gender = rng.choice(("he", "she"))
    facts = {fact: grammar.pick(rng, fact) for fact in PERSON_LISTS} | {"job": grammar.pick(rng, f"job.{gender}")}
    listed = rng.random() >= INVENTED_NAMES
    name = grammar.pick(rng, f"name.{gender}") if listed else _invented(rng, grammar, gender)
    if rng.random() < TITLED_NAMES:
        return Person(f"{grammar.pick(rng, f'title.{gender}')} {name}", gender, facts, False)
    return Person(name, gender, facts, listed)


def draw_cast(rng: random.Random, grammar: Grammar, count: int) -> list[Person]:
    cast: dict[str, Person] = {}
    while len(cast) < count:
        person = draw_person(rng, grammar)
        cast.setdefault(person.name, person)
    return list(cast.values())


def _place(rng: random.Random, grammar: Grammar, where: str = "where") -> tuple[str, str]:
    """In the old forest; the old forest."""
    preposition, _, noun = grammar.pick(rng, where).partition(" the ")
    adjective = f"{grammar.pick(rng, 'where.adj')} " if rng.random() < ADJECTIVES else ""
    return f"{preposition} the {adjective}{noun}", f"the {adjective}{noun}"


def draw_things(rng: random.Random, grammar: Grammar) -> dict[str, str]:
    """Slots for things, places and animals, the second ones different from the first."""
    slots = {name: grammar.pick(rng, name) for name in THINGS}
    slots["x"] = f"{slots['adj']} {slots['thing']}"
    slots["job"] = rng.choice(sorted({*grammar.rules["job.she"]} & {*grammar.rules["job.he"]}))
    slots["spot"], slots["place"] = _place(rng, grammar)
    slots["inside"] = _place(rng, grammar, "inside")[0]
    second = {name: grammar.pick(rng, name) for name in ("thing", "adj", "animal", "color")}
    slots["x2"] = f"{second['adj']} {second['thing']}"
    slots["animal2"], slots["color2"] = second["animal"], second["color"]
    slots["spot2"], slots["place2"] = _place(rng, grammar)
    return slots
