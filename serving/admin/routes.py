"""The routes of the admin API: what each is sent, does and answers. They have the names of the commands."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from serving.admin import acts, wire
from serving.admin.acts import Desk, Export

A = TypeVar("A", bound=wire.Asked)
B = TypeVar("B", bound=wire.Asked)


@dataclass(frozen=True)
class Route(Generic[A, B]):
    """One method of one address. `address`: the values in it; `answer` None: an Export. `status` is that of success."""

    name: str
    method: str
    path: str
    summary: str
    address: type[A]
    body: type[B]
    answer: type[msgspec.Struct] | None
    act: Callable[[Desk, A, B], Awaitable[msgspec.Struct | Export]]
    status: int = 200


_ACCOUNT = "/accounts/{account}"

ROUTES: tuple[Route[Any, Any], ...] = (
    Route(
        "accounts create",
        "POST",
        "/accounts",
        "Make an account",
        wire.Nothing,
        wire.NewAccount,
        wire.AccountTold,
        acts.create_account,
        201,
    ),
    Route(
        "accounts list",
        "GET",
        "/accounts",
        "List the accounts, by id",
        wire.AccountsQuery,
        wire.Nothing,
        wire.AccountsTold,
        acts.list_accounts,
    ),
    Route(
        "accounts show",
        "GET",
        _ACCOUNT,
        "Show an account and its grants",
        wire.AccountQuery,
        wire.Nothing,
        wire.AccountTold,
        acts.show_account,
    ),
    Route(
        "accounts suspend",
        "POST",
        _ACCOUNT + "/suspend",
        "Refuse an account, and end its requests that run",
        wire.AccountQuery,
        wire.Nothing,
        wire.AccountTold,
        acts.suspend_account,
    ),
    Route(
        "accounts resume",
        "POST",
        _ACCOUNT + "/resume",
        "Let a suspended account go on",
        wire.AccountQuery,
        wire.Nothing,
        wire.AccountTold,
        acts.resume_account,
    ),
    Route(
        "accounts plan",
        "PUT",
        _ACCOUNT + "/plan",
        "Change an account's plan; its credits stay",
        wire.AccountQuery,
        wire.NewPlan,
        wire.AccountTold,
        acts.change_plan,
    ),
    Route(
        "keys create",
        "POST",
        "/keys",
        "Make a key; its text is told this once",
        wire.Nothing,
        wire.NewKey,
        wire.NewKeyTold,
        acts.create_key,
        201,
    ),
    Route(
        "keys list",
        "GET",
        "/keys",
        "List the keys, oldest first; revoked ones, too",
        wire.KeysQuery,
        wire.Nothing,
        wire.KeysTold,
        acts.list_keys,
    ),
    Route(
        "keys revoke",
        "POST",
        "/keys/{id}/revoke",
        "Refuse a key, and end its requests that run",
        wire.KeyQuery,
        wire.Nothing,
        wire.KeyTold,
        acts.revoke_key,
    ),
    Route(
        "plans list",
        "GET",
        "/plans",
        "List the plans",
        wire.Nothing,
        wire.Nothing,
        wire.PlansTold,
        acts.list_plans,
    ),
    Route(
        "credits grant",
        "POST",
        _ACCOUNT + "/grants",
        "Give credits, once for an id",
        wire.AccountQuery,
        wire.NewGrant,
        wire.GrantTold,
        acts.grant_credits,
    ),
    Route(
        "credits void",
        "POST",
        _ACCOUNT + "/grants/{grant}/void",
        "Take back what is left of a grant",
        wire.GrantQuery,
        wire.Nothing,
        wire.VoidTold,
        acts.void_grant,
    ),
    Route(
        "credits adjust",
        "POST",
        _ACCOUNT + "/adjustments",
        "Correct an account's credit, once for an id",
        wire.AccountQuery,
        wire.NewAdjustment,
        wire.AdjustmentTold,
        acts.adjust_credits,
    ),
    Route(
        "usage show",
        "GET",
        _ACCOUNT + "/usage",
        "Totals of days, by key and model",
        wire.UsageQuery,
        wire.Nothing,
        wire.UsageTold,
        acts.show_usage,
    ),
    Route(
        "usage export",
        "GET",
        _ACCOUNT + "/postings",
        "All postings, oldest first, as a file",
        wire.ExportQuery,
        wire.Nothing,
        None,
        acts.export_postings,
    ),
    Route(
        "usage check",
        "GET",
        _ACCOUNT + "/reconciliation",
        "Whether an account's books add up",
        wire.AccountQuery,
        wire.Nothing,
        wire.ReconciliationTold,
        acts.check_usage,
    ),
)
