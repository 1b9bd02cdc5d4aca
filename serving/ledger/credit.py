"""One account's credit in memory: its grants, its postings and the totals of its days, which always agree.

It knows nothing of requests, keys and plans' limits: that is `memory.py`. It keeps the law that the sum of an account's
postings is what is free or held of its grants.
"""

from dataclasses import replace
from datetime import UTC, datetime

from serving.core import Plan, Usage
from serving.ledger import refusals
from serving.ledger.base import DayUsage, Grant, Posting
from serving.ledger.grants import (
    Share,
    allocate,
    expired,
    first_of,
    is_over,
    month_grant,
    order_of_consumption,
    total,
    usable,
)


class Credit:
    """Grants and books of one account. Times are Unix times in milliseconds, amounts microcredits."""

    def __init__(self) -> None:
        self.grants: dict[str, Grant] = {}
        self.postings: list[Posting] = []
        self.days: dict[tuple[str, str, str], DayUsage] = {}
        self._given: dict[str, Grant] = {}
        self._taken_by_void: dict[str, int] = {}
        self._debits: dict[str, tuple[int, int]] = {}

    # ---- what people do ----

    def give(self, grant: Grant, now_ms: int) -> Grant:
        """Add a grant, as asked for. Again: the grant as it stands. Raises Conflict."""
        asked = replace(grant, used=0, held=0, expired=0)
        self.bring_up_to_date(now_ms)
        if grant.id not in self.grants:
            self._given[grant.id] = asked
            self._add(asked, now_ms)
        elif self._given.get(grant.id) != asked:
            raise refusals.taken(f"The grant id {grant.id}")
        return self.grants[grant.id]

    def void(self, grant_id: str, now_ms: int) -> int:
        """Take back what is free of a grant, and let it be over. Again: the same answer. Raises NotFound."""
        self.bring_up_to_date(now_ms)
        grant = self.grants.get(grant_id)
        if grant is None:
            raise refusals.unknown_grant(grant_id)
        if not is_over(grant, now_ms):
            self.grants[grant_id] = replace(grant, expired=grant.expired + grant.free, expires_ms=now_ms)
            self.post(Posting("", now_ms, "void", -grant.free, grant_id))
            self._taken_by_void[grant_id] = grant.free
        return self._taken_by_void.get(grant_id, 0)

    def debit(self, debit_id: str, amount: int, now_ms: int) -> int:
        """Take free credit, all or nothing. Returns what is left. Again: the same answer.

        Raises Conflict, InsufficientCredit.
        """
        if debit_id not in self._debits:
            self.bring_up_to_date(now_ms)
            free = self.free(now_ms)
            if free < amount:
                raise refusals.short_of_debit(amount, free)
            self.spend(amount, now_ms)
            self.post(Posting("", now_ms, "debit", -amount, request_id=debit_id))
            self._debits[debit_id] = (amount, free - amount)
        before, left = self._debits[debit_id]
        if before != amount:
            raise refusals.taken(f"The debit id {debit_id}")
        return left

    # ---- what requests do ----

    def hold(self, amount: int, now_ms: int) -> tuple[Share, ...]:
        """Reserve `amount`, of which at least so much must be free."""
        shares = allocate(self.grants.values(), amount, now_ms)
        for share in shares:
            self._change(share.grant, held=share.amount)
        return shares

    def resolve(self, shares: tuple[Share, ...], cost: int, now_ms: int) -> tuple[Share, ...]:
        """Charge `cost` to what is held, the first share first, and return the rest. Returns what was charged."""
        self.bring_up_to_date(now_ms)
        charged = first_of(shares, cost)
        for share, used in zip(shares, charged, strict=True):
            self._change(share.grant, held=-share.amount, used=used.amount)
            self._expire(share.grant, now_ms)
        return charged

    def spend(self, amount: int, now_ms: int) -> int:
        """Take free credit, as far as it reaches. Returns how much."""
        shares = allocate(self.grants.values(), amount, now_ms)
        for share in shares:
            self._change(share.grant, used=share.amount)
        return total(shares)

    def give_back(self, charged: tuple[Share, ...], amount: int, now_ms: int) -> None:
        """Return `amount` of what was charged, what was charged last first."""
        for share in first_of(charged[::-1], amount):
            self._change(share.grant, used=-share.amount)
            self._expire(share.grant, now_ms)

    # ---- how it stands ----

    def free(self, now_ms: int) -> int:
        """What may be held or taken now."""
        return sum(usable(grant, now_ms) for grant in self.grants.values())

    def live(self) -> tuple[Grant, ...]:
        """The grants of which something is free or held, in the order of consumption."""
        alive = (grant for grant in self.grants.values() if grant.free or grant.held)
        return tuple(sorted(alive, key=order_of_consumption))

    def bring_up_to_date(self, now_ms: int, plan: Plan | None = None) -> None:
        """Expire what is due, and add the grant that `plan` gives for this month, once."""
        for grant in self.live():
            self._expire(grant.id, now_ms)
        due = None if plan is None else month_grant(plan, now_ms)
        if due is not None and due.id not in self.grants:
            self._add(due, now_ms)

    # ---- the books ----

    def post(self, posting: Posting) -> None:
        """Append a posting, which gets its id here; what a request used goes into the day's totals, too."""
        self.postings.append(replace(posting, id=f"{posting.at_ms}-{len(self.postings)}"))
        if posting.kind in ("charge", "correction"):
            day = datetime.fromtimestamp(posting.at_ms / 1000, UTC).strftime("%Y-%m-%d")
            line = (day, posting.key_id, posting.model)
            before = self.days.get(line, DayUsage(*line, 0, Usage(), 0))
            self.days[line] = replace(
                before,
                requests=before.requests + (posting.kind == "charge"),
                usage=before.usage + posting.usage,
                cost=before.cost + posting.cost,
            )

    def usage(self, first_day: str, end_day: str) -> list[DayUsage]:
        """The totals from `first_day` until before `end_day` (`YYYY-MM-DD`), by day, key and model."""
        return [self.days[line] for line in sorted(self.days) if first_day <= line[0] < end_day]

    def _add(self, grant: Grant, now_ms: int) -> None:
        self.grants[grant.id] = grant
        self.post(Posting("", now_ms, "grant", grant.amount, grant.id))
        self._expire(grant.id, now_ms)

    def _change(self, grant_id: str, *, used: int = 0, held: int = 0) -> None:
        grant = self.grants[grant_id]
        self.grants[grant_id] = replace(grant, used=grant.used + used, held=grant.held + held)

    def _expire(self, grant_id: str, now_ms: int) -> None:
        before = self.grants[grant_id]
        after = self.grants[grant_id] = expired(before, now_ms)
        if gone := after.expired - before.expired:
            self.post(Posting("", now_ms, "expire", -gone, grant_id))
