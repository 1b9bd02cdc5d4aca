"""The books on Redis: accounts, keys and grants, and what was used, for people and pages. See `base.Books`.

Changes are scripts like those of `redis.py`, so they are atomic beside running requests; readings of several days or
many postings are not one step.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import date, timedelta
from typing import cast

from serving.core import Plan, Usage
from serving.errors import InvalidRequest
from serving.ledger import refusals
from serving.ledger.base import (
    Account,
    AccountState,
    DayUsage,
    Grant,
    GrantKind,
    Key,
    Posting,
    PostingKind,
    account_tag,
)
from serving.ledger.redis import SLOTS, tag_of
from serving.ledger.store import Store

_PAGE = 500


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
        grants = [_grant_of(grant_id, text.split(":")) for grant_id, text in zip(*[iter(rest[6:])] * 2, strict=True)]
        free = sum(int(text.rpartition(":")[2]) for text in rest[7::2])
        return _account_of(account, rest, tuple(grants), free)

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
        ids = await self._store.command("SMEMBERS", f"{tag_of(account)}:keys:{account}")
        found = await asyncio.gather(*(self.key(account_tag(account), key_id) for key_id in ids))
        return sorted(filter(None, found), key=lambda key: (key.created_ms, key.id))

    async def key(self, account_tag: str, key_id: str) -> Key | None:
        fields = _pairs(await self._store.command("HGETALL", f"{{s{account_tag}}}:key:{key_id}"))
        return _key_of(key_id, fields) if fields else None

    async def find_key(self, account_tag: str, digest: str) -> tuple[Key, Account] | None:
        code, *rest = await self._store.run("find_key", f"{{s{account_tag}}}", self._now(), digest)
        if code != "ok":
            return None
        key = _key_of(rest[0], dict(zip(*[iter(rest[7:])] * 2, strict=True)))
        return key, _account_of(key.account, rest[1:7], (), 0)

    async def usage(self, account: str, first_day: str, end_day: str) -> list[DayUsage]:
        first, end = date.fromisoformat(first_day), date.fromisoformat(end_day)
        days = [str(first + timedelta(days=number)) for number in range((end - first).days)]
        tag = tag_of(account)
        told = await asyncio.gather(*(self._store.command("HGETALL", f"{tag}:day:{account}:{day}") for day in days))
        lines = [
            _day_of(day, field, text)
            for day, fields in zip(days, told, strict=True)
            for field, text in _pairs(fields).items()
        ]
        return sorted(lines, key=lambda line: (line.day, line.key_id, line.model))

    async def postings(self, account: str) -> AsyncIterator[Posting]:
        stream, after = f"{tag_of(account)}:postings:{account}", "-"
        while page := await self._store.command("XRANGE", stream, after, "+", "COUNT", _PAGE):
            for entry_id, fields in page:
                yield _posting_of(entry_id, _pairs(fields))
            after = f"({page[-1][0]}"

    async def _run(self, script: str, account: str, *arguments: str | int) -> list[str]:
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


def _pairs(fields: list[str]) -> dict[str, str]:
    return dict(zip(*[iter(fields)] * 2, strict=True))


def _account_of(account: str, values: list[str], grants: tuple[Grant, ...], free: int) -> Account:
    plan, state = values[0], cast(AccountState, values[1])
    created_ms, used, held, running = map(int, values[2:6])
    return Account(account, plan, state, created_ms, used, held, running, grants, free)


def _grant_of(grant_id: str, values: list[str]) -> Grant:
    amount, used, held, expired, priority, effective_ms, expires_ms = map(int, values[:7])
    return Grant(grant_id, amount, cast(GrantKind, values[7]), priority, effective_ms, expires_ms, used, held, expired)


def _key_of(key_id: str, values: dict[str, str]) -> Key:
    return Key(
        key_id,
        *(values["account"], values["name"], values["shown"], values["digest"], int(values["created"])),
        tuple(json.loads(values["models"])) if values["models"] else None,
        int(values["cap"]) if values["cap"] else None,
        *(int(values[name]) for name in ("expires", "revoked", "last", "used", "held")),
    )


def _day_of(day: str, field: str, text: str) -> DayUsage:
    key_id, _, model = field.partition("|")
    requests, prompt, cached, completion, cost = map(int, text.split(":"))
    return DayUsage(day, key_id, model, requests, Usage(prompt, cached, completion), cost)


def _posting_of(entry_id: str, values: dict[str, str]) -> Posting:
    return Posting(
        id=entry_id,
        at_ms=int(values["at"]),
        kind=cast(PostingKind, values["kind"]),
        amount=int(values["amount"]),
        grant=values.get("grant", ""),
        request_id=values.get("request", ""),
        key_id=values.get("key", ""),
        model=values.get("model", ""),
        cost=int(values.get("cost", 0)),
        usage=Usage(*map(int, values.get("usage", "0:0:0").split(":"))),
        reason=values.get("reason", ""),
    )
