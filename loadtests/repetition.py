"""How repetition falls with DRY's multiplier: distinct-4 of stories of the demo model, as a table and as a figure.

Distinct-4 is the share of different runs among all runs of four tokens, here of a story's contents without headers. The
same prompts and seeds for each multiplier; EOS is ignored, so that the model must go on where it has nothing to say.
Run: python -m loadtests.repetition [--json] [--figure docs/repetition.png] (a figure needs requirements/demo.lock)
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path

from loadtests.demo_engine import demo_engine, generate_all
from serving.core import (
    ChatPrompt,
    Dry,
    GenerationRequest,
    Header,
    Message,
    Rules,
    Sampling,
    Stopping,
)
from serving.engine.local import LocalEngine
from serving.prompting.prepare import Prompting
from serving.sampling.headers import Headers

MULTIPLIERS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
STORIES = 32
STORY_TOKENS = 512
PEOPLE = (("Mara", "Tom"), ("Felix", "Rosa"), ("Alice", "Bob"), ("Lucifer", "Mia"))
PLOTS = (
    "{0} has lost an old map. {1} helps to look for it.",
    "{0} and {1} travel to the sea. On the way they meet a wolf.",
    "{0} wants to learn how to dance. {1} is the teacher.",
    "{0} finds a door in the garden. {1} is afraid of it.",
)


def prompts() -> tuple[ChatPrompt, ...]:
    """As many as there are stories, the same ones every time."""
    told = []
    for number in range(STORIES):
        people, plot = PEOPLE[number % len(PEOPLE)], PLOTS[number // len(PEOPLE) % len(PLOTS)]
        system = Message("system", "Write a story. " + plot.format(*people))
        told.append(ChatPrompt((system,), Header("text", (people[0],))))
    return tuple(told)


def distinct_4(ids: list[int], headers: Headers) -> float:
    content = [token for token, inside in zip(ids, headers.positions(ids), strict=True) if not inside]
    runs = list(zip(content, content[1:], content[2:], content[3:], strict=False))
    return len(set(runs)) / len(runs)


async def stories(engine: LocalEngine, prompting: Prompting, multiplier: float) -> list[list[int]]:
    request = GenerationRequest(
        "repetition",
        "opus-v1-sm",
        prompts(),
        sampling=Sampling(temperature=1.0, seed=1),
        stopping=Stopping(max_tokens=STORY_TOKENS, at_message_end=False, ignore_eos=True),
        rules=Rules(dry=Dry(multiplier) if multiplier else None),
    )
    return await generate_all(engine, await prompting.prepare(request, engine.context_tokens))


async def measure() -> dict[float, float]:
    told = {}
    async with demo_engine() as (engine, prompting):
        markers = prompting.book.markers
        headers = Headers(markers.start, frozenset({markers.header_end}), markers.header_tail)
        for multiplier in MULTIPLIERS:
            written = await stories(engine, prompting, multiplier)
            told[multiplier] = round(statistics.mean(distinct_4(ids, headers) for ids in written), 4)
            print(f"multiplier {multiplier:<5} distinct-4 {told[multiplier]:.3f}", file=sys.stderr)
    return told


def draw(told: dict[float, float], path: Path) -> None:
    from matplotlib import pyplot  # only for the figure

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=120)
    axes.plot(range(len(told)), list(told.values()), marker="o")
    axes.set_xticks(range(len(told)), [f"{multiplier:g}" for multiplier in told])
    axes.set_xlabel("DRY multiplier (base 1.75, allowed length 2)")
    axes.set_ylabel("distinct-4")
    axes.set_title(f"{STORIES} stories of {STORY_TOKENS} tokens, demo model")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--figure", type=Path, help="where to draw it")
    arguments = parser.parse_args()
    told = asyncio.run(measure())
    if arguments.json:
        print(json.dumps(told))
    if arguments.figure:
        draw(told, arguments.figure)


if __name__ == "__main__":
    main()
