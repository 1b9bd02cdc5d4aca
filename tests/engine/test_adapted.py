"""LoRA adapters on the real engine, behind its port and behind the internal endpoints. One engine for all of it."""

import asyncio
import math
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from serving.core import PreparedRequest, Sampling
from serving.engine.local import LocalEngine
from serving.errors import InvalidRequest
from serving.settings import DEMO_MODEL_DIR, ModelSettings
from tests.engine.harness import answer, ask, nothing_left
from tests.peft import make_adapter, weights
from tests.service import PRICE, SM, Running, bearer, running

ADMIN = bearer("the admin key of these tests")
ENGINE = {"kv_cache_memory_bytes": 64 << 20, "max_loras": 4}

MILD = {name: part * np.float32(0.6) for name, part in weights(0).items()}
"""What it computes is near enough in bfloat16."""


def make_broken(folder: Path) -> None:
    """One of each kind; all but `big` count as of rank 8."""
    good = weights(7)
    odd = {name.replace("q_proj", "qq_proj"): part for name, part in good.items()}
    make_adapter(folder / "big", weights(3, rank=17))
    make_adapter(folder / "narrow", weights(3, shrink=2))
    make_adapter(folder / "odd", odd)
    make_adapter(folder / "half", {name: part for name, part in good.items() if "lora_A" in name})
    make_adapter(folder / "dora", good, use_dora=True)
    make_adapter(folder / "liar", weights(3, rank=32), r=8)
    make_adapter(folder / "nan", {name: part * np.float32("nan") for name, part in good.items()})
    make_adapter(folder / "huge", {name: part * 1e5 for name, part in good.items()})
    cut = make_adapter(folder / "cut", good) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    (make_adapter(folder / "empty", good) / "adapter_model.safetensors").unlink()
    (make_adapter(folder / "words", good) / "adapter_config.json").write_text("no JSON")


BROKEN = {
    "big": "its rank is 17, and the engine takes 16",
    "narrow": "none of its layers has the width of the model",
    "odd": "expected target modules",
    "half": "vLLM cannot use its weights",
    "dora": "does not yet support DoRA",
    "liar": "size of tensor",
    "nan": "holds what is no number",
    "huge": "holds what is no number, or one over 1000",
    "cut": "header",
    "empty": "No such file",
    "words": "JSON is malformed",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("mara", "ron", "ida", "eve")):
        make_adapter(made / name, weights(seed, ends=name == "ron"))
    make_adapter(made / "mild", MILD)
    make_adapter(made / "largest", weights(5, rank=16))
    return made


@pytest.fixture(scope="module")
async def engine(folder: Path) -> AsyncIterator[LocalEngine]:
    loaded = await LocalEngine.load(str(DEMO_MODEL_DIR), engine=ENGINE, loras=folder)
    make_broken(folder)  # after the start, which takes the largest rank that lies there
    yield loaded
    await loaded.shutdown()


@pytest.fixture(scope="module")
async def run(engine: LocalEngine, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    models = (ModelSettings(SM, str(DEMO_MODEL_DIR), "chatml-text", price=PRICE, loras=folder),)
    key = ADMIN["authorization"].removeprefix("Bearer ")
    async with running(tmp_path_factory.mktemp("data"), admin_key=key, models=models) as run:
        run.stages[SM].engine = engine  # type: ignore[assignment]  # it is handed on to, and no more
        yield run


def greedy(adapter: str | None, *, seed: int = 0, max_tokens: int = 8, **fields: Any) -> PreparedRequest:  # noqa: ANN401
    """A prompt of a block of the prefix cache, which has 128 tokens on CPU, and a little more."""
    token_ids = tuple(np.random.default_rng(seed).integers(300, 2000, 136).tolist())
    sampling = Sampling(temperature=0.0)
    return PreparedRequest("r", 0, token_ids, sampling, max_tokens, ignore_eos=True, adapter=adapter, **fields)


# ---- the port --------------------------------------------------------------------------------------------------------


async def test_each_adapter_has_its_own_answer_whatever_runs_beside_it(engine: LocalEngine) -> None:
    kinds = (None, "mara", "ron")
    alone = {kind: await answer(engine, greedy(kind)) for kind in kinds}
    assert len({told.token_ids for told in alone.values()}) == 3
    assert all(told.started.cached_tokens == 0 for told in alone.values()), "they had a part of each other's cache"
    again = [await answer(engine, greedy(kind)) for kind in kinds]
    together = await asyncio.gather(*(answer(engine, greedy(kind)) for kind in kinds * 2))
    for kind, told in zip(kinds * 3, [*again, *together], strict=True):
        assert told.token_ids == alone[kind].token_ids
        assert told.started.cached_tokens == 128
    await nothing_left(engine)


async def test_more_adapters_than_there_is_room_for(engine: LocalEngine) -> None:
    """Three, since one place stays empty: the fourth takes that of one that nobody uses. A request without an adapter
    would have the weights of the last place."""
    names = (None, "mara", "ron", "ida", "eve")
    alone = {name: await answer(engine, greedy(name, seed=1)) for name in names}
    assert len({told.token_ids for told in alone.values()}) == 5
    beside = (None, "ron", "ida", "eve")
    together = await asyncio.gather(*(answer(engine, greedy(name, seed=1)) for name in beside))
    assert [told.token_ids for told in together] == [alone[name].token_ids for name in beside]
    assert set(await engine._llm.list_loras()) == {held.request.lora_int_id for held in engine._loras._held.values()}


async def test_logprobs_and_distributions_are_those_with_the_adapter(engine: LocalEngine) -> None:
    told = {name: await answer(engine, greedy(name, logprobs=1, prompt_logprobs=True)) for name in (None, "mara")}
    plain, adapted = (told[name].started.prompt_logprobs[-1].logprob for name in (None, "mara"))
    assert plain != adapted
    for name in (None, "mara"):
        likely = await answer(engine, greedy(name, max_tokens=1, distribution="raw", logprobs=3))
        best = likely.deltas[0].logprobs[0].top
        assert best[0].token_id == told[name].token_ids[0]


async def test_an_adapter_changes_the_model_as_its_product_added_to_the_weights_would(engine: LocalEngine) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32)
    made = {name: torch.from_numpy(part) for name, part in MILD.items()}
    request = greedy("mild", seed=4, max_tokens=1, distribution="raw", logprobs=300)
    with torch.no_grad():
        plain = model(torch.tensor([request.token_ids])).logits[0, -1].double().softmax(-1)
        for name, down in made.items():
            if name.endswith("lora_A.weight"):
                up = made[name.replace("lora_A", "lora_B")]
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                model.get_submodule(module).weight += up @ down
        right = model(torch.tensor([request.token_ids])).logits[0, -1].double().softmax(-1)
    told = (await answer(engine, request)).deltas[0].logprobs[0].top
    assert told[0].token_id == right.argmax().item()
    assert sum(abs(math.exp(token.logprob or 0.0) - right[token.token_id].item()) for token in told) < 0.05
    assert (right - plain).abs().sum() > 0.2


