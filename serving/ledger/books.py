"""The books on Redis: accounts, keys and grants, and what was used, for people and pages. See `base.Books`.

Changes are scripts like those of `redis.py`, so they are atomic beside running requests; readings of several days or
many postings are not one step.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import date, timedelta
from typing import Any

from serving.core import Plan, Usage
from serving.errors import InvalidRequest
from serving.ledger import refusals
from serving.ledger.base import (
    Account,
    AccountState,
    DayUsage,
    Grant,
    Key,
    Posting,
    account_tag,
)
from serving.ledger.redis import SLOTS, tag_of
from serving.ledger.store import Store

_PAGE = 500
_DAYS_AT_ONCE = 100


class RedisBooks:
    """The `base.Books` of all processes. `clock`, in microseconds, replaces the store's own in tests that move time."""

    def __init__(self, store: Store, *, clock: Callable[[], int] | None = None) -> None:
        self._store = store
        self._clock = clock

    async def open_account(self, account: str, plan: str) -> Account:
        code, *_ = await self._run("open_account", account, plan)
        if code == "conflict":
            raise refusals.taken(f"The account id {account}")
        return await self._account(account)

    async def account(self, account: str, plan: Plan | None = None) -> Account | None:
        arguments = (plan.id, plan.monthly_credits) if plan and plan.monthly_credits is not None else ("", "")
        code, *rest = await self._run("account", account, *arguments)
        if code != "ok":
            return None
        grants = rest[6:]
        return _account_of(account, rest[:6], tuple(map(_grant_of, grants)), sum(grant[-1] for grant in grants))

    async def accounts(self) -> list[str]:
        by_slot = await asyncio.gather(*(self._store.command("SMEMBERS", f"{tag}:accounts") for tag in SLOTS))
        return sorted(account for found in by_slot for account in found)

    async def change_account(
        self, account: str, *, plan: str | None = None, state: AccountState | None = None
    ) -> Account:
        code, *_ = await self._run("change_account", account, plan or "", state or "")
        if code != "ok":
            raise refusals.unknown_account(account)
        return await self._account(account)

    async def grant(self, account: str, grant: Grant) -> Grant:
        _check_amount(grant.amount)
        terms = (grant.amount, grant.kind, grant.priority, grant.effective_ms, grant.expires_ms)
        code, *rest = await self._run("grant", account, grant.id, *terms)
        if code == "no account":
            raise refusals.unknown_account(account)
        if code == "conflict":
            raise refusals.taken(f"The grant id {grant.id}")
        used, held, expired, expires_ms = map(int, rest)
        return Grant(grant.id, *terms[:4], expires_ms, used, held, expired)

    async def void(self, account: str, grant_id: str) -> int:
        code, *rest = await self._run("void", account, grant_id)
        if code == "no account":
            raise refusals.unknown_account(account)
        if code == "no grant":
            raise refusals.unknown_grant(grant_id)
        return int(rest[0])

    async def debit(self, account: str, debit_id: str, amount: int) -> int:
        _check_amount(amount)
        code, *rest = await self._run("debit", account, debit_id, amount)
        if code == "no account":
            raise refusals.unknown_account(account)
        if code == "conflict":
            raise refusals.taken(f"The debit id {debit_id}")
        if code == "credit":
            raise refusals.short_of_debit(amount, int(rest[0]))
        return int(rest[0])

    async def add_key(self, key: Key) -> None:
        code, *_ = await self._run(
            "add_key",
            key.account,
            *(key.id, key.name, key.shown, key.digest),
            "" if key.models is None else json.dumps(key.models),
            "" if key.cap is None else key.cap,
            key.expires_ms,
        )
        if code == "no account":
            raise refusals.unknown_account(key.account)
        if code == "conflict":
            raise refusals.taken(f"The key id {key.id}, or the key itself,")

    async def revoke_key(self, account: str, key_id: str) -> Key:
        code, *_ = await self._run("revoke_key", account, key_id)
        if code != "ok":
            raise refusals.unknown_key(key_id)
        key = await self.key(account_tag(account), key_id)
        assert key is not None
        return key

    async def keys(self, account: str) -> list[Key]:
        _, *rows = await self._run("keys", account)
        return sorted(map(_key_of, rows), key=lambda key: (key.created_ms, key.id))

    async def key(self, account_tag: str, key_id: str) -> Key | None:
        code, *rows = await self._store.run("key", f"{{s{account_tag}}}", self._now(), key_id)
        return _key_of(rows[0]) if code == "ok" else None

    async def find_key(self, account_tag: str, digest: str) -> tuple[Key, Account] | None:
        code, *rest = await self._store.run("find_key", f"{{s{account_tag}}}", self._now(), digest)
        if code != "ok":
            return None
        key = _key_of(rest[0])
        return key, _account_of(key.account, rest[1:], (), 0)

    async def usage(self, account: str, first_day: str, end_day: str) -> list[DayUsage]:
        first, end = date.fromisoformat(first_day), date.fromisoformat(end_day)
        days = [str(first + timedelta(days=number)) for number in range((end - first).days)]
        pages = (days[begin : begin + _DAYS_AT_ONCE] for begin in range(0, len(days), _DAYS_AT_ONCE))
        answers = await asyncio.gather(*(self._run("usage", account, *page) for page in pages))
        totals: dict[tuple[str, str], list[int]] = {}
        for day, of, *counts in (line for _, *lines in answers for line in lines):
            before = totals.get((day, of), [0] * len(counts))
            totals[day, of] = [one + other for one, other in zip(before, counts, strict=True)]
        found = [_day_of(*line, *counts) for line, counts in totals.items()]
        return sorted(found, key=lambda line: (line.day, line.key_id, line.model))

    async def postings(self, account: str) -> AsyncIterator[Posting]:
        after = ""
        while page := (await self._run("postings", account, after, _PAGE))[1:]:
            for entry in page:
                yield _posting_of(entry)
            after = page[-1][0]

    async def _run(self, script: str, account: str, *arguments: str | int) -> list[Any]:
        return await self._store.run(script, tag_of(account), self._now(), account, *arguments)

    def _now(self) -> str | int:
        return "" if self._clock is None else self._clock()

    async def _account(self, account: str) -> Account:
        found = await self.account(account)
        assert found is not None
        return found


