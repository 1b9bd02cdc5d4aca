"""Compiles the samplers' kernels for a CUDA architecture, without a device, and tells what each needs.

Registers and spills are those of ptxas. Needs only torch and Triton.
Run: python -m loadtests.gpu_sampling --compile-only [--json]
"""

import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from serving.sampling import history
from serving.sampling.dry import device as dry
from serving.sampling.roles import device as roles

ARCHITECTURE = 90
FLOATS = {"logits", "penalties", "values"}
NUMBERS = {"first_row", "blocks", "vocab"}


@dataclass(frozen=True)
class Variant:
    """A kernel with its constants, as it is launched with `warps`."""

    kernel: Any
    warps: int
    constants: dict[str, int]


def variants() -> Iterator[Variant]:
    """All that the samplers launch."""
    for drafts in (False, True):
        for sequences, lanes, tiles in ((False, 256, (dry.TILE, dry.SHORT_TILE)), (True, 512, (dry.TILE,))):
            yield Variant(dry._read_ends, 4, {"LANES": lanes, "SEQUENCES": sequences, "DRAFTS": drafts})
            for tile in tiles:
                own = {"TILE": tile, "BACK": dry._look_back(sequences), "DRAFTS": drafts}
                warps = 8 if tile >= dry.TILE else 4
                yield Variant(dry._find_repetitions, warps, own | {"SEQUENCES": sequences})
                yield Variant(dry._take_least, warps, own)
        yield Variant(roles._read_states, 4, {"DRAFTS": drafts})
    yield Variant(roles._write_rows, 8, {"CHUNK": roles._CHUNK})
    yield Variant(history._copy_new, 4, {"BLOCK": history._COPY_TOKENS})


def compiled(variant: Variant, ptxas: str) -> dict[str, object]:
    """Registers a thread, spilled bytes and shared memory."""
    names = variant.kernel.arg_names
    signature = {name: _type(name, variant) for name in names}
    aligned = [at for at, name in enumerate(names) if signature[name].startswith("*") or name.endswith("_stride")]
    source = ASTSource(
        variant.kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(at,): [["tt.divisibility", 16]] for at in aligned},
    )
    target = GPUTarget("cuda", ARCHITECTURE, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults that will change: nothing here is a product and a sum
        kernel = triton.compile(source, target=target, options={"num_warps": variant.warps})
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "kernel.ptx")
        text.write_text(kernel.asm["ptx"])
        command = [ptxas, "-v", f"--gpu-name=sm_{ARCHITECTURE}a", str(text), "-o", str(Path(folder, "kernel.cubin"))]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": variant.kernel.__name__.lstrip("_"),
        "constants": variant.constants,
        "warps": variant.warps,
        "registers": int(re.findall(r"Used (\d+) registers", told)[0]),
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", told))),
        "shared_bytes": kernel.metadata.shared,
    }


def _type(name: str, variant: Variant) -> str:
    if name in variant.constants:
        return "constexpr"
    if name in NUMBERS or name.endswith("_stride"):
        return "i32"
    return "*fp32" if name in FLOATS else "*i32"


def compile_all() -> list[dict[str, object]]:
    """What each variant needs."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = get_ptxas(ARCHITECTURE).path
    return [compiled(variant, ptxas) for variant in variants()]
