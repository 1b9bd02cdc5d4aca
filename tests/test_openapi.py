"""The OpenAPI document: complete, consistent with the wire models, and valid."""

from typing import Any

import httpx
import pytest

from serving.app import DIALECTS
from serving.dialects.base import Listing, Posted, posted
from tests.dialects.bounds import fields


@pytest.fixture(scope="module")
async def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.service import running

    async with running(tmp_path_factory.mktemp("data")) as run:
        response: httpx.Response = await run.client.get("/openapi.json")
        found: dict[str, Any] = response.json()
        return found


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        *_, name = schema["$ref"].split("/")
        schema = document["components"]["schemas"][name]
    return schema


def references(part: object) -> set[str]:
    if isinstance(part, list):
        return {reference for item in part for reference in references(item)}
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own | {reference for item in part.values() for reference in references(item)}
    return set()


def test_every_endpoint_is_described(document: dict[str, Any]) -> None:
    for dialect in DIALECTS:
        for prefix in dialect.prefixes:
            described: list[Posted | Listing[Any]] = [*posted(dialect), *dialect.listings]
            for endpoint in described:
                path = (prefix + endpoint.path).replace(":path", "")
                methods = {m.lower() for m in endpoint.methods} if isinstance(endpoint, Listing) else {"post"}
                assert set(document["paths"][path]) == methods
                for operation in document["paths"][path].values():
                    check(operation, dialect.name)
        for call in dialect.calls:
            for prefix in call.prefixes or dialect.prefixes:
                for method in call.methods:
                    operation = document["paths"][prefix + call.path][method.lower()]
                    check(operation, dialect.name)
                    schema = resolve(document, operation["requestBody"]["content"]["application/json"]["schema"])
                    assert set(schema["properties"]) == {field.path[0] for field in fields(call.wire)}


def check(operation: dict[str, Any], dialect: str) -> None:
    assert operation["tags"] == [dialect]
    assert operation["security"] == [{"bearer": []}]
    assert set(operation["responses"]) == {"200", "default"}


def test_operation_ids_differ(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    assert len(references(document)) > 10


def test_every_bound_is_told(document: dict[str, Any]) -> None:
    for dialect in DIALECTS:
        for endpoint in posted(dialect):
            operation = document["paths"][dialect.prefixes[0] + endpoint.path]["post"]
            (content,) = operation["requestBody"]["content"].values()
            schema = resolve(document, content["schema"])
            declared = {field.path[0] for field in fields(endpoint.wire)}
            assert declared == set(schema["properties"])
    sampling = document["components"]["schemas"]["SamplingParams"]["properties"]["temperature"]["anyOf"]
    assert {"type": "number", "minimum": 0, "maximum": 5} in [
        {key: value for key, value in option.items() if key != "description"} for option in sampling
    ]


def test_media_types_are_those_of_the_answers(document: dict[str, Any]) -> None:
    for dialect in DIALECTS:
        for endpoint in posted(dialect):
            operation = document["paths"][dialect.prefixes[0] + endpoint.path]["post"]
            told = set(operation["responses"]["200"]["content"])
            assert told == {*endpoint.whole_media_types, *endpoint.stream_media_types}


def test_values_in_an_address_are_told(document: dict[str, Any]) -> None:
    def told(path: str) -> dict[str, tuple[str, bool]]:
        parameters = document["paths"][path]["get"].get("parameters", [])
        return {parameter["name"]: (parameter["in"], parameter["required"]) for parameter in parameters}

    assert told("/v1/models") == {}
    assert told("/v1/models/{model}") == {"model": ("path", True)}
    assert told("/v1/billing/usage") == {"start_date": ("query", False), "end_date": ("query", False)}
    (start, _) = document["paths"]["/v1/billing/usage"]["get"]["parameters"]
    assert (start["schema"]["type"], start["schema"]["format"]) == ("string", "date")
