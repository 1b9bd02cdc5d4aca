"""The real Model Runner V1 with random weights, 64 requests at once, split prefills, cached prefixes and preemptions.

What was generated is looked at by `storm.py`, which fails where a token or a message was not allowed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prompting.material import DEMO, LLAMA3, ROOT

MOST_S = 600
"""What a script may take on two cores that others use as well. Idle ones need less than a minute."""
VARIABLES = {
    # All in one process, so that nothing can outlive it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


@pytest.mark.parametrize(
    ("model", "template", "messages"), [(DEMO, "chatml-text", 2_000), (LLAMA3, "llama3-writer", 2_000)]
)
def test_no_message_that_was_not_allowed(model: Path, template: str, messages: int) -> None:
    script = Path(__file__).with_name("storm.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(model), template],
        env=os.environ | VARIABLES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = process.communicate(timeout=MOST_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, errors[-4000:]
    counted = json.loads(said.splitlines()[-1])
    assert counted["messages"] >= messages
    assert counted["headers"] >= messages
    assert counted["headers with chosen names"] > 100
    assert counted["requests without rules"] > 5
    assert counted["vllm:num_preemptions"] > 0
    assert counted["vllm:prefix_cache_hits"] > 0
