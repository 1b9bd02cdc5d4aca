"""LoRA adapters of random weights for the demo model, in PEFT's format, as tests need them: good ones and bad ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from serving.settings import DEMO_MODEL_DIR

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def weights(seed: int, *, rank: int = 8, shrink: int = 1, layers: int | None = None, ends: bool = False) -> Weights:
    """Large enough that greedy answers differ. `shrink`: those of a model that is so many times narrower. With `ends`
    also of the embeddings and of the head."""
    config = json.loads((DEMO_MODEL_DIR / "config.json").read_text())
    wide, inner = config["hidden_size"] // shrink, config["intermediate_size"] // shrink
    words = config["vocab_size"]
    shapes = {f"self_attn.{part}_proj": (wide, wide) for part in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide), "mlp.down_proj": (wide, inner)}
    dice, made = np.random.default_rng(seed), {}
    for layer in range(config["num_hidden_layers"] if layers is None else layers):
        for module, (out, into) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}.lora_"
            made[f"{name}A.weight"] = dice.normal(0, 1.0 / into**0.5, (rank, into)).astype(np.float32)
            made[f"{name}B.weight"] = dice.normal(0, 1.0, (out, rank)).astype(np.float32)
    if ends:
        for name, (out, into) in {
            "model.embed_tokens.lora_embedding_": (wide, words),
            "lm_head.lora_": (words, wide),
        }.items():
            end = ".weight" if "head" in name else ""
            made[f"base_model.model.{name}A{end}"] = dice.normal(0, 0.05, (rank, into)).astype(np.float32)
            made[f"base_model.model.{name}B{end}"] = dice.normal(0, 0.05, (out, rank)).astype(np.float32)
    return made


def make_adapter(folder: Path, made: Weights, **config: Any) -> Path:  # noqa: ANN401  # JSON
    """A folder with these weights. `config` is what differs in its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = min((part.shape[0] for name, part in made.items() if "lora_A" in name), default=8)
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file(made, folder / "adapter_model.safetensors")
    return folder
