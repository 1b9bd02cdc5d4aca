"""LoRA adapters as files: which ones a folder holds, and what one of them says of itself.

PEFT's format: each is a folder with `adapter_config.json` and `adapter_model.safetensors`. It knows no engine and reads
no weights: `loras` does both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

CONFIG = "adapter_config.json"
_Rank = Annotated[int, Meta(ge=1)]


class AdapterConfig(msgspec.Struct):
    """What must be known of an adapter before it is loaded."""

    r: _Rank
    lora_alpha: float
    rank_pattern: Mapping[str, _Rank] | None = None

    @property
    def rank(self) -> int:
        """The largest in it."""
        return max([self.r, *(self.rank_pattern or {}).values()])


def adapters_in(folder: Path | None) -> tuple[str, ...]:
    """Names of the adapters in a folder, in order; none in no folder. Blocks: reads a folder."""
    found = folder.glob(f"*/{CONFIG}") if folder else ()
    return tuple(sorted(path.parent.name for path in found if path.parent.name.isprintable()))


def read_config(adapter: Path) -> AdapterConfig:
    """Raises OSError, msgspec.MsgspecError. Blocks: reads a file."""
    return msgspec.json.decode((adapter / CONFIG).read_bytes(), type=AdapterConfig)


def largest_rank(folder: Path) -> int:
    """Of all adapters in a folder whose configuration can be read, 0 without one. Blocks: reads files."""
    largest = 0
    for name in adapters_in(folder):
        try:
            largest = max(largest, read_config(folder / name).rank)
        except (OSError, msgspec.MsgspecError):
            continue  # who asks for it is told
    return largest
