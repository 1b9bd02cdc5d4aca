"""Writes the tables of these pages from the code, between their markers. `python docs/generate.py` after a change.

A test fails when a table is stale. What is between markers is not edited by hand.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

import serving.errors
from serving import core, telemetry
from serving.admin.routes import ROUTES
from serving.app import DIALECTS
from serving.dialects.base import Dialect, posted
from serving.dialects.openai.preset import UnusedFields, declared
from serving.errors import ServingError
from serving.ledger.scripts import read_layout
from serving.settings import ModelSettings, Settings

_LONG = 20
FOLDER = Path(__file__).parent
PAGES = ("dialects.md", "ledger.md", "operating.md")
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w. ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DEFAULTS = {
    field.name: field.default
    for kind in (core.Sampling, core.Stopping, core.GenerationRequest)
    for field in fields(kind)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
}
"""What a field means when it is not sent, for those whose name is core's."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# ---- dialects --------------------------------------------------------------------------------------------------------


def endpoints(dialect: Dialect) -> str:
    def rows() -> Iterator[list[str]]:
        for endpoint in posted(dialect):
            yield [
                f"`POST {endpoint.path}`",
                endpoint.summary,
                _code((*endpoint.whole_media_types, *endpoint.stream_media_types)),
            ]
        for listing in dialect.listings:
            path = listing.path.replace(":path", "")
            yield [
                _code(f"{method} {path}" for method in listing.methods),
                listing.summary,
                _code(listing.whole_media_types),
            ]
        for call in dialect.calls:
            if call.prefixes is None:
                yield [
                    _code(f"{method} {call.path}" for method in call.methods),
                    call.summary,
                    _code(call.whole_media_types),
                ]

    where = f"Mounted under {_code(prefix or '/' for prefix in dialect.prefixes)}.\n\n"
    return where + table(("Address", "What it does", "Answers"), rows())


def request_fields(dialect: Dialect, wire: type[msgspec.Struct]) -> str:
    """The fields of a request, but for those of another one that it extends."""
    told_already = inherited(dialect, wire)
    rows = _rows(inspect.type_info(wire), "")
    return table(
        ("Field", "Type", "Default", "Meaning"),
        (row for row in rows if row[0].strip("`").split(".")[0].removesuffix("[]") not in told_already),
    )


def inherited(dialect: Dialect, wire: type[msgspec.Struct]) -> set[str]:
    """Names of the fields that a request has from that of another endpoint."""
    others = (endpoint.wire for endpoint in dialect.endpoints if endpoint.wire in wire.__mro__[1:])
    return {field.encode_name for other in others for field in msgspec.structs.fields(other)}


def call_fields(dialect: Dialect) -> str:
    """What may be sent to the endpoints that answer a body without a generation; not what is inside of a field."""
    addresses: dict[type[msgspec.Struct], list[str]] = {}
    generating = {endpoint.wire for endpoint in dialect.endpoints}
    for call in dialect.calls:
        if call.prefixes is None and call.wire not in generating:  # those elsewhere take the same
            addresses.setdefault(call.wire, []).append(call.path)

    def rows() -> Iterator[list[str]]:
        for wire, paths in addresses.items():
            yield from ([_code(paths), *row] for row in _rows(inspect.type_info(wire), "") if "." not in row[0])

    return table(("Address", "Field", "Type", "Default", "Meaning"), rows())


def _rows(kind: inspect.Type, prefix: str) -> Iterator[list[str]]:
    assert isinstance(kind, inspect.StructType)
    for field in kind.fields:
        if (unused := getattr(field.type, "extra", None)) and "unused" in unused:
            continue  # it has a table of its own
        told = _members(field.type)
        name = prefix + field.encode_name
        yield [f"`{name}`", " or ".join(filter(None, map(_type, told))), _meant(field), _meaning(field.type)]
        for member in told:
            inner = _bare(member.item_type) if isinstance(member, inspect.ListType) else member
            if isinstance(inner, inspect.StructType):
                yield from _rows(inner, f"{name}[]." if isinstance(member, inspect.ListType) else f"{name}.")


