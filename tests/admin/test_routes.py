"""Each route of the admin API does what its command does, and tells amounts in credits and in microcredits."""

import argparse
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from serving.admin.routes import ROUTES
from serving.cli import _parser
from serving.core import Usage
from serving.errors import Forbidden, Unauthenticated
from tests.admin.office import CREDIT, MODELS, Office
from tests.service import bearer

DAY_MS = 86_400_000


# ---- all of them -----------------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser) -> set[str]:
    """The names of the command line's commands, with those of their groups."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        return {""}
    return {
        f"{name} {rest}".strip() for group in groups for name in group.choices for rest in commands(group.choices[name])
    }


def test_every_command_on_the_books_has_a_route() -> None:
    assert commands(_parser()) - {"serve", "settings"} <= {route.name for route in ROUTES}


def test_no_two_routes_are_the_same() -> None:
    assert len({route.name for route in ROUTES}) == len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


# ---- accounts --------------------------------------------------------------------------------------------------------


async def test_an_account_is_made_and_shown(office: Office) -> None:
    made = await office.post("/accounts", 201, account="bob@example.org", plan="unlimited")
    assert (made["account"], made["plan"], made["state"], made["metered"]) == (
        "bob@example.org",
        "unlimited",
        "active",
        False,
    )
    assert (made["free"], made["free_microcredits"], made["grants"]) == ("0", 0, [])
    assert await office.get("/accounts/bob@example.org") == made
    alice = await office.get("/accounts/alice")
    assert (alice["metered"], alice["free"], alice["free_microcredits"]) == (True, "1", CREDIT)
    (grant,) = alice["grants"]
    assert (grant["kind"], grant["amount"], grant["used_microcredits"]) == ("plan", "1", 0)
    error = await office.refused(409, "POST", "/accounts", json={"account": "alice", "plan": "metered"})
    assert (error["code"], error["param"]) == ("conflict", "account")


async def test_accounts_are_listed_in_pages(office: Office) -> None:
    names = ["alice", *(f"b{number}" for number in range(6))]
    for name in names[1:]:
        await office.post("/accounts", 201, account=name, plan="unlimited")
    whole = await office.get("/accounts")
    assert [account["account"] for account in whole["accounts"]] == names
    assert whole["next"] is None
    assert whole["accounts"][0] == await office.get("/accounts/alice")
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await office.get("/accounts", limit="3", after=after)
        found += [account["account"] for account in page["accounts"]]
        assert len(page["accounts"]) <= 3
        after = page["next"]
    assert found == names
    assert (await office.get("/accounts", limit="7"))["next"] is None


async def test_an_account_is_suspended_and_resumed(office: Office) -> None:
    key = (await office.post("/keys", 201, account="alice", name="ci"))["key"]
    for _ in range(2):
        assert (await office.post("/accounts/alice/suspend"))["state"] == "suspended"
    with pytest.raises(Forbidden):
        await office.keyring.authenticate(bearer(key)["authorization"])
    assert (await office.post("/accounts/alice/resume"))["state"] == "active"
    await office.keyring.authenticate(bearer(key)["authorization"])
    assert office.said == ["account:alice"] * 3


async def test_a_plan_is_changed(office: Office) -> None:
    changed = await office.ask("PUT", "/accounts/alice/plan", json={"plan": "unlimited"})
    assert (changed["plan"], changed["metered"], changed["free"]) == ("unlimited", False, "1")
    assert office.said == ["account:alice"]
    error = await office.refused(400, "PUT", "/accounts/alice/plan", json={"plan": "golden"})
    assert error["param"] == "plan"
    assert "metered" in error["message"]
    assert office.said == ["account:alice"]


async def test_an_account_of_a_plan_that_is_gone_is_told_all_the_same(office: Office) -> None:
    await office.ledger.open_account("olaf", "of old")
    told = await office.get("/accounts/olaf")
    assert (told["plan"], told["metered"]) == ("of old", True)


# ---- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_is_made_listed_and_revoked(office: Office) -> None:
    last = datetime.now(UTC).date() + timedelta(days=3)
    body = {"account": "alice", "name": "my läptop", "models": [MODELS[1]], "cap": "1.5", "expires": last.isoformat()}
    made = await office.post("/keys", 201, **body)
    caller = await office.keyring.authenticate(bearer(made["key"])["authorization"])
    assert (caller.account, caller.key_id, caller.may_use(MODELS[0])) == ("alice", made["id"], False)
    text = made.pop("key")
    (listed,) = (await office.get("/keys"))["keys"]
    assert {**listed, "created_ms": 0} == {**made, "created_ms": 0}
    assert (listed["name"], listed["models"], listed["state"]) == ("my läptop", [MODELS[1]], "active")
    assert (listed["cap"], listed["cap_microcredits"], listed["used"]) == ("1.5", 1_500_000, "0")
    assert listed["expires_ms"] == (datetime.combine(last, datetime.min.time(), UTC).timestamp() + 86_400) * 1000
    assert text.startswith(listed["shown"].removesuffix("..."))
    for _ in range(2):
        revoked = await office.post(f"/keys/{made['id']}/revoke")
        assert (revoked["id"], revoked["state"]) == (made["id"], "revoked")
        assert revoked["revoked_ms"] > 0
    assert office.said == [f"key:{made['id']}"] * 2
    with pytest.raises(Unauthenticated):
        await office.keyring.authenticate(bearer(text)["authorization"])
    assert (await office.get("/keys", account="alice"))["keys"][0]["state"] == "revoked"


async def test_a_key_is_without_limits_by_default_and_null_is_none(office: Office) -> None:
    for limits in ({}, {"models": None, "cap": None, "expires": None}):
        made = await office.post("/keys", 201, account="alice", name="ci", **limits)
        assert (made["models"], made["cap"], made["cap_microcredits"], made["expires_ms"]) == (None, None, None, 0)


async def test_an_expired_key_is_told_as_such(office: Office) -> None:
    await office.keyring.create("old", "alice", expires_ms=1)
    (key,) = (await office.get("/keys"))["keys"]
    assert (key["state"], key["expires_ms"]) == ("expired", 1)


async def test_keys_are_listed_in_pages(office: Office) -> None:
    await office.post("/accounts", 201, account="bob", plan="unlimited")
    made = [await office.post("/keys", 201, account=("alice", "bob")[n % 2], name=f"{n}") for n in range(5)]
    whole = await office.get("/keys")
    assert {key["id"] for key in whole["keys"]} == {key["id"] for key in made}
    assert {key["name"] for key in (await office.get("/keys", account="bob"))["keys"]} == {"1", "3"}
    first = await office.get("/keys", limit="2")
    second = await office.get("/keys", limit="3", after=first["next"])
    assert first["keys"] + second["keys"] == whole["keys"]
    assert second["next"] is whole["next"] is None


async def test_neither_a_key_nor_its_hash_is_ever_told_again(office: Office) -> None:
    made = await office.post("/keys", 201, account="alice", name="ci")
    await office.use(made["key"], Usage(10, 0, 5))
    (record,) = await office.ledger.keys("alice")
    told = [json.dumps({name: value for name, value in made.items() if name != "key"})]
    for route in ROUTES:
        if route.method == "GET":
            path = route.path.format(account="alice")
            told.append((await office.client.get(path)).text)
    told.append((await office.client.post(f"/keys/{made['id']}/revoke")).text)
    assert len(told) == 9
    assert sum(made["id"] in text for text in told) >= 5
    for text in told:
        assert made["key"] not in text
        assert made["key"].removeprefix("sk-story-")[8:] not in text
        assert record.digest not in text
        assert "digest" not in text


# ---- plans and credits -----------------------------------------------------------------------------------------------


async def test_plans_are_those_of_the_server(office: Office) -> None:
    plans = {plan["id"]: plan for plan in (await office.get("/plans"))["plans"]}
    assert list(plans) == list(office.plans)
    assert (plans["poor"]["monthly_credits"], plans["poor"]["monthly_microcredits"]) == ("0.00003", 30)
    assert (plans["dear"]["metered"], plans["dear"]["monthly_credits"], plans["dear"]["price_percent"]) == (
        False,
        None,
        250,
    )
    assert plans["slow"]["tokens_per_minute"] == 100
    assert plans["closed"]["api"] is False


async def test_credit_is_given_once_for_an_id(office: Office) -> None:
    body: dict[str, Any] = {"id": "invoice-7", "amount": "12.5", "expires": "2999-12-31"}
    first, again = [await office.post("/accounts/alice/grants", **body) for _ in range(2)]
    assert first == again
    assert (first["id"], first["kind"], first["amount"], first["amount_microcredits"]) == (
        "invoice-7",
        "purchase",
        "12.5",
        12_500_000,
    )
    assert first["expires_ms"] % DAY_MS == 0
    assert (await office.get("/accounts/alice"))["free"] == "13.5"
    for other in ({"amount": "12.6"}, {"kind": "gift"}, {"expires": None}):
        error = await office.refused(409, "POST", "/accounts/alice/grants", json=body | other)
        assert error["code"] == "conflict"
    gift = await office.post("/accounts/alice/grants", id="thanks", amount="0.000001", kind="gift")
    assert (gift["kind"], gift["free_microcredits"], gift["expires_ms"]) == ("gift", 1, 0)
    assert (await office.get("/accounts/alice"))["free_microcredits"] == 13_500_001


async def test_a_grant_is_taken_back(office: Office) -> None:
    await office.post("/accounts/alice/grants", id="invoice:7", amount="2.5")
    for _ in range(2):
        told = await office.post("/accounts/alice/grants/invoice:7/void")
        assert told == {"grant": "invoice:7", "taken": "2.5", "taken_microcredits": 2_500_000}
    assert (await office.get("/accounts/alice"))["free"] == "1"
    assert (await office.refused(404, "POST", "/accounts/alice/grants/none/void"))["code"] == "not_found"


async def test_credit_is_corrected_once_for_an_id(office: Office) -> None:
    for _ in range(2):
        told = await office.post("/accounts/alice/adjustments", id="slip", amount="-0.25")
        assert told == {"id": "slip", "amount": "-0.25", "amount_microcredits": -250_000}
    assert (await office.get("/accounts/alice"))["free"] == "0.75"
    await office.refused(409, "POST", "/accounts/alice/adjustments", json={"id": "slip", "amount": "-0.3"})
    for _ in range(2):
        await office.post("/accounts/alice/adjustments", id="sorry", amount="1")
    assert (await office.get("/accounts/alice"))["free"] == "1.75"
    error = await office.refused(402, "POST", "/accounts/alice/adjustments", json={"id": "big", "amount": "-2"})
    assert error["code"] == "insufficient_credit"
    assert (await office.get("/accounts/alice"))["free"] == "1.75"


# ---- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_is_told_by_day(office: Office) -> None:
    made = await office.post("/keys", 201, account="alice", name="ci")
    await office.use(made["key"], Usage(300, 100, 250))
    told = await office.get("/accounts/alice/usage")
    today = datetime.now(UTC).date()
    used: dict[str, object] = {"requests": 1, "prompt_tokens": 300, "cached_tokens": 100, "completion_tokens": 250}
    used |= {"cost": "0.45", "cost_microcredits": 450_000}
    assert told == {
        "account": "alice",
        "from": today.replace(day=1).isoformat(),
        "until": today.isoformat(),
        "total": used,
        "days": [{**used, "day": today.isoformat(), "key_id": made["id"], "model": MODELS[0]}],
    }
    named = {"from": today.isoformat(), "until": today.isoformat()}
    assert (await office.get("/accounts/alice/usage", **named))["days"] == told["days"]
    yesterday = (today - timedelta(days=1)).isoformat()
    before = await office.get("/accounts/alice/usage", **{"from": yesterday, "until": yesterday})
    assert (before["days"], before["total"]["cost"], before["total"]["requests"]) == ([], "0", 0)


async def test_books_that_add_up(office: Office) -> None:
    made = await office.post("/keys", 201, account="alice", name="ci")
    await office.use(made["key"], Usage(300, 100, 250))
    told = await office.get("/accounts/alice/reconciliation")
    assert told.pop("account") == "alice"
    assert told.pop("adds_up") is True
    assert set(told.values()) == {0, "0"}


async def test_books_that_do_not_add_up(office: Office) -> None:
    office.ledger._accounts["alice"].credit.postings.pop()
    told = await office.get("/accounts/alice/reconciliation")
    assert (told["adds_up"], told["credit"], told["credit_microcredits"]) == (False, "-1", -CREDIT)
