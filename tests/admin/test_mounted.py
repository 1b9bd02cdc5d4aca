"""The admin API in the whole service: off unless it has a key, described, and felt by the dialects at once."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from serving.admin.routes import ROUTES
from serving.app import build
from tests.service import KEY, SM, Running, bearer, running
from tests.service import settings as service_settings

ADMIN = "the admin key"
LEFT_OUT = [
    positive_data_acceptance,  # a schema cannot say which accounts, plans, models and days to come there are
    negative_data_rejection,  # strings of an address are any text
    ignored_auth,  # it sends requests of its own: tests/admin/test_bad_input.py
]
DOCUMENT = build(service_settings(Path("nowhere"), key_pepper="pepper", admin_key=ADMIN), {}).app.openapi()
OPERATIONS = {
    found.ok().label: found.ok()
    for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
    if isinstance(found, Ok) and found.ok().path.startswith("/admin/")
}


@pytest.fixture(scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("data"), admin_key=ADMIN) as opened:
        yield opened


async def ask(run: Running, method: str, path: str, **body: object) -> Any:  # noqa: ANN401  # JSON
    response = await run.client.request(method, "/admin/v1" + path, json=body, headers=bearer(ADMIN))
    assert response.status_code in (200, 201), response.text
    return response.json()


async def complete(run: Running, key: str) -> int:
    run.play(script=lambda request: ["Once"])
    body = {"model": SM, "prompt": "Once", "max_tokens": 1}
    return (await run.client.post("/v1/completions", json=body, headers=bearer(key))).status_code


async def test_without_an_admin_key_there_is_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as off:
        for route in ROUTES:
            response = await off.client.request(route.method, "/admin/v1" + route.path, headers=bearer(ADMIN))
            assert response.status_code == 404
            other = await off.client.request(route.method, "/elsewhere")
            assert response.json() == {"detail": f"There is no /admin/v1{route.path} here."}
            assert response.headers.keys() == other.headers.keys()
        assert not any("admin" in path for path in (await off.client.get("/openapi.json")).json()["paths"])


async def test_keys_of_accounts_open_nothing_here_and_the_admin_key_nothing_there(run: Running) -> None:
    assert (await run.client.get("/admin/v1/plans", headers=bearer(KEY))).status_code == 401
    assert await complete(run, ADMIN) == 401


async def test_what_is_made_works_and_what_is_changed_is_felt_at_once(run: Running) -> None:
    await ask(run, "POST", "/accounts", account="alice", plan="metered")
    made = await ask(run, "POST", "/keys", account="alice", name="ci", models=[SM])
    assert await complete(run, made["key"]) == 200
    (line,) = (await ask(run, "GET", "/accounts/alice/usage"))["days"]
    assert (line["key_id"], line["completion_tokens"]) == (made["id"], 1)
    await ask(run, "POST", "/accounts/alice/suspend")
    assert await complete(run, made["key"]) == 403
    await ask(run, "POST", "/accounts/alice/resume")
    assert await complete(run, made["key"]) == 200
    await ask(run, "PUT", "/accounts/alice/plan", plan="closed")
    assert await complete(run, made["key"]) == 403
    await ask(run, "PUT", "/accounts/alice/plan", plan="unlimited")
    assert await complete(run, made["key"]) == 200
    await ask(run, "POST", f"/keys/{made['id']}/revoke")
    assert await complete(run, made["key"]) == 401
    assert (await ask(run, "GET", "/accounts/alice/reconciliation"))["adds_up"]


async def test_before_the_books_are_open(tmp_path: Path) -> None:
    service = build(service_settings(tmp_path, admin_key=ADMIN), {})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app), base_url="http://here") as client:
        assert (await client.get("/admin/v1/plans", headers=bearer(ADMIN))).status_code == 503
        assert (await client.get("/admin/v1/plans", headers=bearer("none"))).status_code == 401


# ---- its description -------------------------------------------------------------------------------------------------


def test_every_route_is_described() -> None:
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert {(route.method, "/admin/v1" + route.path) for route in ROUTES} <= described
    assert len(OPERATIONS) == len(ROUTES)
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert set(schemes) == {"admin", "bearer"}
    ids = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_no_schema_takes_the_place_of_a_dialects() -> None:
    without = build(service_settings(Path("nowhere"), key_pepper="pepper"), {}).app.openapi()
    schemas = DOCUMENT["components"]["schemas"]
    assert without["components"]["schemas"].items() <= schemas.items()
    assert {"AccountTold", "AdminError", "NewGrant"} <= schemas.keys() - without["components"]["schemas"].keys()


@pytest.mark.parametrize("label", OPERATIONS)
@settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_answers_are_as_described(run: Running, label: str, data: st.DataObject) -> None:
    case = data.draw(OPERATIONS[label].as_strategy())
    asked: dict[str, Any] = case.as_transport_kwargs(base_url="http://here")
    known = {key: asked[key] for key in ("method", "url", "params", "json", "data", "content") if key in asked}
    response = await run.client.request(**known, headers=bearer(ADMIN))
    case.validate_response(response, excluded_checks=LEFT_OUT)
