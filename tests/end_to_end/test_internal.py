"""text-generation-webui's own endpoints on real engines: logits, and one model in the place of another.

One server for all of it, in this order: each test goes on where the one before it left the server.
"""

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from serving.settings import DEMO_MODEL_DIR
from tests.end_to_end.conftest import KEY, LLAMA3, LLAMA3_DIR, MODEL, ServerProcess, ended, start, wait_ready

ADMIN = {"authorization": "Bearer the admin key"}
CONFIG = f"""
admin_key = "the admin key"
write_timeout_s = 300

[[models]]
id = "{MODEL}"
path = "{DEMO_MODEL_DIR}"
template = "chatml-text"

[[models]]
id = "{LLAMA3}"
path = "{LLAMA3_DIR}"
template = "llama3-writer"
standby = true
"""
PROMPT = "<|im_start|>system\nA story about Mara.<|im_end|>\n<|im_start|>text names= Mara\nThe"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(DEMO_MODEL_DIR, folder / "models/broken")
        weights = folder / "models/broken/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:200_000])
        config = folder / "serving.toml"
        config.write_text(f'models_dir = "{folder / "models"}"\n' + CONFIG)
        process = start(["-m", "serving", "serve", "--config", str(config)], folder)
        try:
            wait_ready(process)
            yield process
        finally:
            ended(process)


def change(server: ServerProcess, act: str, **body: Any) -> httpx.Response:  # noqa: ANN401  # JSON
    return httpx.post(f"{server.url}/v1/internal/model/{act}", json=body, headers=ADMIN, timeout=240)


def engines(server: ServerProcess) -> list[psutil.Process]:
    return [process for process in server.descendants() if process.name().startswith("VLLM::EngineCor")]


def complete(server: ServerProcess, model: str) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/completions", json={"model": model, "prompt": "Once", "max_tokens": 4})


def test_logits_are_those_of_transformers(server: ServerProcess) -> None:
    ids = server.post("/v1/internal/encode", {"text": PROMPT})["tokens"]
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32)
    with torch.no_grad():
        right = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    spelled = Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json")).id_to_token
    expected = {spelled(token): right[token].item() for token in right.argsort(descending=True)[:200].tolist()}
    told = server.post("/v1/internal/logits", {"prompt": PROMPT})
    assert len(told) == 50
    assert list(told.values()) == sorted(told.values(), reverse=True)
    assert next(iter(told)) == next(iter(expected))
    assert sum(abs(told[token] - expected.get(token, 0)) for token in told) < 0.05


def test_logits_behind_samplers_are_what_is_drawn(server: ServerProcess) -> None:
    samplers = {"use_samplers": True, "top_k": 2, "temperature": 0.7}
    told = server.post("/v1/internal/logits", {"prompt": PROMPT, **samplers})
    assert len(told) == 2
    assert sum(told.values()) == pytest.approx(1)
    greedy = server.post("/v1/internal/logits", {"prompt": PROMPT, "use_samplers": True, "temperature": 0})
    assert greedy == {next(iter(told)): 1.0}
    assert server.metric('serving_settles_total{reason="finish"}') >= 3


def test_a_failed_load_leaves_the_old_one_serving(server: ServerProcess) -> None:
    before = {process.pid for process in engines(server)}
    response = change(server, "load", model_name="broken")
    assert response.status_code == 500, response.text
    assert f"{MODEL} serves as before" in response.json()["error"]["message"]
    assert complete(server, MODEL).status_code == 200
    assert {process.pid for process in engines(server)} == before
    response = change(server, "load", model_name=LLAMA3, args={"max_model_len": 10**6})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "args")
    assert complete(server, MODEL).status_code == 200


def test_a_stream_of_the_old_model_finishes(server: ServerProcess) -> None:
    """Its reader stops reading until the new model serves: what is still to be sent keeps the old one in use."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1000, "logprobs": 20, "ignore_eos": True, "stream": True}
    (old,) = engines(server)
    small = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)])
    with (
        httpx.Client(base_url=server.url, transport=small, timeout=120) as http,
        http.stream("POST", "/v1/completions", json=body, headers={"authorization": f"Bearer {KEY}"}) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        loaded = change(server, "load", model_name=LLAMA3, args={"max_model_len": 1024})
        assert (loaded.status_code, loaded.json()) == (200, "OK")
        assert complete(server, LLAMA3).status_code == 200
        assert complete(server, MODEL).status_code == 404
        assert server.post("/tokenize", {"prompt": "Once"})["max_model_len"] == 1024
        assert old.is_running()
        assert change(server, "load", model_name=MODEL).status_code == 409
        *_, usual, done = filter(None, lines)
        assert (json.loads(usual.removeprefix("data: "))["choices"][0]["finish_reason"], done) == (
            "length",
            "data: [DONE]",
        )
    old.wait(60)
    assert len(engines(server)) == 1


def test_an_unloaded_model_leaves_no_process(server: ServerProcess) -> None:
    assert change(server, "unload").json() == "OK"
    assert engines(server) == []
    assert complete(server, "").status_code == 404
    assert httpx.get(f"{server.url}/health/ready").json()["models"] == {}