def _meant(field: inspect.Field) -> str:
    """What a field means when it is not sent: as its dialect says, else as core does."""
    if field.required:
        return "required"
    default = _DEFAULTS.get(field.name) if field.default is None else field.default
    return f"{default:g}" if isinstance(default, int | float) and not isinstance(default, bool) else ""


def unused_options() -> str:
    """The options that are taken and change nothing."""

    def rows() -> Iterator[list[str]]:
        for name, option in declared(UnusedFields).items():
            of = "" if option.of is None else f"`{option.of}`"
            yield [f"`{name}`", f"{option.does[0].upper()}{option.does[1:]}.", _neutral(option.neutral), of]

    return table(("Option", "What it is elsewhere", "Asks for nothing", "Nor without"), rows())


def _neutral(values: Iterable[object]) -> str:
    """Values as JSON; a long one is one that clients send without being asked to."""
    told = [json.dumps(value) for value in values]
    usual = ["the usual order"] if any(len(value) > _LONG for value in told) else []
    return ", ".join([f"`{value}`" for value in told if len(value) <= _LONG] + usual)


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _members(kind: inspect.Type) -> list[inspect.Type]:
    """The types that a field may have, without null."""
    kind = _bare(kind)
    if isinstance(kind, inspect.UnionType):
        return [member for each in kind.types for member in _members(each)]
    return [] if isinstance(kind, inspect.NoneType) else [kind]


def _meaning(kind: inspect.Type) -> str:
    """The description of a field, the outer one first."""
    if isinstance(kind, inspect.Metadata):
        return (kind.extra_json_schema or {}).get("description") or _meaning(kind.type)
    if isinstance(kind, inspect.UnionType):
        return next(filter(None, map(_meaning, kind.types)), "")
    return ""


def _type(kind: inspect.Type) -> str:
    kind = _bare(kind)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return ("integer" if isinstance(kind, inspect.IntType) else "number") + _range(kind)
    if isinstance(kind, inspect.StrType):
        return "string" + (f" of up to {kind.max_length} characters" if kind.max_length else "")
    if isinstance(kind, inspect.LiteralType):
        return _code(str(value) for value in kind.values)
    if isinstance(kind, inspect.ListType):
        items = " or ".join(_type(member) for member in _members(kind.item_type))
        return "list" + (f" of up to {kind.max_length}" if kind.max_length else "") + f": {items}"
    if isinstance(kind, inspect.DictType):
        return "object" + (f" of up to {kind.max_length} entries" if kind.max_length else "")
    names = {inspect.BoolType: "boolean", inspect.StructType: "object", inspect.AnyType: "", inspect.DateType: "date"}
    return names[type(kind)]


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = (
        f"over {_number(kind.gt)}" if kind.gt is not None else f"from {_number(kind.ge)}" if kind.ge is not None else ""
    )
    high = f"to {_number(kind.le)}" if kind.le is not None else ""
    return "".join(f" {part}" for part in (low, high) if part)


def _number(value: float) -> str:
    powers = {2**31 - 1: "2^31-1", 2**63 - 1: "2^63-1", -(2**63): "-2^63"}
    return powers.get(int(value), "") if value in powers else f"{value:,.10g}"


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in dict.fromkeys(words))


# ---- operating -------------------------------------------------------------------------------------------------------


def settings() -> str:
    def rows() -> Iterator[list[str]]:
        for field in fields(Settings):
            variable = "" if field.name == "models" else f"`SERVING_{field.name.upper()}`"
            default = "the demo model" if field.name == "models" else _default(field.default)
            yield [f"`{field.name}`", variable, default, field.metadata["doc"]]

    return table(("Key", "Variable", "Default", "Meaning"), rows())


def _kind_of(name: str, hint: Any, tables: set[str]) -> str:  # noqa: ANN401  # a type
    return "table" if name in tables else {float: "number", bool: "boolean"}.get(hint, "string")


