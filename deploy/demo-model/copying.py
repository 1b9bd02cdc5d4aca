"""Gives a new model heads that copy, which small models otherwise learn late: names must be copied from what was read.

Two heads of the first layer look at the token before, by position alone, and note what it is. Heads of the second layer
find earlier places behind the same token, and pass on what stands there; everything else begins quietly. So the model
copies random tokens before its first step, and training goes on from that: it is only where the weights begin.
Source: Olsson et al., "In-context Learning and Induction Heads", 2022, for what such heads do.
"""

import torch
from transformers import LlamaForCausalLM

CONSTANT = 4.0
"""One dimension of all embeddings is the same, this many times as large as the others: heads can look by position."""
SHARPNESS = 45.0
MATCHING = 8.0
NOTE, COPY, QUIET = 0.05, 0.25, 0.1
PREVIOUS_HEADS, COPYING_HEADS = 2, 4
FAST = 4
"""Rotary frequencies that tell one place from the next."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def prepare(model: LlamaForCausalLM) -> None:
    """Changes weights in place. Needs as many key-value heads as heads."""
    config = model.config
    for layer in model.model.layers:
        layer.mlp.down_proj.weight *= QUIET
        layer.self_attn.o_proj.weight *= QUIET
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    embedding = model.model.embed_tokens.weight
    embedding[:, -1] = CONSTANT * config.initializer_range
    directions = torch.linalg.qr(torch.randn(width - 1, width - 1)).Q
    spaces = torch.cat((directions, torch.zeros(width - 1, 1)), 1)  # none of them sees the constant
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    for head in range(PREVIOUS_HEADS):
        rows = slice(head * size, (head + 1) * size)
        _look_back(first, rows, config.rope_parameters["rope_theta"])
        first.v_proj.weight[rows] = spaces[rows]
        first.o_proj.weight[:, rows] = NOTE * _notes(spaces, head, size).T
    slow = size // 4  # of each half: those that turn little over a story
    for head in range(COPYING_HEADS):
        rows = slice(head * size, (head + 1) * size)
        seen = spaces[head * 2 * slow : (head + 1) * 2 * slow]
        noted = _notes(spaces, head * 2 * slow // size, size)[head * 2 * slow % size :][: 2 * slow]
        for weight, what in ((second.q_proj.weight, seen), (second.k_proj.weight, noted)):
            part = weight[rows]
            part.zero_()
            part[slow : 2 * slow] = MATCHING**0.5 * what[:slow]
            part[size // 2 + slow :] = MATCHING**0.5 * what[slow:]
        passed = spaces[head * size : (head + 1) * size][: width - 1]
        second.v_proj.weight[rows][: len(passed)] = passed
        second.o_proj.weight[:, rows][:, : len(passed)] = COPY * passed.T


def _notes(spaces: torch.Tensor, head: int, size: int) -> torch.Tensor:
    """Where a head of the first layer writes: directions that are the other half of all."""
    begin = len(spaces) // 2 + head * size
    return spaces[begin : begin + size]


def _look_back(attention: torch.nn.Module, rows: slice, base: float) -> None:
    """Queries and keys of one head that meet at a distance of one."""
    size = rows.stop - rows.start
    angles = torch.tensor([base ** (-2 * number / size) for number in range(FAST)])
    height = SHARPNESS**0.5 / CONSTANT
    query, key = attention.q_proj.weight[rows], attention.k_proj.weight[rows]
    query.zero_()
    key.zero_()
    query[:FAST, -1] = height
    key[:FAST, -1] = height * angles.cos()
    key[size // 2 : size // 2 + FAST, -1] = height * angles.sin()
