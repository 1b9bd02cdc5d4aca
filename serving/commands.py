"""The commands for accounts, keys, plans, credits and usage: arguments in, a table or JSON out.

What they do is `accounts.admin`. They open the same books as the server, whether it runs or not. People read credits;
JSON and exports hold integers of microcredits. What goes wrong is a ServingError, PlanError or SettingsError with a
sentence for people.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from serving.accounts.admin import Admin, key_values
from serving.accounts.credits import format_credits
from serving.accounts.keys import DEMO_ACCOUNT, Keyring, load_pepper
from serving.accounts.plans import load_plans
from serving.core import Plan, Usage
from serving.errors import Conflict
from serving.ledger.base import Account, Books, Publish
from serving.ledger.reconcile import reconcile
from serving.settings import Settings, SettingsError

OpenBooks: TypeAlias = Callable[[str | None, Path], AbstractAsyncContextManager[tuple[Books, Publish]]]
"""From the settings `redis_url` and `data_dir` to the books, and to what tells all servers of a change of them."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with."""

    settings: Settings
    options: argparse.Namespace
    admin: Admin
    now: datetime

    def say(self, value: object, told: str) -> None:
        say(self.options, value, told)


Work: TypeAlias = Callable[[Desk], Awaitable[int | None]]
"""None is the exit status 0."""


def run(work: Work, settings: Settings, options: argparse.Namespace) -> int:
    """Do one command with the books open: by `options.open_books`, or those of the settings where that is None."""
    return asyncio.run(_opened(work, settings, options)) or 0


async def _opened(work: Work, settings: Settings, options: argparse.Namespace) -> int | None:
    plans = load_plans(settings.plans)
    pepper = load_pepper(settings.data_dir, settings.key_pepper)
    open_books: OpenBooks = options.open_books or _open_books
    async with open_books(settings.redis_url, settings.data_dir) as (books, publish):
        admin = Admin(books, Keyring(books, plans, pepper, publish=publish), plans)
        return await work(Desk(settings, options, admin, datetime.now(UTC)))


@contextlib.asynccontextmanager
async def _open_books(url: str | None, data_dir: Path) -> AsyncIterator[tuple[Books, Publish]]:
    # It brings redis along, which only a command needs that is run.
    from serving.ledger.child import ServerFailed
    from serving.ledger.open import NoStore, open_books

    try:
        async with open_books(url, data_dir) as (books, publish):
            yield books, publish
    except (NoStore, ServerFailed) as error:
        raise SettingsError(str(error)) from error


# ---- accounts --------------------------------------------------------------------------------------------------------


async def create_account(desk: Desk) -> None:
    account = await desk.admin.create_account(desk.options.account, desk.options.plan)
    desk.say(asdict(account), f"Made the account {account.id} with the plan {account.plan}.")


async def list_accounts(desk: Desk) -> None:
    accounts = await desk.admin.accounts()
    rows = (
        (account.id, account.plan, account.state, _free(desk, account), format_credits(account.used), account.running)
        for account in accounts
    )
    desk.say([asdict(account) for account in accounts], table("ACCOUNT PLAN STATE FREE USED RUNNING", rows))


async def show_account(desk: Desk) -> None:
    account = await desk.admin.account(desk.options.account)
    told = (
        f"{account.id}: plan {account.plan}, {account.state}, since {_time(account.created_ms)}\n"
        f"Credits: {_free(desk, account)} free, {format_credits(account.held)} held, {format_credits(account.used)} "
        f"used ever. Running requests: {account.running}."
    )
    rows = (
        (grant.id, grant.kind, *map(format_credits, (grant.amount, grant.free, grant.held)), _time(grant.expires_ms))
        for grant in account.grants
    )
    if account.grants:
        told += "\n\n" + table("GRANT KIND AMOUNT FREE HELD EXPIRES", rows)
    desk.say(asdict(account), told)


async def suspend_account(desk: Desk) -> None:
    account = await desk.admin.set_state(desk.options.account, "suspended")
    desk.say(asdict(account), f"Suspended {account.id}: its requests are refused, and those that run end.")


async def resume_account(desk: Desk) -> None:
    account = await desk.admin.set_state(desk.options.account, "active")
    desk.say(asdict(account), f"{account.id} may go on.")


async def change_plan(desk: Desk) -> None:
    account = await desk.admin.set_plan(desk.options.account, desk.options.plan)
    desk.say(asdict(account), f"{account.id} has the plan {account.plan} now.")


def _free(desk: Desk, account: Account) -> str:
    plan = desk.admin.plans.get(account.plan)
    return "unlimited" if plan is not None and not plan.metered else format_credits(account.free)


# ---- keys ------------------------------------------------------------------------------------------------------------


async def create_key(desk: Desk) -> None:
    options = desk.options
    account = options.account or await _demo_account(desk)
    models = None if options.models is None else _models(desk, options.models)
    text, key = await desk.admin.create_key(
        options.name,
        account,
        models=models,
        cap=options.cap,
        expires_ms=options.expires,
    )
    told = f"This is {key.id} of {account}. Keep the key now: it is not stored and cannot be shown again."
    desk.say({"key": text, **key_values(key)}, f"{text}\n\n{told}")


async def _demo_account(desk: Desk) -> str:
    """The account of who names none; it is there before the server's first start, too."""
    if not desk.settings.demo_account:
        raise SettingsError("name the account that pays with --account: there is no demo account.")
    with contextlib.suppress(Conflict):
        await desk.admin.create_account(DEMO_ACCOUNT, desk.settings.demo_plan)
    return DEMO_ACCOUNT


