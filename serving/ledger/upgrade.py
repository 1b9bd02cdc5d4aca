"""Stores that a former version of this server filled, brought to the records of this one."""

import asyncio
import logging

from serving.ledger.redis import SLOTS
from serving.ledger.store import Store

log = logging.getLogger(__name__)


async def upgrade(store: Store) -> int:
    """Rewrite what a former version wrote, each slot at once and only once. Returns how many accounts that were. No
    process of that version may run any more. Raises Overloaded, StoreError."""
    # The first one brings the script there for all others.
    answers = [await store.run("upgrade", SLOTS[0], "")]
    answers += await asyncio.gather(*(store.run("upgrade", tag, "") for tag in SLOTS[1:]))
    accounts = sum(int(count) for _, count in answers)
    if accounts:
        log.warning("the records of %d accounts were of a former version, and were written anew", accounts)
    return accounts
