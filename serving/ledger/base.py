"""The credit ledger's protocol and its laws.

    hold     reserve the worst case before work      -> Hold, maybe for fewer completion tokens than asked
    settle   charge what was used, return the rest   -> Receipt
    release  give a hold back untouched

- A hold resolves at most once: settling or releasing it again changes nothing and returns the same answer.
- Metered accounts: used + held <= granted, at every step. A charge never exceeds its hold.
- Accounts without a limit hold 0, are never refused for credit, and are recorded all the same.
- Every amount is an int of microcredits; rounding happens once, at settle, up.
"""

from typing import Protocol

from serving.core import Caller, Hold, Price, Receipt, Usage


class Ledger(Protocol):
    """Credits of all accounts. Safe to call from any number of tasks."""

    async def hold(self, caller: Caller, request_id: str, price: Price, worst_case: Usage) -> Hold:
        """Reserve credit for at most `worst_case`; fewer completion tokens are granted when credit is short.

        Raises InsufficientCredit when not even the prompt and one token can be paid, Conflict when `request_id`
        was held before.
        """
        ...

    async def settle(self, hold: Hold, usage: Usage) -> Receipt:
        """Charge `usage` against the hold. Idempotent by request id: the first settle decides."""
        ...

    async def release(self, hold: Hold) -> None:
        """Return a hold of which nothing was used. After a settle it does nothing."""
        ...
