"""The plays of loadtests/ledger_chaos.py, small: what the books must show after crowds, late stores and kills."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.ledger_chaos import PLAYS, perform


@pytest.mark.parametrize("name", PLAYS)
async def test_the_ledger_keeps_its_word(name: str, tmp_path: Path) -> None:
    play = await perform(name, tmp_path, small=True)
    assert play.failures == []
    assert play.audits


@pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="redis-benchmark is not here: redis-tools")
def test_what_is_measured_is_what_is_meant() -> None:
    """Settles that settle, that is; how fast they are is not for a test to say."""
    options = ["--json", "--rounds", "1", "--calls", "500", "--seconds", "0.5"]
    command = [sys.executable, "-m", "loadtests.ledger_throughput", *options]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=False, timeout=300).stdout)
    assert told["a second"]["share of settles that settled"] > 0.9
    assert told["a second"]["share of holds that held"] == 1
    assert all(ratio > 0 for ratio in told["ratios"].values())
    assert told["latency"]["requests"] > 20
