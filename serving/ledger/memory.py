"""The ledger and its books in this process's memory: the oracle of the laws, and what serves when there is no Redis.

Nothing is shared or kept over a restart, and postings are never dropped. Each operation runs without awaiting, so it is
atomic. `base.py` says what each means; here is exactly how. Times are the clock's, in microseconds.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from serving.core import Caller, Hold, Plan, Price, Rate, Receipt, Usage
from serving.errors import InvalidRequest
from serving.ledger import refusals
from serving.ledger.base import MINUTE_US, Account, AccountState, DayUsage, Grant, Key, Posting, rate_of
from serving.ledger.credit import Credit
from serving.ledger.grants import Share, affordable

End = Literal["settled", "released", "reaped", "lost"]


class _Asked(NamedTuple):
    """What a request id stands for: the same id for anything else is a Conflict."""

    key_id: str
    plan: str
    model: str
    price: Price
    worst_case: Usage


@dataclass(slots=True)
class _Request:
    """A hold and what became of it. `shares`: what is held of grants while it is open, then what was charged to them.

    `asked` None: this ledger never made the hold.
    """

    hold: Hold
    asked: _Asked | None
    shares: tuple[Share, ...] = ()
    tokens_per_minute: int | None = None
    lease_us: int = 0
    noted_tokens: int = 0
    end: End | None = None
    ended_us: int = 0
    receipt: Receipt | None = None


@dataclass(slots=True)
class _Account:
    """An account; `row` is without grants and free credit. The rates are times in us: see `rate_of`."""

    row: Account
    credit: Credit = field(default_factory=Credit)
    requests_full_at_us: int = 0
    tokens_full_at_us: int = 0


class MemoryLedger:
    """Ledger and Books. `clock`: Unix time in us; `lease_s`: how long a hold lives unnoted; `remember_s`: how long a
    request is recognised after it was resolved."""

    def __init__(
        self, clock: Callable[[], int] | None = None, lease_s: float = 30.0, remember_s: float = 86_400.0
    ) -> None:
        self._now_us = clock or (lambda: time.time_ns() // 1000)
        self._lease_us = round(lease_s * 1_000_000)
        self._remember_us = round(remember_s * 1_000_000)
        self._accounts: dict[str, _Account] = {}
        self._keys: dict[str, Key] = {}
        self._key_ids: dict[str, str] = {}
        """By digest."""
        self._open: dict[tuple[str, str], _Request] = {}
        """By account and request id, as accounts choose the ids of their requests."""
        self._ended: dict[tuple[str, str], _Request] = {}
        """In the order in which they ended."""

    # ---- Ledger ----

    async def hold(self, caller: Caller, request_id: str, model: str, price: Price, worst_case: Usage) -> Hold:
        now_us, plan = self._now_us(), caller.plan
        now_ms = now_us // 1000
        price = price.at(plan.price_percent)
        asked = _Asked(caller.key_id, plan.id, model, price, worst_case)
        known = self._find(caller.account, request_id, now_us)
        if known is not None:
            if known.asked != asked:
                raise refusals.request_conflict()
            return known.hold
        account = self._admitted(caller)
        key = self._valid_key(caller, now_ms)
        if plan.max_concurrent is not None and account.row.running >= plan.max_concurrent:
            raise refusals.too_many_at_once(plan.max_concurrent)
        requests_full_at_us = _request_counted(account, plan, now_us)
        tokens_full_at_us = _prompt_counted(account, plan, worst_case.prompt_tokens, now_us)
        account.credit.bring_up_to_date(now_ms, plan)
        usage = _granted(account.credit.free(now_ms) if plan.metered else None, key, price, worst_case)
        # Everything is allowed: from here on nothing fails.
        account.requests_full_at_us, account.tokens_full_at_us = requests_full_at_us, tokens_full_at_us
        bound = price.cost(usage)
        amount = bound if plan.metered else 0
        shares = account.credit.hold(amount, now_ms)
        account.row = replace(account.row, held=account.row.held + amount, running=account.row.running + 1)
        self._keys[key.id] = replace(key, held=key.held + bound, last_used_ms=now_ms)
        rates = _rates(account, plan, now_us)
        hold = Hold(request_id, caller.account, key.id, model, price, usage, bound, amount, *rates)
        request = _Request(hold, asked, shares, plan.tokens_per_minute, now_us + self._lease_us)
        self._open[caller.account, request_id] = request
        return hold

    def note(self, hold: Hold, usage: Usage) -> None:
        request = self._open.get((hold.account, hold.request_id))
        if request is not None:
            request.noted_tokens = max(request.noted_tokens, usage.completion_tokens)
            request.lease_us = self._now_us() + self._lease_us

    async def settle(self, hold: Hold, usage: Usage, reason: str) -> Receipt:
        now_us = self._now_us()
        request = self._find(hold.account, hold.request_id, now_us) or self._lost(hold)
        if request is not None and request.end is None:
            self._charge(request, usage, reason, "settled", now_us)
        elif request is not None and request.end in ("reaped", "lost"):
            self._correct(request, usage, reason, now_us)
        if request is None or request.receipt is None:
            return Receipt(hold.request_id, Usage(), 0)
        return request.receipt

    @property
    def waiting(self) -> int:
        return 0

    async def release(self, hold: Hold) -> None:
        now_us = self._now_us()
        request = self._find(hold.account, hold.request_id, now_us)
        if request is None:
            # A hold that its release has overtaken is refused when it comes.
            self._remember(_Request(hold, None), "released", now_us)
        elif request.end is None:
            self._close(request, 0, "released", now_us)
        elif request.end == "reaped":
            self._correct(request, Usage(), "release", now_us)

    async def reap(self) -> int:
        """Settle every hold whose lease is over at its prompt and what was noted last. Returns how many."""
        now_us = self._now_us()
        due = [request for request in self._open.values() if request.lease_us <= now_us]
        for request in sorted(due, key=lambda request: (request.lease_us, request.hold.request_id)):
            usage = Usage(request.hold.usage.prompt_tokens, 0, request.noted_tokens)
            self._charge(request, usage, "reaped", "reaped", now_us)
        return len(due)

    # ---- the steps of a hold ----

    def _find(self, account: str, request_id: str, now_us: int) -> _Request | None:
        """A request that is open, or ended not too long ago."""
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest].ended_us + self._remember_us > now_us:
                break
            del self._ended[oldest]
        return self._open.get((account, request_id)) or self._ended.get((account, request_id))

    def _lost(self, hold: Hold) -> _Request | None:
        """What is settled but was never held here: charged as if it had been reaped when nothing was used."""
        if hold.account not in self._accounts or hold.key_id not in self._keys:
            return None
        return _Request(hold, None, end="lost", receipt=Receipt(hold.request_id, Usage(), 0))

    def _admitted(self, caller: Caller) -> _Account:
        account = self._accounts.get(caller.account)
        if account is None:
            raise refusals.no_account()
        if account.row.state != "active":
            raise refusals.suspended()
        if account.row.plan != caller.plan.id:
            raise refusals.plan_changed()
        return account

    def _valid_key(self, caller: Caller, now_ms: int) -> Key:
        key = self._keys.get(caller.key_id)
        if key is None or key.account != caller.account or key.revoked_ms:
            raise refusals.key_revoked()
        if key.expires_ms and key.expires_ms <= now_ms:
            raise refusals.key_expired()
        return key

    # ---- the ends of a hold ----

    def _charge(self, request: _Request, usage: Usage, reason: str, end: End, now_us: int) -> None:
        """Close an open hold at what was used. It costs no more than the hold's bound, whatever is told."""
        hold = request.hold
        cost = min(hold.price.cost(usage), hold.bound)
        account = self._close(request, cost, end, now_us)
        if request.tokens_per_minute is not None:
            account.tokens_full_at_us = _worn(
                account.tokens_full_at_us, request.tokens_per_minute, usage.completion_tokens, now_us
            )
        key = self._keys[hold.key_id]
        self._keys[key.id] = replace(key, last_used_ms=now_us // 1000)
        account.credit.post(_posting("charge", hold, cost, usage, reason, now_us))
        request.receipt = Receipt(hold.request_id, usage, cost)

    def _close(self, request: _Request, cost: int, end: End, now_us: int) -> _Account:
        """Return what a hold reserved, but for its cost."""
        hold = request.hold
        account, key = self._accounts[hold.account], self._keys[hold.key_id]
        row = account.row
        request.shares = account.credit.resolve(request.shares, cost, now_us // 1000)
        account.row = replace(row, used=row.used + cost, held=row.held - hold.amount, running=row.running - 1)
        self._keys[key.id] = replace(key, used=key.used + cost, held=key.held - hold.bound)
        del self._open[hold.account, hold.request_id]
        self._remember(request, end, now_us)
        return account

    def _correct(self, request: _Request, usage: Usage, reason: str, now_us: int) -> None:
        """Post the difference to what the reaper charged; more is charged only as far as credit is free."""
        hold, reaped = request.hold, request.receipt
        assert reaped is not None
        account, key = self._accounts[hold.account], self._keys[hold.key_id]
        difference = min(hold.price.cost(usage), hold.bound) - reaped.cost
        account.credit.bring_up_to_date(now_us // 1000)
        if hold.amount and difference > 0:
            difference = account.credit.spend(difference, now_us // 1000)
        elif hold.amount:
            account.credit.give_back(request.shares, -difference, now_us // 1000)
        lost = request.end == "lost"
        if lost or usage != reaped.usage:
            account.row = replace(account.row, used=account.row.used + difference)
            last_used_ms = now_us // 1000 if lost else key.last_used_ms
            self._keys[key.id] = replace(key, used=key.used + difference, last_used_ms=last_used_ms)
            more = _minus(usage, reaped.usage)
            account.credit.post(_posting("charge" if lost else "correction", hold, difference, more, reason, now_us))
        request.receipt = Receipt(hold.request_id, usage, reaped.cost + difference)
        self._remember(request, "settled", now_us)

    def _remember(self, request: _Request, end: End, now_us: int) -> None:
        name = (request.hold.account, request.hold.request_id)
        request.end, request.ended_us = end, now_us
        self._ended.pop(name, None)
        self._ended[name] = request

    # ---- Books ----

    async def open_account(self, account: str, plan: str) -> Account:
        now_ms = self._now_us() // 1000
        opened = self._accounts.setdefault(account, _Account(Account(account, plan, created_ms=now_ms)))
        if opened.row.plan != plan:
            raise refusals.taken(f"The account id {account}")
        return _as_it_stands(opened, now_ms)

    async def account(self, account: str, plan: Plan | None = None) -> Account | None:
        found = self._accounts.get(account)
        return None if found is None else _as_it_stands(found, self._now_us() // 1000, plan)

    async def accounts(self) -> list[str]:
        return sorted(self._accounts)

    async def change_account(
        self, account: str, *, plan: str | None = None, state: AccountState | None = None
    ) -> Account:
        found = self._existing(account)
        found.row = replace(found.row, plan=plan or found.row.plan, state=state or found.row.state)
        return _as_it_stands(found, self._now_us() // 1000)

    async def grant(self, account: str, grant: Grant) -> Grant:
        _check_amount(grant.amount)
        return self._existing(account).credit.give(grant, self._now_us() // 1000)

    async def void(self, account: str, grant_id: str) -> int:
        return self._existing(account).credit.void(grant_id, self._now_us() // 1000)

    async def debit(self, account: str, debit_id: str, amount: int) -> int:
        _check_amount(amount)
        return self._existing(account).credit.debit(debit_id, amount, self._now_us() // 1000)

    async def add_key(self, key: Key) -> None:
        self._existing(key.account)
        if key.id in self._keys or key.digest in self._key_ids:
            raise refusals.taken(f"The key id {key.id}, or the key itself,")
        created_ms = self._now_us() // 1000
        self._keys[key.id] = replace(key, created_ms=created_ms, revoked_ms=0, last_used_ms=0, used=0, held=0)
        self._key_ids[key.digest] = key.id

    async def revoke_key(self, account: str, key_id: str) -> Key:
        key = self._keys.get(key_id)
        if key is None or key.account != account:
            raise refusals.unknown_key(key_id)
        revoked = self._keys[key_id] = replace(key, revoked_ms=key.revoked_ms or self._now_us() // 1000)
        return revoked

    async def keys(self, account: str) -> list[Key]:
        found = (key for key in self._keys.values() if key.account == account)
        return sorted(found, key=lambda key: (key.created_ms, key.id))

    async def key(self, account_tag: str, key_id: str) -> Key | None:
        return self._keys.get(key_id)

    async def find_key(self, account_tag: str, digest: str) -> tuple[Key, Account] | None:
        """Here the digest alone says which key it is; the tag is for stores that are spread."""
        key_id = self._key_ids.get(digest)
        if key_id is None:
            return None
        key = self._keys[key_id]
        return key, self._accounts[key.account].row

    async def usage(self, account: str, first_day: str, end_day: str) -> list[DayUsage]:
        found = self._accounts.get(account)
        return [] if found is None else found.credit.usage(first_day, end_day)

    async def postings(self, account: str) -> AsyncIterator[Posting]:
        found = self._accounts.get(account)
        for posting in () if found is None else tuple(found.credit.postings):
            yield posting

    def _existing(self, account: str) -> _Account:
        found = self._accounts.get(account)
        if found is None:
            raise refusals.unknown_account(account)
        return found


def _as_it_stands(account: _Account, now_ms: int, plan: Plan | None = None) -> Account:
    """The account with its grants, up to date. Another plan than its own gives nothing."""
    own = plan if plan is not None and plan.id == account.row.plan else None
    account.credit.bring_up_to_date(now_ms, own)
    return replace(account.row, grants=account.credit.live(), free=account.credit.free(now_ms))


def _granted(free: int | None, key: Key, price: Price, worst_case: Usage) -> Usage:
    """What the free credit (None: not metered) and the key's cap allow of the worst case. Raises InsufficientCredit."""
    left_of_key = None if key.cap is None else max(key.cap - key.used - key.held, 0)
    left = min((amount for amount in (free, left_of_key) if amount is not None), default=None)
    usage = worst_case if left is None else affordable(price, worst_case, left)
    if usage is None:
        needed = price.cost(replace(worst_case, completion_tokens=min(1, worst_case.completion_tokens)))
        raise refusals.short_of_credit(needed, left or 0, by_key=left != free)
    return usage


def _request_counted(account: _Account, plan: Plan, now_us: int) -> int:
    """When the rate of requests will be worn off, with one more. Raises RateLimited."""
    if plan.requests_per_minute is None:
        return account.requests_full_at_us
    full_at_us = _worn(account.requests_full_at_us, plan.requests_per_minute, 1, now_us)
    wait_us = full_at_us - now_us - MINUTE_US
    if wait_us > 0:
        raise refusals.rate_limited("requests", plan.requests_per_minute, wait_us, *_rates(account, plan, now_us))
    return full_at_us


def _prompt_counted(account: _Account, plan: Plan, prompt_tokens: int, now_us: int) -> int:
    """When the rate of tokens will be worn off, with the prompt's. Raises RateLimited.

    A rate that is not used up lets any prompt pass, and the next request waits for what this one overdrew.
    """
    if plan.tokens_per_minute is None:
        return account.tokens_full_at_us
    wait_us = account.tokens_full_at_us - now_us - MINUTE_US + 1
    if wait_us > 0:
        raise refusals.rate_limited("tokens", plan.tokens_per_minute, wait_us, *_rates(account, plan, now_us))
    return _worn(account.tokens_full_at_us, plan.tokens_per_minute, prompt_tokens, now_us)


def _worn(full_at_us: int, limit: int, uses: int, now_us: int) -> int:
    """When a rate of `limit` a minute is worn off after so many more uses."""
    return max(full_at_us, now_us) + uses * MINUTE_US // limit


def _rates(account: _Account, plan: Plan, now_us: int) -> tuple[Rate | None, Rate | None]:
    """How the rates of requests and of tokens stand, where the plan has them."""
    kept = (plan.requests_per_minute, account.requests_full_at_us), (plan.tokens_per_minute, account.tokens_full_at_us)
    requests, tokens = (None if limit is None else rate_of(limit, full_at_us, now_us) for limit, full_at_us in kept)
    return requests, tokens


def _posting(
    kind: Literal["charge", "correction"], hold: Hold, cost: int, usage: Usage, reason: str, now_us: int
) -> Posting:
    of_request = {"request_id": hold.request_id, "key_id": hold.key_id, "model": hold.model}
    credit = -cost if hold.amount else 0
    return Posting("", now_us // 1000, kind, credit, **of_request, cost=cost, usage=usage, reason=reason)


def _minus(usage: Usage, other: Usage) -> Usage:
    return Usage(
        usage.prompt_tokens - other.prompt_tokens,
        usage.cached_tokens - other.cached_tokens,
        usage.completion_tokens - other.completion_tokens,
    )


def _check_amount(amount: int) -> None:
    if amount <= 0:
        raise InvalidRequest("The amount must be greater than 0.", param="amount")
