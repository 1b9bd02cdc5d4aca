"""The command line: thin commands over the same services as the API. Nothing heavy is imported before it is needed."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from serving import __version__, commands, settings
from serving.accounts.admin import expiry_ms
from serving.accounts.credits import parse_credits
from serving.accounts.plans import PlanError
from serving.errors import ServingError

if TYPE_CHECKING:
    Group: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

_SECRETS = ("api_key", "key_pepper", "redis_url", "admin_key")


def main(arguments: Sequence[str] | None = None, *, open_books: commands.OpenBooks | None = None) -> int:
    """Run one command. Returns the exit status. `open_books` replaces the books of the settings."""
    options = _parser().parse_args(arguments)
    options.open_books = open_books
    try:
        overrides = {name: getattr(options, name, None) for name in ("host", "port", "config")}
        configured = settings.load(overrides=overrides)
        status: int = options.run(configured, options)
        sys.stdout.flush()
    except (settings.SettingsError, PlanError, ServingError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who reads has enough, like `head`. What is still buffered must not fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serving", description="Serve story and role-play language models.")
    parser.add_argument("--version", action="version", version=__version__)
    groups = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = groups.add_parser("serve", help="start the server", parents=[_config()])
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default 8000)")
    serve.set_defaults(run=_serve)
    show = groups.add_parser("settings", help="show the settings in force", parents=[_config(), _json()])
    show.set_defaults(run=_settings)

    _add_accounts(groups)
    _add_keys(groups)
    plans = _group(groups, "plans", "list the plans")
    listing = plans.add_parser("list", help="list the plans", parents=[_config(), _json()])
    listing.set_defaults(run=commands.list_plans)
    _add_credits(groups)
    _add_usage(groups)
    return parser


def _add_accounts(groups: "Group") -> None:
    accounts = _group(groups, "accounts", "make, list and change accounts")
    create = _command(accounts, "create", commands.create_account, "make an account", account="its id, your choice")
    create.add_argument("--plan", required=True, help="the plan's id, as `plans list` shows it")
    _command(accounts, "list", commands.list_accounts, "list the accounts")
    an_account = {"account": "the account's id"}
    _command(accounts, "show", commands.show_account, "show an account and its grants", **an_account)
    _command(
        accounts, "suspend", commands.suspend_account, "refuse an account, and end its requests that run", **an_account
    )
    _command(accounts, "resume", commands.resume_account, "let a suspended account go on", **an_account)
    _command(accounts, "plan", commands.change_plan, "change an account's plan", **an_account, plan="the new plan's id")


def _add_keys(groups: "Group") -> None:
    keys = _group(groups, "keys", "make, list and revoke API keys")
    create = _command(
        keys, "create", commands.create_key, "make a key; its text is shown once", name="what it is for, for people"
    )
    create.add_argument("--account", help="the account that pays (default: the demo account)")
    create.add_argument("--models", help="model ids it may use, separated by commas (default: all of the plan)")
    create.add_argument("--cap", type=_credits, help="the most credits it may ever spend (default: no such limit)")
    create.add_argument("--expires", type=_expiry, default=0, metavar="DAY", help=_EXPIRES)
    listing = _command(keys, "list", commands.list_keys, "list the keys")
    listing.add_argument("--account", help="only those of this account")
    _command(
        keys,
        "revoke",
        commands.revoke_key,
        "revoke a key; servers refuse it within a second, and end its requests that run",
        id="the key's id, as `keys list` shows it",
    )


def _add_credits(groups: "Group") -> None:
    credits_ = _group(groups, "credits", "give and take credits")
    an_account = {"account": "the account's id"}
    grant = _command(
        credits_, "grant", commands.grant_credits, "give credits", **an_account, amount="in credits, like 12 or 0.04"
    )
    grant.add_argument("--id", help="the grant's id: said again, it is given once (default: a random one)")
    grant.add_argument("--gift", action="store_true", help="record it as a gift, not as a purchase")
    grant.add_argument("--expires", type=_expiry, default=0, metavar="DAY", help=_EXPIRES)
    _command(
        credits_,
        "void",
        commands.void_grant,
        "take back what is left of a grant",
        **an_account,
        grant="the grant's id, as `accounts show` shows it",
    )
    adjust = _command(
        credits_,
        "adjust",
        commands.adjust_credits,
        "correct an account's credit",
        **an_account,
        amount="in credits; negative ones are taken",
    )
    adjust.add_argument("--id", help="the adjustment's id: said again, it is made once (default: a random one)")


def _add_usage(groups: "Group") -> None:
    usage = _group(groups, "usage", "show and export what was used")
    show = _command(usage, "show", commands.show_usage, "totals of days (UTC)", account="the account's id")
    show.add_argument("--from", dest="first", type=_day, metavar="DAY", help="the first day (default: the month's)")
    show.add_argument("--until", dest="last", type=_day, metavar="DAY", help="the last day (default: today)")
    show.add_argument(
        "--check", action="store_true", help="whether all postings add up instead; exit status 1 when they do not"
    )
    export = usage.add_parser("export", help="write all postings of an account to stdout", parents=[_config()])
    export.add_argument("account", help="the account's id")
    export.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="CSV, or JSON lines (default: csv)")
    export.set_defaults(run=partial(commands.run, commands.export_postings))


_EXPIRES = "the last day (UTC) it works: a date, or in so many days (default: it does not end)"


def _group(groups: "Group", name: str, told: str) -> "Group":
    return groups.add_parser(name, help=told).add_subparsers(required=True, metavar="COMMAND")


def _command(
    group: "Group", name: str, work: commands.Work, told: str, /, **positional: str
) -> argparse.ArgumentParser:
    """A command on the books, with its positional arguments and their help; an `amount` is in credits."""
    command = group.add_parser(name, help=told, parents=[_config(), _json()])
    for argument, meaning in positional.items():
        command.add_argument(argument, type=_credits if argument == "amount" else str, help=meaning)
    command.set_defaults(run=partial(commands.run, work))
    return command


def _config() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path, help="a serving.toml (default: the bundled demo model)")
    return parser


def _json() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="for scripts; amounts are in microcredits there")
    return parser


def _telling(convert: Callable[[str], Any], text: str) -> Any:  # noqa: ANN401  # what convert makes of it
    """argparse shows the words of this kind of error alone."""
    try:
        return convert(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_credits = partial(_telling, parse_credits)
_day = partial(_telling, date.fromisoformat)
_expiry = partial(_telling, lambda text: expiry_ms(text, datetime.now(UTC)))


def _serve(configured: settings.Settings, options: argparse.Namespace) -> int:
    from serving import server, telemetry

    telemetry.configure_logging(configured.log_format)
    status = server.serve(configured)
    # Everything is shut down. The engine's libraries would use the interpreter's own end to print pages about leaks.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _settings(configured: settings.Settings, options: argparse.Namespace) -> int:
    values = asdict(configured)
    for name in _SECRETS:
        values[name] = "(set)" if values[name] else None
    if options.json:
        print(json.dumps(values, default=str, indent=1))
        return 0
    for setting in fields(configured):
        value = values[setting.name]
        if setting.name == "models":
            value = ", ".join(model.id for model in configured.models)
        print(f"{setting.name:<20} {'' if value is None else value!s:<24} {setting.metadata['doc']}")
    return 0
