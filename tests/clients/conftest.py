"""A real server process with the demo model on a real engine, and Node to run clients of it that are written for Node.

`make clients` installs what the clients need and runs this folder; `make test` leaves it out.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ServerProcess, ended, start, wait_ready

HERE = Path(__file__).parent
NODE_S = 120


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """`serving serve` as a user starts it: `url` is its address, `key` its demo account's key."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(["-m", "serving", "serve"], Path(folder))
        try:
            wait_ready(server)
            yield server
        finally:
            ended(server)


@pytest.fixture
def run_node(server: ServerProcess) -> Callable[[str], None]:
    """Runs a file of this folder that is written for Node's own test runner, and shows what it said if it fails.

    The file finds the server in `SERVER_URL` and `SERVER_KEY`.
    """

    def run(name: str) -> None:
        told = subprocess.run(
            ["node", "--test", "--test-reporter=spec", name],
            cwd=HERE,
            env=os.environ | {"SERVER_URL": server.url, "SERVER_KEY": server.key},
            capture_output=True,
            text=True,
            timeout=NODE_S,
        )
        assert told.returncode == 0, told.stdout + told.stderr

    return run
