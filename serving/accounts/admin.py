"""What operators do with accounts, keys and credits: the command line and the admin API are thin shells over this.

Values from outside are checked here, and every change that other processes must hear of is told. It knows no output
format but that of an export, and neither who is allowed to do all this.
"""

import asyncio
import csv
import io
import json
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from serving.accounts.keys import Keyring
from serving.accounts.plans import plan_of
from serving.core import Plan
from serving.errors import Conflict, InvalidRequest, NotFound
from serving.ledger import refusals
from serving.ledger.base import Account, AccountState, Books, DayUsage, Grant, Key, Posting

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_KEY_ID = re.compile(r"key_([0-9a-f]{2})_[0-9a-f]{10}")
_MOST_NAME_CHARACTERS = 200
_MOST_DAYS = 3_660
"""Of one answer: the books look each day up."""

_RESERVED = "plan:"
"""Begins the ids of the grants that plans make."""

POSTING_COLUMNS = (
    *("id", "at_ms", "kind", "amount_microcredits", "grant", "request_id", "key_id", "model", "cost_microcredits"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reason"),
)


@dataclass(frozen=True, slots=True)
class Admin:
    """All of them raise Overloaded when the books cannot be read, NotFound for an account that does not exist, and
    InvalidRequest for values that are impossible. Amounts are in microcredits."""

    books: Books
    keyring: Keyring
    plans: Mapping[str, Plan]

    # ---- accounts ----------------------------------------------------------------------------------------------------

    async def create_account(self, account: str, plan: str) -> Account:
        """Raises Conflict (it exists), PlanError."""
        if not _ACCOUNT.fullmatch(account):
            raise InvalidRequest(
                "An account's id is made of letters, digits and . _ @ -, begins with a letter or digit, and has at "
                "most 64 characters.",
                param="account",
            )
        wanted = plan_of(self.plans, plan)
        if await self.books.account(account) is not None:
            raise Conflict(f"The account {account} exists already.", param="account")
        await self.books.open_account(account, plan)
        # Made with its first credits, so that who looks at once sees them.
        return await self._read(account, wanted)

    async def account(self, account: str) -> Account:
        """The account as it stands, this month's credits included."""
        found = await self.books.account(account)
        if found is None:
            raise refusals.unknown_account(account)
        plan = self.plans.get(found.plan)
        return found if plan is None else await self._read(account, plan)

    async def _read(self, account: str, plan: Plan) -> Account:
        found = await self.books.account(account, plan)
        if found is None:
            raise refusals.unknown_account(account)
        return found

    async def accounts(self, *, after: str = "", most: int | None = None) -> list[Account]:
        """The accounts behind the id `after`, by id, at most so many of them."""
        ids = sorted(account for account in await self.books.accounts() if account > after)
        return await asyncio.gather(*map(self.account, ids[:most]))

    async def set_state(self, account: str, state: AccountState) -> Account:
        """Suspend an account, which ends its running requests, or let it go on."""
        await self.account(account)
        changed = await self.books.change_account(account, state=state)
        await self.keyring.tell(f"account:{account}")
        return changed

    async def set_plan(self, account: str, plan: str) -> Account:
        """Its credits stay; those of the new plan are granted besides, once a month. Raises PlanError."""
        wanted = plan_of(self.plans, plan)
        await self.account(account)
        await self.books.change_account(account, plan=plan)
        await self.keyring.tell(f"account:{account}")
        return await self._read(account, wanted)

    # ---- keys --------------------------------------------------------------------------------------------------------

    async def create_key(
        self,
        name: str,
        account: str,
        *,
        models: tuple[str, ...] | None = None,
        cap: int | None = None,
        expires_ms: int = 0,
    ) -> tuple[str, Key]:
        """Its text, which nothing can show again, and its record."""
        if not name.isprintable() or not 0 < len(name) <= _MOST_NAME_CHARACTERS:
            raise InvalidRequest(
                f"A key's name has 1 to {_MOST_NAME_CHARACTERS} characters, without line breaks.", param="name"
            )
        if cap is not None and cap < 0:
            raise InvalidRequest("A key's cap must be 0 or more.", param="cap")
        await self.account(account)
        return await self.keyring.create(name, account, models, cap, expires_ms)

    async def keys(self, account: str | None = None) -> list[Key]:
        """The keys of an account, or of all, oldest first; revoked ones, too."""
        if account is not None:
            await self.account(account)
        accounts = [account] if account is not None else await self.books.accounts()
        listed = await asyncio.gather(*map(self.books.keys, accounts))
        return sorted((key for keys in listed for key in keys), key=lambda key: (key.created_ms, key.id))

    async def revoke_key(self, key_id: str) -> Key:
        """Refuse a key from now on, and end its running requests. Raises NotFound."""
        match = _KEY_ID.fullmatch(key_id)
        key = await self.books.key(match[1], key_id) if match else None
        if key is None:
            raise NotFound(f"There is no key with the id {key_id!r}.", param="id")
        return await self.keyring.revoke(key.account, key_id)

    # ---- credits -----------------------------------------------------------------------------------------------------

    async def grant(
        self, account: str, amount: int, *, grant_id: str | None = None, gift: bool = False, expires_ms: int = 0
    ) -> Grant:
        """Give credit. Said again with the same `grant_id` it does nothing more. Raises Conflict (the id was used for
        another grant)."""
        if amount <= 0:
            raise InvalidRequest("The amount must be more than 0.", param="amount")
        grant = Grant(_id(grant_id, "grant"), amount, "gift" if gift else "purchase", expires_ms=expires_ms)
        return await self.books.grant(account, grant)

    async def void(self, account: str, grant_id: str) -> int:
        """Take back what is free of a grant. Returns the amount taken."""
        return await self.books.void(account, grant_id)

    async def adjust(self, account: str, amount: int, *, adjust_id: str | None = None) -> str:
        """Correct an account's credit by a positive or negative amount; once for an id, which is returned. Raises
        Conflict (the id was used for something else), InsufficientCredit (less is free than is to be taken)."""
        adjust_id = _id(adjust_id, "adjust")
        if amount < 0:
            await self.books.debit(account, adjust_id, -amount)
        elif amount > 0:
            await self.books.grant(account, Grant(adjust_id, amount, "adjustment"))
        else:
            raise InvalidRequest("The amount must not be 0.", param="amount")
        return adjust_id

    # ---- usage -------------------------------------------------------------------------------------------------------

    async def usage(self, account: str, first: date, end: date) -> list[DayUsage]:
        """Totals of the days (UTC) from `first` until before `end`."""
        if first >= end:
            raise InvalidRequest("The first day must lie before the end.", param="first")
        if (end - first).days > _MOST_DAYS:
            raise InvalidRequest(f"Ask for at most {_MOST_DAYS:,} days.", param="end")
        await self.account(account)
        return await self.books.usage(account, first.isoformat(), end.isoformat())

    async def export(self, account: str, form: Literal["csv", "jsonl"]) -> AsyncGenerator[str, None]:
        """All postings, oldest first, as lines: `POSTING_COLUMNS` as CSV with a heading, or as JSON objects."""
        await self.account(account)
        if form == "csv":
            yield _csv_line(POSTING_COLUMNS)
        async for posting in self.books.postings(account):
            values = posting_values(posting)
            yield _csv_line(tuple(values.values())) if form == "csv" else json.dumps(values) + "\n"


def _id(chosen: str | None, kind: str) -> str:
    """The chosen id, or a random one. Raises InvalidRequest."""
    if chosen is None:
        return f"{kind}_{secrets.token_hex(8)}"
    if not _ID.fullmatch(chosen) or chosen.startswith(_RESERVED):
        raise InvalidRequest(
            "An id is made of letters, digits and . _ : @ -, begins with a letter or digit, not with `plan:`, and has "
            "at most 128 characters.",
            param="id",
        )
    return chosen


def key_values(key: Key) -> dict[str, object]:
    """A key as it may be shown: without its hash."""
    values = asdict(key)
    del values["digest"]
    return values


def posting_values(posting: Posting) -> dict[str, object]:
    """A posting under the names of `POSTING_COLUMNS`, in their order."""
    flat = asdict(posting) | asdict(posting.usage)
    flat |= {"amount_microcredits": posting.amount, "cost_microcredits": posting.cost}
    return {column: flat[column] for column in POSTING_COLUMNS}


def _csv_line(values: tuple[object, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def expiry_ms(text: str, now: datetime) -> int:
    """When something ends whose last day (UTC) is `text`: a date, or in so many days. Raises ValueError.

    Whole days, so that the same words on the same day mean the same.
    """
    today = now.astimezone(UTC).date()
    try:
        last = today + timedelta(days=int(text)) if re.fullmatch("[0-9]{1,5}", text) else date.fromisoformat(text)
        end = datetime.combine(last + timedelta(days=1), datetime.min.time(), UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is neither a date like 2026-12-31 nor a number of days.") from None
    if last < today:
        raise ValueError(f"{text} is over.")
    return round(end.timestamp() * 1000)
