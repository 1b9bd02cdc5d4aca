"""What a sampler is, and which there are: one row in `SAMPLERS` for each, in the order in which they are applied.

A sampler is a custom rule on logits: a folder with its parameters, a readable reference, a host version for vLLM's
Model Runner V1 and a device version for V2. `v1.py` and `v2.py` adapt all of them to vLLM at once; `heat` and
`normalizer` are no such rules, and stand beside them. Imports neither vLLM nor torch; what is named, vLLM loads in its
own processes.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from serving.core import LogitsRules

if TYPE_CHECKING:
    import torch

V1_ADAPTERS: Final = (
    "serving.sampling.v1:StoryRules",
    "serving.sampling.heat.v1:Heat",
    "serving.sampling.normalizer.v1:TellNormalizer",
)
V2_ADAPTERS: Final = (
    "serving.sampling.v2:StoryRules",
    "serving.sampling.heat.v2:Heat",
    "serving.sampling.normalizer.v2:TellNormalizer",
)


def adapters(*, use_v2: bool) -> list[str]:
    """The engine argument `logits_processors`: what a model runner can load."""
    return [*(V2_ADAPTERS if use_v2 else V1_ADAPTERS)]


class HostSampler(Protocol):
    """A sampler on the host. A request has a slot for as long as it is in the batch, slots are used again."""

    def add(self, slot: int, rules: LogitsRules) -> bool:
        """A new request in `slot`, whatever was there before. False: there is nothing to do for it."""
        ...

    def apply(
        self,
        logits: "torch.Tensor",
        rows: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        history: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int32],
    ) -> None:
        """Change the rows `rows` of `logits: [B, V] float32` in place. Row `rows[k]` continues the token ids
        `history[slots[k], :lengths[slots[k]]]`, prompt and output."""
        ...


@dataclass(frozen=True, slots=True)
class Sampler:
    """`host` and `device` are the classes of its versions, `module:name`; `used`: whether a request's rules use it."""

    name: str
    host: str
    device: str
    used: Callable[[LogitsRules], bool]


SAMPLERS: Final = (
    Sampler(
        "dry",
        "serving.sampling.dry.host:HostDry",
        "serving.sampling.dry.slots:DryOnDevice",
        lambda rules: rules.dry is not None,
    ),
    Sampler(
        "roles",
        "serving.sampling.roles.host:HostRoles",
        "serving.sampling.roles.slots:RolesOnDevice",
        lambda rules: rules.roles is not None,
    ),
)
"""DRY first: the roles have the last word about what a message may hold."""


def load_class(name: str) -> Any:  # noqa: ANN401
    """The class that a row names: imported where it is used, since the front end needs none of them."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
