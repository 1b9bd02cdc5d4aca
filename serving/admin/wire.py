"""What the admin API is sent and what it answers, with the bounds of each field.

Amounts are credits, exactly, as decimal text (`"12.5"`), like on the command line; answers have beside each one the
same amount as an integer of microcredits. Times are Unix times in milliseconds, 0 for never. Days are UTC.

Unlike in the dialects, an unknown field fails a request: no client sends whole presets here, and `expire` for `expires`
would be credit for good.
"""

import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

_AMOUNT = r"^-?[0-9]{1,12}(\.[0-9]{1,6})?$"

AccountId = Annotated[str, Meta(max_length=64, description="The account.")]
PlanId = Annotated[str, Meta(max_length=64, description="The plan.")]
GrantId = Annotated[str, Meta(max_length=128, description="The grant.")]
ActId = Annotated[
    str, Meta(max_length=128, description="Your choice, like an invoice's number: said again, it is done once.")
]
ModelId = Annotated[str, Meta(max_length=1024)]
Amount = Annotated[
    str,
    Meta(
        max_length=20,
        description='Credits as a decimal text with at most six decimals, like "12.5".',
        extra_json_schema={"pattern": _AMOUNT},
    ),
]
LastDay = Annotated[datetime.date, Meta(description="The last day (UTC) it works; it does not end by default.")]
Limit = Annotated[int, Meta(ge=1, le=1000, description="The most to list.")]


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is sent: in the address, or in the body."""


class Nothing(Asked):
    """No values."""


# ---- addresses -------------------------------------------------------------------------------------------------------


class AccountsQuery(Asked):
    limit: Limit = 100
    after: Annotated[AccountId, Meta(description="List what comes behind this account.")] = ""


class AccountQuery(Asked):
    account: AccountId


class GrantQuery(Asked):
    account: AccountId
    grant: GrantId


class KeysQuery(Asked):
    account: Annotated[AccountId | None, Meta(description="Only those of this account.")] = None
    limit: Limit = 100
    after: Annotated[str, Meta(max_length=64, description="List what comes behind the key with this id.")] = ""


class KeyQuery(Asked):
    id: Annotated[str, Meta(max_length=64, description="The key's id.")]


class UsageQuery(Asked):
    account: AccountId
    first: Annotated[datetime.date | None, Meta(description="The first day; the first of this month by default.")] = (
        msgspec.field(name="from", default=None)
    )
    last: Annotated[datetime.date | None, Meta(description="The last day; today by default.")] = msgspec.field(
        name="until", default=None
    )


class ExportQuery(Asked):
    account: AccountId
    format: Annotated[Literal["csv", "jsonl"], Meta(description="CSV with a heading (by default), or JSON lines.")] = (
        "csv"
    )


# ---- bodies ----------------------------------------------------------------------------------------------------------


class NewAccount(Asked):
    account: Annotated[AccountId, Meta(description="Its id, your choice: letters, digits and `.` `_` `@` `-`.")]
    plan: PlanId


class NewPlan(Asked):
    plan: PlanId


class NewKey(Asked):
    account: Annotated[AccountId, Meta(description="The account that pays.")]
    name: Annotated[str, Meta(max_length=200, description="What it is for, for people.")]
    models: Annotated[
        Annotated[list[ModelId], Meta(min_length=1, max_length=1024)] | None,
        Meta(description="The models it may use; all of the plan by default."),
    ] = None
    cap: Annotated[Amount | None, Meta(description="The most credits it may ever spend; no such limit by default.")] = (
        None
    )
    expires: LastDay | None = None


class NewGrant(Asked):
    id: ActId
    amount: Amount
    kind: Annotated[Literal["purchase", "gift"], Meta(description="What it is recorded as; `purchase` by default.")] = (
        "purchase"
    )
    expires: LastDay | None = None


class NewAdjustment(Asked):
    id: ActId
    amount: Annotated[Amount, Meta(description='Credits as a decimal text; negative ones are taken, like "-0.5".')]


# ---- answers ---------------------------------------------------------------------------------------------------------


class GrantTold(msgspec.Struct):
    """A grant as it stands: amount = used + held + free + expired."""

    id: str
    kind: Literal["plan", "purchase", "gift", "adjustment"]
    amount: str
    amount_microcredits: int
    free: str
    free_microcredits: int
    held: str
    held_microcredits: int
    used: str
    used_microcredits: int
    expired: str
    expired_microcredits: int
    effective_ms: int
    expires_ms: int


class AccountTold(msgspec.Struct):
    """An account as it stands. Where `metered` is false the plan asks for no credit. `running`: open requests."""

    account: str
    plan: str
    state: Literal["active", "suspended"]
    metered: bool
    created_ms: int
    running: int
    free: str
    free_microcredits: int
    held: str
    held_microcredits: int
    used: str
    used_microcredits: int
    grants: list[GrantTold]


class AccountsTold(msgspec.Struct):
    """`next` is the `after` of the next page, null on the last one."""

    accounts: list[AccountTold]
    next: str | None


class KeyTold(msgspec.Struct, kw_only=True):
    """A key without its text: `shown` is its beginning. `models` null: all of the plan. `cap` null: no such limit."""

    id: str
    account: str
    name: str
    shown: str
    state: Literal["active", "expired", "revoked"]
    models: list[str] | None
    cap: str | None
    cap_microcredits: int | None
    used: str
    used_microcredits: int
    held: str
    held_microcredits: int
    created_ms: int
    expires_ms: int
    revoked_ms: int
    last_used_ms: int


class NewKeyTold(KeyTold, kw_only=True):
    """`key` is the key's text: it is not stored, and never told again."""

    key: str


