"""Where device code is tested: on a CUDA device if there is one, and else in Triton's interpreter.

The interpreter must be chosen before anything imports Triton, and vLLM's own kernels run in it only with a shim. So
without a device these tests run in processes of their own, which `test_interpreted.py` starts.
"""

import os
from pathlib import Path
from typing import Final

import torch

CUDA: Final = torch.cuda.is_available()
DEVICE: Final = torch.device("cuda" if CUDA else "cpu")
FOLDER: Final = Path(__file__).parent
VARIABLES: Final = {
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": os.pathsep.join((str(FOLDER / "v2/shim"), str(FOLDER.parents[1]))),
}
MODULES: Final = ("dry/test_device.py", "roles/test_device.py", "v2/test_adapter.py", "v2/test_runner.py")


def runs_here() -> bool:
    """Whether this process can run `MODULES`."""
    return CUDA or os.environ.get("TRITON_INTERPRET") == "1"
