"""A process that is killed at each step of a request: what is charged, by itself, when another one goes on."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.ledger_app import read_tally
from serving.core import Usage
from serving.ledger.reconcile import reconcile
from tests.ledger.killed_process import PRICE, REQUEST, TOKENS, TOLD_AT
from tests.ledger.servers import DEADLINE_S, RedisServer, binary, running
from tests.ledger.test_redis import furnish, opened

CREDIT = 1_000_000
NOTHING, PROMPT, TOLD, WHOLE = None, 0, TOLD_AT, TOKENS
"""What may be billed: no request, or its prompt and so many tokens."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(binary("6.2"), tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.mark.parametrize(
    ("point", "emitted", "billed"),
    [
        ("before hold", NOTHING, {NOTHING}),
        ("behind hold", NOTHING, {PROMPT}),
        ("token 0", 0, {PROMPT}),
        ("token 3", 3, {PROMPT}),
        ("behind extend", TOLD_AT, {TOLD}),
        ("token 8", 8, {TOLD}),
        # The outbox may have been as quick.
        ("before settle", TOKENS, {TOLD, WHOLE}),
        ("settle on the disk", TOKENS, {WHOLE}),
        ("behind settle", TOKENS, {WHOLE}),
        ("when it is over", TOKENS, {WHOLE}),
    ],
)
async def test_a_request_is_charged_once_wherever_its_process_was_killed(
    point: str, emitted: int | None, billed: set[int | None], server: RedisServer, tmp_path: Path
) -> None:
    server.command("FLUSHALL")
    async with opened(server, tmp_path / "none") as (_, books):
        await furnish(books, CREDIT)
    command = [sys.executable, "-m", "tests.ledger.killed_process", point, server.url, str(tmp_path)]
    process = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    tally = dict(read_tally(tmp_path / "tally"))
    assert [usage.completion_tokens for usage in tally.values()] == ([] if emitted is None else [emitted])

    async with opened(server, tmp_path / "outbox") as (ledger, books):
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await ledger.reap()
                account = await books.account("alice")
                assert account is not None
                if not account.held and not account.running:
                    break

    # What the dead process left in its outbox is sent by now.
    async with opened(server, tmp_path / "none") as (_, books):
        charges = [one async for one in books.postings("alice") if one.kind in ("charge", "correction")]
        used = sum((one.usage for one in charges), Usage())
        assert (used.completion_tokens if charges else None) in billed
        assert {one.request_id for one in charges} <= {REQUEST}
        assert [one.kind for one in charges] in ([], ["charge"], ["charge", "correction"])
        account = await books.account("alice")
        assert account is not None
        assert (account.held, account.running, account.used) == (0, 0, PRICE.cost(used))
        for known in tally.values():
            assert used.prompt_tokens == known.prompt_tokens
        assert (await reconcile(books, "alice")).adds_up
