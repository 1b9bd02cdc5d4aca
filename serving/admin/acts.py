"""What the admin API does: one function for each command, thin over `accounts.admin` like it.

From the values of an address and a body to what is told. No HTTP here; what goes wrong is a ServingError.
"""

from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from serving.accounts.admin import Admin
from serving.accounts.plans import PlanError
from serving.admin import wire
from serving.admin.translate import (
    end_ms,
    microcredits,
    tell_account,
    tell_adjustment,
    tell_grant,
    tell_key,
    tell_new_key,
    tell_plan,
    tell_reconciliation,
    tell_usage,
    tell_void,
)
from serving.errors import InvalidRequest
from serving.ledger.base import Account
from serving.ledger.reconcile import reconcile

_MOST_DAYS = 366

MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}


@dataclass(frozen=True, slots=True)
class Desk:
    """What a route works with. `models`: the ids of those that are or can be served."""

    admin: Admin
    models: Collection[str]
    now: datetime

    def tell(self, account: Account) -> wire.AccountTold:
        return tell_account(account, self.admin.plans.get(account.plan))


@dataclass(frozen=True, slots=True)
class Export:
    """An answer that is told line by line, and as a file of this name."""

    name: str
    media_type: str
    lines: AsyncGenerator[str, None]


# ---- accounts --------------------------------------------------------------------------------------------------------


async def create_account(desk: Desk, _: wire.Nothing, body: wire.NewAccount) -> wire.AccountTold:
    with _known_plan():
        return desk.tell(await desk.admin.create_account(body.account, body.plan))


async def list_accounts(desk: Desk, address: wire.AccountsQuery, _: wire.Nothing) -> wire.AccountsTold:
    found = await desk.admin.accounts(after=address.after, most=address.limit + 1)
    page = found[: address.limit]
    return wire.AccountsTold([*map(desk.tell, page)], page[-1].id if len(found) > len(page) else None)


async def show_account(desk: Desk, address: wire.AccountQuery, _: wire.Nothing) -> wire.AccountTold:
    return desk.tell(await desk.admin.account(address.account))


async def suspend_account(desk: Desk, address: wire.AccountQuery, _: wire.Nothing) -> wire.AccountTold:
    return desk.tell(await desk.admin.set_state(address.account, "suspended"))


async def resume_account(desk: Desk, address: wire.AccountQuery, _: wire.Nothing) -> wire.AccountTold:
    return desk.tell(await desk.admin.set_state(address.account, "active"))


async def change_plan(desk: Desk, address: wire.AccountQuery, body: wire.NewPlan) -> wire.AccountTold:
    with _known_plan():
        return desk.tell(await desk.admin.set_plan(address.account, body.plan))


@contextmanager
def _known_plan() -> Iterator[None]:
    try:
        yield
    except PlanError as error:
        raise InvalidRequest(f"plan: {error}", param="plan") from error


# ---- keys ------------------------------------------------------------------------------------------------------------


async def create_key(desk: Desk, _: wire.Nothing, body: wire.NewKey) -> wire.NewKeyTold:
    for index, model in enumerate(body.models or ()):
        if model not in desk.models:
            known = ", ".join(desk.models)
            raise InvalidRequest(f"models[{index}]: no such model. Known are: {known}.", param=f"models[{index}]")
    text, key = await desk.admin.create_key(
        body.name,
        body.account,
        models=None if body.models is None else tuple(body.models),
        cap=None if body.cap is None else microcredits(body.cap, "cap"),
        expires_ms=end_ms(body.expires, desk.now),
    )
    return tell_new_key(text, key, desk.now)


async def list_keys(desk: Desk, address: wire.KeysQuery, _: wire.Nothing) -> wire.KeysTold:
    keys = await desk.admin.keys(address.account)
    if address.after:
        ids = [key.id for key in keys]
        if address.after not in ids:
            raise InvalidRequest("after: there is no key with this id here.", param="after")
        keys = keys[ids.index(address.after) + 1 :]
    page = keys[: address.limit]
    return wire.KeysTold([tell_key(key, desk.now) for key in page], page[-1].id if len(keys) > len(page) else None)


async def revoke_key(desk: Desk, address: wire.KeyQuery, _: wire.Nothing) -> wire.KeyTold:
    return tell_key(await desk.admin.revoke_key(address.id), desk.now)


# ---- plans and credits -----------------------------------------------------------------------------------------------


async def list_plans(desk: Desk, _: wire.Nothing, __: wire.Nothing) -> wire.PlansTold:
    return wire.PlansTold([tell_plan(plan) for plan in desk.admin.plans.values()])


async def grant_credits(desk: Desk, address: wire.AccountQuery, body: wire.NewGrant) -> wire.GrantTold:
    grant = await desk.admin.grant(
        address.account,
        microcredits(body.amount, "amount"),
        grant_id=body.id,
        gift=body.kind == "gift",
        expires_ms=end_ms(body.expires, desk.now),
    )
    return tell_grant(grant)


async def void_grant(desk: Desk, address: wire.GrantQuery, _: wire.Nothing) -> wire.VoidTold:
    return tell_void(address.grant, await desk.admin.void(address.account, address.grant))


async def adjust_credits(desk: Desk, address: wire.AccountQuery, body: wire.NewAdjustment) -> wire.AdjustmentTold:
    amount = microcredits(body.amount, "amount")
    return tell_adjustment(await desk.admin.adjust(address.account, amount, adjust_id=body.id), amount)


# ---- usage -----------------------------------------------------------------------------------------------------------


async def show_usage(desk: Desk, address: wire.UsageQuery, _: wire.Nothing) -> wire.UsageTold:
    today = desk.now.date()
    first = address.first or today.replace(day=1)
    last = address.last or max(today, first)
    if first > last:
        raise InvalidRequest("from: must not be after until.", param="from")
    if (last - first).days >= _MOST_DAYS:
        raise InvalidRequest(f"until: ask for at most {_MOST_DAYS} days.", param="until")
    if last == date.max:
        raise InvalidRequest("until: must be an earlier day.", param="until")
    lines = await desk.admin.usage(address.account, first, last + timedelta(days=1))
    return tell_usage(address.account, first, last, lines)


async def check_usage(desk: Desk, address: wire.AccountQuery, _: wire.Nothing) -> wire.ReconciliationTold:
    await desk.admin.account(address.account)
    return tell_reconciliation(await reconcile(desk.admin.books, address.account))


async def export_postings(desk: Desk, address: wire.ExportQuery, _: wire.Nothing) -> Export:
    lines = desk.admin.export(address.account, address.format)
    return Export(f"{address.account}-postings.{address.format}", MEDIA_TYPES[address.format], lines)
