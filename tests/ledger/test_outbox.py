"""The outbox: on the disk before it is sent, found again by the next process, and no more than it must be."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.ledger.outbox import Entry, Outbox

PROCESS = """
import asyncio, os, signal, sys
from pathlib import Path
from serving.ledger.outbox import Outbox

async def main():
    outbox = Outbox(Path(sys.argv[1]))
    entries = [outbox.add("settle", "{s00}", "alice", f"r{n}") for n in range(20)]
    await asyncio.gather(*map(outbox.on_disk, entries))
    outbox.acknowledge(entries[0])
    print("written", flush=True)
    signal.pause()

asyncio.run(main())
"""


Make = Callable[..., Outbox]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Outboxes in one folder; those that a test leaves open are closed after it."""
    made: list[Outbox] = []

    def make_one(**options: Any) -> Outbox:  # noqa: ANN401  # the constructor's own
        made.append(Outbox(tmp_path, **options))
        return made[-1]

    yield make_one
    for outbox in made:
        await outbox.close()


async def written(outbox: Outbox, *operation: str) -> Entry:
    entry = outbox.add(*operation)
    await outbox.on_disk(entry)
    return entry


def lines_of(folder: Path) -> list[str]:
    (file,) = folder.glob("*.jsonl")
    return file.read_text().splitlines()


def files_of(folder: Path) -> list[str]:
    return [path.suffix for path in folder.iterdir()]


