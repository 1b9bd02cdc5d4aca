"""Parts of an OpenAPI description that are made of wire models."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec


def parameters(path: str, values: type[msgspec.Struct]) -> Iterator[dict[str, Any]]:
    """The values in an address: those of its path, and those behind the question mark."""
    in_path = re.findall(r"{(\w+)", path)
    schema = msgspec.json.schema_components([values])[1][values.__name__]
    for name, told in schema["properties"].items():
        where = "path" if name in in_path else "query"
        yield {"name": name, "in": where, "required": name in schema["required"], "schema": told}
