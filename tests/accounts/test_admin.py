"""What operators do: checked, told to other processes, and the same again when it is said again."""

import csv
import io
import json
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.accounts.admin import POSTING_COLUMNS, Admin, expiry_ms, key_values, posting_values
from serving.accounts.keys import Keyring
from serving.accounts.plans import PlanError
from serving.core import Price, Usage
from serving.errors import Conflict, InsufficientCredit, InvalidRequest, NotFound
from serving.ledger.base import Posting
from tests.accounts.shelf import PLANS, Clock, Radio, Shelf

CREDIT = 1_000_000


@pytest.fixture
def admin(shelf: Shelf, keyring: Keyring) -> Admin:
    return Admin(shelf, keyring, PLANS)


async def used(admin: Admin, shelf: Shelf, keyring: Keyring, usage: Usage) -> str:
    """Let a key of alice use something. Returns the key's id."""
    text, key = await admin.create_key("laptop", "alice")
    caller = await keyring.authenticate(f"Bearer {text}")
    hold = await shelf.hold(caller, f"request-{key.id}", "opus-v1-sm", Price(1000, 500, 2000), usage)
    await shelf.settle(hold, usage, "finish")
    return key.id


# ---- accounts --------------------------------------------------------------------------------------------------------


async def test_an_account_is_made_with_its_first_credits(admin: Admin) -> None:
    account = await admin.create_account("carol@example.org", "free")
    assert (account.plan, account.state, account.free) == ("free", "active", 20 * CREDIT)
    assert await admin.account("carol@example.org") == account
    assert (await admin.create_account("dave", "unlimited")).free == 0


async def test_accounts_are_listed_by_id(admin: Admin) -> None:
    accounts = await admin.accounts()
    assert [(account.id, account.plan) for account in accounts] == [
        ("alice", "free"),
        ("bob", "unlimited"),
        ("olaf", "of old"),
        ("rita", "reader"),
    ]
    assert accounts[0].free == 20 * CREDIT


@pytest.mark.parametrize("account", ["", "-a", "a b", "a:b", "a/b", "ä", "a\n", "{a}", "a" * 65])
async def test_an_accounts_id_is_checked(admin: Admin, account: str) -> None:
    with pytest.raises(InvalidRequest, match="letters, digits"):
        await admin.create_account(account, "free")


async def test_what_is_there_is_not_made_again(admin: Admin) -> None:
    with pytest.raises(Conflict, match="alice exists already"):
        await admin.create_account("alice", "free")


@pytest.mark.parametrize("work", ["create", "change"])
async def test_a_plan_must_exist(admin: Admin, work: str) -> None:
    with pytest.raises(PlanError, match="no plan 'gold'"):
        await (admin.create_account("carol", "gold") if work == "create" else admin.set_plan("alice", "gold"))


async def test_a_change_of_an_account_is_told(admin: Admin, radio: Radio) -> None:
    assert (await admin.set_state("alice", "suspended")).state == "suspended"
    assert (await admin.set_state("alice", "active")).state == "active"
    assert (await admin.set_plan("bob", "free")).free == 20 * CREDIT
    assert radio.said == ["account:alice", "account:alice", "account:bob"]


async def test_an_account_that_is_none(admin: Admin, radio: Radio) -> None:
    for work in (
        admin.account("nobody"),
        admin.set_state("nobody", "suspended"),
        admin.set_plan("nobody", "free"),
        admin.create_key("laptop", "nobody"),
        admin.keys("nobody"),
        admin.grant("nobody", 1),
        admin.void("nobody", "g"),
        admin.adjust("nobody", 1),
        admin.adjust("nobody", -1),
        admin.usage("nobody", date(2026, 11, 1), date(2026, 11, 2)),
        anext(aiter(admin.export("nobody", "csv"))),
    ):
        with pytest.raises(NotFound, match="nobody"):
            await work
    assert radio.said == []


# ---- keys ------------------------------------------------------------------------------------------------------------