def models() -> str:
    hints = get_type_hints(ModelSettings)
    required = {field.name for field in fields(ModelSettings) if _default(field.default) == "required"}
    tables = {"engine", "price", "categories", "sizes"}
    return table(
        ("Key", "Type", "", "Meaning"),
        (
            [
                f"`{field.name}`",
                _kind_of(field.name, hints[field.name], tables),
                "required" if field.name in required - tables else "",
                field.metadata["doc"],
            ]
            for field in fields(ModelSettings)
            if field.name in hints
        ),
    )


def _default(value: Any) -> str:  # noqa: ANN401  # a field's default
    if value is None or value == ():
        return ""
    if type(value).__name__ == "_MISSING_TYPE":
        return "required"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def metrics() -> str:
    def rows() -> Iterator[list[str]]:
        for series in vars(telemetry).values():
            if isinstance(series, MetricWrapperBase):
                name = series._name + ("_total" if isinstance(series, Counter) else "")
                kind = type(series).__name__.lower()
                yield [f"`{name}`", kind, _code(series._labelnames), series._documentation + "."]

    return table(("Series", "Kind", "Labels", "Meaning"), rows())


def errors() -> str:
    meanings = dict(re.findall(r"([A-Z]\w+) +\d{3}  (.+)", serving.errors.__doc__ or ""))

    def rows(kind: type[ServingError] = ServingError) -> Iterator[list[str]]:
        for child in kind.__subclasses__():
            if child.__module__ != serving.errors.__name__:
                continue  # A finer kind of one module's own: the same answer on the wire.
            meaning = meanings[child.__name__].replace("; `param` names it", "")
            yield [str(child.status), f"`{child.code}`", meaning[0].upper() + meaning[1:] + "."]
            yield from rows(child)

    return table(("Status", "Code", "Meaning"), rows())


def admin_routes() -> str:
    rows = ([f"`{route.method} {route.path}`", f"`{route.name}`", f"{route.summary}."] for route in ROUTES)
    return table(("Address under `/admin/v1`", "Command", "What it does"), rows)


def admin_fields() -> str:
    """What may be sent with each address, but for what stands in its path."""

    def rows() -> Iterator[list[str]]:
        for route in ROUTES:
            for kind in (route.address, route.body):
                for field, kind_of, default, meaning in _rows(inspect.type_info(kind), ""):
                    if f"{{{field.strip('`')}}}" not in route.path:
                        where = "address" if kind is route.address else "body"
                        yield [f"`{route.name}`", field, where, kind_of, default, meaning]

    return table(("Command", "Field", "In", "Type", "Default", "Meaning"), rows())


# ---- pages -----------------------------------------------------------------------------------------------------------


def ledger_records() -> str:
    """The fields of the ledger's records in Redis, in their order."""
    layout = read_layout().items()
    return table(
        ["record", "field", "what"],
        (
            [record, f"{place} `{name}`", what]
            for record, of in layout
            for place, (name, what) in enumerate(of.items(), 1)
        ),
    )


def tables() -> dict[str, str]:
    """Every generated part, by the name in its marker."""
    told = {"settings": settings(), "models": models(), "metrics": metrics(), "errors": errors()}
    told["unused options"] = unused_options()
    told |= {"admin routes": admin_routes(), "admin fields": admin_fields(), "ledger records": ledger_records()}
    seen: set[object] = set()
    for dialect in DIALECTS:
        told[f"{dialect.name} endpoints"] = endpoints(dialect)
        if not seen.issuperset(call.wire for call in dialect.calls):
            told[f"{dialect.name} calls"] = call_fields(dialect)
        for endpoint in posted(dialect):
            if endpoint.wire not in seen:
                told[f"{dialect.name} {endpoint.name}"] = request_fields(dialect, endpoint.wire)
        seen.update(endpoint.wire for endpoint in posted(dialect))
        seen.update(call.wire for call in dialect.calls)
    return told


def names(text: str) -> list[str]:
    """The names of the generated parts of a page."""
    return [match["name"] for match in _BLOCK.finditer(text)]


def filled(text: str) -> str:
    """A page with its tables as the code has them now."""
    made = tables()
    return _BLOCK.sub(lambda match: f"{match[1]}\n{made[match['name']]}\n{match[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        path = FOLDER / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