def _check_amount(amount: int) -> None:
    if amount <= 0:
        raise InvalidRequest("The amount must be greater than 0.", param="amount")


def _account_of(account: str, values: list[Any], grants: tuple[Grant, ...], free: int) -> Account:
    plan, state, created_ms, used, held, running = values
    return Account(account, plan, state, created_ms, used, held, running, grants, free)


def _grant_of(row: list[Any]) -> Grant:
    grant_id, amount, used, held, expired, priority, effective_ms, expires_ms, kind, _ = row
    return Grant(grant_id, amount, kind, priority, effective_ms, expires_ms, used, held, expired)


def _key_of(row: list[Any]) -> Key:
    key_id, account, name, shown, digest, created_ms, models, cap, *rest = row
    allowed = tuple(json.loads(models)) if models else None
    return Key(key_id, account, name, shown, digest, created_ms, allowed, None if cap == "" else cap, *rest)


def _day_of(day: str, of: str, requests: int, prompt: int, cached: int, completion: int, cost: int) -> DayUsage:
    key_id, _, model = of.partition("|")
    return DayUsage(day, key_id, model, requests, Usage(prompt, cached, completion), cost)


def _posting_of(row: list[Any]) -> Posting:
    entry_id, at_ms, kind, amount, *of = row
    grant, request_id, key_id, model, cost, prompt, cached, completion, reason = of + _NO_REQUEST[len(of) :]
    usage = Usage(prompt, cached, completion)
    return Posting(entry_id, at_ms, kind, amount, grant, request_id, key_id, model, cost, usage, reason)


_NO_REQUEST = ["", "", "", "", 0, 0, 0, 0, ""]
"""What stands for the fields of a posting that is of no request."""