def _models(desk: Desk, text: str) -> tuple[str, ...]:
    models = tuple(item.strip() for item in text.split(",") if item.strip())
    if not models:
        raise SettingsError("--models names no model; leave it out to allow all.")
    known = [model.id for model in desk.settings.models]
    if unknown := [model for model in models if model not in known]:
        raise SettingsError(f"unknown model {unknown[0]!r}; configured are: {', '.join(known)}.")
    return models


async def list_keys(desk: Desk) -> None:
    keys = await desk.admin.keys(desk.options.account)
    rows = (
        (
            *(key.id, key.shown, key.account, key.state(round(desk.now.timestamp() * 1000)), format_credits(key.used)),
            "-" if key.cap is None else format_credits(key.cap),
            _time(key.last_used_ms),
            "all" if key.models is None else ",".join(key.models),
            key.name,
        )
        for key in keys
    )
    desk.say([key_values(key) for key in keys], table("ID KEY ACCOUNT STATE USED CAP LAST-USED MODELS NAME", rows))


async def revoke_key(desk: Desk) -> None:
    key = await desk.admin.revoke_key(desk.options.id)
    desk.say({"revoked": key.id}, f"Revoked {key.id} ({key.name}).")


# ---- plans and credits -----------------------------------------------------------------------------------------------


def list_plans(settings: Settings, options: argparse.Namespace) -> int:
    plans = load_plans(settings.plans).values()
    rows = (
        (
            plan.id,
            "unlimited" if plan.monthly_credits is None else format_credits(plan.monthly_credits),
            f"{plan.price_percent}%",
            *map(_limit, (plan.max_concurrent, plan.requests_per_minute, plan.tokens_per_minute)),
            *map(_limit, (plan.max_context_tokens, plan.max_output_tokens)),
            "yes" if plan.api else "no",
            "all" if plan.models is None else ",".join(sorted(plan.models)),
        )
        for plan in plans
    )
    heading = "PLAN CREDITS/MONTH PRICE CONCURRENT REQUESTS/MIN TOKENS/MIN CONTEXT OUTPUT API MODELS"
    say(options, [_plan_values(plan) for plan in plans], table(heading, rows))
    return 0


def _plan_values(plan: Plan) -> dict[str, object]:
    return asdict(plan) | {"models": None if plan.models is None else sorted(plan.models)}


def _limit(limit: int | None) -> str:
    return "-" if limit is None else str(limit)


async def grant_credits(desk: Desk) -> None:
    options = desk.options
    grant = await desk.admin.grant(
        options.account,
        options.amount,
        grant_id=options.id,
        gift=options.gift,
        expires_ms=options.expires,
    )
    desk.say(asdict(grant), f"Granted {format_credits(grant.amount)} credits to {options.account}: {grant.id}.")


async def void_grant(desk: Desk) -> None:
    taken = await desk.admin.void(desk.options.account, desk.options.grant)
    told = f"Took back {format_credits(taken)} credits of {desk.options.grant}."
    desk.say({"grant": desk.options.grant, "taken": taken}, told)


async def adjust_credits(desk: Desk) -> None:
    options = desk.options
    adjust_id = await desk.admin.adjust(options.account, options.amount, adjust_id=options.id)
    told = f"Changed the credit of {options.account} by {format_credits(options.amount)}: {adjust_id}."
    desk.say({"id": adjust_id, "amount": options.amount}, told)


# ---- usage -----------------------------------------------------------------------------------------------------------


async def show_usage(desk: Desk) -> int | None:
    if desk.options.check:
        return await _check_usage(desk)
    today = desk.now.date()
    first = desk.options.first or today.replace(day=1)
    last = desk.options.last or max(today, first)
    lines = await desk.admin.usage(desk.options.account, first, last + timedelta(days=1))
    rows = [
        (line.day, line.key_id, line.model, line.requests, *_counts(line.usage), format_credits(line.cost))
        for line in lines
    ]
    total = sum((line.usage for line in lines), Usage())
    requests, cost = sum(line.requests for line in lines), sum(line.cost for line in lines)
    rows.append(("total", "", "", requests, *_counts(total), format_credits(cost)))
    heading = "DAY KEY MODEL REQUESTS PROMPT CACHED COMPLETION CREDITS"
    desk.say([asdict(line) for line in lines], table(heading, rows))
    return None


async def _check_usage(desk: Desk) -> int:
    """Fold the account's postings again. Returns the exit status 1 when they do not add up."""
    account = (await desk.admin.account(desk.options.account)).id
    found = await reconcile(desk.admin.books, account)
    told = f"The books of {account} add up."
    if not found.adds_up:
        off = ", ".join(f"{name} {format_credits(getattr(found, name))}" for name in ("credit", "used", "days", "held"))
        told = f"The books of {account} are off by: {off}, duplicates {found.duplicates}. Check again when none runs."
    desk.say({**asdict(found), "adds_up": found.adds_up}, told)
    return 0 if found.adds_up else 1


def _counts(usage: Usage) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens


async def export_postings(desk: Desk) -> None:
    async for line in desk.admin.export(desk.options.account, desk.options.format):
        sys.stdout.write(line)


# ---- how it looks ----------------------------------------------------------------------------------------------------


def say(options: argparse.Namespace, value: object, told: str) -> None:
    """Print `value` for scripts, `told` for people."""
    print(json.dumps(value, indent=1) if options.json else told)


def table(heading: str, rows: Iterable[tuple[object, ...]]) -> str:
    """Columns under a heading of one word each."""
    cells = [heading.split(), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _time(at_ms: int) -> str:
    """A Unix time in ms for people, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M") if at_ms else "-"
