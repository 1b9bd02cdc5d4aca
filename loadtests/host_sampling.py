"""What the samplers cost a step on the host: 64 rows at once, on one core, in milliseconds.

DRY reads histories of 8,192 tokens: text as the demo model writes it (at most 1 ms), one token again and again (at most
3 ms), and other texts made to be hard. Beside it, in the same run, text-generation-webui's sampler as it is defined (at
least 50 times slower on natural text). Roles: rows of which one in twenty is in a header (at most 0.2 ms), and all.

Between two steps every logit is written anew, as a model would, so that no history is found in the nearest caches.
Both versions of DRY and the reference are compared first. Run: python -m loadtests.host_sampling [--json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from serving.core import Dry, LogitsRules, Markers, RoleRule
from serving.sampling.base import HostSampler
from serving.sampling.dry.host import HostDry
from serving.sampling.dry.params import MOST_LENGTH
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import Headers
from serving.sampling.roles.host import HostRoles
from serving.sampling.vocabulary import Vocabulary
from serving.settings import DEMO_MODEL_DIR

ROWS, TOKENS, WIDTH = 64, 8192, 32_768
STEPS = 400
GENERATOR = Path(__file__).parents[1] / "deploy/demo-model/generate.py"
LIMITS_MS = {"dry: natural text": 1.0, "dry: one token": 3.0, "roles: 5% in a header": 0.2}
LEAST_RATIO = 50.0

Ints = npt.NDArray[np.int32]


# ---- texts -----------------------------------------------------------------------------------------------------------


def natural(vocabulary: Vocabulary) -> Ints:
    """`[ROWS, TOKENS]`: stories and chats, one behind the other, headers and all."""
    command = [sys.executable, str(GENERATOR), "--seed", "1", "--count", "2500"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    encoded = vocabulary.tokenizer.encode_batch(told.split("\n\n<s>"), add_special_tokens=False)
    ids = [token for document in encoded for token in document.ids]
    return np.array(ids[: ROWS * TOKENS], np.int32).reshape(ROWS, TOKENS)


def repeated(piece: list[int]) -> Ints:
    """`[ROWS, TOKENS]`: a piece again and again."""
    line = np.resize(np.array(piece, np.int32), TOKENS)
    return np.tile(line, (ROWS, 1))


def ending(history: Ints, end: list[int]) -> Ints:
    """The same histories, but for their last tokens."""
    changed = history.copy()
    changed[:, -len(end) :] = end
    return changed


# ---- the baseline ----------------------------------------------------------------------------------------------------


def by_loops(logits: torch.Tensor, history: torch.Tensor, dry: Dry, breakers: frozenset[int]) -> None:
    """DRY in plain Python, row by row. Source: the definition of text-generation-webui's `DRYLogitsProcessor`, which
    knows no headers."""
    for row, line in zip(logits, history, strict=True):
        ids = line.tolist()
        if ids[-1] in breakers:
            continue
        longest: dict[int, int] = {}
        for at in [at for at, token in enumerate(ids[:-1]) if token == ids[-1]]:
            if ids[at + 1] in breakers:
                continue
            length = 1
            while length < MOST_LENGTH and length <= at:
                token = ids[-1 - length]
                if ids[at - length] != token or token in breakers:
                    break
                length += 1
            longest[ids[at + 1]] = max(length, longest.get(ids[at + 1], 0))
        for token, length in longest.items():
            if length >= dry.allowed_length:
                row[token] -= dry.multiplier * dry.base ** (length - dry.allowed_length)


# ---- the measurement -------------------------------------------------------------------------------------------------


class Bench:
    """A sampler and the rows it is measured on; every step ends one token later than the one before."""

    def __init__(self, sampler: HostSampler, rules: list[LogitsRules], history: Ints) -> None:
        self.sampler, self.history = sampler, history
        members = [slot for slot, rule in enumerate(rules) if sampler.add(slot, rule)]
        self.slots = np.array(members, np.int32)
        self.fresh = torch.randn(len(rules), WIDTH)
        self.logits = self.fresh.clone()

    def step(self, size: int) -> float:
        """Of histories of `size` tokens; gives how long it took, in milliseconds."""
        lengths = np.full(len(self.history), size, np.int32)
        self.logits.copy_(self.fresh)
        began = time.perf_counter()
        self.sampler.apply(self.logits, self.slots, self.slots, self.history, lengths)
        return (time.perf_counter() - began) * 1000

    def measure(self, steps: int, vary: bool) -> dict[str, float]:
        """With `vary` the histories grow up to their end, else all steps see the same."""
        size = self.history.shape[1]
        times = sorted(self.step(size - (steps - step) % steps if vary else size) for step in range(steps))
        return {"median_ms": round(statistics.median(times), 3), "p95_ms": round(times[int(steps * 0.95)], 3)}


def dry(vocabulary: Vocabulary, markers: Markers) -> dict[str, dict[str, float]]:
    params = Dry()
    rules = LogitsRules(markers, dry=params)
    phrases = replace(rules, dry=replace(params, sequence_breakers=("said Mia", "the door", "once upon a time")))
    sampler, text, a, b = HostDry(ROWS, vocabulary), natural(vocabulary), 50, 51
    compare(sampler, vocabulary, rules, text)
    compare(sampler, vocabulary, phrases, text)
    same = repeated([a])
    kinds = {
        "natural text": (rules, text, True),
        "natural text, breakers of several tokens": (phrases, text, True),
        "one token": (rules, same, False),
        "one token, every 101st another": (rules, repeated([a] * 100 + [b]), True),
        "40 of one, another, and so on, 50 of one": (rules, ending(repeated([a] * 40 + [b]), [a] * 50), False),
        "a piece of 7 tokens": (rules, repeated(list(range(50, 57))), False),
        "a piece of 2 tokens": (rules, repeated([a, b]), False),
    }
    told = {}
    for name, (rule, history, vary) in kinds.items():
        told[f"dry: {name}"] = Bench(sampler, [rule] * ROWS, history).measure(STEPS, vary)
    breakers = vocabulary.breakers(params.sequence_breakers, markers).ids
    for name, history, steps in (("natural text", text, 9), ("one token", same, 1)):
        told[f"loops: {name}"] = loops(sampler, history, params, breakers, steps)
    return told


def loops(sampler: HostDry, history: Ints, params: Dry, breakers: frozenset[int], steps: int) -> dict[str, float]:
    """The baseline's time; ends the run where it is not exactly the sampler without headers."""
    markers = Markers(WIDTH, WIDTH, WIDTH, eos=tuple(breakers))
    own = Bench(sampler, [LogitsRules(markers, dry=params)] * ROWS, history)
    own.step(TOKENS)
    logits, ids, times = own.fresh.clone(), torch.from_numpy(history), []
    for _ in range(steps):
        logits.copy_(own.fresh)
        began = time.perf_counter()
        by_loops(logits, ids, params, breakers)
        times.append((time.perf_counter() - began) * 1000)
    if not torch.equal(own.logits, logits):
        raise SystemExit("The host sampler and the loops differ.")
    return {"median_ms": round(statistics.median(times), 1)}


