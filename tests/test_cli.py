"""The command line: keys are made, listed and revoked, settings shown without secrets, mistakes told in a sentence."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import __version__
from serving.accounts.keys import KeyFile, load_pepper
from serving.cli import main

HEAVY = ("vllm", "torch", "fastapi", "transformers", "numpy", "starlette", "uvicorn", "tokenizers", "msgspec")
Run = Callable[..., str]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SERVING_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("SERVING_KEY_PEPPER", raising=False)
    return tmp_path


@pytest.fixture
def run(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must succeed; gives what it printed."""

    def command(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return command


def known(data_dir: Path) -> KeyFile:
    return KeyFile(data_dir / "keys.json", load_pepper(data_dir, None))


def test_a_key_is_made_listed_and_revoked(run: Run, data_dir: Path) -> None:
    told = run("keys", "create", "my laptop", "--account", "alice")
    key, *rest = told.split()
    assert known(data_dir).authenticate(f"Bearer {key}").account == "alice"
    assert "Keep the key now" in " ".join(rest)
    (record,) = known(data_dir).records()
    header, row = run("keys", "list").splitlines()
    assert header.split() == ["ID", "KEY", "ACCOUNT", "MODELS", "NAME"]
    assert row.split() == [record.id, record.shown, "alice", "all", "my", "laptop"]
    assert key not in row
    assert record.id in run("keys", "revoke", record.id)
    assert run("keys", "list").splitlines() == ["ID  KEY  ACCOUNT  MODELS  NAME"]


def test_the_same_for_scripts(run: Run, data_dir: Path) -> None:
    made = json.loads(run("keys", "create", "ci", "--models", "opus-v1-sm", "--json"))
    assert not known(data_dir).authenticate(f"Bearer {made['key']}").may_use("other")
    (listed,) = json.loads(run("keys", "list", "--json"))
    assert (listed["id"], listed["account"], listed["models"]) == (made["id"], "default", ["opus-v1-sm"])
    assert listed["digest"] is None
    assert json.loads(run("keys", "revoke", made["id"], "--json")) == {"revoked": made["id"]}
    assert json.loads(run("keys", "list", "--json")) == []


def test_settings_are_shown_without_secrets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_API_KEY", "very-secret")
    monkeypatch.setenv("SERVING_KEY_PEPPER", "hot-secret")
    text = run("settings")
    values: dict[str, Any] = json.loads(run("settings", "--json"))
    assert "secret" not in text + json.dumps(values)
    assert (values["api_key"], values["key_pepper"], values["port"]) == ("(set)", "(set)", 8000)
    assert all(name in text for name in values)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "revoke", "key_nope"), "key_nope"),
        (("keys", "create", "x", "--models", "opus-v9"), "opus-v9"),
        (("settings", "--config", "/nowhere.toml"), "/nowhere.toml"),
        (("serve", "--port", "70000"), "port"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    data_dir: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("serving: ")
    assert said in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("keys",), ("nope",), ("serve", "--port", "x")])
def test_a_command_that_is_none_shows_the_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: serving" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["keys", "--help"], ["settings"], ["keys", "list"], ["--version"]])
def test_nothing_heavy_is_imported_before_it_is_needed(data_dir: Path, arguments: list[str]) -> None:
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))\n"
        "from serving.cli import main\n"
        f"main({arguments!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout
    assert done.stderr.splitlines() == ["[]"]


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == __version__
