"""What an account tells of itself, and the laws that must hold between its parts at any time."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from serving.core import Hold, Plan, Usage
from serving.ledger.base import Account, DayUsage, Key, Posting

OF_REQUESTS = ("charge", "correction")
LOST = "lost-"
"""So begin the ids of requests that the store has no hold of."""


@dataclass(frozen=True)
class Snapshot:
    """An account as it stands, and all its books. `keys`: by id."""

    account: Account
    keys: dict[str, Key]
    days: list[DayUsage]
    postings: list[Posting]

    def left(self, key_id: str, plan: Plan) -> int | None:
        """What a key may still spend: of its account's credit, where that is metered, and of its own cap."""
        key = self.keys[key_id]
        credit = self.account.free if plan.metered else None
        cap = None if key.cap is None else max(key.cap - key.used - key.held, 0)
        return min((left for left in (credit, cap) if left is not None), default=None)


def told_apart(one: Snapshot, other: Snapshot, before: int) -> list[str]:
    """In which parts two snapshots differ. What was posted in one step, after the first `before`, has no order."""
    return [
        part
        for part, same in {
            "account": one.account == other.account,
            "keys": list(one.keys.items()) == list(other.keys.items()),
            "days": one.days == other.days,
            "postings": _nameless(one.postings[before:]) == _nameless(other.postings[before:]),
        }.items()
        if not same
    ]


def check(seen: Snapshot, open_holds: list[Hold]) -> None:
    """All laws of one account, given its holds that are open."""
    check_grants(seen)
    check_holds(seen, open_holds)
    check_books(seen)
    check_requests(seen)


def check_grants(seen: Snapshot) -> None:
    """A grant is used, held, free and expired; nothing is less than 0, so nobody spends what was not granted (I1, I2).

    They are listed in the order of consumption (I14), and each is given once (I7).
    """
    account = seen.account
    gone = _sums(seen.postings, ("expire", "void"))
    given = _sums(seen.postings, ("grant",))
    for grant in account.grants:
        assert grant.amount == grant.used + grant.held + grant.free + grant.expired == given[grant.id]
        assert min(grant.used, grant.held, grant.free, grant.expired) >= 0
        assert grant.free or grant.held
        assert grant.expired == -gone[grant.id]
    order = [(grant.priority, grant.expires_ms or float("inf"), grant.id) for grant in account.grants]
    assert order == sorted(order)
    assert max(Counter(posting.grant for posting in seen.postings if posting.kind == "grant").values(), default=1) == 1
    assert all(0 <= -gone[grant] <= given[grant] for grant in gone)


def check_holds(seen: Snapshot, open_holds: list[Hold]) -> None:
    """What is held is what the open holds hold (I4)."""
    held = sum(hold.amount for hold in open_holds)
    assert seen.account.held == held == sum(grant.held for grant in seen.account.grants)
    assert seen.account.running == len(open_holds)
    for key in seen.keys.values():
        assert key.held == sum(hold.bound for hold in open_holds if hold.key_id == key.id)
        without_hold = sum(
            max(posting.cost, 0)
            for posting in seen.postings
            if posting.key_id == key.id and (posting.kind == "correction" or posting.request_id.startswith(LOST))
        )
        assert key.cap is None or key.used + key.held <= key.cap + without_hold


def check_books(seen: Snapshot) -> None:
    """The postings, folded, are the balances and the day totals (I10)."""
    account, charges = seen.account, [posting for posting in seen.postings if posting.kind in OF_REQUESTS]
    assert sum(posting.amount for posting in seen.postings) == sum(grant.free + grant.held for grant in account.grants)
    assert sum(posting.cost for posting in charges) == account.used == sum(key.used for key in seen.keys.values())
    for posting in seen.postings:
        assert posting.cost == 0 or posting.kind in OF_REQUESTS
        assert posting.amount in (0, -posting.cost) or posting.kind not in OF_REQUESTS
    for key in seen.keys.values():
        assert key.used == sum(posting.cost for posting in charges if posting.key_id == key.id)
    totals: defaultdict[tuple[str, str, str], tuple[int, Usage, int]] = defaultdict(lambda: (0, Usage(), 0))
    for posting in charges:
        day = datetime.fromtimestamp(posting.at_ms / 1000, UTC).strftime("%Y-%m-%d")
        requests, usage, cost = totals[day, posting.key_id, posting.model]
        counted = requests + (posting.kind == "charge"), usage + posting.usage, cost + posting.cost
        totals[day, posting.key_id, posting.model] = counted
    assert seen.days == [DayUsage(*line, *totals[line]) for line in sorted(totals)]


def check_requests(seen: Snapshot) -> None:
    """A request is charged at most once, corrected at most once, and never to less than nothing (I3)."""
    resolved = Counter((posting.request_id, posting.kind) for posting in seen.postings if posting.kind in OF_REQUESTS)
    assert max(resolved.values(), default=1) == 1
    costs: Counter[str] = Counter()
    for posting in seen.postings:
        if posting.kind in OF_REQUESTS:
            costs[posting.request_id] += posting.cost
    assert min(costs.values(), default=0) >= 0


def check_step(before: Snapshot | None, seen: Snapshot, now_ms: int) -> None:
    """Postings are only appended, in the order of time. What was taken came from the first grants that began (I14)."""
    times = [posting.at_ms for posting in seen.postings]
    assert times == sorted(times)
    began = [grant for grant in seen.account.grants if grant.effective_ms <= now_ms]
    assert seen.account.free == sum(grant.free for grant in began)
    if before is None:
        return
    assert seen.postings[: len(before.postings)] == before.postings
    taken = {grant.id: grant.used + grant.held for grant in before.account.grants}
    something_free = False
    for grant in seen.account.grants:
        may_be_taken = grant in began and not something_free
        assert may_be_taken or grant.used + grant.held <= taken.get(grant.id, 0)
        something_free |= grant in began and grant.free > 0


def _sums(postings: list[Posting], kinds: tuple[str, ...]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for posting in postings:
        if posting.kind in kinds:
            sums[posting.grant] += posting.amount
    return sums


def _nameless(postings: list[Posting]) -> Counter[Posting]:
    return Counter(replace(posting, id="") for posting in postings)
