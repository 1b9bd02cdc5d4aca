"""SillyTavern's own server as a process, and its backend as its page calls it.

Source of the calls: SillyTavern 1.19.0, src/endpoints (backends, secrets, tokenizers, presets), which 1.12 has too.
"""

import http.client
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.conftest import KEY

NODE_MODULES = Path(__file__).parent / "node_modules"
VERSIONS = {"1.19": "sillytavern", "1.12": "sillytavern-1.12"}
"""The folder of each in node_modules. 1.12 still ships DreamGen's presets."""

TYPES = ("dreamgen", "ooba", "aphrodite", "vllm", "generic", "tabby")
START_S = 300
_READY = "Go to: "


@dataclass
class Tavern:
    """A server of SillyTavern's with an account's data of its own. Its page is at `url`."""

    version: str
    port: int
    process: "subprocess.Popen[str]"
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ready = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @classmethod
    def start(cls, version: str, folder: Path) -> "Tavern":
        """It compiles its page before it listens, which takes a while."""
        # 1.12's package cannot make thumbnails where npm has put its decoders, and makes none where there are some.
        thumbnails = folder / "data/default-user/thumbnails/bg"
        thumbnails.mkdir(parents=True)
        (thumbnails / "none").touch()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # 1.12 finds its configuration in its working directory, and both find their files there.
        process = subprocess.Popen(
            ["node", "server.js", f"--port={port}", f"--dataRoot={folder}/data", "--disableCsrf", "--autorun=false"],
            cwd=NODE_MODULES / VERSIONS[version],
            env=os.environ | {"HOME": str(folder), "SILLYTAVERN_WHITELISTDOCKERHOSTS": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return cls(version, port, process)

    def _listen(self) -> None:
        """Take all that it says, or it would wait for a reader; `_ready` when it listens, or has ended."""
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.said.append(line)
                if _READY in line:
                    self._ready.set()
        self._ready.set()

    def wait_ready(self) -> None:
        """Return when it listens."""
        assert self._ready.wait(START_S), "".join(self.said[-40:])
        assert self.process.poll() is None, "".join(self.said[-40:])

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._listener.join()

    # ---- its backend, as its page calls it ---------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(f"{self.url}/api/{path}", json=body, timeout=120)

    def save_key(self, api: str, key: str = KEY) -> None:
        assert self.post("secrets/write", {"key": f"api_key_{api}", "value": key}).is_success

    @contextmanager
    def wrong_key(self, api: str) -> Iterator[None]:
        """Meanwhile another key than ours is saved."""
        self.save_key(api, "sk-wrong")
        try:
            yield
        finally:
            self.save_key(api)

    def status(self, api: str, server: str) -> httpx.Response:
        return self.post("backends/text-completions/status", {"api_type": api, "api_server": server})

    def generate(self, body: dict[str, Any]) -> Any:  # noqa: ANN401  # JSON
        """What the page is told of a whole answer."""
        told = self.post("backends/text-completions/generate", body)
        assert told.is_success
        return told.json()

    def stream(self, body: dict[str, Any], path: str = "backends/text-completions/generate") -> list[Any]:
        """The data of the events that the page is told, but for the closing mark, which must be there."""
        told = self.post(path, body | {"stream": True})
        assert told.is_success, told.text
        events = read_events(told.text)
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    def count(self, api: str, server: str, text: str, model: str) -> int:
        """Tokens of a text, asked for as the page does. The model is named in the way of either version."""
        body = {"api_type": api, "url": server, "text": text, "model": model, f"{api}_model": model}
        told = self.post("tokenizers/remote/textgenerationwebui/encode", body).json()
        assert told["count"] == len(told["ids"])
        return int(told["count"])

    @contextmanager
    def asking(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
        """A request whose connection is closed in the end, whether it was answered or not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", f"/api/{path}", json.dumps(body), {"content-type": "application/json"})
            yield connection
        finally:
            connection.close()


def read_events(text: str) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
