"""What must reach the credit store even if this process, or the store, does not live to see it.

Every settle and release is written to a small file a moment after it was sent, and whoever asked for it is answered
when the store or the disk has it for good; so a store that answers need not share its disk with a write for each. What
the store acknowledged stays for a window longer than a replica may lag behind, and is sent again when the process
starts or the store was restarted: operations are idempotent, so that is free. A process holds a lock on its file; files
without one were left behind by a process that died, and the next one takes them over. Entries hold ids, counts and
prices, never contents.
"""

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

log = logging.getLogger(__name__)


_Record: TypeAlias = list[int | float | str]
"""A line of the file: a whole entry, or the number alone of one that was acknowledged."""


@dataclass(slots=True)
class Entry:
    """One operation: the script's name, the slot's tag, its arguments. `done_at` is a Unix time once acknowledged,
    `written` is done once this process has put it on the disk."""

    number: int
    written_at: float
    script: str
    tag: str
    arguments: tuple[str, ...]
    done_at: float | None = None
    written: asyncio.Future[None] | None = None

    def record(self) -> _Record:
        return [self.number, self.written_at, self.script, self.tag, *self.arguments]

    def acknowledgement(self) -> _Record:
        return [self.number]


class Outbox:
    """One file of `folder`. `gather_s`: how long an entry may wait for others before they are written, unless somebody
    waits for it; `keep_s`: how long acknowledged entries stay; `forget_s`: how long the store knows ids;
    `compact_bytes`: the least size at which the file is written anew; `sync`: how a file's data gets onto the disk."""

    def __init__(
        self,
        folder: Path,
        *,
        gather_s: float = 0.05,
        keep_s: float = 60.0,
        forget_s: float = 86_400.0,
        compact_bytes: int = 1 << 20,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._compact_bytes = compact_bytes
        self._bytes_written_anew = 0
        self._sync = sync
        self._folder = folder
        self._gather_s = gather_s
        self._keep_s = keep_s
        self._forget_s = forget_s
        self._waiting: dict[int, Entry] = {}
        self._done: dict[int, Entry] = {}
        self._next = 0
        self._unwritten: list[_Record] = []
        self._due: asyncio.TimerHandle | None = None
        self._written: asyncio.Future[None] | None = None
        """Done when what is unwritten is on the disk."""
        self._writing: asyncio.Future[None] | None = None
        """Done when what is being written is; None when nothing is."""
        self._torn = False
        """What the file lacks since a write failed is written by the next `compact`."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / f"{uuid4().hex}.jsonl"
        self._file = self._new_file()
        self._adopt()

    @property
    def waiting(self) -> int:
        """How many entries the store has not acknowledged."""
        return len(self._waiting)

    def pending(self) -> list[Entry]:
        """Entries that the store has not acknowledged, oldest first."""
        return list(self._waiting.values())

    def send_again(self) -> None:
        """Those that were acknowledged and are still kept wait again, before the others."""
        for entry in self._done.values():
            entry.done_at = None
        self._waiting = {**self._done, **self._waiting}
        self._done = {}

    def add(self, script: str, tag: str, *arguments: str) -> Entry:
        """Begin to write an entry. Those that are added within `gather_s` share one fsync."""
        entry = self._enter(time.time(), script, tag, arguments)
        self._unwritten.append(entry.record())
        entry.written = self._begin_writing()
        return entry

    async def on_disk(self, entry: Entry) -> None:
        """Have an entry that was added here written now, and wait until it is on the disk."""
        if entry.written is not None and not entry.written.done():
            if entry.written is self._written:
                self._hurry()
            await asyncio.shield(entry.written)

    def acknowledge(self, entry: Entry) -> None:
        """The store has it. The note of that may be lost: then it is sent once more."""
        if self._waiting.pop(entry.number, None) is None:
            return  # sent twice at once, and acknowledged before
        entry.done_at = time.time()
        self._done[entry.number] = entry
        self._unwritten.append(entry.acknowledgement())

    def compact(self) -> None:
        """Drop what is acknowledged and kept long enough, note the acknowledgements, and write the file anew when it
        has doubled, or lacks something."""
        until = time.time() - self._keep_s
        for number, entry in list(self._done.items()):
            if entry.done_at is None or entry.done_at >= until:
                break  # they are in the order of their acknowledgement
            del self._done[number]
        most = max(self._compact_bytes, 2 * self._bytes_written_anew)
        if self._writing is None and (self._torn or os.fstat(self._file.fileno()).st_size > most):
            try:
                self._rewrite()
            except OSError as error:
                log.error("the outbox %s cannot be written anew: %s", self._path, error)
        if self._unwritten:
            self._begin_writing()

    async def close(self) -> None:
        """Remove the file when nothing is left in it; else it stays for the next process. May be called again."""
        if self._file.closed:
            return
        self.compact()
        while (last := self._written or self._writing) is not None:
            self._hurry()
            await asyncio.shield(last)
        if not self._waiting and not self._done:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _enter(self, written_at: float, script: str, tag: str, arguments: tuple[str, ...]) -> Entry:
        self._next += 1
        entry = Entry(self._next, written_at, script, tag, arguments)
        self._waiting[entry.number] = entry
        return entry

    def _begin_writing(self) -> asyncio.Future[None]:
        """Done when all that is unwritten now is on the disk."""
        if self._written is None:
            loop = asyncio.get_running_loop()
            self._written = loop.create_future()
            self._due = loop.call_later(self._gather_s, self._write)
        return self._written

    def _hurry(self) -> None:
        """Write what waits for others, as soon as what is being written is on the disk."""
        if self._due is not None:
            self._due.cancel()
            self._write()

    def _write(self) -> None:
        self._due = None
        if self._writing is not None:
            return  # what waits follows at once
        records, self._unwritten = self._unwritten, []
        self._writing, self._written = self._written, None
        loop = asyncio.get_running_loop()
        try:
            appending = loop.run_in_executor(None, self._append, records)
        except RuntimeError as error:  # there is no thread to be had
            appending = loop.create_future()
            appending.set_exception(error)
        appending.add_done_callback(self._has_written)

    def _has_written(self, appending: asyncio.Future[None]) -> None:
        written, self._writing = self._writing, None
        if (error := appending.exception()) is not None:
            # Whoever waits goes on all the same: it is sent, and only a crash before `compact` could lose it.
            log.error("the outbox %s cannot be written: %s", self._path, error)
            self._torn = True
        assert written is not None
        written.set_result(None)
        if self._written is not None and self._due is None:
            self._write()

    def _append(self, records: Iterable[_Record]) -> None:
        _write_all(self._file, ("\n" if self._torn else "") + _lines(records))
        self._sync(self._file.fileno())

    def _rewrite(self) -> None:
        """Replace the file by one with the entries that are left, in one step."""
        entries = [*self._done.values(), *self._waiting.values()]
        noted = (entry.acknowledgement() for entry in self._done.values())
        file = self._new_file(_lines((*(entry.record() for entry in entries), *noted)))
        self._bytes_written_anew = os.fstat(file.fileno()).st_size
        self._file.close()
        self._file, self._torn = file, False
        self._unwritten = []

    def _new_file(self, text: str = "") -> FileIO:
        """Put a file with `text` in our place. Nobody else finds it there before it is whole and locked."""
        scratch = self._path.with_suffix(".new")
        file = _open_locked(scratch)
        try:
            _write_all(file, text)
            os.fsync(file.fileno())
            scratch.replace(self._path)
        except OSError:
            scratch.unlink(missing_ok=True)
            file.close()
            raise
        return file

    def _adopt(self) -> None:
        """Take over the files of processes that are gone."""
        for path in sorted(self._folder.glob("*.jsonl")):
            if path == self._path:
                continue
            try:
                file = _open_locked(path)
            except BlockingIOError:
                continue  # its process lives
            with file:
                before = len(self._waiting)
                _write_all(self._file, _lines(map(self._take_over, self._worth_it(_entries_of(file)))))
                os.fsync(self._file.fileno())
                # Another process that starts now may have done the same: what is sent twice counts once.
                path.unlink(missing_ok=True)
            if taken := len(self._waiting) - before:
                log.warning("%d settles of a process that ended are sent again", taken)

    def _worth_it(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Those of another process's that are to be sent again."""
        for entry in entries:
            age_s = time.time() - entry.written_at
            if entry.done_at is not None and age_s > self._keep_s:
                continue
            if age_s > self._forget_s:
                log.error("a settle of request %s is too old to be sent: the books lack it", entry.arguments[1])
                continue
            yield entry

    def _take_over(self, entry: Entry) -> _Record:
        return self._enter(entry.written_at, entry.script, entry.tag, entry.arguments).record()


def _lines(records: Iterable[_Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write_all(file: FileIO, text: str) -> None:
    """Nothing stays in a buffer. Raises OSError, when part of it may be written."""
    left = memoryview(text.encode())
    while left:
        left = left[file.write(left) :]


def _open_locked(path: Path) -> FileIO:
    """Open for appending, with a lock that ends with the process. Raises BlockingIOError when another one has it."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def _entries_of(file: FileIO) -> list[Entry]:
    """Whole entries of a file; `done_at` is set, to no exact time, for those that were acknowledged."""
    entries: dict[int, Entry] = {}
    file.seek(0)
    for line in file.read().splitlines():
        try:
            number, *rest = json.loads(line)
            if rest:
                written_at, script, tag, *arguments = rest
                entries[number] = Entry(number, written_at, script, tag, tuple(arguments))
            elif number in entries:
                entries[number].done_at = entries[number].written_at
        except ValueError:
            continue  # the last line of a process that was killed while it wrote
    return list(entries.values())