class KeysTold(msgspec.Struct):
    """`next` is the `after` of the next page, null on the last one."""

    keys: list[KeyTold]
    next: str | None


class PlanTold(msgspec.Struct):
    """A plan; null is no limit, and as `models` every model. Not metered: no credit is asked for."""

    id: str
    metered: bool
    monthly_credits: str | None
    monthly_microcredits: int | None
    price_percent: int
    models: list[str] | None
    max_concurrent: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_context_tokens: int | None
    max_output_tokens: int | None
    api: bool


class PlansTold(msgspec.Struct):
    plans: list[PlanTold]


class VoidTold(msgspec.Struct):
    """What was taken back of a grant; said again, the same."""

    grant: str
    taken: str
    taken_microcredits: int


class AdjustmentTold(msgspec.Struct):
    id: str
    amount: str
    amount_microcredits: int


class Used(msgspec.Struct):
    """What was used. `prompt_tokens` are with the cached ones."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: str
    cost_microcredits: int


class DayUsed(Used):
    """What one key used of one model on one day."""

    day: str
    key_id: str
    model: str


class UsageTold(msgspec.Struct):
    """From the first day to the last one. Days without usage are left out."""

    account: str
    first: str = msgspec.field(name="from")
    last: str = msgspec.field(name="until")
    total: Used
    days: list[DayUsed]


class ReconciliationTold(msgspec.Struct):
    """Differences between the postings and what the books say besides; all are 0 where they add up. While requests run
    they may be off for a moment.

    `credit`: the postings' amounts, less what is free and held of the grants. `used`: their costs, less the account's
    own sum. `days`: the day totals, less that sum. `held`: what the account holds, less what its grants hold.
    `duplicates`: requests charged or corrected more than once.
    """

    account: str
    adds_up: bool
    credit: str
    credit_microcredits: int
    used: str
    used_microcredits: int
    days: str
    days_microcredits: int
    held: str
    held_microcredits: int
    duplicates: int


class AdminErrorBody(msgspec.Struct):
    """`code` is stable and for programs; `param` names the field that is wrong."""

    code: str
    message: str
    param: str | None


class AdminError(msgspec.Struct):
    error: AdminErrorBody
