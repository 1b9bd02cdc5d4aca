"""Amounts as people write them: credits with up to six decimals, exactly, to microcredits and back.

Everywhere else money is an int of microcredits.
"""

import re

MICROCREDITS = 1_000_000
"""In one credit."""

MOST_CREDITS = 10_000_000
"""In one amount: the sum of some hundreds of these is below 2^53 microcredits, which a Lua number holds exactly."""

_AMOUNT = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,6}))?")


def parse_credits(text: str) -> int:
    """Microcredits of `12`, `0.04` or `-3.5`. Raises ValueError for anything else, and for too much."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no amount of credits: write it like 12 or 0.04, with at most six decimals.")
    sign, whole, decimals = match.groups("")
    amount = int(whole) * MICROCREDITS + int(decimals.ljust(6, "0"))
    if amount > MOST_CREDITS * MICROCREDITS:
        raise ValueError(f"{text[:40]} credits are too many: the most is {MOST_CREDITS:,}.")
    return -amount if sign else amount


def format_credits(amount: int) -> str:
    """Microcredits as credits, without loss and without needless zeros: `12`, `0.04`, `-3.5`."""
    whole, rest = divmod(abs(amount), MICROCREDITS)
    decimals = f".{rest:06}".rstrip("0").rstrip(".")
    return f"{'-' if amount < 0 else ''}{whole}{decimals}"