async def test_what_runs_keeps_the_adapter_that_it_began_with(engine: LocalEngine, folder: Path) -> None:
    """Its files are written anew, read anew, and deleted, while an answer is generated with the old ones."""
    make_adapter(folder / "changing", weights(20))
    long = greedy("changing", seed=2, max_tokens=60)
    whole = await answer(engine, long)
    async with aclosing(engine.generate(long)) as stream:
        told = [await anext(stream)]
        make_adapter(folder / "changing", weights(21))
        await engine.load_adapter("changing")
        changed = await answer(engine, greedy("changing", seed=2))
        shutil.rmtree(folder / "changing")
        told += [event async for event in stream]
    token_ids = tuple(token for event in told for token in getattr(event, "token_ids", ()))
    assert token_ids == whole.token_ids
    assert changed.token_ids != whole.token_ids[:8]
    assert changed.started.cached_tokens == 0
    with pytest.raises(InvalidRequest, match="none of this name"):
        await engine.load_adapter("changing")
    assert (await answer(engine, greedy("changing", seed=2))).token_ids == changed.token_ids


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_adapter_is_refused_and_the_engine_lives(engine: LocalEngine, name: str) -> None:
    before = [await answer(engine, greedy(kind, seed=3)) for kind in (None, "mara")]
    with pytest.raises(InvalidRequest, match=BROKEN[name]):
        await engine.load_adapter(name)
    with pytest.raises(InvalidRequest) as refused:
        await answer(engine, greedy(name, seed=3))
    assert (refused.value.param, "log of the server" in refused.value.message) == ("model", True)
    after = [await answer(engine, greedy(kind, seed=3)) for kind in (None, "mara")]
    assert [told.token_ids for told in after] == [told.token_ids for told in before]
    await engine.check_health()


async def test_a_model_without_adapters_has_none(local_engine: LocalEngine) -> None:
    for work in (local_engine.load_adapter("mara"), answer(local_engine, ask(adapter="mara"))):
        with pytest.raises(InvalidRequest, match="The adapter mara cannot be loaded"):
            await work


# ---- behind the endpoints --------------------------------------------------------------------------------------------


async def change(run: Running, act: str, *names: str) -> httpx.Response:
    body = {"lora_names": names} if act == "load" else {}
    return await run.client.post(f"/v1/internal/lora/{act}", json=body, headers=ADMIN)


async def text(run: Running, model: str = SM) -> str:
    body = {"model": model, "prompt": "<|im_start|>text\nThe harbour", "max_tokens": 8, "temperature": 0}
    response = await run.client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    told = response.json()
    assert told["model"] == SM
    return str(told["choices"][0]["text"])


async def test_the_default_model_answers_with_what_is_loaded(run: Running) -> None:
    plain = await text(run)
    assert (await change(run, "load", "mara")).json() == "OK"
    info = (await run.client.get("/v1/internal/model/info")).json()
    assert (info["model_name"], info["lora_names"]) == (SM, ["mara"])
    adapted = await text(run)
    assert adapted == await text(run, f"{SM}:mara") == await text(run, "")
    assert adapted != plain
    assert (await text(run, f"{SM}:ron")) not in (plain, adapted)
    assert (await change(run, "unload")).json() == "OK"
    assert (await run.client.get("/v1/internal/model/info")).json()["lora_names"] == []
    assert await text(run) == plain


async def test_what_is_loaded_stays_when_another_is_broken(run: Running) -> None:
    await change(run, "load", "ron")
    adapted = await text(run)
    for name, reason in BROKEN.items():
        response = await change(run, "load", name)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "lora_names")
        assert reason in error["message"]
        asked = await run.client.post("/v1/completions", json={"model": f"{SM}:{name}", "prompt": "The"})
        assert (asked.status_code, asked.json()["error"]["param"]) == (400, "model")
        assert "/" not in asked.json()["error"]["message"]
    assert await text(run) == adapted
    assert run.open_holds == 0
    await change(run, "unload")
