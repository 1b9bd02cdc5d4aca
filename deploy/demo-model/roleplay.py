"""Writes role-play: two characters in turns, the answers keyed to what the other said and to the character card."""

import random
import re
from dataclasses import dataclass

from grammar import sections
from stories import cast_slots, first_readable
from turns import GRAMMAR, Turn, instruction, system_prompt
from world import Person, draw_cast, draw_event_slots, draw_setting

_ACTION = re.compile(r"(\*[^*]+\*)")
FLAVOURS = ("bare", "quoted", "third", "prose", "speech")
ENDINGS = ("bye", "thanks")
# People say one thing and ask another; the answer goes to the last one.
LEADS = ("hello", "lost", "tired", "sad", "happy", "found", "remark", "thanks", "sorry", "hungry", "afraid", "animal")
LEAD_INS = 0.2
# Templates spell words out; people who type do not.
CONTRACTIONS = {
    "I am ": "I'm ",
    "I will ": "I'll ",
    "o not ": "on't ",
    "id not ": "idn't ",
    "It is ": "It's ",
    "annot ": "an't ",
    "Let us ": "Let's ",
    "What is ": "What's ",
    "That is ": "That's ",
    "You are ": "You're ",
    "you are ": "you're ",
}
YOUR_CONTRACTIONS = 0.4
MY_CONTRACTIONS = 0.12


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
    """What stays the same in one role-play."""

    slots: dict[str, str]
    mine: Person
    yours: Person
    flavour: str
    your_flavour: str
    roles: tuple[str, str]


def render(flavour: str, person: Person, text: str) -> str:
    """Puts actions and speech in one way of writing: *smiles* Come. / *Mia smiles.* "Come." / Mia smiles. "Come." """
    pieces = [piece.strip() for piece in _ACTION.split(text) if piece.strip()]
    if flavour == "bare":
        return " ".join(pieces)
    parts = []
    subject = person.name
    for piece in pieces:
        action = piece.strip("*").strip()
        if not piece.startswith("*"):
            parts.append(piece if flavour == "speech" else '"' + piece.replace('"', "'") + '"')
        elif flavour == "quoted":
            parts.append(piece)
        elif flavour == "third":
            parts.append(f"*{subject} {action}.*")
        elif flavour == "prose":
            parts.append(f"{subject} {action}.")
        if flavour != "speech" and piece.startswith("*"):
            subject = person.gender.capitalize()
    return " ".join(parts) or "..."


def contracted(text: str) -> str:
    for long, short in CONTRACTIONS.items():
        text = text.replace(long, short)
    return text


def _say(rng: random.Random, scene: Scene, text: str, slots: dict[str, str], mine: bool) -> Turn:
    person = scene.mine if mine else scene.yours
    flavour = scene.flavour if mine else scene.your_flavour
    text = GRAMMAR.expand(rng, text, slots)
    if rng.random() < (MY_CONTRACTIONS if mine else YOUR_CONTRACTIONS):
        text = contracted(text)
    content = render(flavour, person, text)
    role = scene.roles[mine]
    return Turn(role, content, (person.name,) if role == "text" else ())


def _exchange(rng: random.Random, scene: Scene, topic: Topic, instructed: bool) -> list[Turn]:
    slots = scene.slots | draw_event_slots(rng, GRAMMAR)
    asked = rng.choice(topic.questions)
    if rng.random() < LEAD_INS:
        asked = f"{rng.choice(TOPICS[rng.choice(LEADS)].questions)} {asked}"
    question = _say(rng, scene, asked, slots, mine=False)
    answer = rng.choice(topic.answers)
    plot = f"{scene.mine.name} answers {scene.yours.name}."
    if instructed and rng.random() < 0.5:
        answer = " ".join([answer, *rng.sample(GRAMMAR.rules["play.more"], rng.randint(1, 3))])
        plot = GRAMMAR.expand(rng, GRAMMAR.pick(rng, "play.detail"), slots)
    reply = _say(rng, scene, answer, slots, mine=True)
    if not instructed:
        return [question, reply]
    return [question, instruction(rng, reply.content, plot, reply.names), reply]


def _narration(rng: random.Random, scene: Scene, rule: str) -> Turn:
    slots = scene.slots | draw_event_slots(rng, GRAMMAR)
    return Turn("text", GRAMMAR.expand(rng, GRAMMAR.pick(rng, rule), slots))


def _scene(rng: random.Random) -> tuple[Scene, list[Person]]:
    setting = draw_setting(rng, GRAMMAR)
    people = draw_cast(rng, GRAMMAR, setting.genre, 3)
    mine, yours, third = people
    slots = cast_slots(setting, people) | mine.slots("m") | yours.slots("u") | third.slots("c")
    flavour = rng.choice(FLAVOURS[:4])
    yours_flavour = flavour if rng.random() < 0.5 else rng.choice(FLAVOURS)
    roles = ("user", "assistant") if rng.random() < 0.14 else ("text", "text")
    return Scene(slots, mine, yours, flavour, yours_flavour, roles), people


def _prompt(rng: random.Random, scene: Scene) -> Turn:
    if rng.random() < 0.15:
        return Turn("system", GRAMMAR.expand(rng, GRAMMAR.pick(rng, "task.play"), scene.slots))
    cast = [scene.mine, scene.yours] if rng.random() < 0.7 else [scene.mine]
    plot = GRAMMAR.expand(rng, GRAMMAR.pick(rng, "play.plot"), scene.slots)
    style = GRAMMAR.expand(rng, GRAMMAR.pick(rng, "style.play"), scene.slots)
    return system_prompt(rng, "task.play", plot, style, cast, scene.slots)


def _topics(rng: random.Random) -> list[Topic]:
    """An order that a talk might have: a greeting first, a farewell last, no question twice."""
    names = rng.sample([name for name in TOPICS if name not in ("hello", *ENDINGS)], rng.choice((1, 2, 3, 4, 5, 7, 10)))
    if rng.random() < 0.55:
        names.insert(0, "hello")
    if rng.random() < 0.35:
        names.append(rng.choice(ENDINGS))
    return [TOPICS[name] for name in names]


def _role_play(rng: random.Random, prompted: bool) -> tuple[list[Turn], list[Person]]:
    scene, people = _scene(rng)
    narrated = scene.roles[1] == "text"
    instructed = rng.choice((0.0, 0.0, 0.0, 0.3)) if narrated else 0.0
    turns = [_prompt(rng, scene)] if prompted else []
    if narrated and rng.random() < 0.35:
        turns.append(_narration(rng, scene, "play.scene"))
    if rng.random() < 0.35:
        slots = scene.slots | draw_event_slots(rng, GRAMMAR)
        turns.append(_say(rng, scene, rng.choice(TOPICS["hello"].answers), slots, mine=True))
    for topic in _topics(rng):
        turns.extend(_exchange(rng, scene, topic, rng.random() < instructed))
        if narrated and rng.random() < 0.1:
            turns.append(_narration(rng, scene, "play.turn"))
    return turns, people


def role_play(rng: random.Random) -> list[Turn]:
    prompted = rng.random() < 0.9
    return first_readable(lambda: _role_play(rng, prompted))
