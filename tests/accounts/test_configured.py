"""The configured key, the derived one, and the pepper: the same over restarts, and written nowhere in clear."""

import asyncio
import stat
from pathlib import Path

import pytest

from serving.accounts import keys
from serving.accounts.keys import KEY_PREFIX, Keyring, demo_key, load_pepper
from serving.accounts.plans import PlanError
from serving.errors import Overloaded, Unauthenticated
from serving.ledger.base import account_tag
from tests.accounts.shelf import Clock, Radio, Shelf, opens, process, refusal


async def test_a_configured_key_opens_an_account_that_is_made(keyring: Keyring, shelf: Shelf) -> None:
    await keyring.adopt("sk-mine", "demo", "unlimited")
    assert (await opens(keyring, "sk-mine")).account == "demo"
    (key,) = await shelf.keys("demo")
    assert "sk-mine" not in repr(key)


async def test_it_is_one_key_over_restarts_and_processes(shelf: Shelf, clock: Clock, radio: Radio) -> None:
    await asyncio.gather(*(process(shelf, clock, radio).adopt("sk-mine", "demo", "free") for _ in range(5)))
    ring = process(shelf, clock, radio)
    await ring.adopt("sk-mine", "demo", "free")
    (key,) = await shelf.keys("demo")
    assert (await opens(ring, "sk-mine")).key_id == key.id


async def test_it_opens_nothing_where_it_is_not_configured(
    keyring: Keyring, shelf: Shelf, clock: Clock, radio: Radio
) -> None:
    text = f"{KEY_PREFIX}{account_tag('demo')}{'a' * 32}"
    await keyring.adopt(text, "demo", "free")
    await opens(keyring, text)
    assert isinstance(await refusal(process(shelf, clock, radio), text), Unauthenticated)


async def test_an_account_that_is_there_keeps_its_plan(
    keyring: Keyring, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    await keyring.adopt("sk-mine", "alice", "unlimited")
    assert (await opens(keyring, "sk-mine")).plan.id == "free"
    assert "alice has the plan free, not unlimited" in caplog.text


async def test_a_configured_key_that_was_revoked_stays_so(
    keyring: Keyring, shelf: Shelf, clock: Clock, radio: Radio, caplog: pytest.LogCaptureFixture
) -> None:
    await keyring.adopt("sk-mine", "demo", "free")
    (key,) = await shelf.keys("demo")
    await keyring.revoke("demo", key.id)
    ring = process(shelf, clock, radio)
    await ring.adopt("sk-mine", "demo", "free")
    await refusal(ring, "sk-mine")
    assert "was revoked" in caplog.text
    assert "sk-mine" not in caplog.text


async def test_with_books_away_it_is_adopted_when_it_is_used(keyring: Keyring, shelf: Shelf) -> None:
    shelf.away = True
    with pytest.raises(Overloaded):
        await keyring.adopt("sk-mine", "demo", "free")
    shelf.away = False
    assert (await opens(keyring, "sk-mine")).account == "demo"


async def test_a_plan_that_is_none_is_not_adopted(keyring: Keyring, shelf: Shelf) -> None:
    with pytest.raises(PlanError, match="no plan 'gold'"):
        await keyring.adopt("sk-mine", "demo", "gold")
    assert "demo" not in await shelf.accounts()


# ---- secrets ---------------------------------------------------------------------------------------------------------


def test_the_demo_key_survives_a_restart_and_is_stored_nowhere(tmp_path: Path) -> None:
    first = demo_key(load_pepper(tmp_path, None))
    assert demo_key(load_pepper(tmp_path, None)) == first
    assert first not in (tmp_path / "pepper").read_text()
    assert demo_key(load_pepper(tmp_path, "configured")) != first
    assert demo_key(b"another pepper") != first


def test_the_pepper_is_its_owners_alone(tmp_path: Path) -> None:
    pepper = load_pepper(tmp_path / "data", None)
    assert len(pepper) == 64
    (path,) = (tmp_path / "data").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_pepper_that_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text("theirs")
    keys._make_private(tmp_path / "pepper", "ours")
    assert load_pepper(tmp_path, None) == b"theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["pepper"]


def test_a_configured_pepper_is_not_written(tmp_path: Path) -> None:
    assert load_pepper(tmp_path / "none", "secret") == b"secret"
    assert not (tmp_path / "none").exists()
