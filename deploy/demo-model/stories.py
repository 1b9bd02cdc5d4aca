"""Writes stories: an arc in which two people take turns, or a chain of events that a user asks for one by one.

No two spoken messages that follow each other, narration between them or not, have the same speaker; every spoken
message has a line that its speaker says.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from grammar import sections
from turns import GRAMMAR, Turn, instruction, system_prompt
from world import Person, draw_cast, draw_things

SKIPPED, GUESTS = 0.4, 0.2
MANNERS = {"n": 0.35, "s": 0.5, "t": 0.15}
"""How an event is told: by the narrator, by one speaker, by two."""

Slots = dict[str, str]
Cast = dict[str, Person]


@dataclass(frozen=True)
class Beat:
    """A step of a story: who speaks (`n` is the narrator), whether it may be left out, what an instruction says about
    it, and the ways to tell it."""

    speaker: str
    optional: bool
    sums: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Arc:
    plots: tuple[str, ...]
    goal: str
    beats: tuple[Beat, ...]


def first_readable(draw: Callable[[], tuple[list[Turn], list[Person]]]) -> list[Turn]:
    """Draws until all names are listed ones or stand in the first message."""
    while True:
        turns, people = draw()
        given = turns[0].content if turns[0].role == "system" else ""
        if all(person.listed or person.name in given for person in people):
            return turns


def _beat(heading: str, lines: list[str]) -> Beat:
    sums = tuple(line[2:] for line in lines if line.startswith("="))
    return Beat(heading[1], heading.endswith("?"), sums, tuple(line for line in lines if not line.startswith("=")))


def _arc(lines: list[str]) -> Arc:
    starts = [number for number, line in enumerate(lines) if line.startswith("#")] + [len(lines)]
    beats = tuple(_beat(lines[start], lines[start + 1 : stop]) for start, stop in pairwise(starts))
    plots = tuple(line[2:] for line in lines if line.startswith("@"))
    return Arc(plots, "".join(line[2:] for line in lines if line.startswith("!")), beats)


ARCS = {heading: _arc(lines) for heading, lines in sections("arcs.txt").items()}
GUEST = ARCS.pop("guest")
EVENTS = tuple(sections("events.txt").values())


def cast_slots(cast: Cast) -> Slots:
    return {key: value for role, person in cast.items() for key, value in person.slots(role).items()}


def _spoken(cast: Cast, speaker: str, listener: str) -> Slots:
    return cast[speaker].slots("s") | cast[listener].slots("o")


def _tell(rng: random.Random, beat: Beat, slots: Slots, cast: Cast, listener: str) -> Turn:
    if beat.speaker == "n":
        return Turn("text", GRAMMAR.expand(rng, rng.choice(beat.texts), slots))
    spoken = slots | _spoken(cast, beat.speaker, listener)
    return Turn("text", GRAMMAR.expand(rng, rng.choice(beat.texts), spoken), (cast[beat.speaker].name,))


def _visited(rng: random.Random, beats: list[Beat]) -> Iterator[tuple[Beat, str]]:
    """The steps with the listener of each; with a guest, a third person comes by somewhere in the middle."""
    named = [number for number, beat in enumerate(beats) if beat.speaker != "n"]
    visit = rng.choice(named[2:-1]) if rng.random() < GUESTS else None
    for number, beat in enumerate(beats):
        if number == visit:
            for step in GUEST.beats:
                speaker = beat.speaker if step.speaker == "r" else step.speaker
                yield Beat(speaker, False, step.sums, step.texts), beat.speaker if speaker == "c" else "c"
        yield beat, "b" if beat.speaker == "a" else "a"


def _arc_story(rng: random.Random, prompted: bool) -> tuple[list[Turn], list[Person]]:
    arc = rng.choice(list(ARCS.values()))
    cast = dict(zip("abc", draw_cast(rng, GRAMMAR, 3), strict=True))
    slots = draw_things(rng, GRAMMAR) | cast_slots(cast)
    slots["goal"] = arc.goal
    beats = [beat for beat in arc.beats if not (beat.optional and rng.random() < SKIPPED)]
    steps = list(_visited(rng, beats[1:] if beats[0].speaker == "n" and rng.random() < 0.2 else beats))
    guest = any(beat.speaker == "c" for beat, _ in steps)
    instructed = rng.choice((0.0, 0.0, 0.0, 0.4, 1.0))
    turns: list[Turn] = []
    for beat, listener in steps:
        told = _tell(rng, beat, slots, cast, listener)
        if rng.random() < instructed:
            summed = GRAMMAR.expand(rng, rng.choice(beat.sums), slots)
            turns.append(instruction(rng, told, summed, told.names))
        turns.append(told)
    people = list(cast.values())[: 3 if guest else 2]
    if prompted:
        plot = rng.choice(arc.plots) + (" " + rng.choice(GUEST.plots) if guest else "")
        plot = GRAMMAR.expand(rng, plot, slots)
        turns.insert(0, system_prompt(rng, "story", plot, people, slots))
    return turns, people


def _event(rng: random.Random, lines: list[str], cast: Cast) -> tuple[str, list[Turn]]:
    """What happens, and the instruction with the message that answers it."""
    slots = draw_things(rng, GRAMMAR) | cast_slots(cast) | _spoken(cast, "a", "b")
    manner = rng.choices(list(MANNERS), list(MANNERS.values()))[0]
    told = rng.choice([line[2:] for line in lines if line.startswith(manner)])
    more = rng.sample(GRAMMAR.rules["more"], rng.choice((0, 0, 1, 2, 3, 4)))
    content = GRAMMAR.expand(rng, " ".join([told, *more]), slots)
    summed = GRAMMAR.expand(rng, lines[0][2:], slots)
    both = cast["a"].name, cast["b"].name
    turn = Turn("text", content, both[: "nst".index(manner)])
    return summed, [instruction(rng, turn, summed, turn.names or both), turn]


def _event_story(rng: random.Random, prompted: bool) -> tuple[list[Turn], list[Person]]:
    first, second = draw_cast(rng, GRAMMAR, 2)
    turns: list[Turn] = []
    sums: list[str] = []
    for lines in rng.sample(EVENTS, rng.randint(1, 5)):
        last = next((turn.names for turn in reversed(turns) if turn.names), ())
        if last[:1] == (first.name,):
            first, second = second, first
        summed, told = _event(rng, lines, {"a": first, "b": second})
        sums.append(summed)
        turns.extend(told)
    people = [first, second]
    if prompted:
        cast = dict(zip("ab", people, strict=True))
        turns.insert(0, system_prompt(rng, "story", sums[0], people, cast_slots(cast)))
    return turns, people


def arc_story(rng: random.Random) -> list[Turn]:
    """A story with a beginning, a problem and an end, as the plot in its system prompt says."""
    prompted = rng.random() < 0.9
    return first_readable(lambda: _arc_story(rng, prompted))


def event_story(rng: random.Random) -> list[Turn]:
    """A chain of events that the instructions ask for, one after the other."""
    prompted = rng.random() < 0.7
    return first_readable(lambda: _event_story(rng, prompted))
