"""A small image server with OpenAI's API on a real port: what stands behind models of the kind image in the tests."""

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A PNG of one pixel."""


@dataclass
class Painter:
    """The server as an ASGI app. It paints a dot, however many are asked for, or answers `answer` with `status`; with
    `silent` it never does."""

    address: str = ""
    status: int = 200
    answer: bytes | None = None
    silent: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        asked = json.loads(body + message["body"])
        self.asked.append({"path": scope["path"], **asked})
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        self.begun.set()
        if self.silent:
            while message["type"] != "http.disconnect":
                message = await receive()
            self.gone.set()
            return
        image = {"b64_json": base64.b64encode(DOT).decode()}
        answer = self.answer
        if answer is None:
            answer = json.dumps({"created": 1, "data": [image] * asked["n"]}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@contextlib.contextmanager
def painting() -> Iterator[Painter]:
    """The server, in a thread of its own."""
    painter = Painter()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        painter.address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server = uvicorn.Server(uvicorn.Config(painter, log_config=None, access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield painter
        finally:
            server.should_exit = True
            thread.join()