def compare(sampler: HostDry, vocabulary: Vocabulary, rules: LogitsRules, text: Ints) -> None:
    """Ends the run where the sampler is not exactly the reference."""
    assert rules.dry is not None
    breakers = vocabulary.breakers(rules.dry.sequence_breakers, rules.markers)
    headers = Headers.of(rules.markers, vocabulary.classes().line_break)
    bench = Bench(sampler, [rules] * 4, text[:4])
    for size in range(TOKENS - 4, TOKENS):
        bench.step(size)
        wanted = bench.fresh.clone()
        for row in range(4):
            for token, penalty in penalties(text[row, :size].tolist(), rules.dry, breakers, headers).items():
                wanted[row, token] -= torch.tensor(penalty, dtype=torch.float32)
        if not torch.equal(bench.logits, wanted):
            raise SystemExit("The host sampler and the reference differ.")


def roles(vocabulary: Vocabulary, markers: Markers) -> dict[str, dict[str, float]]:
    def encoded(text: str) -> tuple[int, ...]:
        return tuple(vocabulary.tokenizer.encode(text, add_special_tokens=False).ids)

    rule = RoleRule((encoded("text\n"), encoded("user\n")), (encoded("text names="),), minimum_content=64)
    rules = [LogitsRules(markers, roles=rule)] * ROWS
    sampler, content = HostRoles(ROWS, vocabulary), repeated(list(encoded("Mia laughed. ")))
    told = {}
    for name, every in (("no header", 0), ("5% in a header", 20), ("all in a header", 1)):
        history = content.copy()
        for row in range(0, ROWS, every) if every else ():
            history[row] = ending(content[row : row + 1], list(encoded("<|im_end|>\n<|im_start|>text")))
        told[f"roles: {name}"] = Bench(sampler, rules, history).measure(STEPS, vary=False)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    vocabulary = Vocabulary.load(DEMO_MODEL_DIR, WIDTH)
    start, end, line_break = vocabulary.tokenizer.encode("<|im_start|><|im_end|>\n", add_special_tokens=False).ids
    markers = Markers(start, end, line_break, line_breaks=True, after_end=(line_break,))
    told = dry(vocabulary, markers) | roles(vocabulary, markers)
    ratio = told["loops: natural text"]["median_ms"] / told["dry: natural text"]["median_ms"]
    kept = ratio >= LEAST_RATIO and all(told[name]["median_ms"] <= limit for name, limit in LIMITS_MS.items())
    if options.json:
        limits = {"limits_ms": LIMITS_MS, "least_ratio": LEAST_RATIO}
        print(json.dumps({**limits, "rows": ROWS, "tokens": TOKENS, "ratio": round(ratio, 1), "steps": told}))
        return int(not kept)
    print(f"{ROWS} rows, {TOKENS} tokens, {WIDTH} logits      median       p95      limit")
    for name, result in told.items():
        limit = f"{LIMITS_MS[name]:>8} ms" if name in LIMITS_MS else ""
        last = f"{result['p95_ms']:>7} ms" if "p95_ms" in result else " " * 10
        print(f"{name:<48}{result['median_ms']:>9} ms{last}{limit}")
    print(f"loops / dry, natural text: {ratio:.0f}, at least {LEAST_RATIO:.0f}")
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
