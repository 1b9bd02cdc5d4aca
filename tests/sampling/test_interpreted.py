"""The tests of device code, in processes in which Triton interprets its kernels."""

import os
import subprocess
import sys

import pytest

from tests.sampling.interpreter import CUDA, FOLDER, MODULES, VARIABLES


@pytest.mark.skipif(CUDA, reason="they run on the device, in this process")
@pytest.mark.parametrize("module", MODULES)
def test_passes_in_the_interpreter(module: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / module)]
    done = subprocess.run(
        command, env=os.environ | VARIABLES, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
