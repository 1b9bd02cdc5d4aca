"""The command line: thin commands over the same services as the API. Nothing heavy is imported before it is needed."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from serving import __version__, settings
from serving.accounts.keys import DamagedKeyFile, KeyFile, load_pepper

_SECRETS = ("api_key", "key_pepper")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        overrides = {name: getattr(options, name, None) for name in ("host", "port", "config")}
        configured = settings.load(overrides=overrides)
        status: int = options.run(configured, options)
    except (settings.SettingsError, DamagedKeyFile) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serving", description="Serve story and role-play language models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="start the server")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default 8000)")
    serve.add_argument("--config", type=Path, help="a serving.toml (default: the bundled demo model)")
    serve.set_defaults(run=_serve)

    show = commands.add_parser("settings", help="show the settings in force")
    show.add_argument("--config", type=Path, help="a serving.toml")
    show.add_argument("--json", action="store_true", help="for scripts")
    show.set_defaults(run=_settings)

    keys = commands.add_parser("keys", help="make, list and revoke API keys").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = keys.add_parser("create", help="make a key; its text is shown once")
    create.add_argument("name", help="what the key is for, for people")
    create.add_argument("--account", default="default", help="the account that pays (default: default)")
    create.add_argument("--models", help="model ids it may use, separated by commas (default: all)")
    create.set_defaults(run=_create_key)
    listing = keys.add_parser("list", help="list the keys")
    listing.set_defaults(run=_list_keys)
    revoke = keys.add_parser("revoke", help="revoke a key; a running server refuses it within a second")
    revoke.add_argument("id", help="the key's id, as `keys list` shows it")
    revoke.set_defaults(run=_revoke_key)
    for command in (create, listing, revoke):
        command.add_argument("--config", type=Path, help="a serving.toml")
        command.add_argument("--json", action="store_true", help="for scripts")
    return parser


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


def _create_key(configured: settings.Settings, options: argparse.Namespace) -> int:
    models = None
    if options.models is not None:
        models = tuple(item.strip() for item in options.models.split(",") if item.strip())
        if not models:
            raise settings.SettingsError("--models names no model; leave it out to allow all.")
        known = [model.id for model in configured.models]
        if unknown := [model for model in models if model not in known]:
            raise settings.SettingsError(f"unknown model {unknown[0]!r}; configured are: {', '.join(known)}.")
    key, record = _keys(configured).create(options.name, options.account, models)
    if options.json:
        print(json.dumps({"key": key, "id": record.id}))
    else:
        print(f"{key}\n\nThis is {record.id}. Keep the key now: it is not stored and cannot be shown again.")
    return 0


def _list_keys(configured: settings.Settings, options: argparse.Namespace) -> int:
    records = _keys(configured).records()
    if options.json:
        print(json.dumps([{**asdict(record), "digest": None} for record in records], indent=1))
        return 0
    rows = [("ID", "KEY", "ACCOUNT", "MODELS", "NAME")]
    rows += [(r.id, r.shown, r.account, "all" if r.models is None else ",".join(r.models), r.name) for r in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _revoke_key(configured: settings.Settings, options: argparse.Namespace) -> int:
    record = _keys(configured).revoke(options.id)
    if record is None:
        raise settings.SettingsError(f"there is no key with the id {options.id!r}; see `serving keys list`.")
    print(json.dumps({"revoked": record.id}) if options.json else f"Revoked {record.id} ({record.name}).")
    return 0


def _keys(configured: settings.Settings) -> KeyFile:
    return KeyFile(configured.data_dir / "keys.json", load_pepper(configured.data_dir, configured.key_pepper))
