"""Writes chats between a human and the helper, in plain user and assistant turns."""

import random

from roleplay import CONTRACTED, contracted, load_topics
from turns import GRAMMAR, Turn
from world import draw_things

TOPICS = load_topics("chat.txt")
LAST = ("thanks", "bye")


def _slots(rng: random.Random) -> dict[str, str]:
    slots = draw_things(rng, GRAMMAR)
    slots["n"], slots["n2"] = rng.sample(GRAMMAR.rules["name.he"] + GRAMMAR.rules["name.she"], 2)
    return slots | {"trait": GRAMMAR.pick(rng, "trait")}


def chat(rng: random.Random) -> list[Turn]:
    order = rng.choices([name for name in TOPICS if name not in LAST], k=rng.choice((1, 1, 2, 3)))
    order += [rng.choice(LAST)] if rng.random() < 0.3 else []
    turns = [Turn("system", GRAMMAR.pick(rng, "helper"))] if rng.random() < 0.5 else []
    for name in order:
        slots = _slots(rng)
        asked = GRAMMAR.expand(rng, rng.choice(TOPICS[name].questions), slots)
        turns.append(Turn("user", contracted(asked) if rng.random() < CONTRACTED else asked))
        turns.append(Turn("assistant", GRAMMAR.expand(rng, rng.choice(TOPICS[name].answers), slots)))
    return turns
