"""API keys: made, kept as keyed hashes in a file, and recognised.

A key's text is shown once, when it is made. The file holds HMAC-SHA256 of it under a pepper that lies elsewhere (the
environment, or a file only its owner can read), so the file alone opens nothing. A key is looked for by that hash and
compared in constant time, so the time an answer takes tells nothing of the keys there are.
"""

import base64
import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.core import Caller, Plan
from serving.errors import Unauthenticated

log = logging.getLogger(__name__)

KEY_PREFIX = "sk-story-"
DEMO_ACCOUNT = "demo"
_SHOWN_CHARACTERS = len(KEY_PREFIX) + 4
_RELOAD_S = 1.0


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as stored. `models` None allows every model; `created_at` is a Unix time in seconds."""

    id: str
    name: str
    account: str
    shown: str
    digest: str
    created_at: int
    models: tuple[str, ...] | None = None

    def caller(self) -> Caller:
        models = None if self.models is None else frozenset(self.models)
        return Caller(self.account, self.id, Plan(models=models))


def load_pepper(data_dir: Path, configured: str | None) -> bytes:
    """The configured pepper, else that of `data_dir/pepper`, which is made (mode 0600) when it is not there."""
    if configured:
        return configured.encode()
    path = data_dir / "pepper"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        _write_private(path, secrets.token_hex(32))
    return path.read_text().strip().encode()


def demo_key(pepper: bytes) -> str:
    """The demo account's key: derived from the pepper, so that it survives a restart and is stored nowhere."""
    digest = hmac.digest(pepper, b"the key of the demo account", "sha256")
    return KEY_PREFIX + base64.b32encode(digest[:20]).decode().lower()


class DamagedKeyFile(Exception):
    """The key file is there and cannot be read."""


class KeyFile:
    """The keys of `path` (JSON) and those added for this process. Changes of the file are seen within a second."""

    def __init__(self, path: Path, pepper: bytes, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._pepper = pepper
        self._clock = clock
        self._process_keys: dict[str, KeyRecord] = {}
        self._file_keys: dict[str, KeyRecord] = {}
        self._stamp: tuple[int, int] | None = None
        self._checked_at = float("-inf")

    def authenticate(self, authorization: str | None) -> Caller:
        """The caller behind an `Authorization: Bearer` header. Raises Unauthenticated."""
        if not authorization:
            raise Unauthenticated("No API key was sent. Send the header `Authorization: Bearer YOUR_KEY`.")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("The Authorization header must read `Bearer YOUR_KEY`.")
        self._refresh()
        digest = self._digest(key.strip())
        record = self._process_keys.get(digest) or self._file_keys.get(digest)
        if record is None or not hmac.compare_digest(record.digest, digest):
            raise Unauthenticated("This API key is not valid. Check that it was copied whole and was not revoked.")
        return record.caller()

    def add_process_key(self, key: str, account: str) -> None:
        """Accept `key` for as long as this process lives, without writing it anywhere."""
        record = self._record(key, name=account, account=account, models=None)
        self._process_keys[record.digest] = record

    def create(self, name: str, account: str, models: tuple[str, ...] | None = None) -> tuple[str, KeyRecord]:
        """Make a key and store its hash. Returns its text, which nothing can show again, and its record."""
        key = KEY_PREFIX + base64.b32encode(secrets.token_bytes(20)).decode().lower()
        record = self._record(key, name=name, account=account, models=models)
        with self._alone():
            self._write([*self.records(), record])
        return key, record

    def records(self) -> list[KeyRecord]:
        """The stored keys, oldest first."""
        self._refresh(now=True)
        return list(self._file_keys.values())

    def revoke(self, key_id: str) -> KeyRecord | None:
        """Remove the key with this id; None when there is none."""
        with self._alone():
            records = self.records()
            found = next((record for record in records if record.id == key_id), None)
            if found:
                self._write([record for record in records if record.id != key_id])
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the file between a read and the write that follows."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _record(self, key: str, *, name: str, account: str, models: tuple[str, ...] | None) -> KeyRecord:
        return KeyRecord(
            id=f"key_{secrets.token_hex(6)}",
            name=name,
            account=account,
            shown=key[:_SHOWN_CHARACTERS] + "...",
            digest=self._digest(key),
            created_at=int(time.time()),
            models=models,
        )

    def _digest(self, key: str) -> str:
        # Header bytes arrive as latin-1 text; surrogates cannot occur in it.
        return hmac.new(self._pepper, key.encode(), hashlib.sha256).hexdigest()

    def _refresh(self, *, now: bool = False) -> None:
        """Read the file again when it changed; looks at most once a second unless `now`."""
        if not now and self._clock() - self._checked_at < _RELOAD_S:
            return
        self._checked_at = self._clock()
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._file_keys, self._stamp = {}, None
            return
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            try:
                records = [_record_of(item) for item in json.loads(self._path.read_text())["keys"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                if now:
                    raise DamagedKeyFile(f"{self._path} cannot be read: {error}.") from error
                log.error("%s cannot be read: the keys read before stay in force", self._path)
            else:
                self._file_keys = {record.digest: record for record in records}
            self._stamp = stamp

    def _write(self, records: list[KeyRecord]) -> None:
        _write_private(self._path, json.dumps({"keys": [asdict(record) for record in records]}, indent=1) + "\n")


def _record_of(item: dict[str, Any]) -> KeyRecord:
    return KeyRecord(**{**item, "models": None if item["models"] is None else tuple(item["models"])})


def _write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, readable by its owner alone."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
