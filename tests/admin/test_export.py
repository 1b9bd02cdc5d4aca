"""The export of postings: the same in both forms, streamed, and never a half that looks like the whole."""

import asyncio
import csv
import io
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import httpx
import pytest

from serving.admin.mount import mount_admin
from serving.app import Service
from serving.core import Usage
from serving.errors import Overloaded
from serving.ledger.base import Account, Posting
from serving.ledger.memory import MemoryLedger
from tests.admin.office import ADMIN_KEY, HEADERS, Office
from tests.service import DEADLINE_S, listening

LONG = "x" * 10_000
"""Fills the buffers of a connection soon."""


class Stream(MemoryLedger):
    """Books whose postings go on until they are `away`, or the reader is: then `left` is set."""

    def __init__(self, away: int | None = None) -> None:
        super().__init__()
        self._away = away
        self.left = asyncio.Event()

    async def account(self, account: str, plan: object = None) -> Account | None:
        return Account(account, "unlimited")

    async def postings(self, account: str) -> AsyncIterator[Posting]:
        try:
            for number in itertools.count():
                if number == self._away:
                    raise Overloaded("The books are away.", retry_after_s=1)
                yield Posting(f"{number}-0", 0, "grant", 1, reason=LONG)
        finally:
            self.left.set()


@asynccontextmanager
async def over_a_socket(office: Office) -> AsyncIterator[httpx.AsyncClient]:
    async with listening(cast(Service, office)) as (host, port):  # it asks for the app alone
        url = f"http://{host}:{port}/admin/v1"
        async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=20) as client:
            yield client


async def test_both_forms_tell_the_same(office: Office) -> None:
    key = (await office.post("/keys", 201, account="alice", name="ci"))["key"]
    await office.post("/accounts/alice/grants", id="invoice-7", amount="2.5")
    for number in range(600):
        await office.use(key, Usage(3, 0, 2), f"request {number}")
    table = await office.client.get("/accounts/alice/postings")
    assert table.status_code == 200
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert table.headers["content-disposition"] == 'attachment; filename="alice-postings.csv"'
    assert table.headers["cache-control"] == "no-store"
    lines = await office.client.get("/accounts/alice/postings", params={"format": "jsonl"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.headers["content-disposition"] == 'attachment; filename="alice-postings.jsonl"'
    objects = [json.loads(line) for line in lines.text.splitlines()]
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert rows == [{name: str(value) for name, value in line.items()} for line in objects]
    assert len(rows) == 602
    assert len(lines.content) > 65_536
    assert (
        sum(line["amount_microcredits"] for line in objects)
        == (await office.get("/accounts/alice"))["free_microcredits"]
    )


async def test_nothing_yet(office: Office) -> None:
    await office.post("/accounts", 201, account="bob", plan="unlimited")
    response = await office.client.get("/accounts/bob/postings", params={"format": "jsonl"})
    assert (response.status_code, response.content) == (200, b"")
    response = await office.client.get("/accounts/bob/postings")
    assert len(response.text.splitlines()) == 1


async def test_books_that_are_away_at_once_have_their_status(office: Office) -> None:
    office.books = Stream(away=0)
    response = await office.client.get("/accounts/alice/postings")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["code"] == "overloaded"


async def test_what_breaks_off_ends_the_connection(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    office.books = Stream(away=50)
    async with over_a_socket(office) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/accounts/alice/postings")
    assert "an export broke off: Overloaded" in caplog.text
    assert "away" not in caplog.text


async def test_a_client_that_goes_away_ends_the_reading(office: Office) -> None:
    office.books = books = Stream()
    async with over_a_socket(office) as client, client.stream("GET", "/accounts/alice/postings") as response:
        await anext(response.aiter_bytes())
        await response.aclose()
        async with asyncio.timeout(DEADLINE_S):
            await books.left.wait()


async def test_a_client_that_does_not_read_is_given_up(office: Office) -> None:
    office.books = books = Stream()
    office.app.router.routes.clear()
    mount_admin(office.app, ADMIN_KEY, office.admin, (), write_timeout_s=0.2)
    async with over_a_socket(office) as client, client.stream("GET", "/accounts/alice/postings") as response:
        async with asyncio.timeout(DEADLINE_S):
            await books.left.wait()
        with pytest.raises(httpx.RemoteProtocolError):
            await response.aread()
