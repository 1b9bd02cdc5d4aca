"""Does the ledger keep its word when much happens at once, and when everything dies? Four plays on real processes.

    python -m loadtests.ledger_chaos                # all of them, at full size: `make chaos`
    python -m loadtests.ledger_chaos --small late   # one of them, small

    cap     requests at once against a cap: it is spent, and not overspent
    late    three app processes whose Redis comes late: refused until it is there, and not overspent then
    mixed   answers that end, are cut short by their limit, and by their clients: every token billed, nothing held
    killed  streams whose app, then Redis, then both are killed: billed within one extend period, nothing held

Each runs app processes with scripted engines that count what they emit, against a redis-server with `appendfsync
always`. The exit status is 1 when an expectation fails. Standard output has the figures, `--json` for scripts;
standard error the progress.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.ledger_world import Answer, App, Audit, World, world

PRICE = 40
"""Microcredits of a token of the demo model, of the prompt or of the answer."""
PLENTY = 10**12
RETRY_S = 0.1


@dataclass
class Play:
    """What one play showed."""

    name: str
    audits: dict[str, Audit] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)

    async def audit(self, world: World, step: str = "", *, allowed: int = 0, each: int = 0) -> Audit:
        """What must always be so when nothing runs, and the tokens that may be billed wrongly after crashes."""
        told = self.audits[step] = await world.audit()
        at = f"{self.name} {step}".strip()
        self.expect(told.spent <= told.cap, f"{at}: {told.spent} were spent of {told.cap}")
        for name in ("held", "running", "drift", "duplicates", "unapplied"):
            self.expect(getattr(told, name) == 0, f"{at}: {name} is {getattr(told, name)}, not 0")
        self.expect(told.difference <= allowed, f"{at}: differs by {told.difference} tokens, at most {allowed} may")
        self.expect(told.worst_difference <= each, f"{at}: a request differs by {told.worst_difference}, not {each}")
        tell(f"{at}: " + ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(told).items()))
        return told


async def cap(folder: Path, requests: int = 1000, tokens: int = 40) -> Play:
    """All requests at once, and credit for two of five."""
    play = Play("cap")
    async with world(folder, step_s=0.001) as stage:
        app = stage.start_app("app")
        await stage.furnish(requests * PRICE * tokens * 2 // 5)
        await app.until_live()
        answers = await asyncio.gather(*(stage.generate(app, f"Request {n}", tokens) for n in range(requests)))
        told = await play.audit(stage)
        spent_up(play, told)
        only(play, answers, {200, 402})
    return play


async def late(folder: Path, requests: int = 3000, apps: int = 3, tokens: int = 20) -> Play:
    """Requests wait at three apps for their Redis, and fall over it when it comes."""
    play = Play("late")
    async with world(folder, step_s=0.001) as stage:
        await stage.furnish(requests * PRICE * tokens * 2 // 5)
        stage.redis.kill()
        running = [stage.start_app(f"app{n}") for n in range(apps)]
        await asyncio.gather(*(app.until_live() for app in running))
        early = await asyncio.gather(*(stage.generate(app, "Too early", tokens) for app in running for _ in range(10)))
        only(play, early, {503})
        came = asyncio.Event()
        asks = [asked_again(stage, running[n % apps], f"Request {n}", tokens, came) for n in range(requests)]
        asking = asyncio.gather(*asks)
        await asyncio.sleep(3 * RETRY_S)
        stage.redis.start()
        came.set()
        answers = await asking
        told = await play.audit(stage)
        spent_up(play, told)
        only(play, answers, {200, 402})
    return play


async def asked_again(stage: World, app: App, prompt: str, tokens: int, came: asyncio.Event) -> Answer:
    """Ask until the answer is another one than that the store is away. The first half asks while it is."""
    if int(prompt.split()[-1]) % 2:
        await came.wait()
    while True:
        answer = await stage.generate(app, prompt, tokens)
        if answer.status != 503:
            return answer
        await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))


async def mixed(folder: Path, requests: int = 100_000, at_once: int = 128) -> Play:
    """Answers of 1 to 32 chunks; a third of the clients leaves, a tenth of them before the first token."""
    play = Play("mixed")
    dice = random.Random(0)
    async with world(folder, words=32) as stage:
        app = stage.start_app("app")
        await stage.furnish(PLENTY)
        await app.until_live()
        numbers = iter(range(requests))
        answers: Counter[str] = Counter()

        async def client() -> None:
            for number in numbers:
                leaves = dice.random() < 1 / 3
                after = (0 if dice.random() < 0.1 else dice.randint(1, 16)) if leaves else None
                answer = await stage.generate(app, f"Request {number}", dice.choice((8, 64)), leave_after=after)
                answers["left" if leaves else f"{answer.status}{'' if answer.whole else ' cut'}"] += 1
                if number % 5000 == 4999:
                    tell(f"mixed: {number + 1} of {requests}")

        await asyncio.gather(*(client() for _ in range(at_once)))
        await play.audit(stage)
        play.expect(set(answers) == {"left", "200"}, f"mixed: the answers were {dict(answers)}")
    return play


async def killed(
    folder: Path, streams: int = 200, *, step_s: float = 0.1, extend_s: float = 1.0, lease_s: float = 3.0
) -> Play:
    """Streams of a few seconds. When all are in their middle: the app is killed, then Redis, then both."""
    play = Play("killed")
    # A chunk has at most two tokens, and those of a stream are at least `step_s` apart.
    each = 2 * math.ceil(extend_s / step_s)
    tokens = max(40, 6 * each)
    async with world(folder, lease_s=lease_s, extend_s=extend_s, step_s=step_s) as stage:
        await stage.furnish(PLENTY)
        app = stage.start_app("app")
        await app.until_live()
        for step in ("app", "redis", "both"):
            asking = await in_mid_stream(stage, app, streams, tokens, after=each // 2)
            await asyncio.sleep(random.uniform(0, extend_s))
            if step != "app":
                stage.redis.kill()
            if step != "redis":
                app.kill()
                app = stage.start_app("app")
            if step != "app":
                await asyncio.sleep(lease_s / 3)
                stage.redis.start()
            await app.until_live()
            answers = await asking
            if step == "redis":
                whole = sum(answer.whole for answer in answers)
                play.expect(whole == streams, f"killed redis: {whole} of {streams} streams were whole")
            crashes = 0 if step == "redis" else 1
            before = play.audits[last(play)].difference if play.audits else 0
            await play.audit(stage, step, allowed=before + crashes * streams * each, each=each)
            served = await stage.generate(app, "Afterwards", 4)
            play.expect(served.status == 200, f"killed {step}: afterwards the answer is {served.status}")
        status = app.stop()
        play.expect(status == 0, f"killed: the app ended with status {status}")
        await play.audit(stage, "end", allowed=play.audits["both"].difference, each=each)
    return play


def last(play: Play) -> str:
    return next(reversed(play.audits))


async def in_mid_stream(
    stage: World, app: App, streams: int, tokens: int, *, after: int
) -> "asyncio.Future[list[Answer]]":
    """Returns the answers to come, when each has so many chunks."""
    waiting = set(range(streams))
    there = asyncio.Event()

    def seer(number: int) -> Callable[[Answer], None]:
        def seen(answer: Answer) -> None:
            if answer.chunks >= after:
                waiting.discard(number)
            if not waiting:
                there.set()

        return seen

    asks = [stage.generate(app, f"Stream {number}", tokens, seen=seer(number)) for number in range(streams)]
    asking = asyncio.gather(*asks)
    reached = asyncio.create_task(there.wait())
    waits: set[asyncio.Future[Any]] = {asking, reached}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    return asking


def spent_up(play: Play, told: Audit) -> None:
    """When more was asked for than the cap pays, less is left than a request may cost."""
    play.expect(told.spent > told.cap - told.most, f"{play.name}: only {told.spent} were spent of {told.cap}")


def only(play: Play, answers: Iterable[Answer], statuses: set[int]) -> None:
    """These statuses were answered, each of them, and no other."""
    found = Counter(answer.status for answer in answers)
    play.expect(set(found) == statuses, f"{play.name}: the answers were {dict(found)}, not {sorted(statuses)}")
    cut = sum(answer.status == 200 and not answer.whole for answer in answers)
    play.expect(cut == 0, f"{play.name}: {cut} answers were cut")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


PLAYS: dict[str, Callable[..., Awaitable[Play]]] = {"cap": cap, "late": late, "mixed": mixed, "killed": killed}
SMALL: dict[str, dict[str, float]] = {
    "cap": {},
    "late": {"requests": 300},
    "mixed": {"requests": 2000},
    "killed": {"streams": 50, "step_s": 0.05, "extend_s": 0.4, "lease_s": 1.2},
}
_COLUMNS = (
    *("cap", "spent", "held", "drift", "duplicates", "unapplied"),
    *("requests", "emitted", "difference", "worst_difference", "rest_s"),
)


async def perform(name: str, folder: Path, *, small: bool = False) -> Play:
    """One play, in an empty folder."""
    began_s = time.monotonic()
    play = await PLAYS[name](folder, **(SMALL[name] if small else {}))
    play.seconds = round(time.monotonic() - began_s, 1)
    return play


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("plays", nargs="*", metavar="PLAY", help=f"{', '.join(PLAYS)}; all by default")
    parser.add_argument("--small", action="store_true", help="as the test suite runs them")
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args()
    if unknown := set(options.plays) - set(PLAYS):
        parser.error(f"there is no play {unknown.pop()}")
    plays = []
    for name in options.plays or PLAYS:
        with tempfile.TemporaryDirectory() as folder:
            plays.append(asyncio.run(perform(name, Path(folder), small=options.small)))
    failures = [failure for play in plays for failure in play.failures]
    if options.json:
        print(json.dumps([dataclasses.asdict(play) for play in plays]))
    else:
        print(f"{'':<14}" + "".join(f"{column:>18}" for column in _COLUMNS) + f"{'seconds':>10}")
        for play in plays:
            for step, told in play.audits.items():
                figures = "".join(f"{getattr(told, column):>18}" for column in _COLUMNS)
                print(f"{play.name + ' ' + step:<14}{figures}{play.seconds:>10}")
    for failure in failures:
        tell(f"FAILED {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
