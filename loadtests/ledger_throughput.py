"""What the ledger costs: its scripts beside a trivial one, its client beside redis-benchmark, and what a request waits.

    python -m loadtests.ledger_throughput

All in one run on one redis-server with `appendfsync always`. `redis-benchmark` sends the arguments that the ledger
sends, a random number in the place of the request's; so for settles, holds of all these numbers are made first. A
trivial script gets the same arguments and returns one of them; one that also writes it shows what the disk costs, and
so does a `--folder` in memory. Bare scripts run the commands of hold and of settle on records of the same size and
decide nothing: no script that keeps these records is faster. The server's processor time of each call is told, too:
what else runs changes it little.

    scripts   hold and settle: a second's calls beside the trivial script's                       at least 0.6
    client    the app's: the same scripts from as many tasks as redis-benchmark has connections   at least 0.5
    ledger    whole requests, hold and settle with the outbox: beside redis-benchmark's           at least 0.5
    latency   what a request waits for both at 200 a second: p50 at most 1 ms, p99 at most 5 ms; beside two writes
              that decide nothing, and once more with all cores kept awake, since an idle one of a virtual machine
              takes long to wake up

The ratios are medians of several rounds. The exit status is 1 when a target is missed. `redis-benchmark` comes with
Debian's package redis-tools.
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import uvloop

from loadtests.ledger_scripts import BARE, TRIVIAL
from loadtests.ledger_world import Redis, eventually, find_redis_server
from serving.core import Caller, Hold, Plan, Price, Usage
from serving.ledger.base import Grant, Key
from serving.ledger.books import RedisBooks
from serving.ledger.outbox import Outbox
from serving.ledger.redis import RedisLedger
from serving.ledger.scripts import SCRIPTS, read_scripts
from serving.ledger.store import Store

PLAN = Plan("metered", monthly_credits=10**13, max_concurrent=10**9, requests_per_minute=10**9)
CALLER = Caller("mara", "key_9f_0123456789", PLAN)
MODEL, PRICE = "opus-v1-sm", Price(40_000, 10_000, 40_000)
ASKED, USED = Usage(1500, 0, 300), Usage(1500, 1000, 180)
RANDOM, DIGITS = "__rand_int__", 12
MOST_NUMBERS = (1 << 31) - 1
"""redis-benchmark takes more for none, and sends the same number again and again."""
PREFIX = uuid4().hex[:-DIGITS]
WRITTEN = "x" * 600
"""About what a hold or a settle writes to the disk."""
SCRIPT_TARGET, CLIENT_TARGET, P50_MS, P99_MS = 0.6, 0.5, 1.0, 5.0

Arguments = tuple[str, ...]


class Overheard(Store):
    """A store that remembers the arguments of each script."""

    def __init__(self, url: str, timeout_s: float, scripts: Path) -> None:
        super().__init__(url, timeout_s, scripts)
        self.heard: dict[str, Arguments] = {}

    async def run(self, script: str, tag: str, *arguments: str | int) -> list[str]:
        self.heard[script] = (f"{tag}:due", *map(str, arguments))
        return await super().run(script, tag, *arguments)


class Stage:
    """A store with one account."""

    def __init__(self, store: Overheard, folder: Path) -> None:
        self.store = store
        self._folder = folder
        self._ids = itertools.count()

    @asynccontextmanager
    async def ledger(self) -> AsyncIterator[RedisLedger]:
        """As a process has it: it extends, reaps and delivers."""
        ledger = RedisLedger(self.store, Outbox(self._folder / f"outbox-{next(self._ids)}"))
        ledger.start()
        yield ledger
        await ledger.close()

    async def furnish(self) -> None:
        """An empty store but for the account."""
        await self.store.command("FLUSHALL")
        books = RedisBooks(self.store)
        await books.open_account(CALLER.account, PLAN.id)
        await books.grant(CALLER.account, Grant("bought", 10**13))
        await books.add_key(Key(CALLER.key_id, CALLER.account, "load tests", "sk-...", "digest"))

    async def arguments(self) -> dict[str, Arguments]:
        """What each script is sent, the number in the request's id to be replaced."""
        request_id = PREFIX + "0" * DIGITS
        async with self.ledger() as ledger:
            await request(ledger, request_id)

        def template(script: str) -> Arguments:
            return tuple(each.replace(request_id, PREFIX + RANDOM) for each in self.store.heard[script])

        return {script: template(script) for script in ("hold", "settle")}

    async def bare(self, sent: dict[str, Arguments]) -> dict[str, str]:
        """The scripts of `BARE`, with records as long as those of the one request that was made."""
        tag = sent["hold"][0].removesuffix("due")
        account, key = CALLER.account, CALLER.key_id
        ((_, (_, posting)),) = await self.store.command("XREVRANGE", f"{tag}postings:{account}", "+", "-", "COUNT", 1)
        records = {"posting": "x" * len(posting)}
        for name, at in (("account", account), ("key", key), ("hold", f"{account}:{PREFIX}{'0' * DIGITS}")):
            records[name] = "x" * int(await self.store.command("STRLEN", f"{tag}{name}:{at}"))
        return {name: text.format(**records) for name, text in BARE.items()}

    async def benchmark(
        self, text: str, arguments: Arguments, count: int, at_once: int, numbers: int
    ) -> tuple[float, float]:
        """Calls a second of a script by redis-benchmark, and the server's processor time of each in microseconds."""
        sha = await self.store.command("SCRIPT", "LOAD", text)
        options = ["-s", str(self._folder / "redis/redis.sock"), "-n", str(count), "-c", str(at_once), "-q"]
        options += ["-r", str(numbers)]
        before = await self._processor_us()
        process = await asyncio.create_subprocess_exec(
            *("redis-benchmark", *options, "EVALSHA", sha, "1", *arguments), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        rates = re.findall(rb"([\d.]+) requests per second, p50", output)
        if not rates:
            raise SystemExit(f"redis-benchmark failed: {output.decode()[-500:]}")
        return float(rates[-1]), (await self._processor_us() - before) / count

    async def _processor_us(self) -> float:
        told = str(await self.store.command("INFO", "cpu"))
        return sum(float(used) for used in re.findall(r"^used_cpu_(?:sys|user):([\d.]+)", told, re.MULTILINE)) * 1e6

    async def open_holds(self, sent: dict[str, Arguments]) -> int:
        return int(await self.store.command("ZCARD", sent["hold"][0]))

    async def client(self, arguments: Arguments, script: str, numbers: Sequence[int], at_once: int) -> float:
        """Calls a second of a script by the app's client, from tasks that each call again when they are answered."""
        tag = arguments[0].removesuffix(":due")

        async def call(number: int) -> None:
            filled = (each.replace(RANDOM, f"{number:0{DIGITS}}") for each in arguments[1:])
            await Store.run(self.store, script, tag, *filled)

        return await rate(call, numbers, at_once)

    async def whole(self, count: int, at_once: int) -> float:
        """Requests a second, hold and settle."""
        async with self.ledger() as ledger:

            async def call(number: int) -> None:
                await request(ledger, f"{PREFIX[:-1]}w{number:0{DIGITS}}")

            return await rate(call, range(count), at_once)


async def request(ledger: RedisLedger, request_id: str) -> None:
    hold = await ledger.hold(CALLER, request_id, MODEL, PRICE, ASKED)
    await ledger.settle(hold, USED, "finish")


async def rate(call: Callable[[int], Awaitable[None]], numbers: Sequence[int], at_once: int) -> float:
    left = iter(numbers)

    async def work() -> None:
        for number in left:
            await call(number)

    began_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return len(numbers) / (time.perf_counter() - began_s)


async def measure_rates(stage: Stage, count: int, at_once: int) -> dict[str, float]:
    """One round: calls a second of everything."""
    await stage.furnish()
    sent = await stage.arguments()
    scripts = read_scripts()
    told: dict[str, float] = {}

    async def benchmark(name: str, text: str, arguments: Arguments, numbers: int = MOST_NUMBERS) -> None:
        told[name], told[f"us of {name}"] = await stage.benchmark(text, arguments, count, at_once, numbers)

    for name, text in TRIVIAL.items():
        await benchmark(name, text, sent["hold"])
    bare = await stage.bare(sent)
    await benchmark("hold, bare", bare["hold"], sent["hold"])
    await stage.furnish()
    await benchmark("hold", scripts["hold"].text, sent["hold"])
    told["share of holds that held"] = await stage.open_holds(sent) / count
    told["whole ledger"] = await stage.whole(count, at_once)
    # Ten times as many holds as settles: few random numbers come twice, and what is settled already costs less.
    for name, text in (("settle, bare", bare["settle"]), ("settle", scripts["settle"].text)):
        await stage.furnish()
        told["hold by the client"] = await stage.client(sent["hold"], "hold", range(10 * count), at_once)
        await benchmark(name, text, sent["settle"], 10 * count)
    told["share of settles that settled"] = (10 * count - await stage.open_holds(sent)) / count
    last = range(9 * count, 10 * count)
    told["settle by the client"] = await stage.client(sent["settle"], "settle", last, at_once)
    return told


async def measure_latency(
    stage: Stage, per_s: float, seconds: float, *, writes_alone: bool = False
) -> dict[str, float]:
    """Milliseconds that a request waits for its hold and settle together, when requests come as they like.
    `writes_alone`: for two writes of as much in their place, by the same client."""
    await stage.furnish()
    dice = random.Random(0)
    waits_ms: list[float] = []

    async def begin(ledger: RedisLedger, number: int) -> Hold | None:
        if not writes_alone:
            return await ledger.hold(CALLER, f"{PREFIX}{number:0{DIGITS}}", MODEL, PRICE, ASKED)
        await stage.store.command("SET", f"{number}", WRITTEN)
        return None

    async def end(ledger: RedisLedger, number: int, hold: Hold | None) -> None:
        await (ledger.settle(hold, USED, "finish") if hold else stage.store.command("SET", f"{number}", WRITTEN))

    async def wait(ledger: RedisLedger, number: int) -> None:
        began = time.perf_counter()
        hold = await begin(ledger, number)
        held = time.perf_counter()
        await asyncio.sleep(dice.expovariate(2.0))  # it generates
        ended = time.perf_counter()
        await end(ledger, number, hold)
        waits_ms.append((held - began + time.perf_counter() - ended) * 1000)

    async with stage.ledger() as ledger, asyncio.TaskGroup() as group:
        due_s = time.perf_counter()
        ends_s = due_s + seconds
        for number in itertools.count():
            due_s += dice.expovariate(per_s)
            if due_s > ends_s:
                break
            await asyncio.sleep(max(due_s - time.perf_counter(), 0))
            group.create_task(wait(ledger, number))
    ranked = sorted(waits_ms)
    return {"requests": len(ranked), "p50_ms": round(_part(ranked, 0.5), 2), "p99_ms": round(_part(ranked, 0.99), 2)}


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """While this lasts no core is idle: each has something to do that gives way to everything else."""

    def give_way() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    spin = [sys.executable, "-c", "while True: pass"]
    spinners = [subprocess.Popen(spin, preexec_fn=give_way) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def measure_disk(folder: Path, per_s: float, seconds: float) -> dict[str, float]:
    """Milliseconds in which a little data gets onto the disk when it comes as often as holds and settles: each of them
    waits for that once. One behind the other it would be told as a third, since a disk that idles wakes up late."""
    dice = random.Random(0)
    waits_ms = []
    with (folder / "disk").open("ab", buffering=0) as file:
        for _ in range(round(2 * per_s * seconds)):
            time.sleep(dice.expovariate(2 * per_s))
            file.write(b"x" * 600)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            waits_ms.append((time.perf_counter() - began) * 1000)
    ranked = sorted(waits_ms)
    return {"p50_ms": round(_part(ranked, 0.5), 2), "p99_ms": round(_part(ranked, 0.99), 2)}


def _part(ranked: Sequence[float], share: float) -> float:
    return ranked[min(int(len(ranked) * share), len(ranked) - 1)]


def ratios(told: dict[str, float]) -> dict[str, float]:
    both = 1 / (1 / told["hold"] + 1 / told["settle"])
    return {
        "hold / trivial": told["hold"] / told["trivial"],
        "settle / trivial": told["settle"] / told["trivial"],
        "hold / trivial with a write": told["hold"] / told["trivial with a write"],
        "settle / trivial with a write": told["settle"] / told["trivial with a write"],
        "hold / hold, bare": told["hold"] / told["hold, bare"],
        "settle / settle, bare": told["settle"] / told["settle, bare"],
        "hold, bare / trivial": told["hold, bare"] / told["trivial"],
        "settle, bare / trivial": told["settle, bare"] / told["trivial"],
        "hold / trivial, by processor time": told["us of trivial"] / told["us of hold"],
        "settle / trivial, by processor time": told["us of trivial"] / told["us of settle"],
        "client's hold / hold": told["hold by the client"] / told["hold"],
        "client's settle / settle": told["settle by the client"] / told["settle"],
        "whole ledger / (hold + settle)": told["whole ledger"] / both,
    }


TARGETS = {
    "hold / trivial": SCRIPT_TARGET,
    "settle / trivial": SCRIPT_TARGET,
    "client's hold / hold": CLIENT_TARGET,
    "client's settle / settle": CLIENT_TARGET,
    "whole ledger / (hold + settle)": CLIENT_TARGET,
}


async def run(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    # A rewrite of the file in the middle of one measurement would be charged to that alone.
    redis = Redis(folder / "redis", find_redis_server(), ("--auto-aof-rewrite-percentage", "0"))
    redis.start()
    try:
        store = Overheard(redis.url, 10.0, SCRIPTS)
        await eventually(lambda: store.command("PING"))
        stage = Stage(store, folder)
        rounds = []
        for number in range(options.rounds):
            rounds.append(await measure_rates(stage, options.calls, options.at_once))
            tell(f"round {number + 1} of {options.rounds}: " + ", ".join(f"{n} {v:.2f}" for n, v in rounds[-1].items()))
        # As the app does when it is ready: a collection that walks through all modules takes 50 ms.
        gc.collect()
        gc.freeze()
        latency = await measure_latency(stage, options.per_s, options.seconds)
        writes = await measure_latency(stage, options.per_s, options.seconds / 3, writes_alone=True)
        with awake():
            latency_awake = await measure_latency(stage, options.per_s, options.seconds)
        await store.aclose()
    finally:
        redis.kill()
    return {
        "a second": medians(rounds),
        "ratios": medians([ratios(one) for one in rounds]),
        "latency": latency,
        "latency of two writes alone": writes,
        "latency, cores awake": latency_awake,
        "disk": measure_disk(folder, options.per_s, options.seconds / 3),
    }


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}


def missed(told: dict[str, dict[str, float]]) -> Iterator[str]:
    for name, target in TARGETS.items():
        if told["ratios"][name] < target:
            yield f"{name} is {told['ratios'][name]}, at least {target} is wanted"
    for name, target in (("p50_ms", P50_MS), ("p99_ms", P99_MS)):
        if told["latency"][name] > target:
            yield f"{name} is {told['latency'][name]}, at most {target} is wanted"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--rounds", type=int, default=3, help="how often the rates are measured (default 3)")
    parser.add_argument("--calls", type=int, default=10_000, help="calls of each measurement (default 10,000)")
    parser.add_argument("--at-once", type=int, default=64, help="connections, or tasks (default 64)")
    parser.add_argument("--per-s", type=float, default=200.0, help="requests a second for the latency (default 200)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long they come (default 30)")
    parser.add_argument("--folder", type=Path, help="where all of it lies (default: where temporary files do)")
    options = parser.parse_args()
    if shutil.which("redis-benchmark") is None:
        raise SystemExit("There is no redis-benchmark here: apt-get install redis-tools.")
    place = tempfile.TemporaryDirectory(dir=options.folder)
    with place as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        told = runner.run(run(options, Path(folder)))
    failures = list(missed(told))
    if options.json:
        print(json.dumps(told | {"missed": failures}))
    else:
        for title, figures in told.items():
            print(title)
            for name, value in figures.items():
                print(f"    {name:<40}{value:>12}")
    for failure in failures:
        tell(f"MISSED {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
