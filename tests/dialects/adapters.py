"""How each generating endpoint is asked and read, so that one suite holds for all. A new dialect adds an adapter."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serving.app import DIALECTS
from serving.dialects.base import Dialect, Endpoint
from serving.errors import InvalidRequest, PromptTooLong, ServingError, UnknownModel
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


class Complaint(NamedTuple):
    """An error as a client understands it: what it says, and the field and code that it names, if it does."""

    message: str
    param: str | None = None
    code: str | None = None


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


def _llm_body(prompt: str, stream: bool, model: str, max_tokens: int | None, stop: tuple[str, ...]) -> object:
    """The protocol knows no stop strings."""
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "model": model, "stream": stream, "max_tokens": max_tokens}


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
    if "choices" not in part:
        told.error = part
        return
    for choice in part["choices"]:
        text = choice["text"] if "text" in choice else (choice.get("message") or choice["delta"]).get("content", "")
        told.text += text
        told.parts.append(text)
        told.reason = choice["finish_reason"] or told.reason
    if part.get("usage"):
        told.prompt_tokens, told.completion_tokens = part["usage"]["prompt_tokens"], part["usage"]["completion_tokens"]


def _status(kind: type[ServingError]) -> int:
    return kind.status


def _native_error(error: ServingError) -> object:
    return {"success": False, "message": error.message, "status": error.status}


def _native_complaint(body: Any) -> Complaint:  # noqa: ANN401  # JSON
    return Complaint(body["message"])


_TYPES = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}


def _openai_error(error: ServingError) -> object:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def _openai_complaint(body: Any) -> Complaint:  # noqa: ANN401  # JSON
    return Complaint(body["error"]["message"], body["error"]["param"], body["error"]["code"])


def _llm_status(kind: type[ServingError]) -> int:
    if issubclass(kind, InvalidRequest) and kind is not PromptTooLong:
        return 422
    return 400 if kind is UnknownModel else kind.status


def _llm_error(error: ServingError) -> object:
    if _llm_status(type(error)) != 422:
        return {"detail": {"msg": error.message}}
    steps = (error.param or "").replace("[", ".").replace("]", "").split(".")
    loc = ["body", *(int(step) if step.isdecimal() else step for step in filter(None, steps))]
    return {"detail": [{"loc": loc, "msg": error.message, "type": error.code}]}


def _llm_frame(error: ServingError) -> object:
    return {"error": error.message}


def _llm_complaint(body: Any) -> Complaint:  # noqa: ANN401  # JSON
    if "error" in body:
        return Complaint(body["error"])
    if isinstance(body["detail"], dict):
        return Complaint(body["detail"]["msg"])
    (told,) = body["detail"]
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in told["loc"][1:])
    return Complaint(told["msg"], param.removeprefix(".") or None, told["type"])


@dataclass(frozen=True)
class Errors:
    """How a dialect tells errors: body, last frame of a stream and status; `complaint` reads a body or frame."""

    body: Callable[[ServingError], object]
    frame: Callable[[ServingError], object]
    complaint: Callable[[Any], Complaint]
    status: Callable[[type[ServingError]], int] = _status


_NATIVE_ERRORS = Errors(_native_error, _native_error, _native_complaint)
_OPENAI_ERRORS = Errors(_openai_error, _openai_error, _openai_complaint)
_LLM_ERRORS = Errors(_llm_error, _llm_frame, _llm_complaint, _llm_status)


@dataclass(frozen=True)
class Adapter:
    """One generating endpoint. `read` gives what a body says, streamed or whole."""

    dialect: Dialect
    endpoint: Endpoint[Any]
    make_body: Callable[[str, bool, str, int | None, tuple[str, ...]], object]
    read: Callable[[str], Told]
    errors: Errors

    @property
    def path(self) -> str:
        return self.dialect.prefixes[0] + self.endpoint.path

    @property
    def stops(self) -> bool:
        """Whether the protocol knows stop strings."""
        return "MARK" in json.dumps(self.body(stream=True, stop=("MARK",)))

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
    ("dreamgen", "completion"): (_native_body, _read_native, _NATIVE_ERRORS),
    ("openai", "chat.completions"): (_chat_body, _read_openai, _OPENAI_ERRORS),
    ("openai", "completions"): (_text_body, _read_openai, _OPENAI_ERRORS),
    ("livepeer", "llm"): (_llm_body, _read_openai, _LLM_ERRORS),
}

ADAPTERS = {
    f"{dialect.name} {endpoint.name}": Adapter(dialect, endpoint, *_PARTS[dialect.name, endpoint.name])
    for dialect in DIALECTS
    for endpoint in reversed(dialect.endpoints)
}
"""One for every generating endpoint of every dialect: a missing one is a KeyError here. The first of a name counts."""
