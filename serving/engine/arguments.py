"""From the `engine` table of a configuration to vLLM's AsyncEngineArgs, with our defaults where the table is silent.

Reads no environment and starts nothing. Keeps the law that no request can kill an engine: what is known to let one
(split prefills on CPU) is refused at start-up. Imports vllm when called, not before.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from serving.engine.adapters import largest_rank

CPU_KV_CACHE_BYTES = 1 << 30
SHUTDOWN_TIMEOUT_S = 10
MOST_LORAS = 4
"""Adapters in one step of an engine, each of which has its place on the device; requests with further ones wait."""
MOST_HELD_LORAS = 32
"""Adapters that are kept in the machine's memory, beside a GPU; beside a CPU the places are in it."""
_OURS = {"model": "the model's own key", "revision": "the model's `revision`"}


def engine_arguments(model: str, revision: str | None, engine: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """AsyncEngineArgs for `model` (a folder or a hub id). Raises ValueError naming a key that vLLM does not know."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    known = {field.name for field in fields(AsyncEngineArgs)} - set(_OURS)
    for key in engine:
        if key in _OURS:
            raise ValueError(f"engine.{key} cannot be set here: use {_OURS[key]}.")
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"engine.{key} is not an engine argument of this vLLM.{hint}")
    structured = engine.get("structured_outputs_config", {"backend": "guidance"})
    if not isinstance(structured, Mapping) or structured.get("backend") != "guidance":
        raise ValueError("engine.structured_outputs_config needs the backend `guidance`: schemas are checked for it.")
    defaults: dict[str, Any] = {
        "enable_log_requests": False,
        # All of them, for the distribution of a next token; those of an answer's tokens have a lower bound of ours.
        "max_logprobs": -1,
        "shutdown_timeout": SHUTDOWN_TIMEOUT_S,
        # One backend for every request: with `auto` the first request with a schema decides for all later ones. No free
        # white space in any JSON object: a small model can fill the whole answer with it.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
    }
    if current_platform.is_cpu():
        defaults |= _cpu_defaults(engine)
    return AsyncEngineArgs(model=model, revision=revision, **(defaults | dict(engine)))


def adapter_arguments(folder: Path | None, engine: Mapping[str, Any]) -> dict[str, Any]:
    """What lets a model have the adapters in `folder`, where the table is silent: ranks up to the largest that lies
    there now. Raises ValueError for what the table may not say. Blocks: reads files."""
    from vllm.config.lora import MaxLoRARanks

    if "enable_lora" in engine:
        raise ValueError("engine.enable_lora cannot be set here: use the model's `loras`.")
    if folder is None:
        return {}
    ranks, largest = get_args(MaxLoRARanks), largest_rank(folder)
    slots = engine.get("max_loras", MOST_LORAS + _spare_slots())
    if slots <= _spare_slots():
        raise ValueError("engine.max_loras must be 2 or more with a CPU: one is left empty.")
    arguments = {"enable_lora": True, "max_loras": slots, "max_cpu_loras": max(MOST_HELD_LORAS, slots)}
    if largest:
        arguments["max_lora_rank"] = next((rank for rank in ranks if rank >= largest), ranks[-1])
    return arguments


def adapter_room(lora_config: Any) -> int:  # noqa: ANN401  # vLLM's LoRAConfig
    """How many adapters an engine may hold."""
    spare = _spare_slots()
    most: int = lora_config.max_loras - spare if spare else lora_config.max_cpu_loras
    return most


def _spare_slots() -> int:
    """Of the places on the device, how many must stay empty. vLLM takes the first free one.

    Source: vLLM 0.32, lora/ops/torch_ops/lora_ops.py: on CPU a token without an adapter has the place -1, so beside
    tokens with one it gets the weights of the last place. Reported there as pull request 48421.
    """
    from vllm.platforms import current_platform

    return 1 if current_platform.is_cpu() else 0


def _cpu_defaults(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Source: vLLM 0.32, gpu_model_runner.py: a split prefill with a seed calls `Generator.get_offset`, which torch's
    CPU generator does not have; the worker raises and the engine is dead for everyone."""
    if engine.get("enable_chunked_prefill"):
        raise ValueError(
            "engine.enable_chunked_prefill cannot be on with a CPU: a seeded request would kill the engine."
        )
    # Without chunks vLLM itself raises max_num_batched_tokens to the context when it is not set, and refuses to start
    # with less than that when it is.
    defaults: dict[str, Any] = {"enable_chunked_prefill": False, "enforce_eager": True}
    if "gpu_memory_utilization" not in engine:
        defaults["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    return defaults
