"""The service on scripted engines: in process for what is said, behind a loopback socket for how it gets there."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.dialects.adapters import ADAPTERS, Adapter
from tests.service import KEY, Running, bearer, listening, running


@pytest.fixture(scope="session")
async def session_run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("data")) as run:
        yield run


@pytest.fixture
def run(session_run: Running) -> Running:
    """The service, with new engines that say a little prose."""
    for model in session_run.stages:
        session_run.play(model)
    return session_run


@pytest.fixture(scope="session")
async def session_address(session_run: Running) -> AsyncIterator[tuple[str, int]]:
    async with listening(session_run.service) as address:
        yield address


@pytest.fixture
async def web(session_address: tuple[str, int], run: Running) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the same service over a real socket."""
    host, port = session_address
    limits = httpx.Limits(max_connections=200)
    url = f"http://{host}:{port}"
    async with httpx.AsyncClient(base_url=url, headers=bearer(KEY), limits=limits, timeout=20) as client:
        yield client


@pytest.fixture(params=list(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """Each generating endpoint of each dialect."""
    return ADAPTERS[request.param]
