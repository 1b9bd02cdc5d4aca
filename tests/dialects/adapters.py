"""How each generating endpoint is asked and read, so that one suite holds for all. A new dialect adds an adapter."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serving.app import DIALECTS
from serving.dialects.base import Dialect, Endpoint
from serving.errors import ServingError
from tests.service import SM


@dataclass
class Told:
    """An answer as a client understands it. `done`: the server says that all went well."""

    text: str = ""
    reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    done: bool = False
    error: dict[str, Any] | None = None
    parts: list[str] = field(default_factory=list)

    @property
    def usage(self) -> tuple[int, int]:
        return self.prompt_tokens, self.completion_tokens


def _native_body(prompt: str, stream: bool, model: str, max_tokens: int | None, stop: tuple[str, ...]) -> object:
    params = {"maxTokens": max_tokens, "stopSequences": list(stop)}
    return {"modelId": model, "input": prompt, "stream": stream, "samplingParams": params}


def _chat_body(prompt: str, stream: bool, model: str, max_tokens: int | None, stop: tuple[str, ...]) -> object:
    return {"messages": [{"role": "user", "content": prompt}], **_openai(stream, model, max_tokens, stop)}


def _text_body(prompt: str, stream: bool, model: str, max_tokens: int | None, stop: tuple[str, ...]) -> object:
    return {"prompt": prompt, **_openai(stream, model, max_tokens, stop)}


def _openai(stream: bool, model: str, max_tokens: int | None, stop: tuple[str, ...]) -> dict[str, object]:
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    return {"model": model, "stream": stream, "max_tokens": max_tokens, "stop": list(stop), **usage}


def _read_native(body: str) -> Told:
    told = Told()
    for line in body.split("\n")[:-1]:  # and at no other line separator, which a text may hold
        part = json.loads(line)
        assert not told.done, "something follows the last line"
        assert told.error is None, "something follows an error"
        if not part["success"]:
            told.error = part
            continue
        told.text += part["output"]
        told.parts.append(part["output"])
        told.prompt_tokens, told.completion_tokens = part["usage"]["inputTokens"], part["usage"]["outputTokens"]
        if "finishReason" in part:
            told.reason, told.done = part["finishReason"], True
    return told


def _read_openai(body: str) -> Told:
    told = Told()
    if body.startswith("{"):
        _add_openai(told, json.loads(body))
        told.done = told.error is None
        return told
    for frame in body.split("\n\n")[:-1]:
        assert not told.done, "something follows [DONE]"
        assert told.error is None, "something follows an error"
        if frame == "data: [DONE]":
            told.done = True
        elif frame.startswith(":"):
            told.parts.append("")
        else:
            assert frame.startswith("data: ")
            _add_openai(told, json.loads(frame.removeprefix("data: ")))
    return told


def _add_openai(told: Told, part: dict[str, Any]) -> None:
    if "error" in part:
        told.error = part
        return
    for choice in part["choices"]:
        text = choice["text"] if "text" in choice else choice.get("delta", choice.get("message")).get("content", "")
        told.text += text
        told.parts.append(text)
        told.reason = choice["finish_reason"] or told.reason
    if part.get("usage"):
        told.prompt_tokens, told.completion_tokens = part["usage"]["prompt_tokens"], part["usage"]["completion_tokens"]


def _native_error(error: ServingError) -> object:
    return {"success": False, "message": error.message, "status": error.status}


_TYPES = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}


def _openai_error(error: ServingError) -> object:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


@dataclass(frozen=True)
class Adapter:
    """One generating endpoint. `read` gives what a body says, streamed or whole; `error` the body of an error."""

    dialect: Dialect
    endpoint: Endpoint[Any]
    make_body: Callable[[str, bool, str, int | None, tuple[str, ...]], object]
    read: Callable[[str], Told]
    error: Callable[[ServingError], object]

    @property
    def path(self) -> str:
        return self.dialect.prefixes[0] + self.endpoint.path

    def body(
        self,
        prompt: str = "Once",
        *,
        stream: bool,
        model: str = SM,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> Any:  # noqa: ANN401  # JSON
        return self.make_body(prompt, stream, model, max_tokens, stop)


_PARTS: dict[tuple[str, str], tuple[Any, Any, Any]] = {
    ("dreamgen", "completion"): (_native_body, _read_native, _native_error),
    ("openai", "chat.completions"): (_chat_body, _read_openai, _openai_error),
    ("openai", "completions"): (_text_body, _read_openai, _openai_error),
}

ADAPTERS = {
    f"{dialect.name} {endpoint.name}": Adapter(dialect, endpoint, *_PARTS[dialect.name, endpoint.name])
    for dialect in DIALECTS
    for endpoint in dialect.endpoints
}
"""One for every generating endpoint of every dialect: a missing one is a KeyError here."""
