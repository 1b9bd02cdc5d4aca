"""What the device samplers cost a step, on a CUDA device, beside DRY in plain torch and the mere writing of rows.

Needs only torch and Triton. Each figure is the median over replays of a CUDA graph that holds one step for each of
several random inputs, in microseconds a step; "cold" with the caches overwritten before each replay. First, every input
is compared with the references, on some of its rows; then steps are taken that may neither wait for the device nor
allocate. Run: python -m loadtests.gpu_sampling [--json], with --dry-run for a small run in Triton's interpreter without
a device, or with --compile-only for registers and spills.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

if "--dry-run" in sys.argv:  # before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from serving.core import Dry, Markers, RoleRule
from serving.sampling.dry import device as dry
from serving.sampling.dry.params import MOST_LENGTH, Breakers, penalty_table
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import Headers
from serving.sampling.history import MARKER_FIELDS, Rows, bitmap, marker_row
from serving.sampling.roles import device as roles
from serving.sampling.roles.params import MOST_PATH_TOKENS
from serving.sampling.roles.reference import TokenClasses, constrain, constraint

START, END, NEWLINE, ROLE = 1, 2, 3, (4, 5)
FIRST_WORD = 16
MARKERS = Markers(START, END, NEWLINE, line_breaks=True, after_end=(NEWLINE,), eos=(0,))
DRY = Dry(allowed_length=2)
RULE = RoleRule(headers=((*ROLE, NEWLINE), (6, NEWLINE), (7, 8, 9, NEWLINE)), minimum_content=8)
CLASSES = TokenClasses(frozenset({NEWLINE, 10, 11}), frozenset({0, START, END}), frozenset({12, 13}))
MESSAGE_TOKENS = 317
INPUTS, REPLAYS, CHECKED_ROWS = 4, 200, 4
FLUSHED_BYTES = 256 << 20


@dataclass(frozen=True)
class Size:
    rows: int
    tokens: int
    vocab: int


def breakers(vocab: int) -> Breakers:
    """About as many tokens as hold a quote, a colon, an asterisk or a line break."""
    return Breakers(frozenset((*range(FIRST_WORD), *range(FIRST_WORD + 5, vocab, 37))))


def typical(size: Size, seed: int, device: torch.device) -> torch.Tensor:
    """`[rows, tokens] int32`: words as frequent as in prose, messages with headers, some phrases said twice; half of
    the rows are about to say one again."""
    dice = torch.Generator().manual_seed(seed)
    uniform = torch.rand((size.rows, size.tokens), generator=dice)
    ids = (FIRST_WORD - 1 + (uniform * torch.log(torch.tensor(size.vocab - FIRST_WORD - 1.0))).exp()).int()
    for at in range(seed % 97, size.tokens - 32, MESSAGE_TOKENS):
        ids[:, at : at + 6] = torch.tensor([END, NEWLINE, START, *ROLE, NEWLINE], dtype=torch.int32)
    for begin in range(size.tokens // 4, size.tokens - 32, 500):
        ids[:, begin : begin + 12] = ids[:, begin // 2 : begin // 2 + 12].clone()
    half, middle = size.rows // 2, size.tokens // 2 + 8
    ids[:half, -5:] = ids[:half, middle : middle + 5].clone()
    return ids.to(device)


def looping(size: Size, seed: int, device: torch.device) -> torch.Tensor:
    """The same, but every row repeats a piece of 1 to 60 tokens."""
    dice = torch.Generator().manual_seed(seed)
    pieces = torch.randint(FIRST_WORD, FIRST_WORD + 5, (size.rows, 60), generator=dice, dtype=torch.int32)
    periods = torch.tensor([1, 3, 17, 60]).repeat(size.rows // 4 + 1)[: size.rows, None]
    return pieces.gather(1, torch.arange(size.tokens)[None, :] % periods).to(device)


def in_headers(size: Size, seed: int, device: torch.device, share: float) -> torch.Tensor:
    """Typical text, of which so many rows end inside of a header."""
    ids = typical(size, seed, device)
    ids[: max(1, round(share * size.rows)), -2:] = torch.tensor([START, ROLE[0]], dtype=torch.int32, device=device)
    return ids


class Step:
    """One input: histories, logits, and the tables of both samplers, each request in a slot of its own."""

    def __init__(self, size: Size, history: torch.Tensor, seed: int) -> None:
        device = history.device
        rows = size.rows

        def alike(row: list[int], width: int) -> torch.Tensor:
            return torch.tensor([[*row, *[0] * (width - len(row))]], dtype=torch.int32).repeat(rows, 1).to(device)

        self.size, self.history = size, history
        generator = torch.Generator(device).manual_seed(seed)
        self.before = torch.randn((rows, size.vocab), generator=generator, device=device) * 4
        self.logits = self.before.clone()
        slots = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).int().to(device)
        lengths = torch.full((rows,), size.tokens, dtype=torch.int32, device=device)
        none = torch.zeros(rows, dtype=torch.int32, device=device)
        self.rows = Rows(history, lengths, slots, none, none, drafts=False)
        markers = alike(marker_row(MARKERS), MARKER_FIELDS)
        self.dry = dry.Tables(
            alike(dry.setting_row(DRY, 0), dry.SETTING_FIELDS),
            torch.tensor([dry.penalty_row(DRY)], dtype=torch.float32).repeat(rows, 1).to(device),
            markers,
            bitmap(breakers(size.vocab).ids, size.vocab)[None].to(device),
            torch.zeros((1, 1), dtype=torch.int32, device=device),
            torch.zeros((1, dry.SEQUENCE_STARTS), dtype=torch.int32, device=device),
            bitmap(CLASSES.line_break, size.vocab).to(device),
        )
        paths, starts = roles.path_rows(RULE)
        classes = (CLASSES.line_break, CLASSES.line_break | CLASSES.special, CLASSES.name_start)
        self.roles = roles.Tables(
            alike(roles.rule_row(RULE), roles.RULE_FIELDS),
            alike(paths, MOST_PATH_TOKENS),
            alike(starts, roles.STARTS),
            markers,
            torch.stack([bitmap(ids, size.vocab) for ids in classes]).to(device),
        )
        self.scratch = dry.Scratch.of(rows, size.tokens, device)
        self.records = torch.empty((rows, roles.RECORD_FIELDS), dtype=torch.int32, device=device)

    def take_dry(self) -> None:
        dry.apply(self.logits, self.rows, self.dry, self.scratch, self.size.tokens)

    def take_roles(self) -> None:
        roles.apply(self.logits, self.rows, self.roles, self.records)

    def take_torch_dry(self) -> None:
        """DRY by comparing each place with the end, as far back as a repetition counts, and without headers."""
        self.logits = torch_dry(self.logits, self.history, self.rows.slots, breakers_of(self))

    def write_rows(self, count: int) -> None:
        self.logits[:count] = -inf

    def check(self, take: Callable[[], None], expected: Callable[[list[int], torch.Tensor], torch.Tensor]) -> None:
        """Compare some rows after one step with what the reference makes of them."""
        self.logits.copy_(self.before)
        take()
        for row in range(0, self.size.rows, max(1, self.size.rows // CHECKED_ROWS)):
            ids = self.history[int(self.rows.slots[row])].tolist()
            assert torch.equal(self.logits[row].cpu(), expected(ids, self.before[row].cpu())), (self.size, row)


def breakers_of(step: Step) -> torch.Tensor:
    """`[V] bool`."""
    words = step.dry.breakers[0]
    bits = (words[:, None] >> torch.arange(32, device=words.device)) & 1
    return bits.flatten()[: step.size.vocab].bool()


def torch_dry(
    logits: torch.Tensor, history: torch.Tensor, slots: torch.Tensor, breaker: torch.Tensor, most: int = 1 << 28
) -> torch.Tensor:
    """As many rows at once as need `most` comparisons."""
    table = torch.tensor(penalty_table(DRY), device=logits.device)
    tokens = history.shape[1]
    at_once = max(1, most // (tokens * MOST_LENGTH))
    for first in range(0, len(logits), at_once):
        ids = history[slots[first : first + at_once].long()].long()
        padded = torch.nn.functional.pad(ids, (MOST_LENGTH - 1, 0), value=-1)
        ends = padded.unfold(1, MOST_LENGTH, 1)
        same = (ends[:, :-1] == ends[:, -1:]) & ~breaker[ends[:, -1:].clamp(min=0)]
        lengths = same.flip(2).cumprod(2, dtype=torch.int8).sum(2, dtype=torch.int64)
        following = ids[:, 1:]
        lengths = torch.where(breaker[following], 0, lengths)
        longest = torch.zeros((len(ids), logits.shape[1]), dtype=torch.int64, device=ids.device)
        longest.scatter_reduce_(1, following, lengths, "amax")
        logits[first : first + at_once] -= table[longest]
    return logits


def expected_dry(ids: list[int], row: torch.Tensor) -> torch.Tensor:
    row = row.clone()
    headers = Headers.of(MARKERS, CLASSES.line_break)
    for token, penalty in penalties(ids, DRY, breakers(len(row)), headers).items():
        row[token] -= torch.tensor(penalty, dtype=torch.float32)
    return row


def expected_roles(ids: list[int], row: torch.Tensor) -> torch.Tensor:
    return torch.tensor(constrain(row.tolist(), constraint(ids, RULE, MARKERS, CLASSES)))


class Clock:
    """Times steps on a CUDA device; without one, one call of each on the host, so that all of this can be tried out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flushed = torch.empty(FLUSHED_BYTES if device.type == "cuda" else 1, dtype=torch.int8, device=device)

    def microseconds(self, takes: list[Callable[[], Any]]) -> dict[str, float]:
        """A step's median time, with warm caches and with cold ones."""
        if self.device.type != "cuda":
            began_s = time.perf_counter()
            for take in takes:
                take()
            return {"us": 1e6 * (time.perf_counter() - began_s) / len(takes)}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for take in takes:
                take()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for take in takes:
                take()
        return {
            "us": round(self._replay(graph, cold=False) / len(takes), 2),
            "cold_us": round(self._replay(graph, cold=True) / len(takes), 2),
        }

    def _replay(self, graph: torch.cuda.CUDAGraph, *, cold: bool) -> float:
        spans = []
        for _ in range(REPLAYS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if cold:
                self._flushed.zero_()
            begin.record()
            graph.replay()
            end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return 1000 * float(statistics.median(begin.elapsed_time(end) for begin, end in spans))

    def assert_frugal(self, takes: list[Callable[[], Any]]) -> None:
        """Steps neither wait for the device nor allocate."""
        if self.device.type != "cuda":
            return
        torch.cuda.synchronize()
        allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            for take in takes:
                take()
        torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocations


def measure_dry(clock: Clock, size: Size, text: Callable[..., torch.Tensor]) -> dict[str, object]:
    steps = [Step(size, text(size, seed, clock.device), seed) for seed in range(INPUTS)]
    for step in steps:
        step.check(step.take_dry, expected_dry)
    takes = [step.take_dry for step in steps]
    clock.assert_frugal(takes)
    times = clock.microseconds(takes)
    plain = clock.microseconds([step.take_torch_dry for step in steps[:1]])
    return {"sampler": "dry", "text": text.__name__, **vars(size), **times, "torch_us": plain["us"]}


def measure_roles(clock: Clock, size: Size, share: float) -> dict[str, object]:
    steps = [Step(size, in_headers(size, seed, clock.device, share), seed) for seed in range(INPUTS)]
    for step in steps:
        step.check(step.take_roles, expected_roles)
    takes = [step.take_roles for step in steps]
    clock.assert_frugal(takes)
    times = clock.microseconds(takes)
    count = max(1, round(share * size.rows))
    written = clock.microseconds([partial(step.write_rows, count) for step in steps])
    return {"sampler": "roles", "in_header": share, **vars(size), **times, "write_us": written["us"]}


def measurements(clock: Clock, dry_run: bool) -> Iterator[dict[str, object]]:
    rows, tokens, vocabs = [1, 64, 256], [1024, 8192, 32768], [32_000, 128_256]
    if dry_run:
        rows, tokens, vocabs = [1, 5], [600], [2000]
    for vocab in vocabs:
        for count in rows:
            for share in (0.05, 1.0):
                yield measure_roles(clock, Size(count, tokens[0], vocab), share)
            for length in tokens:
                for text in (typical, looping):
                    yield measure_dry(clock, Size(count, length, vocab), text)


def verdicts(results: list[dict[str, Any]]) -> Iterator[str]:
    """The worst of what was to be reached with 256 rows, over both vocabularies."""
    full = [result for result in results if result["rows"] == 256]
    for text, most in (("typical", 20.0), ("looping", 100.0)):
        found = [result["us"] for result in full if result.get("text") == text and result["tokens"] == 8192]
        yield f"DRY, 256 x 8k, {text}: {max(found):.1f} us of at most {most:.0f}"
    few = max(result["us"] for result in full if result.get("in_header") == 0.05)
    yield f"roles, 256 rows, 5% in a header: {few:.1f} us of at most 10"
    ratio = max(result["us"] / result["write_us"] for result in full if result.get("in_header") == 1.0)
    yield f"roles, 256 rows, all in a header: {ratio:.2f} of the time to write them, at most 1.5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="a small run in Triton's interpreter, on the host")
    parser.add_argument("--compile-only", action="store_true", help="registers and spills, without a device")
    options = parser.parse_args()
    if options.compile_only:
        from loadtests.gpu_compile import ARCHITECTURE, compile_all

        name, results = f"compiled for sm_{ARCHITECTURE}", compile_all()
    else:
        device = torch.device("cpu" if options.dry_run else "cuda")
        name = torch.cuda.get_device_name() if device.type == "cuda" else "Triton's interpreter"
        results = list(measurements(Clock(device), options.dry_run))
    if options.json:
        json.dump({"device": name, "torch": torch.__version__, "results": results}, sys.stdout, indent=1)
        return
    print(name)
    for result in results:
        print("  ".join(f"{key} {value}" for key, value in result.items()))
    if not (options.compile_only or options.dry_run):
        print(*verdicts(results), sep="\n")


if __name__ == "__main__":
    main()
