"""API keys: kept as hashes in a private file, recognised, restricted, revoked."""

import json
import stat
from pathlib import Path

import pytest

from serving.accounts.keys import KEY_PREFIX, KeyFile, demo_key, load_pepper
from serving.errors import Unauthenticated


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


@pytest.fixture
def keys(path: Path, clock: Clock) -> KeyFile:
    return KeyFile(path, b"pepper", clock=clock)


def knows(keys: KeyFile, key: str) -> bool:
    try:
        keys.authenticate(f"Bearer {key}")
    except Unauthenticated:
        return False
    return True


def test_a_key_opens_its_account(keys: KeyFile, clock: Clock) -> None:
    key, record = keys.create("laptop", "alice")
    clock.now += 1.0
    caller = keys.authenticate(f"Bearer {key}")
    assert (caller.account, caller.key_id) == ("alice", record.id)
    assert caller.may_use("any model")
    assert key.startswith(KEY_PREFIX)


def test_the_file_holds_no_key(keys: KeyFile, path: Path) -> None:
    key, record = keys.create("laptop", "alice")
    text = path.read_text()
    assert key not in text
    assert key.removeprefix(KEY_PREFIX) not in text
    assert key[len(KEY_PREFIX) + 4 :] not in text
    assert record.digest in text
    assert key not in repr(record)


def test_the_file_is_its_owners_alone(keys: KeyFile, path: Path, tmp_path: Path) -> None:
    keys.create("laptop", "alice")
    load_pepper(tmp_path, None)
    for private in (path, tmp_path / "pepper"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.json"]


def test_the_file_alone_opens_nothing(keys: KeyFile, path: Path) -> None:
    key, record = keys.create("laptop", "alice")
    other = KeyFile(path, b"another pepper")
    assert not knows(other, key)
    assert not knows(keys, record.digest)
    assert not knows(other, record.digest)


def test_a_new_key_is_seen_by_a_running_server_within_a_second(keys: KeyFile, path: Path, clock: Clock) -> None:
    server = KeyFile(path, b"pepper", clock=clock)
    assert not knows(server, "x")
    key, _ = keys.create("laptop", "alice")
    clock.now += 0.99
    assert not knows(server, key)
    clock.now += 0.01
    assert knows(server, key)


def test_a_revoked_key_is_refused_within_a_second(keys: KeyFile, path: Path, clock: Clock) -> None:
    key, record = keys.create("laptop", "alice")
    other, _ = keys.create("phone", "alice")
    server = KeyFile(path, b"pepper", clock=clock)
    assert knows(server, key)
    assert keys.revoke(record.id) == record
    clock.now += 1.0
    assert not knows(server, key)
    assert knows(server, other)
    assert keys.revoke(record.id) is None


def test_a_file_that_goes_away_takes_its_keys_along(keys: KeyFile, path: Path, clock: Clock) -> None:
    key, _ = keys.create("laptop", "alice")
    assert keys.records()
    path.unlink()
    clock.now += 1.0
    assert not knows(keys, key)
    assert keys.records() == []


def test_restricted_models(keys: KeyFile, path: Path) -> None:
    key, record = keys.create("laptop", "alice", ("opus-v1-sm",))
    assert KeyFile(path, b"pepper").records() == [record]
    caller = KeyFile(path, b"pepper").authenticate(f"Bearer {key}")
    assert caller.may_use("opus-v1-sm")
    assert not caller.may_use("opus-v1-xl")


def test_keys_are_listed_oldest_first(keys: KeyFile) -> None:
    made = [keys.create(name, "alice")[1] for name in ("a", "b", "c")]
    assert keys.records() == made
    assert len({record.id for record in made} | {record.digest for record in made}) == 6


def test_a_process_key_is_written_nowhere(keys: KeyFile, path: Path) -> None:
    keys.add_process_key("sk-mine", "demo")
    assert keys.authenticate("Bearer sk-mine").account == "demo"
    assert keys.records() == []
    assert not path.exists()


def test_the_demo_key_survives_a_restart_and_is_stored_nowhere(tmp_path: Path) -> None:
    first = demo_key(load_pepper(tmp_path, None))
    assert demo_key(load_pepper(tmp_path, None)) == first
    assert first not in (tmp_path / "pepper").read_text()
    assert demo_key(load_pepper(tmp_path, "configured")) != first
    assert demo_key(b"another pepper") != first


def test_a_configured_pepper_is_not_written(tmp_path: Path) -> None:
    assert load_pepper(tmp_path / "none", "secret") == b"secret"
    assert not (tmp_path / "none").exists()


def test_what_is_stored_can_be_read_by_a_person(keys: KeyFile, path: Path) -> None:
    key, _ = keys.create("laptop", "alice")
    (stored,) = json.loads(path.read_text())["keys"]
    assert (stored["name"], stored["account"]) == ("laptop", "alice")
    assert stored["shown"] == key[: len(KEY_PREFIX) + 4] + "..."


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic x", "x", "Bearer é\xff"])
def test_headers_that_are_no_key(keys: KeyFile, header: str | None) -> None:
    with pytest.raises(Unauthenticated) as error:
        keys.authenticate(header)
    assert "é" not in error.value.message
