"""Errors that nobody foresaw: what is told of them, and what is logged."""

import logging
import traceback

from serving.errors import EngineFailed

log = logging.getLogger(__name__)


def our_mistake(error: Exception, request: str) -> EngineFailed:
    """What is told of an error nobody foresaw. The log has its kind and place, without its own words: a library may
    have put a prompt into them. `request`: the id or the name of what was asked."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed: %s\n%s", request, type(error).__name__, where)
    return EngineFailed("The server made a mistake. Try again.")
