"""Draws the cast and the setting of one document: who, where, what, in which genre.

A quarter of the names are rare or made up, so that a model can only get them right by copying. Those must stand in the
prompt; a name that the model has to come up with by itself is always a common one.
"""

import random
from dataclasses import dataclass

from grammar import Grammar

# The prefixes of the genres in data/world.txt.
GENRES = (
    "fairy",
    "sea",
    "space",
    "detective",
    "magic",
    "kitchen",
    "ghost",
    "town",
    "desert",
    "robot",
    "forest",
    "kingdom",
)
GENRE_LISTS = ("thing", "creature", "ride", "danger")
EVENT_LISTS = ("item", "adj", "animal", "spot", "color", "number", "food", "drink", "skill")
PERSON_LISTS = ("look", "like", "fear", "wish")
MOODS = ("warm", "dark", "funny", "poetic", "calm", "tense")
SHE_ONLY = frozenset({"queen", "princess", "goose girl", "headmistress", "witch", "princess's maid"})
HE_ONLY = frozenset({"king", "prince", "kitchen boy"})
PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his"},
    "she": {"he": "she", "him": "her", "his": "her"},
}
RARE_NAMES, SYLLABLE_NAMES, LETTER_NAMES = 0.08, 0.08, 0.09
CONSONANTS, VOWELS = "bcdfghjklmnprstvwxyz", "aeiouy"
LETTER_PATTERNS = ("cvc", "cvcv", "cvcvc", "vcvc", "cvccv", "cvccvc", "vccv", "cvcvcv", "cvccy")
TITLED_NAMES = 0.03


@dataclass(frozen=True)
class Person:
    """One member of the cast. `facts` holds job, trait, look and the like, as templates name them."""

    name: str
    gender: str
    facts: dict[str, str]
    common: bool

    def slots(self, key: str) -> dict[str, str]:
        values = self.facts | PRONOUNS[self.gender]
        return {key: self.name} | {f"{key}.{fact}": value for fact, value in values.items()}


@dataclass(frozen=True)
class Setting:
    """Where a document plays: its genre and the slot values that stay the same from beginning to end."""

    genre: str
    slots: dict[str, str]


def _of_letters(rng: random.Random) -> str:
    kinds = {"c": CONSONANTS, "v": VOWELS}
    return "".join(rng.choice(kinds.get(kind, kind)) for kind in rng.choice(LETTER_PATTERNS)).capitalize()


def _of_syllables(rng: random.Random, grammar: Grammar) -> str:
    middle = grammar.pick(rng, "syl.first") if rng.random() < 0.25 else ""
    return (grammar.pick(rng, "syl.first") + middle + grammar.pick(rng, "syl.last")).capitalize()


def common_name(rng: random.Random, grammar: Grammar, gender: str = "") -> str:
    return grammar.pick(rng, f"name.{gender or rng.choice(('he', 'she'))}")


def draw_name(rng: random.Random, grammar: Grammar, gender: str) -> str:
    share = rng.random()
    if share < RARE_NAMES:
        name = grammar.pick(rng, f"rare.{gender}")
    elif share < RARE_NAMES + SYLLABLE_NAMES:
        name = _of_syllables(rng, grammar)
    elif share < RARE_NAMES + SYLLABLE_NAMES + LETTER_NAMES:
        name = _of_letters(rng)
    else:
        name = common_name(rng, grammar, gender)
    if rng.random() < TITLED_NAMES:
        title = grammar.pick(rng, f"title.{gender}")
        name = f"{title} {name}"
    return name


def draw_person(rng: random.Random, grammar: Grammar, genre: str) -> Person:
    gender = rng.choice(("he", "she"))
    jobs = grammar.rules[f"{genre}.job" if rng.random() < 0.8 else f"{rng.choice(GENRES)}.job"]
    job = rng.choice([job for job in jobs if job not in (SHE_ONLY if gender == "he" else HE_ONLY)])
    trait, trait2 = rng.sample(grammar.rules["trait"], 2)
    facts = {"job": job, "trait": trait, "trait2": trait2}
    facts |= {fact: grammar.pick(rng, fact) for fact in PERSON_LISTS}
    facts["wish"] = facts["wish"].replace("{his|her}", PRONOUNS[gender]["his"])
    name = draw_name(rng, grammar, gender)
    return Person(name, gender, facts, name in grammar.rules[f"name.{gender}"])


def draw_cast(rng: random.Random, grammar: Grammar, genre: str, count: int) -> list[Person]:
    """People whose names begin with different letters, as careful writers choose them."""
    cast: dict[str, Person] = {}
    while len(cast) < count:
        person = draw_person(rng, grammar, genre)
        cast.setdefault(person.name[0], person)
    return list(cast.values())


def draw_event_slots(rng: random.Random, grammar: Grammar) -> dict[str, str]:
    """Things of the moment, drawn anew for every event and every exchange."""
    slots = {name: grammar.pick(rng, name) for name in EVENT_LISTS}
    slots["x"] = f"{slots['adj']} {slots['item']}"
    slots["nick"] = common_name(rng, grammar)
    slots["when"] = grammar.pick(rng, "when")
    return slots


def draw_setting(rng: random.Random, grammar: Grammar) -> Setting:
    genre = rng.choice(GENRES)
    slots = draw_event_slots(rng, grammar)
    slots["place"], slots["spot"] = rng.sample(grammar.rules[f"{genre}.place"], 2)
    for name in GENRE_LISTS:
        slots[name] = grammar.pick(rng, f"{genre}.{name}")
    slots["thing"] = slots["thing"] if rng.random() < 0.7 else slots["x"]
    slots["town"] = grammar.pick(rng, "town")
    slots["abstract"] = grammar.pick(rng, "abstract")
    slots["mood"] = rng.choice(MOODS)
    slots["<mood"] = f"mood.{slots['mood']}"
    slots["<place_air"] = f"{genre}.air"
    return Setting(genre, slots)
