"""Stores that a former version of this server filled, brought to the records of this one."""

import asyncio
import logging

from serving.errors import Overloaded
from serving.ledger.redis import SLOTS
from serving.ledger.store import Store

log = logging.getLogger(__name__)

_AGAIN_S = 0.5


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


async def upgrade_when_there(store: Store, tried: asyncio.Event) -> None:
    """As soon as the store answers; `tried` is set when it answered or is away. A store that cannot be upgraded is told
    in the log, and to whoever asks it for anything."""
    while True:
        try:
            await upgrade(store)
        except Overloaded:
            tried.set()
            await asyncio.sleep(_AGAIN_S)
        except Exception:
            log.exception("the records of a former version cannot be written anew")
            break
        else:
            break
    tried.set()
