"""Bad input and wrong keys at every route: refused in one shape, naming the field, with nothing changed or revealed."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.admin.mount import mount_admin
from serving.admin.routes import ROUTES, Route
from serving.admin.wire import Nothing
from serving.errors import Overloaded
from tests.admin.office import ADMIN_KEY, CREDIT, Office

NEVER = "xyzzy"
BODIES: dict[str, dict[str, Any]] = {
    "accounts create": {"account": "carol", "plan": "metered"},
    "accounts plan": {"plan": "unlimited"},
    "keys create": {"account": "alice", "name": "ci"},
    "credits grant": {"id": "invoice-7", "amount": "1"},
    "credits adjust": {"id": "slip", "amount": "-1"},
}
"""Of each route that takes one: a body that would be good."""

OTHER_KINDS: tuple[object, ...] = (None, 7, 1.5, True, [], {}, ["x"])
WITH_BODY = [route for route in ROUTES if route.body is not Nothing]


def path_of(route: Route[Any, Any], account: str = "alice") -> str:
    return route.path.format(account=account, grant="invoice-7", id="key_00_0123456789")


async def everything(office: Office) -> object:
    """All that the routes could change."""
    accounts = [await office.ledger.account(account) for account in await office.ledger.accounts()]
    return accounts, [await office.ledger.keys(account) for account in await office.ledger.accounts()], office.said


@pytest.fixture
async def unchanged(office: Office) -> AsyncIterator[Office]:
    """An office in which a test must change nothing."""
    before = repr(await everything(office))
    yield office
    assert repr(await everything(office)) == before


def test_every_body_is_here() -> None:
    assert set(BODIES) == {route.name for route in WITH_BODY}


# ---- who asks --------------------------------------------------------------------------------------------------------

WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {ADMIN_KEY}x",
    f"Bearer {ADMIN_KEY[:-1]}",
    f"Basic {ADMIN_KEY}",
    ADMIN_KEY,
    f"Bearer {ADMIN_KEY.upper()}",
    "Bearer sk-story-of-the-tests",
]


@pytest.mark.parametrize("header", WRONG, ids=repr)
async def test_without_the_admin_key_nothing_is_told_at_any_address(unchanged: Office, header: str | None) -> None:
    addresses = [(route.method, path_of(route), BODIES.get(route.name)) for route in ROUTES]
    addresses += [("GET", "/none", None), ("DELETE", "/accounts", None), ("GET", "", None), ("GET", "/", None)]
    del unchanged.client.headers["authorization"]
    answers = set()
    for method, path, body in addresses:
        headers = {} if header is None else {b"authorization": header.encode()}
        response = await unchanged.client.request(method, path, json=body, headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert "allow" not in response.headers
        answers.add(response.text)
    assert len(answers) == 1
    assert json.loads(answers.pop())["error"]["code"] == "invalid_api_key"


async def test_a_body_is_not_read_for_who_has_no_key(unchanged: Office) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"{}"

    response = await unchanged.client.post("/accounts", content=body(), headers={"authorization": "Bearer none"})
    assert (response.status_code, read) == (401, 0)


async def test_the_word_bearer_is_in_any_case(office: Office) -> None:
    headers = {b"authorization": f"bEARER   {ADMIN_KEY} ".encode()}
    assert (await office.client.get("/plans", headers=headers)).status_code == 200


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if "{account}" in route.path], ids=lambda route: route.name
)
@pytest.mark.parametrize("account", ["bob", "a:b", "%7Bs00%7D", "%00", "ä", "..", "%20"])
async def test_an_account_that_does_not_exist(unchanged: Office, route: Route[Any, Any], account: str) -> None:
    error = await unchanged.refused(404, route.method, path_of(route, account), json=BODIES.get(route.name))
    assert error["code"] == "not_found"


async def test_a_key_that_does_not_exist(unchanged: Office) -> None:
    for key in ("key_00_0123456789", "none", "KEY"):
        assert (await unchanged.refused(404, "POST", f"/keys/{key}/revoke"))["param"] == "id"
    await unchanged.refused(404, "POST", "/keys", json={"account": "bob", "name": "ci"})
    await unchanged.refused(404, "GET", "/keys", params={"account": "bob"})


@pytest.mark.parametrize(
    "path", ["", "/", "/none", "/accounts/", "/accounts/alice/none", "/accounts/a%2Fb", "/plans/x"]
)
async def test_an_address_that_does_not_exist(unchanged: Office, path: str) -> None:
    error = await unchanged.refused(404, "GET", path)
    assert (error["code"], error["param"]) == ("not_found", None)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_another_method(unchanged: Office, route: Route[Any, Any]) -> None:
    allowed = {other.method for other in ROUTES if other.path == route.path}
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "ODD"} - allowed:
        response = await unchanged.client.request(method, path_of(route))
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == allowed
        assert method == "HEAD" or response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        ("/accounts", {"limit": "0"}, "limit"),
        ("/accounts", {"limit": "1001"}, "limit"),
        ("/accounts", {"limit": NEVER}, "limit"),
        ("/accounts", {"after": "x" * 65}, "after"),
        ("/accounts", {"befor": "x"}, "befor"),
        ("/accounts/alice", {"plan": "x"}, "plan"),
        ("/accounts/" + "x" * 65, {}, "account"),
        ("/plans", {"limit": "1"}, "limit"),
        ("/keys", {"limit": "-1"}, "limit"),
        ("/keys", {"after": NEVER}, "after"),
        ("/accounts/alice/usage", {"from": "yesterday"}, "from"),
        ("/accounts/alice/usage", {"until": "2026-02-30"}, "until"),
        ("/accounts/alice/usage", {"from": "2026-02-02", "until": "2026-02-01"}, "from"),
        ("/accounts/alice/usage", {"from": "2025-01-01", "until": "2026-01-02"}, "until"),
        ("/accounts/alice/usage", {"from": "9999-12-31", "until": "9999-12-31"}, "until"),
        ("/accounts/alice/usage", {"from": "0001-01-01"}, "until"),
        ("/accounts/alice/usage", {"first": "2026-02-01"}, "first"),
        ("/accounts/alice/postings", {"format": NEVER}, "format"),
    ],
)
async def test_values_of_an_address_that_cannot_be(
    unchanged: Office, path: str, query: dict[str, str], param: str
) -> None:
    error = await unchanged.refused(400, "GET", path, params=query)
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert param in error["message"]
    assert NEVER not in error["message"]


# ---- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.name)
async def test_what_is_no_body(unchanged: Office, route: Route[Any, Any]) -> None:
    malformed = [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"xyzzy"',
        b"\xff",
        b"{}{}",
        b'{"a": NaN}',
        b"[" * 60_000,
        b'{"id": "\\ud800"}',
    ]
    for content in malformed:
        error = await unchanged.refused(400, route.method, path_of(route), content=content)
        assert error["code"] == "invalid_request"
        assert NEVER not in error["message"]


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.name)
async def test_a_field_that_is_missing_unknown_or_of_another_kind(unchanged: Office, route: Route[Any, Any]) -> None:
    good, path = BODIES[route.name], path_of(route)
    for name in good:
        rest = {other: value for other, value in good.items() if other != name}
        assert (await unchanged.refused(400, route.method, path, json=rest))["param"] == name
        for value in OTHER_KINDS:
            error = await unchanged.refused(400, route.method, path, json={**good, name: value})
            assert error["param"] == name
    error = await unchanged.refused(400, route.method, path, json={**good, "expire": NEVER})
    assert (error["param"], error["message"]) == ("expire", "expire is not known here.")
    error = await unchanged.refused(400, route.method, path, json={**good, "x" * 60_000: 1})
    assert len(error["message"]) < 100


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.name)
async def test_a_body_over_the_limit(unchanged: Office, route: Route[Any, Any], announced: bool) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 10_000
            yield b" " * 10_000

    headers = {"content-length": "1000000"} if announced else {}
    error = await unchanged.refused(413, route.method, path_of(route), content=body(), headers=headers)
    assert error["code"] == "payload_too_large"
    assert read <= (10_000 if announced else 80_000)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("accounts create", "account", ["", "a:b", "-a", "a b", "a/b", "ä", "x" * 65, "a\n", "{a}"]),
        ("accounts create", "plan", ["", "golden", "x" * 65]),
        ("accounts plan", "plan", ["", "golden", "x" * 65]),
        ("keys create", "name", ["", "x" * 201, "a\nb", "\u0000"]),
        ("keys create", "models", [[], "opus-v1-sm", {}]),
        ("keys create", "models[0]", [["opus"], [""]]),
        ("keys create", "models[1]", [["opus-v1-sm", NEVER]]),
        ("keys create", "cap", ["", "-1", "1e3", "0.0000001", "1,5", "10000001", NEVER, 1, 1.5, "٣"]),
        ("keys create", "expires", ["", "2020-01-01", "30", "9999-12-31", "2026-13-01", 30, NEVER]),
        ("credits grant", "amount", ["", "0", "-1", "1e3", "0.0000001", " ", "10000000.000001", "1" * 21, NEVER]),
        ("credits grant", "id", ["", "plan:2026-11:metered", "a;b", "a=b", "a b", "-a", "x" * 129, "a/b"]),
        ("credits grant", "kind", ["plan", "adjustment", "", NEVER]),
        ("credits grant", "expires", ["2020-01-01", "tomorrow"]),
        ("credits adjust", "amount", ["0", "-0", "--1", "+1", "-10000000.1", NEVER]),
        ("credits adjust", "id", ["", "plan:x", "a;b", "x" * 129]),
    ],
)
async def test_values_that_cannot_be(unchanged: Office, name: str, field: str, values: list[object]) -> None:
    (route,) = (route for route in ROUTES if route.name == name)
    for value in values:
        body = {**BODIES[name], field.partition("[")[0]: value}
        error = await unchanged.refused(400, route.method, path_of(route), json=body)
        assert (error["code"], error["param"]) == ("invalid_request", field), value
        assert NEVER not in error["message"]


async def test_values_at_their_bounds(office: Office) -> None:
    await office.post("/accounts", 201, account="x" * 64, plan="unlimited")
    await office.post("/keys", 201, account="x" * 64, name="y" * 200, cap="0", models=["opus-v1-sm"] * 1024)
    grant = await office.post("/accounts/alice/grants", id="z" * 128, amount="10000000")
    assert grant["amount_microcredits"] == 10_000_000 * CREDIT
    assert (await office.post(f"/accounts/alice/grants/{'z' * 128}/void"))["taken"] == "10000000"


# ---- mistakes and books that are away --------------------------------------------------------------------------------


async def test_books_that_are_away(office: Office) -> None:
    def away() -> Any:  # noqa: ANN401  # it never returns
        raise Overloaded("The server is starting.", retry_after_s=1)

    office.app.router.routes.clear()
    mount_admin(office.app, ADMIN_KEY, away, (), write_timeout_s=5)
    for route in ROUTES:
        response = await office.client.request(route.method, path_of(route), json=BODIES.get(route.name))
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"]["code"] == "overloaded"


async def test_a_mistake_of_ours_is_told_without_its_words(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    del office.ledger._accounts["alice"].credit
    error = await office.refused(500, "GET", "/accounts/alice")
    assert error["code"] == "engine_failed"
    assert "AttributeError" in caplog.text
    assert "credit" not in error["message"]


async def test_what_is_done_stands_in_the_log_without_secrets(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "serving")
    made = await office.post("/keys", 201, account="alice", name="ci")
    await office.refused(404, "GET", "/accounts/a%0Ab")
    first, second = (vars(record) for record in caplog.records if record.name.startswith("serving.admin"))
    assert (first["endpoint"], first["account"], first["key_id"], first["status"]) == (
        "keys create",
        "alice",
        made["id"],
        201,
    )
    assert (second["endpoint"], second["status"], second["code"]) == ("accounts show", 404, "not_found")
    assert "account" not in second
    for line in (first, second):
        assert made["key"] not in repr(line)
        assert ADMIN_KEY not in repr(line)
