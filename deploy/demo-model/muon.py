"""Muon: momentum whose step is made orthogonal, for the weight matrices of the layers.

Needs far fewer tokens than AdamW here. torch.optim.Muon computes in bfloat16, which is slow on a CPU without AVX-512;
this one stays in float32. Source: Keller Jordan, Muon, https://kellerjordan.github.io/posts/muon/ (coefficients and
scaling).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, approximately, by Newton-Schulz iteration. `matrix: [R, C] float32`."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """With several workers each computes its share of the matrices and sends the new weights to the others."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        defaults = {"lr": lr, "initial_lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: None = None) -> None:
        workers, worker = dist.get_world_size(), dist.get_rank()
        for group in self.param_groups:
            shares = [group["params"][number::workers] for number in range(workers)]
            for weight in shares[worker]:
                self._move(weight, group)
            for owner, weights in enumerate(shares):
                flat = torch.cat([weight.reshape(-1) for weight in weights])
                dist.broadcast(flat, src=owner)
                for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
                    weight.copy_(part.view_as(weight))

    def _move(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = weight.grad
        assert gradient is not None
        average = self.state[weight].setdefault("average", torch.zeros_like(weight))
        average.lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(average, group["momentum"]))
        update *= max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"])
