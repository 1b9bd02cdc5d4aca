"""An office with one account, alice, on the plan `metered`: 1 credit a month."""

from collections.abc import AsyncIterator

import pytest

from tests.admin.office import Office, open_office


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    async with open_office() as opened:
        await opened.post("/accounts", 201, account="alice", plan="metered")
        yield opened
