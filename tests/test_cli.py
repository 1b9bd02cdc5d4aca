"""The command line: tables for people, JSON for scripts, settings without secrets, mistakes told in a sentence."""

import asyncio
import csv
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serving import __version__
from serving.accounts.keys import Keyring, load_pepper
from serving.accounts.plans import load_plans
from serving.cli import main
from serving.core import Caller, Price, Usage
from serving.ledger.base import Books, Posting, Publish
from serving.ledger.memory import MemoryLedger

HEAVY = ("vllm", "torch", "fastapi", "transformers", "numpy", "starlette", "uvicorn", "tokenizers", "msgspec", "redis")
NO_KEY = "key_00_0123456789"


class Forgetful(MemoryLedger):
    """Books that can lose their postings."""

    lost = False

    async def postings(self, account: str) -> AsyncIterator[Posting]:
        if not self.lost:
            async for posting in super().postings(account):
                yield posting


class Office:
    """The books that commands open, whatever the settings say, and what servers were told of changes."""

    def __init__(self, data_dir: Path) -> None:
        self.books = Forgetful()
        self.pepper = load_pepper(data_dir, None)
        self.said: list[str] = []

    @asynccontextmanager
    async def open(self, url: str | None, data_dir: Path) -> AsyncIterator[tuple[Books, Publish]]:
        async def publish(message: str) -> None:
            self.said.append(message)

        yield self.books, publish

    def caller(self, text: str) -> Caller:
        """Who is behind a key, for a server on these books."""
        keyring = Keyring(self.books, load_plans(), self.pepper)
        return asyncio.run(keyring.authenticate(f"Bearer {text}"))

    def use(self, caller: Caller, usage: Usage) -> None:
        """Charge a request, at 0.001 credits a token."""

        async def request() -> None:
            hold = await self.books.hold(caller, "request", "opus-v1-sm", Price(1_000_000, 0, 1_000_000), usage)
            await self.books.settle(hold, usage, "finish")

        asyncio.run(request())


class Run:
    """Runs commands that must succeed; gives what they print."""

    def __init__(self, office: Office, capsys: pytest.CaptureFixture[str]) -> None:
        self.office = office
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        assert main(arguments, open_books=self.office.open) == 0
        told = self._capsys.readouterr()
        assert told.err == ""
        return told.out

    def json(self, *arguments: str) -> Any:  # noqa: ANN401  # what JSON can hold
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SERVING_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("SERVING_KEY_PEPPER", raising=False)
    return tmp_path


@pytest.fixture
def office(data_dir: Path) -> Office:
    return Office(data_dir)


