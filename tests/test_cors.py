"""Browsers: only the pages that the operator names may call."""

from pathlib import Path

import httpx

from serving.app import Service
from serving.edge.headers import EXPOSED
from tests.service import running

ORIGIN = "https://tavern.example"


async def preflight(service: Service) -> httpx.Response:
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
        return await client.options("/v1/chat/completions", headers=asked)


async def test_nobody_is_allowed_unless_named(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        assert "access-control-allow-origin" not in (await preflight(run.service)).headers


async def test_a_named_origin_is_allowed_and_no_other(tmp_path: Path) -> None:
    async with running(tmp_path, cors_origins=(ORIGIN,)) as run:
        assert (await preflight(run.service)).headers["access-control-allow-origin"] == ORIGIN
    async with running(tmp_path, cors_origins=("https://other.example",)) as run:
        assert "access-control-allow-origin" not in (await preflight(run.service)).headers


async def test_a_page_may_read_what_is_said_of_credit_and_rates(tmp_path: Path) -> None:
    async with running(tmp_path, cors_origins=(ORIGIN,)) as run:
        key, _ = await run.key_of("slow")
        headers = {"origin": ORIGIN, "authorization": f"Bearer {key}"}
        response = await run.client.post("/v1/completions", json={"prompt": "Once"}, headers=headers)
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    assert exposed == set(EXPOSED)
    assert {name for name in response.headers if name.startswith("x-")} <= exposed
