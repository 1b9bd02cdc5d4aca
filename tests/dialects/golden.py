"""Golden wire cases: what is sent, what the engine says, what comes back and what the engine was asked.

`golden/*.json` hold them. `python -m tests.dialects.golden` writes what the code answers now into the files; read the
difference before it is committed. What changes from run to run (ids, times) or with the demo model's tokenizer (prompt
tokens, as `P`) is replaced; tokens are spelled. A request with a `plan` is sent with a key of a new account that has
it, `times` over, and the last answer is told with what its headers say of credit and rates.
"""

import asyncio
import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from serving.core import JsonFormat, LogitsRules, PreparedRequest, Sampling
from serving.edge.headers import EXPOSED, REQUEST_ID, RETRY_AFTER
from serving.engine.scripted import Chunk, ScriptedEngine
from serving.prompting.prepare import Prompting
from tests.service import KEY, SM, XL, Running, bearer, running

FOLDER = Path(__file__).parent / "golden"
_NOT_TOLD = {"request_id", "index", "token_ids", "sampling", "rules"}
_TOLD_HEADERS = [name for name in EXPOSED if name != REQUEST_ID]
_VARYING_HEADERS = dict.fromkeys([RETRY_AFTER, *(name for name in EXPOSED if "reset" in name)], "SECONDS")
_VARYING_HEADERS["x-ratelimit-remaining-tokens"] = "LESS P"
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(PreparedRequest)}


