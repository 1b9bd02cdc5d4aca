"""How long large bodies hold the server: the worst latency of /health/live while each kind is posted, again and again.

A real server process with the scripted engine, so that nothing but our own work is measured. The limit is 50 ms; what
the machine itself does to an idle server is printed first, as `nothing`: on a busy machine that is most of it. So the
processor time of the longest step of the event loop is printed too, which other processes change little; its limit is
20 ms. Run: python -m loadtests.large_bodies [--json]
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from starlette.types import ASGIApp, Message

from serving.app import build
from serving.core import Price
from serving.engine.base import Engine
from serving.engine.scripted import ScriptedEngine
from serving.server import serve
from serving.settings import DEMO_MODEL_DIR, ModelSettings, Settings

KEY = "sk-story-large-bodies"
LIMIT_MS = 50.0
STEP_LIMIT_MS = 20.0
CHAT, TEXT, NATIVE = "/v1/chat/completions", "/v1/completions", "/api/v1/model/completion"


def bodies() -> dict[str, tuple[str, bytes]]:
    """Path and body of each kind; all are under the largest size that a server takes."""
    two = 2_000_000
    texts = {
        "2 MB of prose": "The river rose, and nobody said a word. " * (two // 40),
        "2 MB of one letter": "a" * two,
        "2 MB of spaces": " " * two,
        "2 MB of emoji": "\U0001f30a" * (two // 4),
        "2 MB of special tokens": "<|im_start|>" * (two // 12),
        "2 MB of escapes": "\n" * (two // 2),
    }
    told: dict[str, tuple[str, bytes]] = {}
    for name, text in texts.items():
        told[f"native: {name}"] = NATIVE, _json({"input": text})
        told[f"chat: {name}"] = CHAT, _json({"messages": [{"role": "user", "content": text}]})
    message = {"role": "user", "content": "x"}
    told["completions: 2 MB of prose"] = TEXT, _json({"prompt": texts["2 MB of prose"]})
    told["completions: 1M token ids"] = TEXT, _json({"prompt": [7] * 1_000_000})
    told["completions: 260k token ids"] = TEXT, _json({"prompt": [70_000] * 260_000})
    told["completions: 128 prompts of 16 KB"] = TEXT, _json({"prompt": ["a river " * 2000] * 128})
    told["completions: 60k empty lists"] = TEXT, _json({"prompt": [[]] * 60_000})
    told["chat: 100k tiny messages"] = CHAT, _json({"messages": [message] * 100_000})
    told["chat: 60k tiny messages"] = CHAT, _json({"messages": [message] * 60_000})
    told["chat: 4,096 messages"] = CHAT, _json({"messages": [message] * 4096})
    told["chat: 4,096 messages of 500 letters"] = CHAT, _json({"messages": [{**message, "content": "y" * 500}] * 4096})
    told["chat: a model of 2 MB of escapes"] = CHAT, _json({"model": "%41" * (two // 3), "messages": [message]})
    told["chat: a million stop strings"] = CHAT, b'{"messages":[],"stop":[' + b'"a",' * 1_000_000 + b'"a"]}'
    told["chat: 256 stop strings of 1 KB"] = CHAT, _json({"messages": [message], "stop": ["z" * 1024] * 256})
    told["chat: unknown field of 1M numbers"] = CHAT, _json({"messages": [message], "x": [1] * 1_000_000})
    return told


def _json(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


# ---- the server ------------------------------------------------------------------------------------------------------


async def _load() -> Engine:
    return ScriptedEngine(context_tokens=8192, vocab_size=3000)


def _settings(port: int, data_dir: Path) -> Settings:
    model = ModelSettings("opus-v1-sm", str(DEMO_MODEL_DIR), "chatml-text", price=Price(1000, 500, 2000))
    return Settings(port=port, data_dir=data_dir, api_key=KEY, models=(model,))


@contextlib.contextmanager
def server() -> Iterator[int]:
    """A server process; gives its port once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "loadtests.large_bodies", "--serve", str(port), "--data-dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_ready(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def _wait_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit("The server did not become ready.")


# ---- the measurement -------------------------------------------------------------------------------------------------


