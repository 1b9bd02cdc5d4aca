"""Trains the demo model from scratch on generated documents within a time budget.

The learning rate and the row length follow the share of the time that is used, not a step count, so a slow or busy
machine gets a whole schedule with fewer steps. The data depends on the seed alone. Writes a checkpoint every few
minutes; the last one is the model. One worker process per core, each with one thread, averages gradients with the
others: on a busy machine that is far faster than one process with many threads.

Run: python deploy/demo-model/train.py --minutes 42
"""

import argparse
import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import copying
from muon import Muon
from packing import Packer
from plot import draw

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "serving" / "demo" / "opus-v1-sm"
CONTEXT = 4096
HELD_OUT_SEED = 999_983
WARM_UP, DECAY_FROM, FINAL_RATE = 0.02, 0.2, 0.02
BATCH = 1024
"""Tokens of one worker in one step."""
# Share of the time -> row length. First each document has a row of its own; the long rows make long prompts familiar.
PHASES = ((0.82, None), (0.93, 1024), (1.0, 2048))
REPEATING = 0.03
"""Share of batches that repeat random tokens: without them the skill of copying whatever was read is lost again."""
HALF = torch.cpu.get_capabilities().get("avx512_bf16", False)
"""Whether this CPU multiplies bfloat16 matrices faster than float32 ones. The weights stay in float32 meanwhile."""
SHARPNESS = 2.0
"""What the logits of the written model are multiplied by: many clients send no temperature, and at 1 a model that is as
unsure as it ought to be writes a wrong word in each third sentence."""
CHECKPOINT_S = 240.0
LOG_STEPS = 40


@dataclass(frozen=True)
class Options:
    minutes: float
    seed: int
    workers: int
    rate: float
    clock: str
    folder: Path
    logs: Path


def make_model(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    ids = {name: tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<|pad|>")}
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<|pad|>"],
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<s>"], eos_token_id=ids["</s>"], pad_token_id=ids["<|pad|>"]
    )
    copying.prepare(model)
    return model


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy. The head runs only where the next token has a weight."""
    learned = weights[:, 1:] > 0
    with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[learned])
    losses = F.cross_entropy(logits.float(), ids[:, 1:][learned], reduction="none")
    shares = weights[:, 1:][learned]
    return (losses * shares).sum() / shares.sum()


def rate_at(share: float) -> float:
    """Warm-up, plateau, linear decay: a factor for all learning rates."""
    if share < WARM_UP:
        return max(share / WARM_UP, 0.05)
    if share < DECAY_FROM:
        return 1.0
    return max(1.0 - (share - DECAY_FROM) / (1.0 - DECAY_FROM), FINAL_RATE)


def make_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        Muon(matrices, lr=rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW([{"params": others, "initial_lr": rate * 0.15}], betas=(0.9, 0.95), weight_decay=0.01),
    ]


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes the weights in bfloat16 beside the tokenizer; training goes on in float32."""
    state = model.state_dict()
    state["model.norm.weight"] = state["model.norm.weight"] * SHARPNESS
    weights = {name: weight.to(torch.bfloat16) for name, weight in state.items()}
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


class Log:
    """The loss curve as rows of loss.csv and as lines on the screen."""

    FIELDS = ("step", "tokens", "minutes", "rate", "train_loss", "held_out_loss")

    def __init__(self, folder: Path) -> None:
        self._path = folder / "loss.csv"
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self.FIELDS)

    def write(self, step: int, tokens: int, minutes: float, rate: float, train: float, held_out: float) -> None:
        shown = "" if math.isnan(held_out) else f"{held_out:.4f}"
        with self._path.open("a", newline="", encoding="utf-8") as file:
            row = (step, tokens, f"{minutes:.2f}", f"{rate:.5f}", f"{train:.4f}", shown)
            csv.writer(file, lineterminator="\n").writerow(row)
        speed = tokens / max(minutes * 60, 1e-9)
        print(
            f"{minutes:5.1f} min  step {step}  {tokens / 1e6:.2f}M tokens  {speed:.0f}/s  loss {train:.3f} {shown}",
            flush=True,
        )


@torch.no_grad()  # type: ignore[untyped-decorator]
def held_out_loss(model: LlamaForCausalLM, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The loss on what the model is to write; what it only reads is left out."""
    return float(sum(loss_of(model, ids, (weights >= 1.0).float()).item() for ids, weights in rows) / len(rows))


def average_gradients(model: LlamaForCausalLM, workers: int) -> None:
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def agreed(value: float) -> float:
    """The first worker's clock rules, so that all of them change phase and stop at the same step."""
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared.item())


def update(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], factor: float, workers: int) -> None:
    average_gradients(model, workers)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def train(worker: int, options: Options) -> None:
    """One worker: its own stream of documents, the same weights as all others."""
    torch.set_num_threads(1)
    store = f"file://{options.folder.resolve()}/.workers"
    dist.init_process_group("gloo", init_method=store, rank=worker, world_size=options.workers)
    tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
    model = make_model(tokenizer, options.seed)
    packer = Packer(tokenizer, 1000 * options.seed + worker, REPEATING)
    checks = Packer(tokenizer, HELD_OUT_SEED)
    held_out = [checks.alone(BATCH) for _ in range(12)]
    optimizers = make_optimizers(model, options.rate)
    log = Log(options.logs) if worker == 0 else None
    began = saved = time.monotonic()
    step, tokens, recent = 0, 0, 0.0
    clock = time.process_time if options.clock == "cpu" else time.monotonic
    start = clock()
    while (share := agreed((clock() - start) / (options.minutes * 60))) < 1.0:
        length = next(length for until, length in PHASES if share < until)
        ids, weights = packer.packed(max(1, BATCH // length), length) if length else packer.alone(BATCH)
        loss = loss_of(model, ids, weights)
        loss.backward()
        update(model, optimizers, rate_at(share), options.workers)
        step, tokens = step + 1, tokens + ids.numel() * options.workers
        recent = loss.item() if step == 1 else 0.9 * recent + 0.1 * loss.item()
        now = time.monotonic()
        due = now - saved > CHECKPOINT_S
        if log and (due or step % LOG_STEPS == 0 or step == 1):
            check = held_out_loss(model, held_out) if due else math.nan
            log.write(step, tokens, (now - began) / 60, options.rate * rate_at(share), recent, check)
        if due:
            saved = now
            if log:
                save(model, options.folder)
    if log:
        save(model, options.folder)
        minutes = (time.monotonic() - began) / 60
        log.write(step, tokens, minutes, options.rate * rate_at(1.0), recent, held_out_loss(model, held_out))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=42.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes, one per core")
    parser.add_argument("--rate", type=float, default=0.015, help="Muon's peak rate; AdamW's is a fixed share of it")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: count a worker's own CPU time")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="holds tokenizer.json and receives the model")
    parser.add_argument("--logs", type=Path, default=HERE, help="receives loss.csv")
    options = Options(**vars(parser.parse_args()))
    (options.folder / ".workers").unlink(missing_ok=True)
    mp.spawn(train, args=(options,), nprocs=options.workers)
    (options.folder / ".workers").unlink(missing_ok=True)
    draw(options.logs)


if __name__ == "__main__":
    main()
