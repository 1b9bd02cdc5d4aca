"""Writes stories: an arc of beats, or a chain of single events, as narration and as turns of named speakers."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from dialogue import split
from grammar import sections
from turns import GRAMMAR, Turn, instruction, system_prompt
from world import Person, Setting, draw_cast, draw_event_slots, draw_setting

FILLERS = ("travel", "rest", "chat", "air")
ROLES = ("a", "b", "c")
ONE_MESSAGE = 0.5
"""How often an instruction is answered by one message, whoever speaks in it."""


@dataclass(frozen=True)
class Beat:
    """A step of a story: who speaks in it, how an instruction sums it up, and the ways to tell it."""

    speaker: str
    sums: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Arc:
    plots: tuple[str, ...]
    beats: tuple[Beat, ...]


@dataclass
class Plan:
    """The choices that hold for one whole document."""

    slots: dict[str, str]
    named: bool
    instructed: float
    fillers: float
    merge: float


def first_readable(draw: Callable[[], tuple[list[Turn], list[Person]]]) -> list[Turn]:
    """Draws until all names are common or stand in what a user gave at the beginning."""
    while True:
        turns, people = draw()
        given = " ".join(turn.content for turn in turns[:2] if turn.role in ("system", "user"))
        if all(person.common or person.name in given for person in people):
            return turns


def _beat(speaker: str, lines: list[str]) -> Beat:
    sums = [part.strip() for line in lines if line.startswith("=") for part in line[1:].split(";")]
    return Beat(speaker, tuple(sums), tuple(line for line in lines if not line.startswith("=")))


def _load_arcs() -> list[Arc]:
    arcs = []
    for lines in sections("arcs.txt").values():
        plots = tuple(line[2:] for line in lines if line.startswith("@"))
        starts = [number for number, line in enumerate(lines) if line.startswith("#")] + [len(lines)]
        beats = tuple(_beat(lines[start][2:].strip(), lines[start + 1 : stop]) for start, stop in pairwise(starts))
        arcs.append(Arc(plots, beats))
    return arcs


def _load_events() -> list[Beat]:
    return [_beat("", lines) for lines in sections("events.txt").values()]


ARCS = _load_arcs()
EVENTS = _load_events()


def cast_slots(setting: Setting, cast: list[Person]) -> dict[str, str]:
    slots = dict(setting.slots)
    for key, person in zip(ROLES, cast, strict=False):
        slots |= person.slots(key)
    return slots


def _event(rng: random.Random, plan: Plan) -> tuple[Beat, dict[str, str]]:
    return rng.choice(EVENTS), plan.slots | draw_event_slots(rng, GRAMMAR)


def _swap(rng: random.Random, cast: dict[str, Person]) -> dict[str, Person]:
    """An event may happen to any two of the cast."""
    first, second = rng.sample(list(cast.values()), 2)
    return {"a": first, "b": second}


def _tell(rng: random.Random, plan: Plan, beat: Beat, slots: dict[str, str], cast: dict[str, Person]) -> list[Turn]:
    content = GRAMMAR.expand(rng, rng.choice(beat.texts), slots)
    told = [Turn("text", content)]
    if plan.named:
        opening = cast[beat.speaker].name if beat.speaker else None
        parts = split(content, [person.name for person in cast.values()], opening)
        told = [Turn("text", text, (speaker,) if speaker else ()) for speaker, text in parts]
    if rng.random() >= plan.instructed or not beat.sums:
        return told
    if rng.random() < ONE_MESSAGE:
        told = [Turn("text", content, tuple(dict.fromkeys(name for turn in told for name in turn.names)))]
    summed = GRAMMAR.expand(rng, rng.choice(beat.sums), slots)
    return [instruction(rng, told[0].content, summed, told[0].names), *told]


def _filler(rng: random.Random, plan: Plan, cast: dict[str, Person]) -> list[Turn]:
    if rng.random() < 0.5:
        beat, slots = _event(rng, plan)
        pair = _swap(rng, cast)
        for key, person in pair.items():
            slots |= person.slots(key)
        return _tell(rng, plan, beat, slots, pair)
    rule = rng.choice(FILLERS)
    beat = Beat("", (), tuple(GRAMMAR.rules[rule]))
    return _tell(rng, plan, beat, plan.slots, cast)


def _merge(rng: random.Random, turns: list[Turn], chance: float) -> list[Turn]:
    """Joins neighbouring narrations into one message of several paragraphs."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and last.role == turn.role == "text" and not last.names and not turn.names and rng.random() < chance:
            merged[-1] = Turn("text", last.content + rng.choice(("\n\n", "\n\n", "\n", " ")) + turn.content)
        else:
            merged.append(turn)
    return merged


