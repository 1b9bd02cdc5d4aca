"""The ledger in this process's memory: for one process whose accounts need not outlive it, and the oracle of the laws.

It does not persist, share or expire anything. Each operation runs without awaiting, so it is atomic.
"""

from dataclasses import dataclass, field, replace

from serving.core import Caller, Hold, Price, Receipt, Usage
from serving.errors import Conflict, InsufficientCredit

_REMEMBERED_RECEIPTS = 65_536
"""How many settled requests are recognised when settled again; older ones are forgotten, so that memory is bounded."""


@dataclass(slots=True)
class Balance:
    """One account, in microcredits. `granted` None: no limit."""

    granted: int | None = None
    used: int = 0
    held: int = 0

    @property
    def free(self) -> int | None:
        return None if self.granted is None else self.granted - self.used - self.held


@dataclass(slots=True)
class MemoryLedger:
    """Accounts appear without a limit at their first use; `grant` puts a limit on one, or raises it."""

    balances: dict[str, Balance] = field(default_factory=dict)
    _open: dict[str, Hold] = field(default_factory=dict)
    _receipts: dict[str, Receipt] = field(default_factory=dict)

    def grant(self, account: str, amount: int) -> None:
        """Add `amount` microcredits to what the account may use from now on."""
        balance = self.balances.setdefault(account, Balance())
        balance.granted = (balance.used if balance.granted is None else balance.granted) + amount

    async def hold(self, caller: Caller, request_id: str, price: Price, worst_case: Usage) -> Hold:
        if request_id in self._open or request_id in self._receipts:
            raise Conflict(f"The request id {request_id} is already in use. Send the request with another id.")
        balance = self.balances.setdefault(caller.account, Balance())
        hold = Hold(request_id, caller.account, 0, price, worst_case)
        if balance.free is not None:
            granted = affordable(price, worst_case, balance.free)
            hold = replace(hold, usage=granted, amount=price.cost(granted))
            balance.held += hold.amount
        self._open[request_id] = hold
        return hold

    async def settle(self, hold: Hold, usage: Usage) -> Receipt:
        if hold.request_id not in self._open:
            return self._receipts.get(hold.request_id, Receipt(hold.request_id, Usage(), 0))
        balance = self.balances[hold.account]
        cost = hold.price.cost(usage)
        if balance.granted is not None:
            # By construction the cost is within the hold; the minimum keeps the law when an engine miscounts.
            cost = min(cost, hold.amount)
        self._close(hold, balance)
        balance.used += cost
        return self._remember(Receipt(hold.request_id, usage, cost))

    async def release(self, hold: Hold) -> None:
        if hold.request_id in self._open:
            self._close(hold, self.balances[hold.account])
            self._remember(Receipt(hold.request_id, Usage(), 0))

    def _close(self, hold: Hold, balance: Balance) -> None:
        balance.held -= self._open.pop(hold.request_id).amount

    def _remember(self, receipt: Receipt) -> Receipt:
        self._receipts[receipt.request_id] = receipt
        if len(self._receipts) > _REMEMBERED_RECEIPTS:
            del self._receipts[next(iter(self._receipts))]
        return receipt


def affordable(price: Price, worst_case: Usage, free: int) -> Usage:
    """`worst_case` with as many completion tokens as `free` microcredits pay for: at least one, or an error."""
    if price.cost(worst_case) <= free:
        return worst_case
    # The prompt is reserved uncached, so what is left pays for whole completion tokens.
    left_thousandths = free * 1000 - worst_case.prompt_tokens * price.input_per_1k
    tokens = left_thousandths // price.output_per_1k if price.output_per_1k and left_thousandths > 0 else 0
    if tokens < 1:
        raise InsufficientCredit(
            f"This request needs at least {price.cost(replace(worst_case, completion_tokens=1))} microcredits and "
            f"{free} are left. Add credits, shorten the prompt, or wait for the next reset."
        )
    return replace(worst_case, completion_tokens=min(tokens, worst_case.completion_tokens))
