"""What vLLM is told of a temperature, and what is left for us. Standard library only."""

from collections.abc import Mapping
from typing import Any, Final

KEY: Final = "heat"
"""In vLLM's `extra_args`: what the logits of the request are multiplied by."""

VLLM_MOST: Final = 2.0
MOST: Final = 5.0


def split(temperature: float) -> tuple[float, float]:
    """The temperature that vLLM is told, and what logits are multiplied by before; 1 where nothing is left for us."""
    return (temperature, 1.0) if temperature <= VLLM_MOST else (VLLM_MOST, VLLM_MOST / temperature)


def factor_of(extra_args: Mapping[str, Any] | None) -> float:
    """What logits are multiplied by. Raises ValueError when it is impossible."""
    factor = (extra_args or {}).get(KEY, 1.0)
    if type(factor) not in (int, float) or not VLLM_MOST / MOST <= factor <= 1:
        raise ValueError(f"{KEY} must be a number from {VLLM_MOST / MOST} to 1")
    return float(factor)