async def test_keys_are_made_listed_and_revoked(admin: Admin, clock: Clock, radio: Radio) -> None:
    made = []
    for name, account in (("laptop", "alice"), ("phone", "bob"), ("desk", "alice")):
        made.append((await admin.create_key(name, account))[1].id)
        clock.now_s += 1
    assert [key.id for key in await admin.keys()] == made
    assert [key.id for key in await admin.keys("alice")] == [made[0], made[2]]
    revoked = await admin.revoke_key(made[1])
    assert (revoked.account, revoked.name) == ("bob", "phone")
    assert radio.said == [f"key:{made[1]}"]
    assert [bool(key.revoked_ms) for key in await admin.keys()] == [False, True, False]
    assert (await admin.revoke_key(made[1])).revoked_ms == revoked.revoked_ms


async def test_a_key_with_terms(admin: Admin, clock: Clock) -> None:
    end = clock.unix_ms() + 1
    _, key = await admin.create_key("laptop", "alice", models=("opus-v1-sm",), cap=5, expires_ms=end)
    (stored,) = await admin.keys("alice")
    assert (stored.models, stored.cap, stored.expires_ms) == (key.models, 5, end) == (("opus-v1-sm",), 5, end)
    assert "digest" not in key_values(stored)
    assert stored.digest not in json.dumps(key_values(stored))


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "a" * 201])
async def test_a_keys_name_is_checked(admin: Admin, name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        await admin.create_key(name, "alice")


async def test_a_cap_is_not_negative(admin: Admin) -> None:
    with pytest.raises(InvalidRequest, match="cap"):
        await admin.create_key("laptop", "alice", cap=-1)


@pytest.mark.parametrize("key_id", ["", "key", "key_zz_0123456789", "key_00_0123456789", "key_00_0123456789\n"])
async def test_a_key_that_is_none(admin: Admin, key_id: str) -> None:
    with pytest.raises(NotFound, match="There is no key"):
        await admin.revoke_key(key_id)


# ---- credits ---------------------------------------------------------------------------------------------------------


async def test_credit_is_granted_once_for_an_id(admin: Admin) -> None:
    for _ in range(2):
        grant = await admin.grant("alice", 5 * CREDIT, grant_id="invoice-7")
        assert (grant.id, grant.kind, grant.free) == ("invoice-7", "purchase", 5 * CREDIT)
    assert (await admin.account("alice")).free == 25 * CREDIT
    with pytest.raises(Conflict):
        await admin.grant("alice", 6 * CREDIT, grant_id="invoice-7")


async def test_a_grant_without_an_id_is_another_each_time(admin: Admin, clock: Clock) -> None:
    first = await admin.grant("alice", CREDIT)
    second = await admin.grant("alice", CREDIT, gift=True, expires_ms=clock.unix_ms() + 1000)
    assert first.id != second.id
    assert second.kind == "gift"
    assert (await admin.account("alice")).free == 22 * CREDIT
    clock.now_s += 1
    assert (await admin.account("alice")).free == 21 * CREDIT


async def test_what_is_left_of_a_grant_is_taken_back(admin: Admin) -> None:
    await admin.grant("alice", 5 * CREDIT, grant_id="invoice-7")
    assert await admin.void("alice", "invoice-7") == 5 * CREDIT
    assert (await admin.account("alice")).free == 20 * CREDIT
    with pytest.raises(NotFound):
        await admin.void("alice", "invoice-8")


async def test_credit_is_corrected_either_way_and_once_for_an_id(admin: Admin) -> None:
    for _ in range(2):
        assert await admin.adjust("alice", 3, adjust_id="up") == "up"
    assert (await admin.account("alice")).free == 20 * CREDIT + 3
    for _ in range(2):
        assert await admin.adjust("alice", -5, adjust_id="down") == "down"
    assert (await admin.account("alice")).free == 20 * CREDIT - 2
    assert (await admin.adjust("alice", -1)).startswith("adjust_")
    with pytest.raises(InsufficientCredit):
        await admin.adjust("alice", -20 * CREDIT)
    assert (await admin.account("alice")).free == 20 * CREDIT - 3


@pytest.mark.parametrize("amount", [0, -1])
async def test_a_grant_is_more_than_nothing(admin: Admin, amount: int) -> None:
    with pytest.raises(InvalidRequest, match="amount"):
        await admin.grant("alice", amount)


async def test_an_adjustment_is_not_nothing(admin: Admin) -> None:
    with pytest.raises(InvalidRequest, match="amount"):
        await admin.adjust("alice", 0)


@pytest.mark.parametrize("chosen", ["", "plan:2026-11:free", "a b", "-a", "a" * 129, "a\n"])
async def test_an_id_is_checked(admin: Admin, chosen: str) -> None:
    with pytest.raises(InvalidRequest, match="An id"):
        await admin.grant("alice", 1, grant_id=chosen)
    with pytest.raises(InvalidRequest, match="An id"):
        await admin.adjust("alice", -1, adjust_id=chosen)


# ---- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_by_day(admin: Admin, shelf: Shelf, keyring: Keyring, clock: Clock) -> None:
    key_id = await used(admin, shelf, keyring, Usage(1000, 200, 300))
    today = datetime.fromtimestamp(clock.unix_ms() / 1000, UTC).date()
    (line,) = await admin.usage("alice", today, date(2036, 1, 1))
    assert (line.day, line.key_id, line.requests) == (today.isoformat(), key_id, 1)
    assert line.usage == Usage(1000, 200, 300)
    assert await admin.usage("alice", date(2026, 1, 1), today) == []
    for end in (today, date.max):
        with pytest.raises(InvalidRequest):
            await admin.usage("alice", today, end)


async def test_postings_are_exported_the_same_in_both_forms(admin: Admin, shelf: Shelf, keyring: Keyring) -> None:
    await admin.grant("alice", 5 * CREDIT, grant_id="invoice-7")
    await used(admin, shelf, keyring, Usage(1000, 200, 300))
    lines = [line async for line in admin.export("alice", "jsonl")]
    objects = [json.loads(line) for line in lines]
    assert all(line.endswith("\n") for line in lines)
    assert sum(line["amount_microcredits"] for line in objects) == (await admin.account("alice")).free
    (charge,) = [line for line in objects if line["kind"] == "charge"]
    assert (charge["prompt_tokens"], charge["cached_tokens"], charge["completion_tokens"]) == (1000, 200, 300)
    assert charge["cost_microcredits"] == 1500 == -charge["amount_microcredits"]
    text = "".join([line async for line in admin.export("alice", "csv")])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows == [{name: str(value) for name, value in line.items()} for line in objects]


def test_every_part_of_a_posting_is_exported() -> None:
    posting = Posting("1-0", 5, "charge", -6, "g", "r", "k", "m", 7, Usage(8, 9, 10), "finish")
    values = posting_values(posting)
    assert tuple(values) == POSTING_COLUMNS
    assert list(values.values()) == ["1-0", 5, "charge", -6, "g", "r", "k", "m", 7, 8, 9, 10, "finish"]
    assert len(POSTING_COLUMNS) == len(Posting.__dataclass_fields__) - 1 + len(Usage.__dataclass_fields__)


# ---- days ------------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@settings(deadline=None)
@given(st.integers(0, 99_999))
def test_days_and_dates_mean_the_same(days: int) -> None:
    end_ms = expiry_ms(str(days), NOON)
    assert end_ms % 86_400_000 == 0
    assert end_ms > NOON.timestamp() * 1000
    last = datetime.fromtimestamp(end_ms / 1000 - 1, UTC).date()
    assert (last - NOON.date()).days == days
    assert expiry_ms(last.isoformat(), NOON) == end_ms


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "-1", "1.5", "2026-11-24", "9999-12-31", "100000"])
def test_what_is_no_day_to_come(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a date|is over"):
        expiry_ms(text, NOON)
