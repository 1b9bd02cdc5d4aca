"""Plans: plans.toml -> `Plan` by id, checked strictly, so that a slip of the pen is not a free lunch.

The file's own comments say what each key means. Nothing here knows accounts or the ledger.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serving.accounts.credits import parse_credits
from serving.core import Plan

BUNDLED = Path(__file__).parent / "plans.toml"

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LIMITS = (
    "max_context_tokens",
    "max_output_tokens",
    "max_concurrent",
    "requests_per_minute",
    "tokens_per_minute",
)
_MOST = 1_000_000_000
"""Of a limit: more than a server can do, and far from where the ledger's numbers are no longer exact."""

_MOST_PERCENT = 10_000


class PlanError(ValueError):
    """A plan is wrong or absent; the message says where and what to do."""


def load_plans(path: Path | None = None) -> Mapping[str, Plan]:
    """The plans of a file (None: the bundled ones) by id, in its order. Raises PlanError."""
    path = path or BUNDLED
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"The plans {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is not valid TOML: {error}.") from error
    if not tables:
        raise PlanError(f"{path} has no plan: add a table, like [free].")
    return MappingProxyType({plan: _plan(plan, table, f"{path}: {plan}") for plan, table in tables.items()})


def plan_of(plans: Mapping[str, Plan], plan: str) -> Plan:
    """The plan with this id. Raises PlanError."""
    if plan not in plans:
        raise PlanError(f"There is no plan {plan!r}. Known are: {', '.join(plans)}.")
    return plans[plan]


def _plan(plan: str, table: Any, where: str) -> Plan:  # noqa: ANN401  # anything TOML can hold
    if not isinstance(table, dict):
        raise PlanError(f"{where} must be a table: write [{plan}].")
    if not _ID.fullmatch(plan):
        raise PlanError(f"{where}: a plan's id is made of lower case letters, digits, - and _.")
    known = [field.name for field in fields(Plan) if field.name != "id"]
    if unknown := sorted(set(table) - set(known)):
        raise PlanError(f"{where}: unknown key {unknown[0]!r}. Known are: {', '.join(known)}.")
    if "monthly_credits" not in table:
        raise PlanError(f'{where} lacks monthly_credits: a number of credits, or "unlimited".')
    return Plan(plan, **{name: _value(name, value, f"{where}.{name}") for name, value in table.items()})


def _value(name: str, value: Any, where: str) -> Any:  # noqa: ANN401  # in: TOML, out: the field's type
    if name == "monthly_credits":
        return _monthly_credits(value, where)
    if name == "models":
        if not isinstance(value, list) or not value or not all(isinstance(model, str) and model for model in value):
            raise PlanError(f"{where} must be a list of model ids; leave it out to allow all.")
        return frozenset(value)
    if name == "api":
        if not isinstance(value, bool):
            raise PlanError(f"{where} must be true or false.")
        return value
    least, most = (1, _MOST) if name in _LIMITS else (0, _MOST_PERCENT)
    if type(value) is not int or not least <= value <= most:
        raise PlanError(f"{where} must be a whole number from {least} to {most:,}.")
    return value


def _monthly_credits(value: Any, where: str) -> int | None:  # noqa: ANN401  # anything TOML can hold
    """Microcredits; None is not metered. A float would not be exact, so decimals stand in a string."""
    if value == "unlimited":
        return None
    if type(value) is not int and not isinstance(value, str):
        raise PlanError(f'{where} must be a whole number, a string like "12.5", or "unlimited".')
    try:
        amount = parse_credits(str(value))
    except ValueError as error:
        raise PlanError(f"{where}: {error}") from error
    if amount < 0:
        raise PlanError(f"{where} must be 0 or more.")
    return amount
