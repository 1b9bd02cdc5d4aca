"""Real server processes on loopback: one with the demo model on a real engine, and scripted ones that start at once."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from serving.settings import DEMO_MODEL_DIR

KEY = "sk-story-end-to-end"
MODEL = "opus-v1-sm"
LLAMA3 = "tests/llama3-tiny"
LLAMA3_DIR = Path(__file__).parents[1] / "fixtures/llama3-tiny"
START_S = 300


@dataclass
class ServerProcess:
    """A server as a user would start it."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path
    key: str = KEY

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=120)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=120)

    def post(self, path: str, body: object) -> dict[str, Any]:
        """The JSON that answers `body`."""
        with self.http() as http:
            found: dict[str, Any] = http.post(path, json=body).json()
            return found

    def metric(self, name: str) -> float:
        """The value of a series, as `/metrics` tells it."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        assert found, f"no series {name}"
        return float(found[1])

    def until(self, condition: str, expected: float, seconds: float) -> None:
        """Wait until a series has a value; fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.metric(condition) != expected:
            assert time.monotonic() < deadline, f"{condition} is {self.metric(condition)}, not {expected}"

    def descendants(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def start(arguments: list[str], folder: Path, **environment: str) -> ServerProcess:
    """Start a server on a free port. It need not be ready yet when this returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    variables = {"SERVING_DATA_DIR": str(folder), "SERVING_API_KEY": KEY, "SERVING_PORT": str(port), **environment}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=os.environ | variables, stdout=out, stderr=subprocess.STDOUT, text=True
        )
    return ServerProcess(process, f"http://127.0.0.1:{port}", log)


def wait_ready(server: ServerProcess) -> None:
    """Return when the server says it is ready."""
    deadline = time.monotonic() + START_S
    while True:
        assert server.process.poll() is None, f"the server ended:\n{server.log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"not ready:\n{server.log.read_text()[-3000:]}"
        try:
            if httpx.get(f"{server.url}/health/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            continue


def ended(server: ServerProcess) -> None:
    """Make sure that nothing of the server is left."""
    family = [*server.descendants(), psutil.Process(server.process.pid)] if server.process.poll() is None else []
    for process in family:
        process.kill()
    server.process.wait()


CONFIG = f"""
[[models]]
id = "{MODEL}"
path = "{DEMO_MODEL_DIR}"
template = "chatml-text"
price = {{ input_per_1k = 40_000, cached_per_1k = 10_000, output_per_1k = 40_000 }}

[[models]]
id = "{LLAMA3}"
path = "{LLAMA3_DIR}"
template = "llama3-writer"
"""


@pytest.fixture(scope="session")
def demo() -> Iterator[ServerProcess]:
    """`serving serve` with both models on real engines."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "serving.toml"
        config.write_text(CONFIG)
        server = start(["-m", "serving", "serve", "--config", str(config)], Path(folder))
        try:
            wait_ready(server)
            yield server
        finally:
            ended(server)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server process with a scripted engine: ready at once."""
    server = start([str(Path(__file__).with_name("scripted_server.py"))], tmp_path)
    try:
        wait_ready(server)
        yield server
    finally:
        ended(server)