def _plan(rng: random.Random, slots: dict[str, str]) -> Plan:
    return Plan(
        slots=slots,
        named=rng.random() < 0.9,
        instructed=rng.choice((0.0, 0.0, 0.3, 0.7, 1.0)),
        fillers=rng.choice((0.0, 0.1, 0.25, 0.5)),
        merge=rng.choice((0.0, 0.4, 0.8)),
    )


def _style(rng: random.Random, slots: dict[str, str]) -> str:
    return GRAMMAR.expand(rng, GRAMMAR.pick(rng, f"style.{slots['mood']}"), slots)


def _arc_story(rng: random.Random, prompted: bool) -> tuple[list[Turn], list[Person]]:
    setting = draw_setting(rng, GRAMMAR)
    people = draw_cast(rng, GRAMMAR, setting.genre, 3)
    slots = cast_slots(setting, people)
    cast = dict(zip(ROLES, people, strict=True))
    arc = rng.choice(ARCS)
    plan = _plan(rng, slots)
    turns: list[Turn] = []
    last = len(arc.beats) - 1
    for number, beat in enumerate(arc.beats):
        turns.extend(_tell(rng, plan, beat, slots, cast))
        if number != last and rng.random() < plan.fillers:
            turns.extend(_filler(rng, plan, cast))
    turns = _merge(rng, turns, plan.merge)
    if prompted:
        plot = GRAMMAR.expand(rng, rng.choice(arc.plots), slots)
        turns.insert(0, system_prompt(rng, "task.story", plot, _style(rng, slots), people, slots))
    return turns, people


def _event_story(rng: random.Random, prompted: bool) -> tuple[list[Turn], list[Person]]:
    setting = draw_setting(rng, GRAMMAR)
    people = draw_cast(rng, GRAMMAR, setting.genre, rng.choice((2, 2, 3)))
    slots = cast_slots(setting, people)
    cast = dict(zip(ROLES, people, strict=False))
    plan = _plan(rng, slots)
    plan.instructed = rng.choice((0.5, 1.0, 1.0))
    turns: list[Turn] = []
    sums: list[str] = []
    for _ in range(rng.randint(1, 5)):
        beat, event_slots = _event(rng, plan)
        pair = _swap(rng, cast)
        for key, person in pair.items():
            event_slots |= person.slots(key)
        sums.append(GRAMMAR.expand(rng, rng.choice(beat.sums), event_slots))
        turns.extend(_tell(rng, plan, Beat("", (sums[-1],), beat.texts), event_slots, pair))
    if rng.random() < 0.5:
        turns.extend(_tell(rng, plan, Beat("", ("The end.",), tuple(GRAMMAR.rules["end"])), slots, cast))
    if prompted:
        plot = " ".join(sums[: rng.randint(1, 3)])
        turns.insert(0, system_prompt(rng, "task.story", plot, _style(rng, slots), people, slots))
    return turns, people


def arc_story(rng: random.Random) -> list[Turn]:
    """A story with setup, problem, attempts and an end, as the plot in its system prompt says."""
    prompted = rng.random() < 0.88
    return first_readable(lambda: _arc_story(rng, prompted))


def event_story(rng: random.Random) -> list[Turn]:
    """A chain of events that the instructions ask for, one after the other."""
    prompted = rng.random() < 0.8
    return first_readable(lambda: _event_story(rng, prompted))
