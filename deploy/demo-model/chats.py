"""Writes chats between a human and the helper, in plain user and assistant turns."""

import random

from roleplay import YOUR_CONTRACTIONS, contracted, load_topics
from turns import GRAMMAR, Turn
from world import draw_event_slots, draw_name, draw_setting

TOPICS = load_topics("chat.txt")
WEIGHTS = {
    "hello": 5.0,
    "who": 2.0,
    "can": 2.0,
    "unknown": 5.0,
    "story.animal": 3.0,
    "story.job": 3.0,
    "story.any": 3.0,
}
LAST = ("thanks", "bye")


def _slots(rng: random.Random) -> dict[str, str]:
    setting = draw_setting(rng, GRAMMAR)
    slots = setting.slots | draw_event_slots(rng, GRAMMAR)
    slots["n"], slots["n2"], slots["n3"] = rng.sample(GRAMMAR.rules["name.he"] + GRAMMAR.rules["name.she"], 3)
    slots["job"] = GRAMMAR.pick(rng, f"{setting.genre}.job")
    slots["trait"] = GRAMMAR.pick(rng, "trait")
    slots["fear"] = GRAMMAR.pick(rng, "fear")
    slots["animal2"] = GRAMMAR.pick(rng, "animal")
    return slots


def chat(rng: random.Random) -> list[Turn]:
    names = [name for name in TOPICS if name not in LAST]
    order = rng.choices(names, [WEIGHTS.get(name, 1.0) for name in names], k=rng.choice((1, 1, 2, 3, 4)))
    order += [rng.choice(LAST)] if rng.random() < 0.3 else []
    turns = [Turn("system", GRAMMAR.pick(rng, "helper"))] if rng.random() < 0.5 else []
    slots = _slots(rng)
    for name in order:
        # "Go on" keeps the people of the story before it, everything else is new.
        slots = slots if name == "more" else _slots(rng)
        question, answer = rng.choice(TOPICS[name].questions), rng.choice(TOPICS[name].answers)
        if "$n" in question:
            slots["n"] = draw_name(rng, GRAMMAR, rng.choice(("he", "she")))
        asked = GRAMMAR.expand(rng, question, slots)
        turns.append(Turn("user", contracted(asked) if rng.random() < YOUR_CONTRACTIONS else asked))
        turns.append(Turn("assistant", GRAMMAR.expand(rng, answer, slots)))
    return turns
