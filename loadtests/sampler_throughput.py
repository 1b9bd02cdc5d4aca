"""What DRY and role constraints cost a real engine: output tokens a second with both on, as a share of both off.

The demo model, 64 choices at once, all of the same lengths, in pairs of rounds whose order changes; told is the median
over the pairs. Run: python -m loadtests.sampler_throughput [--pairs 9] [--json]
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import replace

from loadtests.demo_engine import demo_engine, generate_all
from serving.core import (
    ChatPrompt,
    Dry,
    GenerationRequest,
    Header,
    Message,
    PreparedRequest,
    Rules,
    Sampling,
    Stopping,
)
from serving.engine.local import LocalEngine
from serving.prompting.prepare import Prompting

CHOICES = 64
OUTPUT_TOKENS = 256
TARGET = 0.97
PLOT = "A story about Mara, the captain of a ship, and Tom, a boy who hides on it. They look for a lost island. "


async def requests(prompting: Prompting, engine: LocalEngine, rules: Rules) -> list[PreparedRequest]:
    """Choices that all run to their full length, whatever the model would like."""
    prompt = ChatPrompt((Message("system", PLOT * 8),), Header("text", ("Mara",)))
    asked = GenerationRequest(
        "throughput",
        "opus-v1-sm",
        (prompt,) * CHOICES,
        sampling=Sampling(temperature=0.9, min_p=0.05),
        stopping=Stopping(max_tokens=OUTPUT_TOKENS, at_message_end=False, ignore_eos=True),
        rules=rules,
    )
    return await prompting.prepare(asked, engine.context_tokens)


async def tokens_a_second(engine: LocalEngine, choices: list[PreparedRequest]) -> float:
    began_s = time.perf_counter()
    generated = await generate_all(engine, choices)
    assert all(len(ids) == OUTPUT_TOKENS for ids in generated)
    return CHOICES * OUTPUT_TOKENS / (time.perf_counter() - began_s)


async def measure(pairs: int) -> dict[str, object]:
    async with demo_engine() as (engine, prompting):
        on = await requests(prompting, engine, Rules(allowed_roles=frozenset({"text"}), dry=Dry()))
        off = [replace(choice, rules=None) for choice in on]
        assert all(choice.rules and choice.rules.dry and choice.rules.roles for choice in on)
        for choices in (off, on):
            await tokens_a_second(engine, choices)
        rates: list[tuple[float, float]] = []
        for pair in range(pairs):
            first, second = (on, off) if pair % 2 else (off, on)
            speeds = await tokens_a_second(engine, first), await tokens_a_second(engine, second)
            rates.append((speeds[1], speeds[0]) if pair % 2 else speeds)
            print(f"pair {pair + 1} of {pairs}: {rates[-1][1] / rates[-1][0]:.3f}", file=sys.stderr)
    ratios = [with_samplers / without for without, with_samplers in rates]
    return {
        "choices": CHOICES,
        "output_tokens": OUTPUT_TOKENS,
        "off_tokens_per_s": round(statistics.median(rate[0] for rate in rates)),
        "on_tokens_per_s": round(statistics.median(rate[1] for rate in rates)),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "target": TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    told = asyncio.run(measure(arguments.pairs))
    if arguments.json:
        print(json.dumps(told))
    else:
        for name, value in told.items():
            print(f"{name:<20}{value}")


if __name__ == "__main__":
    main()
