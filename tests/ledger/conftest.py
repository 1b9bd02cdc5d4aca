"""Servers that tests of the ledger share by name: see `servers.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.servers import VERSIONS, RedisServer, binary, running

SCRIPTS = {
    "parts/start": "local TAG = string.match(KEYS[1], '^{[^}]*}')\n",
    "echo": "return {TAG, ARGV[1], #KEYS, false, {'nested'}}",
    "add": "return {redis.call('INCRBY', TAG .. ':sum', ARGV[1])}",
    "fail": "return redis.call('LPUSH', TAG .. ':sum', 1)",
}


@pytest.fixture(params=VERSIONS)
def redis_binary(request: pytest.FixtureRequest) -> Path:
    """Each redis-server that is claimed to work, in turn."""
    return binary(request.param)


@pytest.fixture
def redis_server(redis_binary: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, with `appendfsync always`."""
    with running(redis_binary, tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts as simple as can be, in place of the ledger's."""
    folder = tmp_path_factory.mktemp("lua")
    (folder / "parts").mkdir()
    (folder / "layout.toml").touch()
    for name, text in SCRIPTS.items():
        (folder / f"{name}.lua").write_text(text)
    return folder
