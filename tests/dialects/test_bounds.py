"""Every declared field of every request with values outside its bounds, at them, and of wrong types."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from msgspec import inspect

from serving.errors import InvalidRequest
from tests.dialects.adapters import ADAPTERS, Adapter
from tests.dialects.bounds import Field, beyond, fields, put, within, wrong
from tests.service import Running

Case = tuple[Adapter, Field, Any]
NUMBERS = inspect.IntType | inspect.FloatType


def every_field() -> Iterator[tuple[Adapter, Field]]:
    for adapter in ADAPTERS.values():
        for field in fields(adapter.endpoint.wire):
            yield adapter, field


def name_of(case: object) -> str:
    if isinstance(case, Adapter):
        return f"{case.dialect.name} {case.endpoint.name}"
    return case.name if isinstance(case, Field) else f"{str(case)[:12]}~{len(str(case))}"


BEYOND = [(adapter, field, value) for adapter, field in every_field() for value in beyond(field.kind)]
WITHIN = [(adapter, field, value) for adapter, field in every_field() for value in within(field.kind)]
NUMERIC = [(adapter, field) for adapter, field in every_field() if isinstance(field.kind, NUMBERS)]


async def send(run: Running, adapter: Adapter, field: Field, value: object) -> httpx.Response:
    base = adapter.body(stream=False)
    if field.path == ("top_logprobs",):
        base["logprobs"] = True
    body = put(base, adapter.endpoint.wire, field.path, value)
    return await run.client.post(adapter.path, content=json.dumps(body))


def names(adapter: Adapter, response: httpx.Response, field: Field) -> bool:
    """Whether an error names a field: as its `param`, or at the head of the message where there is no `param`."""
    error = adapter.errors.complaint(response.json())
    told = error.param or error.message.split(":")[0].split(" ")[0]
    return told.split("[")[0] == field.name.split("[")[0]


def test_bounds_are_found() -> None:
    bounded = {field.name for _, field, _ in BEYOND}
    assert {
        "samplingParams.temperature",
        "stop",
        "stop[0]",
        "messages",
        "logit_bias",
        "role_config.user.name",
    } <= bounded
    assert len(BEYOND) > 100


@pytest.mark.parametrize(("adapter", "field", "value"), BEYOND, ids=name_of)
async def test_a_value_beyond_its_bounds_is_refused_by_name(
    run: Running, adapter: Adapter, field: Field, value: object
) -> None:
    response = await send(run, adapter, field, value)
    assert response.status_code == adapter.errors.status(InvalidRequest), response.text
    assert names(adapter, response, field), response.text


@pytest.mark.parametrize(("adapter", "field", "value"), WITHIN, ids=name_of)
async def test_a_number_at_its_bound_passes(run: Running, adapter: Adapter, field: Field, value: object) -> None:
    response = await send(run, adapter, field, value)
    if field.path == ("max_tokens",) and value == 0:
        assert response.status_code == 400  # it needs echo
    elif "maxTotalTokens" in field.name and value == 1:
        assert response.status_code == 400  # the prompt is longer
    else:
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(("adapter", "field"), NUMERIC, ids=name_of)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**30)], ids=str)
async def test_a_number_that_is_none_is_refused(run: Running, adapter: Adapter, field: Field, value: float) -> None:
    response = await send(run, adapter, field, value)
    assert response.status_code == adapter.errors.status(InvalidRequest), response.text


@pytest.mark.parametrize("adapter", list(ADAPTERS.values()), ids=name_of)
async def test_a_value_of_another_type_is_refused_by_name(run: Running, adapter: Adapter) -> None:
    found = list(fields(adapter.endpoint.wire))
    tried = 0
    for field in found:
        kinds = [other.kind for other in found if other.path == field.path]
        for value in wrong(field.kind):
            if any(repr(value) not in map(repr, wrong(kind)) for kind in kinds):
                continue  # another member of the union takes it
            tried += 1
            response = await send(run, adapter, field, value)
            assert response.status_code == adapter.errors.status(InvalidRequest), (field, value)
            assert names(adapter, response, field), (field, value, response.text)
    assert tried > len(found)
