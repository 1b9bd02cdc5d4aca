"""Writes role-play: two characters in turns, the answers keyed to what the other said and to the character card."""

import random
import re
from dataclasses import dataclass

from grammar import Slots, sections
from stories import cast_slots, first_readable
from turns import GRAMMAR, Turn, instruction, system_prompt
from world import Person, draw_cast, draw_things

_ACTION = re.compile(r"(\*[^*]+\*)")
# People who type write these short; the characters spell them out.
CONTRACTIONS = {
    "I am ": "I'm ",
    "I have lost": "I've lost",
    "cannot": "can't",
    "o not ": "on't ",
    "Let us ": "Let's ",
    "What is ": "What's ",
    "Where is ": "Where's ",
}
CONTRACTED = 0.3
SCENE_SLOTS = ("spot", "place")
PLOT_TOPICS = ("lost", "open")
"""Topics about the thing that the plot names."""


@dataclass(frozen=True)
class Topic:
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def load_topics(name: str) -> dict[str, Topic]:
    """Headings with Q lines (choices separated by " | ") and A lines."""
    topics = {}
    for heading, lines in sections(name).items():
        questions = [part.strip() for line in lines if line.startswith("Q ") for part in line[2:].split(" | ")]
        if questions:
            topics[heading] = Topic(tuple(questions), tuple(line[2:] for line in lines if line.startswith("A ")))
    return topics


TOPICS = load_topics("talk.txt")
GRAMMAR.rules.update({name: lines for name, lines in sections("talk.txt").items() if name not in TOPICS})


@dataclass(frozen=True)
class Scene:
    """What stays the same in one role-play. `prose`: Mia smiles. "Come." Otherwise *smiles* Come."""

    slots: dict[str, str]
    mine: Person
    yours: Person
    prose: bool
    your_prose: bool
    roles: tuple[str, str]

    def say(self, rng: random.Random, text: str, slots: Slots, mine: bool) -> Turn:
        person = self.mine if mine else self.yours
        text = GRAMMAR.expand(rng, text, slots)
        if not mine and rng.random() < CONTRACTED:
            text = contracted(text)
        role = self.roles[mine]
        content = in_prose(person.name, text) if (self.prose if mine else self.your_prose) else text
        return Turn(role, content, (person.name,) if role == "text" else ())


def in_prose(name: str, text: str) -> str:
    """Actions as sentences, speech between quotation marks."""
    pieces = [piece.strip() for piece in _ACTION.split(text) if piece.strip()]
    return " ".join(f"{name} {piece.strip('*')}." if piece.startswith("*") else f'"{piece}"' for piece in pieces)


def contracted(text: str) -> str:
    for long, short in CONTRACTIONS.items():
        text = text.replace(long, short)
    return text


def _exchange(rng: random.Random, scene: Scene, name: str, instructed: bool) -> list[Turn]:
    kept = SCENE_SLOTS + (("x", "thing") if name in PLOT_TOPICS else ())
    slots = scene.slots | draw_things(rng, GRAMMAR) | {key: scene.slots[key] for key in kept}
    question = scene.say(rng, rng.choice(TOPICS[name].questions), slots, mine=False)
    answer = rng.choice(TOPICS[name].answers)
    if not instructed:
        return [question, scene.say(rng, answer, slots, mine=True)]
    answer = " ".join([answer, *rng.sample(GRAMMAR.rules["extra"], rng.randint(0, 4))])
    reply = scene.say(rng, answer, slots, mine=True)
    plot = GRAMMAR.expand(rng, GRAMMAR.pick(rng, "detail"), slots)
    return [question, instruction(rng, reply, plot, reply.names), reply]


def _narration(rng: random.Random, scene: Scene, rule: str) -> Turn:
    return Turn("text", GRAMMAR.expand(rng, GRAMMAR.pick(rng, rule), scene.slots))


def _scene(rng: random.Random) -> tuple[Scene, list[Person]]:
    people = draw_cast(rng, GRAMMAR, 3)
    slots = draw_things(rng, GRAMMAR) | cast_slots(dict(zip("muc", people, strict=True)))
    prose = rng.random() < 0.4
    roles = ("user", "assistant") if rng.random() < 0.12 else ("text", "text")
    return Scene(slots, people[0], people[1], prose, prose and rng.random() < 0.6, roles), people


def _prompt(rng: random.Random, scene: Scene) -> Turn:
    if scene.roles[1] == "assistant" or rng.random() < 0.15:
        return Turn("system", GRAMMAR.expand(rng, GRAMMAR.pick(rng, "task.reply"), scene.slots))
    cast = [scene.mine, scene.yours]
    rng.shuffle(cast)
    plot = GRAMMAR.expand(rng, GRAMMAR.pick(rng, "play.plot"), scene.slots)
    return system_prompt(rng, "play", plot, cast, scene.slots)


def _topics(rng: random.Random) -> list[str]:
    """An order that a talk might have: a greeting first, a farewell last, no question twice."""
    names = rng.sample([name for name in TOPICS if name not in ("hello", "bye")], rng.choice((1, 2, 3, 4, 6)))
    return ["hello"] * (rng.random() < 0.4) + names + ["bye"] * (rng.random() < 0.4)


def _role_play(rng: random.Random, prompted: bool) -> tuple[list[Turn], list[Person]]:
    scene, people = _scene(rng)
    narrated = scene.roles[1] == "text"
    instructed = rng.choice((0.0, 0.0, 0.0, 0.5)) if narrated else 0.0
    turns = [_prompt(rng, scene)] if prompted or not narrated else []
    if narrated and rng.random() < 0.3:
        turns.append(_narration(rng, scene, "play.scene"))
    if rng.random() < 0.3:
        turns.append(scene.say(rng, rng.choice(TOPICS["hello"].answers), scene.slots, mine=True))
    for name in _topics(rng):
        turns.extend(_exchange(rng, scene, name, rng.random() < instructed))
        if narrated and rng.random() < 0.1:
            turns.append(_narration(rng, scene, "play.turn"))
    return turns, people


def role_play(rng: random.Random) -> list[Turn]:
    prompted = rng.random() < 0.92
    return first_readable(lambda: _role_play(rng, prompted))