def killed_process(folder: Path) -> None:
    """A process that wrote twenty entries, and is killed at once."""
    with subprocess.Popen([sys.executable, "-c", PROCESS, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)


def ids_of(outbox: Outbox) -> list[str]:
    """Of all that is kept."""
    outbox.send_again()
    return [entry.arguments[1] for entry in outbox.pending()]


async def test_what_a_killed_process_left_is_taken_over_whole(make: Make, tmp_path: Path) -> None:
    killed_process(tmp_path)
    outbox = make()
    assert sorted(ids_of(outbox)) == sorted(f"r{n}" for n in range(20))
    assert outbox.waiting == 20, "what was acknowledged may be lost since: it is sent again, too"
    assert len(lines_of(tmp_path)) == 20
    await outbox.close()
    again = make()
    assert sorted(ids_of(again)) == sorted(f"r{n}" for n in range(20))


async def test_a_living_process_keeps_its_file(make: Make) -> None:
    living = make()
    await written(living, "settle", "{s00}", "alice", "r")
    assert ids_of(make()) == []
    assert ids_of(living) == ["r"]


async def test_a_line_cut_short_is_left_out_and_the_rest_is_found(make: Make, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text(
        json.dumps([1, time.time(), "settle", "{s00}", "alice", "r"]) + '\n[2, 17, "set'
    )
    assert ids_of(make()) == ["r"]


async def test_an_entry_older_than_the_store_remembers_is_told_and_not_sent(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old.jsonl").write_text(json.dumps([1, time.time() - 90_000, "settle", "{s00}", "alice", "r"]) + "\n")
    assert ids_of(make()) == []
    assert "request r is too old" in caplog.text


async def test_old_entries_that_were_acknowledged_are_neither_sent_nor_missed(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [[1, time.time() - 90_000, "settle", "{s00}", "alice", "old"], [1]]
    lines += [[2, time.time() - 120, "settle", "{s00}", "alice", "recent"], [2]]
    lines += [[3, time.time() - 120, "settle", "{s00}", "alice", "waiting"]]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ids_of(make()) == ["waiting"]
    assert "the books lack it" not in caplog.text


async def test_acknowledgements_are_noted_without_another_entry(make: Make, tmp_path: Path) -> None:
    outbox = make()
    outbox.acknowledge(await written(outbox, "settle", "{s00}", "alice", "r"))
    outbox.compact()
    await outbox.close()
    assert [json.loads(line)[0] for line in lines_of(tmp_path)] == [1, 1]


STARTER = """
import sys
from pathlib import Path
from serving.ledger.outbox import Outbox

sys.stdin.readline()
outbox = Outbox(Path(sys.argv[1]))
print(*(entry.arguments[1] for entry in outbox.pending()), flush=True)
sys.stdin.readline()
"""


def test_processes_that_start_at_once_share_what_was_left(tmp_path: Path) -> None:
    killed_process(tmp_path)
    command = [sys.executable, "-c", STARTER, str(tmp_path)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(6)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
    found = [process.stdout.readline().split() for process in started if process.stdout is not None]
    for process in started:
        process.communicate("\n")
        assert process.returncode == 0
    assert {request for requests in found for request in requests} == {f"r{n}" for n in range(20)}


async def test_concurrent_entries_share_a_write(make: Make, tmp_path: Path) -> None:
    writes: list[int] = []

    def sync(file: int) -> None:
        os.fdatasync(file)
        writes.append(file)

    outbox = make(sync=sync)
    await asyncio.gather(*(written(outbox, "settle", "{s00}", "alice", f"r{n}") for n in range(500)))
    assert len(writes) < 10
    assert len(lines_of(tmp_path)) == 500


async def test_entries_that_nobody_waits_for_are_written_together(make: Make, tmp_path: Path) -> None:
    writes: list[int] = []
    outbox = make(gather_s=3600, sync=writes.append)
    for number in range(10):
        entry = outbox.add("settle", "{s00}", "alice", f"r{number}")
        await asyncio.sleep(0)
    assert writes == []
    await outbox.on_disk(entry)
    assert len(writes) == 1
    assert len(lines_of(tmp_path)) == 10


async def test_entries_wait_for_others_only_so_long(make: Make, tmp_path: Path) -> None:
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()
    outbox = make(gather_s=0.01, sync=lambda _: loop.call_soon_threadsafe(synced.set))
    outbox.add("settle", "{s00}", "alice", "r")
    async with asyncio.timeout(20):
        await synced.wait()
    assert len(lines_of(tmp_path)) == 1


async def test_a_disk_that_fails_holds_nobody_up_and_is_tried_again(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = True

    def sync(file: int) -> None:
        if failing:
            raise OSError("no space left")

    outbox = make(sync=sync)
    async with asyncio.timeout(20):
        await written(outbox, "settle", "{s00}", "alice", "r1")
        assert "cannot be written: no space left" in caplog.text
        failing = False
        caplog.clear()
        await written(outbox, "settle", "{s00}", "alice", "r2")
        assert caplog.text == ""
    assert ids_of(outbox) == ["r1", "r2"]


@contextmanager
def full_disk(folder: Path, bytes_left: int) -> Iterator[None]:
    """No file of this process may grow beyond so much more than the one of `folder` has."""
    (file,) = folder.glob("*.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + bytes_left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_what_a_full_disk_did_not_take_is_on_it_when_there_is_room(make: Make, tmp_path: Path) -> None:
    outbox = make()
    await written(outbox, "settle", "{s00}", "alice", "before")
    with full_disk(tmp_path, 100):
        full = [outbox.add("settle", "{s00}", "alice", f"full{number}") for number in range(20)]
        await asyncio.gather(*map(outbox.on_disk, full))
        outbox.compact()
    await written(outbox, "settle", "{s00}", "alice", "after")
    assert json.loads(lines_of(tmp_path)[-1])[-1] == "after", "it is no part of a line that was cut short"
    outbox.compact()
    assert [json.loads(line)[-1] for line in lines_of(tmp_path)] == [
        "before",
        *(f"full{n}" for n in range(20)),
        "after",
    ]
    assert files_of(tmp_path) == [".jsonl"]


async def test_a_file_that_cannot_be_written_anew_stays(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make(compact_bytes=0)
    await written(outbox, "settle", "{s00}", "alice", "r1")
    before = lines_of(tmp_path)
    outbox.add("settle", "{s00}", "alice", "r2")
    with full_disk(tmp_path, -1):
        outbox.compact()
    assert "cannot be written anew" in caplog.text
    assert lines_of(tmp_path) == before
    assert files_of(tmp_path) == [".jsonl"]
    outbox.compact()
    assert len(lines_of(tmp_path)) == 2


async def test_what_is_added_while_it_closes_is_written(make: Make, tmp_path: Path) -> None:
    syncing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def sync(file: int) -> None:
        loop.call_soon_threadsafe(syncing.set)
        go_on.wait()

    outbox = make(sync=sync)
    outbox.add("settle", "{s00}", "alice", "r1")
    closing = asyncio.create_task(outbox.close())
    await syncing.wait()
    late = asyncio.create_task(written(outbox, "settle", "{s00}", "alice", "r2"))
    await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(20):
        await asyncio.gather(closing, late)
    assert [json.loads(line)[-1] for line in lines_of(tmp_path)] == ["r1", "r2"]


async def test_without_a_thread_to_write_nobody_waits_for_ever(make: Make, tmp_path: Path) -> None:
    class NoThreads(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # of whatever it is asked
            raise RuntimeError("can't start new thread")

    loop = asyncio.get_running_loop()
    loop.set_default_executor(NoThreads())
    outbox = make()
    async with asyncio.timeout(20):
        await written(outbox, "settle", "{s00}", "alice", "r1")
        loop.set_default_executor(ThreadPoolExecutor(1))
        await written(outbox, "settle", "{s00}", "alice", "r2")
    outbox.compact()
    assert [json.loads(line)[-1] for line in lines_of(tmp_path) if line] == ["r1", "r2"]


async def test_a_file_is_written_anew_with_what_waits_to_be_written(make: Make, tmp_path: Path) -> None:
    outbox = make(gather_s=3600, keep_s=0, compact_bytes=0)
    outbox.acknowledge(await written(outbox, "settle", "{s00}", "alice", "old"))
    outbox.add("settle", "{s00}", "alice", "new")
    await asyncio.sleep(0)
    outbox.compact()
    assert [json.loads(line)[-1] for line in lines_of(tmp_path)] == ["new"]
    await outbox.close()
    assert ids_of(make()) == ["new"]


@pytest.mark.parametrize(("keep_s", "left"), [(60, ["first", "second"]), (0, ["second"])])
async def test_acknowledged_entries_stay_for_the_window_and_go_then(make: Make, keep_s: float, left: list[str]) -> None:
    outbox = make(keep_s=keep_s)
    first, _ = [await written(outbox, "settle", "{s00}", "alice", name) for name in ("first", "second")]
    outbox.acknowledge(first)
    outbox.compact()
    assert ids_of(outbox) == left


async def test_a_file_that_grew_is_written_anew(make: Make, tmp_path: Path) -> None:
    outbox = make(keep_s=0, compact_bytes=1000)
    for number in range(50):
        outbox.acknowledge(await written(outbox, "settle", "{s00}", "alice", f"r{number}"))
    await written(outbox, "settle", "{s00}", "alice", "last")
    outbox.compact()
    assert len(lines_of(tmp_path)) == 1
    await written(outbox, "release", "{s00}", "alice", "after")
    await outbox.close()
    assert ids_of(make()) == ["last", "after"]


async def test_a_file_of_entries_that_stay_is_not_written_anew_again_and_again(make: Make, tmp_path: Path) -> None:
    """They stay for a minute, and a busy minute's are more than a small file holds."""
    outbox = make(compact_bytes=1000)
    (file,) = tmp_path.glob("*.jsonl")  # noqa: ASYNC240  # as quick as can be
    files = set()
    for number in range(50):
        outbox.acknowledge(await written(outbox, "settle", "{s00}", "alice", f"r{number}"))
        outbox.compact()
        if os.stat(file).st_ino not in files:
            files.add(os.stat(file).st_ino)
            os.link(file, tmp_path / f"{number}.kept")  # so that the next one cannot have its number
    assert 1 < len(files) < 6


async def test_a_full_disk_is_told_and_stops_nobody(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    outbox = make(sync=full)
    entry = await written(outbox, "settle", "{s00}", "alice", "r")
    assert outbox.pending() == [entry]
    assert "No space left on device" in caplog.text
