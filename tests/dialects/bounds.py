"""Every declared field of a wire model with its bounds, found by reflection, so that no test forgets one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

Path = tuple[str | int, ...]
"""Keys and indexes that lead from a body to a field, as they are spelled on the wire."""


@dataclass(frozen=True)
class Field:
    """One field at `path`. `kind` is its type without null; a union has several fields of one path."""

    path: Path
    kind: inspect.Type

    @property
    def name(self) -> str:
        """`samplingParams.stopSequences[0]`"""
        return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).removeprefix(".")


def fields(wire: type[msgspec.Struct]) -> Iterator[Field]:
    """Every field, also those inside of structs and lists."""
    yield from _walk(inspect.type_info(wire), ())


def _walk(kind: inspect.Type, path: Path) -> Iterator[Field]:
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _walk(member, path)
        return
    if isinstance(kind, inspect.NoneType):
        return
    if path:
        yield Field(path, kind)
    if isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from _walk(field.type, (*path, field.encode_name))
    elif isinstance(kind, inspect.ListType):
        yield from _walk(kind.item_type, (*path, 0))


def beyond(kind: inspect.Type) -> Iterator[Any]:
    """Values just outside of each bound of a type."""
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        step = 1 if isinstance(kind, inspect.IntType) else 1e-6
        if kind.ge is not None:
            yield kind.ge - step
        if kind.gt is not None:
            yield kind.gt
        if kind.le is not None:
            yield kind.le + step
        if kind.lt is not None:
            yield kind.lt
    elif isinstance(kind, inspect.StrType):
        if kind.max_length is not None:
            yield "x" * (kind.max_length + 1)
    elif isinstance(kind, inspect.ListType):
        item = example(kind.item_type)
        if kind.max_length is not None:
            yield [item] * (kind.max_length + 1)
        if kind.min_length:
            yield [item] * (kind.min_length - 1)
    elif isinstance(kind, inspect.DictType):
        if kind.max_length is not None:
            yield {str(number): 0 for number in range(kind.max_length + 1)}
        yield from ({"1": value} for value in beyond(_bare(kind.value_type)))
        yield from ({str(key): 0} for key in beyond(_bare(kind.key_type)))
    elif isinstance(kind, inspect.LiteralType):
        yield "no such word"


def within(kind: inspect.Type) -> Iterator[Any]:
    """Numbers at each bound of a type."""
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        yield from (value for value in (kind.ge, kind.le) if value is not None)


def wrong(kind: inspect.Type) -> Iterator[Any]:
    """Values of other types."""
    if not isinstance(kind, inspect.AnyType):
        candidates: dict[type[inspect.Type], Any] = {
            inspect.StrType: "x",
            inspect.LiteralType: "x",
            inspect.IntType: 1,
            inspect.FloatType: 1.5,
            inspect.BoolType: True,
            inspect.ListType: [],
            inspect.StructType: {},
            inspect.DictType: {},
        }
        own = type(kind)
        yield from (value for other, value in candidates.items() if not _overlap(own, other))


def _overlap(own: type[inspect.Type], other: type[inspect.Type]) -> bool:
    alike: list[set[type[inspect.Type]]] = [
        {inspect.StrType, inspect.LiteralType},
        {inspect.IntType, inspect.FloatType},
        {inspect.StructType, inspect.DictType},
    ]
    return own is other or any({own, other} <= kinds for kinds in alike)


def example(kind: inspect.Type) -> Any:  # noqa: ANN401  # JSON
    """A valid value."""
    kind = _bare(kind)
    if isinstance(kind, inspect.StructType):
        return {field.encode_name: example(field.type) for field in kind.fields if field.required}
    if isinstance(kind, inspect.LiteralType):
        return kind.values[0]
    if isinstance(kind, inspect.ListType):
        return [example(kind.item_type)] * (kind.min_length or 0)
    values: dict[type[inspect.Type], Any] = {inspect.IntType: 1, inspect.FloatType: 1.0, inspect.BoolType: True}
    return values.get(type(kind), "text")


def put(body: dict[str, Any], wire: type[msgspec.Struct], path: Path, value: object) -> dict[str, Any]:
    """The body with `value` at `path`; what must stand around it is added."""
    told: Any = msgspec.json.decode(msgspec.json.encode(body))
    here, kind = told, inspect.type_info(wire)
    for number, key in enumerate(path):
        kind = _step(kind, key)
        last = number == len(path) - 1
        if isinstance(key, int):
            here[:] = [value if last else example(kind)]
        elif last:
            here[key] = value
        elif not isinstance(here.get(key), dict) or not here[key]:
            here[key] = example(kind)
        here = here[key]
    found: dict[str, Any] = told
    return found


def _step(kind: inspect.Type, key: str | int) -> inspect.Type:
    """The type behind one key; of a union that which can be stepped into further, if any."""
    kind = _bare(kind)
    if isinstance(kind, inspect.ListType):
        return _bare(kind.item_type)
    assert isinstance(kind, inspect.StructType)
    return _bare(next(field.type for field in kind.fields if field.encode_name == key))


def _bare(kind: inspect.Type) -> inspect.Type:
    if isinstance(kind, inspect.Metadata):
        return _bare(kind.type)
    if isinstance(kind, inspect.UnionType):
        members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        containers = [m for m in members if isinstance(_bare(m), inspect.ListType | inspect.StructType)]
        return _bare((containers or members)[0])
    return kind