class Watch:
    """Asks /health/live without a pause, in a thread, and keeps the latencies in milliseconds."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies_ms: list[float] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._ended.is_set():
            began = time.perf_counter()
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            self.latencies_ms.append((time.perf_counter() - began) * 1000)
            time.sleep(0.001)


def post(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        response.read()
        return response.status


def measure(port: int, path: str, body: bytes, times: int) -> dict[str, float | int]:
    """Posts a body `times` times, and what /health/live did meanwhile. Without a body: as long of nothing."""
    status = 0
    with Watch(port) as watch:
        for _ in range(times):
            if body:
                status = post(port, path, body)
            time.sleep(0.05)
    ranked = sorted(watch.latencies_ms)
    return {
        "status": status,
        "bytes": len(body),
        "worst_ms": round(ranked[-1], 1),
        "median_of_worst_5_ms": round(ranked[-3] if len(ranked) >= 5 else ranked[-1], 1),
        "median_ms": round(ranked[len(ranked) // 2], 2),
        "samples": len(ranked),
    }


class StepLoop(asyncio.SelectorEventLoop):
    """An event loop that keeps the most processor time that one of its steps took in its thread."""

    longest_step_s = 0.0

    def _run_once(self) -> None:
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]  # what BaseEventLoop.run_forever calls for each step
        self.longest_step_s = max(self.longest_step_s, time.thread_time() - began)


async def call(app: ASGIApp, path: str, body: bytes) -> None:
    """One request without a network: the body comes in parts, as a server hands them on."""
    parts = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        await asyncio.Event().wait()
        raise AssertionError("nothing sets this event")

    async def send(message: Message) -> None:
        pass

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    await app({**scope, "http_version": "1.1", "raw_path": path.encode()}, receive, send)


def longest_steps_ms(times: int) -> dict[str, float]:
    """The longest step of the loop for each kind of body: the median of several runs."""
    told: dict[str, list[float]] = {name: [] for name in bodies()}
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=StepLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, StepLoop)
        service = build(_settings(8000, Path(folder)), {"opus-v1-sm": _load})

        async def start() -> None:
            service.backing.start()
            service.engines.start()
            await service.engines.wait_loaded()
            await service.backing.wait_open()

        runner.run(start())
        for name, (path, body) in bodies().items():
            for _ in range(times):
                loop.longest_step_s = 0.0
                runner.run(call(service.app, path, body))
                told[name].append(loop.longest_step_s * 1000)
        runner.run(service.engines.shutdown())
        runner.run(service.backing.close())
    return {name: round(statistics.median(steps), 1) for name, steps in told.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--times", type=int, default=10, help="how often each body is posted")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(_settings(options.serve, options.data_dir), {"opus-v1-sm": _load})
    steps_ms = longest_steps_ms(options.times)
    with server() as port:
        told = {"nothing": measure(port, "", b"", options.times * 5)}
        for name, (path, body) in bodies().items():
            told[name] = measure(port, path, body, options.times)
    worst = max(result["worst_ms"] for name, result in told.items() if name != "nothing")
    for name, step_ms in steps_ms.items():
        told[name]["longest_step_ms"] = step_ms
    if options.json:
        limits = {"limit_ms": LIMIT_MS, "step_limit_ms": STEP_LIMIT_MS, "idle_ms": told["nothing"]["worst_ms"]}
        print(json.dumps({**limits, "worst_ms": worst, "bodies": told}))
    else:
        print(f"{'':<42}status  /health/live, of {LIMIT_MS:.0f} ms     a step of the loop, of {STEP_LIMIT_MS:.0f} ms")
        for name, result in told.items():
            live, step = result["worst_ms"], result.get("longest_step_ms", 0.0)
            ratios = f"{live:>8} ms  x{live / LIMIT_MS:<8.2f} {step:>12} ms  x{step / STEP_LIMIT_MS:.2f}"
            print(f"{name:<42}{result['status']:>6}  {ratios}")
    return int(worst > LIMIT_MS or max(steps_ms.values()) > STEP_LIMIT_MS)


if __name__ == "__main__":
    raise SystemExit(main())