@pytest.fixture
def run(office: Office, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(office, capsys)


# ---- accounts and plans ----------------------------------------------------------------------------------------------


def test_accounts_are_made_listed_and_changed(run: Run, office: Office) -> None:
    assert "alice" in run("accounts", "create", "alice", "--plan", "free")
    run("accounts", "create", "bob", "--plan", "unlimited")
    header, alice, bob = run("accounts", "list").splitlines()
    assert header.split() == ["ACCOUNT", "PLAN", "STATE", "FREE", "USED", "RUNNING"]
    assert alice.split() == ["alice", "free", "active", "20", "0", "0"]
    assert bob.split() == ["bob", "unlimited", "active", "unlimited", "0", "0"]
    assert "Suspended alice" in run("accounts", "suspend", "alice")
    assert "suspended" in run("accounts", "show", "alice")
    run("accounts", "resume", "alice")
    assert "paid" in run("accounts", "plan", "alice", "paid")
    assert office.said == ["account:alice"] * 3


def test_an_account_is_shown_with_its_grants(run: Run) -> None:
    run("accounts", "create", "alice", "--plan", "free")
    run("credits", "grant", "alice", "2.5", "--id", "invoice-7", "--expires", "2999-12-31")
    about, credit, _, header, *grants = run("accounts", "show", "alice").splitlines()
    assert about.startswith("alice: plan free, active, since 20")
    assert credit == "Credits: 22.5 free, 0 held, 0 used ever. Running requests: 0."
    assert header.split() == ["GRANT", "KIND", "AMOUNT", "FREE", "HELD", "EXPIRES"]
    rows = {row.split()[0]: row.split()[1:] for row in grants}
    assert rows.pop("invoice-7") == ["purchase", "2.5", "2.5", "0", "3000-01-01", "00:00"]
    ((month, rest),) = rows.items()
    assert month.startswith("plan:")
    assert rest[:4] == ["plan", "20", "20", "0"]


def test_accounts_for_scripts(run: Run) -> None:
    made = run.json("accounts", "create", "alice", "--plan", "free")
    assert (made["id"], made["plan"], made["free"]) == ("alice", "free", 20_000_000)
    assert run.json("accounts", "show", "alice") == made
    assert run.json("accounts", "list") == [made]
    assert run.json("accounts", "suspend", "alice")["state"] == "suspended"
    assert run.json("accounts", "resume", "alice")["state"] == "active"
    assert run.json("accounts", "plan", "alice", "unlimited")["plan"] == "unlimited"


def test_plans_are_those_of_the_settings(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, free, paid, unlimited = run("plans", "list").splitlines()
    assert [row.split()[:2] for row in (free, paid, unlimited)] == [
        ["free", "20"],
        ["paid", "1000"],
        ["unlimited", "unlimited"],
    ]
    path = tmp_path / "plans.toml"
    path.write_text("[club]\nmonthly_credits = '0.5'\nmodels = ['m']\nmax_concurrent = 3\napi = false\n")
    monkeypatch.setenv("SERVING_PLANS", str(path))
    row = dict(zip(header.split(), run("plans", "list").splitlines()[1].split(), strict=True))
    assert (row["PLAN"], row["CREDITS/MONTH"], row["CONCURRENT"], row["CONTEXT"]) == ("club", "0.5", "3", "-")
    assert (row["API"], row["MODELS"]) == ("no", "m")
    (club,) = run.json("plans", "list")
    assert (club["monthly_credits"], club["models"], club["max_concurrent"]) == (500_000, ["m"], 3)
    run("accounts", "create", "alice", "--plan", "club")


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_listed_and_revoked(run: Run, office: Office) -> None:
    run("accounts", "create", "alice", "--plan", "free")
    told = run("keys", "create", "my laptop", "--account", "alice", "--cap", "1.5")
    key, *rest = told.split()
    caller = office.caller(key)
    assert caller.account == "alice"
    assert "Keep the key now" in " ".join(rest)
    header, row = run("keys", "list").splitlines()
    assert header.split() == ["ID", "KEY", "ACCOUNT", "STATE", "USED", "CAP", "LAST-USED", "MODELS", "NAME"]
    shown = key[: len("sk-story-") + 6] + "..."
    assert row.split() == [caller.key_id, shown, "alice", "active", "0", "1.5", "-", "all", "my", "laptop"]
    assert caller.key_id in run("keys", "revoke", caller.key_id)
    assert office.said == [f"key:{caller.key_id}"]
    assert run("keys", "list", "--account", "alice").splitlines()[1].split()[3] == "revoked"


def test_keys_for_scripts(run: Run, office: Office) -> None:
    run("accounts", "create", "alice", "--plan", "free")
    made = run.json("keys", "create", "ci", "--account", "alice", "--models", "opus-v1-sm", "--expires", "30")
    assert not office.caller(made["key"]).may_use("other")
    text = made.pop("key")
    (listed,) = run.json("keys", "list")
    assert {**listed, "created_ms": 0} == {**made, "created_ms": 0}
    assert (listed["account"], listed["models"], listed["cap"]) == ("alice", ["opus-v1-sm"], None)
    last_day = datetime.fromtimestamp(listed["expires_ms"] / 1000 - 1, UTC).date()
    assert timedelta(days=29) <= last_day - datetime.now(UTC).date() <= timedelta(days=30)
    assert "digest" not in listed
    assert text not in json.dumps(listed)
    assert run.json("keys", "revoke", made["id"]) == {"revoked": made["id"]}


def test_without_an_account_the_demo_account_pays(run: Run, office: Office) -> None:
    for _ in range(2):
        caller = office.caller(run.json("keys", "create", "mine")["key"])
        assert (caller.account, caller.plan.id) == ("demo", "unlimited")


def test_without_a_demo_account_one_is_asked_for(
    office: Office, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_DEMO_ACCOUNT", "false")
    assert main(("keys", "create", "mine"), open_books=office.open) == 2
    assert "--account" in capsys.readouterr().err


# ---- credits and usage -----------------------------------------------------------------------------------------------


def test_credit_is_given_and_taken(run: Run) -> None:
    run("accounts", "create", "alice", "--plan", "free")
    for _ in range(2):
        assert "Granted 2.5 credits to alice: invoice-7." in run(
            "credits", "grant", "alice", "2.5", "--id", "invoice-7"
        )
    assert run.json("credits", "grant", "alice", "1", "--gift")["kind"] == "gift"
    assert run.json("accounts", "show", "alice")["free"] == 23_500_000
    assert "Took back 2.5 credits of invoice-7." in run("credits", "void", "alice", "invoice-7")
    assert run.json("credits", "void", "alice", "invoice-7") == {"grant": "invoice-7", "taken": 2_500_000}
    assert "by -0.000001: slip" in run("credits", "adjust", "alice", "-0.000001", "--id", "slip")
    assert run.json("credits", "adjust", "alice", "1", "--id", "slip-2") == {"id": "slip-2", "amount": 1_000_000}
    assert run.json("accounts", "show", "alice")["free"] == 21_999_999


def test_usage_is_shown_by_day(run: Run, office: Office) -> None:
    run("accounts", "create", "alice", "--plan", "free")
    key = run.json("keys", "create", "ci", "--account", "alice")
    office.use(office.caller(key["key"]), Usage(300, 100, 250))
    header, row, total = run("usage", "show", "alice").splitlines()
    assert header.split() == ["DAY", "KEY", "MODEL", "REQUESTS", "PROMPT", "CACHED", "COMPLETION", "CREDITS"]
    day, *rest = row.split()
    assert rest == [key["id"], "opus-v1-sm", "1", "300", "100", "250", "0.45"]
    assert total.split() == ["total", "1", "300", "100", "250", "0.45"]
    (line,) = run.json("usage", "show", "alice", "--from", day, "--until", day)
    assert (line["day"], line["cost"], line["usage"]["completion_tokens"]) == (day, 450_000, 250)
    assert run.json("usage", "show", "alice", "--from", "2020-01-01", "--until", "2020-01-31") == []
    assert run("keys", "list").splitlines()[1].split()[4] == "0.45"


def test_books_are_checked(run: Run, office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    run("accounts", "create", "alice", "--plan", "free")
    office.use(office.caller(run.json("keys", "create", "ci", "--account", "alice")["key"]), Usage(300, 100, 250))
    assert run("usage", "show", "alice", "--check") == "The books of alice add up.\n"
    assert run.json("usage", "show", "alice", "--check") == {
        **dict.fromkeys(("credit", "used", "days", "held", "duplicates"), 0),
        "account": "alice",
        "adds_up": True,
    }
    office.books.lost = True
    assert main(("usage", "show", "alice", "--check"), open_books=office.open) == 1
    assert "off by: credit -19.55, used -0.45, days -0.45, held 0, duplicates 0." in capsys.readouterr().out


def test_postings_are_exported(run: Run, office: Office) -> None:
    run("accounts", "create", "alice", "--plan", "free")
    office.use(office.caller(run.json("keys", "create", "ci", "--account", "alice")["key"]), Usage(300, 100, 250))
    rows = list(csv.DictReader(io.StringIO(run("usage", "export", "alice"))))
    assert [row["kind"] for row in rows] == ["grant", "charge"]
    assert (rows[1]["cost_microcredits"], rows[1]["request_id"]) == ("450000", "request")
    objects = [json.loads(line) for line in run("usage", "export", "alice", "--format", "jsonl").splitlines()]
    assert [{name: str(value) for name, value in line.items()} for line in objects] == rows


def test_commands_find_again_what_earlier_ones_left(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a Redis of our own, which each of them starts when no server runs."""
    told = []
    for line in ("accounts create alice --plan free", "keys create laptop --account alice", "keys list"):
        assert main((*line.split(), "--json")) == 0
        told.append(json.loads(capsys.readouterr().out))
    _, made, (listed,) = told
    assert (listed["id"], listed["account"], listed["name"]) == (made["id"], "alice", "laptop")


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_settings_are_shown_without_secrets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("api_key", "key_pepper", "redis_url", "admin_key"):
        monkeypatch.setenv(f"SERVING_{name.upper()}", "very-secret")
    text = run("settings")
    values: dict[str, Any] = json.loads(run("settings", "--json"))
    assert "secret" not in text + json.dumps(values)
    assert (values["api_key"], values["key_pepper"], values["port"]) == ("(set)", "(set)", 8000)
    assert all(name in text for name in values)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "revoke", NO_KEY), NO_KEY),
        (("keys", "create", "x", "--models", "opus-v9"), "opus-v9"),
        (("keys", "create", "x", "--models", ","), "--models"),
        (("keys", "create", "x", "--account", "nobody"), "nobody"),
        (("keys", "create", "x\n"), "name"),
        (("accounts", "create", "alice", "--plan", "gold"), "gold"),
        (("accounts", "create", "a b", "--plan", "free"), "letters, digits"),
        (("accounts", "suspend", "nobody"), "nobody"),
        (("credits", "grant", "nobody", "1"), "nobody"),
        (("credits", "grant", "nobody", "0"), "amount"),
        (("usage", "show", "nobody"), "nobody"),
        (("usage", "export", "nobody"), "nobody"),
        (("settings", "--config", "/nowhere.toml"), "/nowhere.toml"),
        (("serve", "--port", "70000"), "port"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    office: Office, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main(arguments, open_books=office.open) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("serving: ")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.err.endswith(".\n")


def test_wrong_plans_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plans.toml"
    path.write_text("[club]\n")
    monkeypatch.setenv("SERVING_PLANS", str(path))
    assert main(("plans", "list")) == 2
    assert f"serving: {path}: club lacks monthly_credits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("credits", "grant", "alice", "1,5"), "no amount of credits"),
        (("keys", "create", "x", "--cap", "lots"), "no amount of credits"),
        (("keys", "create", "x", "--expires", "soon"), "neither a date"),
        (("usage", "show", "alice", "--from", "yesterday"), "yesterday"),
        (("accounts", "create", "alice"), "--plan"),
    ],
)
def test_a_value_that_is_none_is_told_beside_the_usage(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("keys",), ("nope",), ("serve", "--port", "x")])
def test_a_command_that_is_none_shows_the_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: serving" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["keys", "create", "--help"], ["settings"], ["plans", "list"], ["--version"]]
)
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


def test_a_reader_that_has_enough_is_no_failure(data_dir: Path) -> None:
    script = f"{sys.executable} -m serving settings --json | true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == __version__
