"""The admin API alone, over books in memory: what the tests of its routes are made of."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from serving.accounts.admin import Admin
from serving.accounts.keys import Keyring
from serving.accounts.plans import load_plans
from serving.admin.mount import mount_admin
from serving.core import Price, Usage
from serving.ledger.base import Books
from serving.ledger.memory import MemoryLedger
from tests.service import PLANS, bearer

ADMIN_KEY = "an admin key of the tests, with an ü"
HEADERS = {b"authorization": f"Bearer {ADMIN_KEY}".encode()}
MODELS = ("opus-v1-sm", "dream/opus-v1-xl")
CREDIT = 1_000_000


class Office:
    """An app with nothing but the admin API, a client that has its key, and what was told of changes."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.books: Books = self.ledger
        self.plans = load_plans(PLANS)
        self.said: list[str] = []
        self.keyring = Keyring(self.ledger, self.plans, b"pepper", publish=self._publish)
        self.app = FastAPI()
        mount_admin(self.app, ADMIN_KEY, self.admin, MODELS, write_timeout_s=5)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://here/admin/v1", headers=HEADERS)

    async def _publish(self, message: str) -> None:
        self.said.append(message)

    def admin(self) -> Admin:
        return Admin(self.books, self.keyring, self.plans)

    async def ask(self, method: str, path: str, status: int = 200, **asked: Any) -> Any:  # noqa: ANN401  # JSON
        """What is answered, with the status that it should have."""
        response = await self.client.request(method, path, **asked)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        return response.json()

    async def get(self, path: str, **query: str) -> Any:  # noqa: ANN401  # JSON
        return await self.ask("GET", path, params=query)

    async def post(self, path: str, status: int = 200, **body: object) -> Any:  # noqa: ANN401  # JSON
        return await self.ask("POST", path, status, json=body)

    async def refused(self, status: int, method: str, path: str, **asked: Any) -> Any:  # noqa: ANN401  # JSON
        """The error of what is refused."""
        told = await self.ask(method, path, status, **asked)
        assert set(told) == {"error"}
        assert set(told["error"]) == {"code", "message", "param"}
        return told["error"]

    async def use(self, key: str, usage: Usage, request_id: str = "request") -> None:
        """Charge a request, at 0.001 credits a token."""
        caller = await self.keyring.authenticate(bearer(key)["authorization"])
        hold = await self.ledger.hold(caller, request_id, MODELS[0], Price(CREDIT, 0, CREDIT), usage)
        await self.ledger.settle(hold, usage, "finish")


@asynccontextmanager
async def open_office() -> AsyncIterator[Office]:
    office = Office()
    async with office.client:
        yield office
