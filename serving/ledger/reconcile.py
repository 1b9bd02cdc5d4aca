"""Does an account add up? Its postings, folded again, against its balances and its day totals."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from serving.ledger.base import Books


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Differences in microcredits: 0 where the books add up. Taken while requests run, they may be off for a moment."""

    account: str
    credit: int
    """Sum of the postings' amounts, less what is free and held of the grants."""
    used: int
    """Sum of the postings' costs, less the account's own sum."""
    days: int
    """Sum of the day totals, less the account's own sum."""
    held: int
    """What the account holds, less what its grants hold."""
    duplicates: int
    """Requests with more than one charge or more than one correction."""

    @property
    def adds_up(self) -> bool:
        return not (self.credit or self.used or self.days or self.held or self.duplicates)


async def reconcile(books: Books, account: str) -> Reconciliation:
    """Raises LookupError when there is no such account."""
    amounts = costs = duplicates = 0
    first_ms: int | None = None
    resolved: set[tuple[str, str]] = set()
    async for posting in books.postings(account):
        amounts, costs = amounts + posting.amount, costs + posting.cost
        first_ms = posting.at_ms if first_ms is None else first_ms
        if posting.kind in ("charge", "correction"):
            duplicates += (posting.kind, posting.request_id) in resolved
            resolved.add((posting.kind, posting.request_id))
    found = await books.account(account)
    if found is None:
        raise LookupError(account)
    days = 0
    if first_ms is not None:
        first = datetime.fromtimestamp(first_ms / 1000, UTC).date()
        end = datetime.now(UTC).date() + timedelta(days=2)
        days = sum(line.cost for line in await books.usage(account, str(first), str(end)))
    credit = sum(grant.free + grant.held for grant in found.grants)
    return Reconciliation(
        account,
        credit=amounts - credit,
        used=costs - found.used,
        days=days - found.used,
        held=found.held - sum(grant.held for grant in found.grants),
        duplicates=duplicates,
    )