def cases() -> dict[str, dict[str, Any]]:
    """Every case, by file and name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        for name, case in json.loads(path.read_text()).items():
            found[f"{path.stem}: {name}"] = case
    return found


async def play(run: Running, case: dict[str, Any]) -> dict[str, Any]:
    """What the service makes of a case, in the words of a case."""
    engines = {model: _engine(run, model, case.get("says", [])) for model in (SM, XL)}
    request = case["request"]
    body = json.dumps(request["body"]).encode() if "body" in request else None
    key = (await run.key_of(request["plan"]))[0] if "plan" in request else KEY
    for _ in range(request.get("times", 1)):
        for engine in engines.values():
            engine.asked.clear()
        response = await run.client.request(
            request.get("method", "POST"), request["path"], content=body, headers=bearer(key)
        )
    asked = [(model, choice) for model, engine in engines.items() for choice in engine.asked]
    prompt_tokens = sum(len(choice.token_ids) for _, choice in asked if choice.first_of_prompt)
    told: dict[str, Any] = {"status": response.status_code, "media": response.headers["content-type"]}
    told |= normal(read(response), prompt_tokens)
    if headers := {name: response.headers[name] for name in _TOLD_HEADERS if name in response.headers}:
        told["headers"] = headers | {name: word for name, word in _VARYING_HEADERS.items() if name in headers}
    if asked:
        told["asked"] = [describe(choice, run.prompting[model]) for model, choice in asked]
    return told


def _engine(run: Running, model: str, says: list[Any]) -> ScriptedEngine:
    special_ids = run.prompting[model].format.tokens.special_ids

    def script(request: PreparedRequest) -> Iterator[Chunk]:
        for chunk in says:
            if isinstance(chunk, dict):
                yield chunk["token"], (special_ids.get(chunk["token"], 0),)
            elif isinstance(chunk, list):
                yield chunk[0], tuple(chunk[1])
            else:
                yield chunk

    return run.play(model, script=script)


def read(response: httpx.Response) -> dict[str, Any]:
    """A body as `answer`, a stream as `frames`: exactly framed, or it fails."""
    kind = response.headers["content-type"]
    if kind == "text/event-stream":
        *frames, nothing = response.text.split("\n\n")
        assert nothing == ""
        assert all(frame.startswith("data: ") for frame in frames)
        texts = [frame.removeprefix("data: ") for frame in frames]
        return {"frames": [text if text == "[DONE]" else json.loads(text) for text in texts]}
    if kind == "application/x-ndjson":
        *lines, nothing = response.text.split("\n")
        assert nothing == ""
        return {"frames": [json.loads(line) for line in lines]}
    return {"answer": response.json()}


def normal(value: Any, prompt_tokens: int) -> Any:  # noqa: ANN401  # JSON in, JSON out
    """JSON without what changes from run to run."""
    if isinstance(value, list):
        return [normal(item, prompt_tokens) for item in value]
    if not isinstance(value, dict):
        return value
    told = {key: normal(item, prompt_tokens) for key, item in value.items()}
    for key, item in told.items():
        if key in ("message", "msg") and isinstance(item, str):
            told[key] = re.sub(r"in [0-9.]+ s", "in SECONDS", re.sub(r"\d+ microcredits", "P+ microcredits", item))
        elif key == "resetsAt" and item:
            told[key] = "NEXT MONTH"
        elif key == "id" and isinstance(item, str):
            told[key] = re.sub(r"^(chatcmpl|cmpl)-[0-9a-f]{32}$", r"\1-ID", item)
        elif key == "created" and abs(item - time.time()) < 600:
            told[key] = "NOW"
        elif key == "system_fingerprint":
            told[key] = re.sub(r"^fp_[0-9.]+_", "fp_VERSION_", item)
        elif key in ("prompt_tokens", "inputTokens") and item == prompt_tokens:
            told[key] = "P"
        elif key == "total_tokens":
            told[key] = f"P+{item - prompt_tokens}"
        elif key == "completionCredits" and item:
            told[key] = f"P+{round(item * 1_000_000) - prompt_tokens} microcredits"
    return told


def describe(choice: PreparedRequest, prompting: Prompting) -> dict[str, Any]:
    """What the engine was asked: the prompt as text, and every field that is not the default."""
    form = prompting.format
    spelled = {token_id: token for token, token_id in form.tokens.special_ids.items()}
    told: dict[str, Any] = {"text": form.tokens.decode(choice.token_ids)}
    for name, default in _DEFAULTS.items():
        value = getattr(choice, name)
        if name not in _NOT_TOLD and value != default:
            told[name] = dataclasses.asdict(value) if isinstance(value, JsonFormat) else value
    told["max_tokens"] = _limit(choice)
    if choice.rules is not None:
        told["rules"] = _rules(choice.rules, prompting)
    if choice.stop_token_ids:
        told["stop_token_ids"] = [spelled[token_id] for token_id in choice.stop_token_ids]
    if choice.stop:
        told["stop"] = list(choice.stop)
    sampling = {
        field.name: getattr(choice.sampling, field.name)
        for field in dataclasses.fields(Sampling)
        if getattr(choice.sampling, field.name) != getattr(Sampling(), field.name)
    }
    if "logit_bias" in sampling:
        sampling["logit_bias"] = {
            spelled.get(token, str(token)): bias for token, bias in sampling["logit_bias"].items()
        }
    return told | ({"sampling": sampling} if sampling else {})


def _rules(rules: LogitsRules, prompting: Prompting) -> dict[str, Any]:
    """What the samplers are asked, headers as text."""
    told: dict[str, Any] = {}
    if rules.dry is not None:
        told["dry"] = dataclasses.asdict(rules.dry) | {"sequence_breakers": list(rules.dry.sequence_breakers)}
    if rules.roles is not None:
        told["roles"] = {name: value for name, value in dataclasses.asdict(rules.roles).items() if value}
        for name in ("headers", "open_names"):
            paths = [prompting.format.tokens.decode(path) for path in getattr(rules.roles, name)]
            told["roles"] |= {name: paths} if paths else {}
    return told


def _limit(choice: PreparedRequest) -> int | str:
    whole = ScriptedEngine().context_tokens
    return "the rest of the context" if choice.max_tokens == whole - len(choice.token_ids) else choice.max_tokens


async def _record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder)) as run:
            for path in sorted(FOLDER.glob("*.json")):
                told = {}
                for name, case in json.loads(path.read_text()).items():
                    asked = {key: case[key] for key in ("request", "says") if key in case}
                    told[name] = asked | await play(run, asked)
                path.write_text(written(told))


def written(told: dict[str, dict[str, Any]]) -> str:
    """Cases as JSON for people: a line for each part, and for each frame and choice."""
    return "{\n" + ",\n".join(f"{_text(name)}: {{\n{_parts(case)}\n}}" for name, case in told.items()) + "\n}\n"


def _parts(case: dict[str, Any]) -> str:
    return ",\n".join(f"  {_text(key)}: {_lines(value)}" for key, value in case.items())


def _lines(value: Any) -> str:  # noqa: ANN401  # JSON
    if not isinstance(value, list) or not any(isinstance(item, dict) and len(item) > 1 for item in value):
        return _text(value)
    return "[\n" + ",\n".join(f"    {_text(item)}" for item in value) + "\n  ]"


def _text(value: Any) -> str:  # noqa: ANN401  # JSON
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    asyncio.run(_record())
