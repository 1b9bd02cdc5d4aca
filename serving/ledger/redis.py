"""The credit ledger on Redis: each operation is one script, atomic in the slot of its account.

Ordinarily a request costs two round trips, hold and settle; those of concurrent requests travel together (`store.py`).
How far requests are is told every few seconds, by one command for each slot with running requests. Settles and
releases go through the outbox, so a store that is away delays them and loses none. Meanwhile nothing begins, or what is
not metered, so many at once (`away_requests`): the store hears of that when it is settled. What each script does
exactly is written in `lua/`; `memory.py` is its readable twin, and the same laws are tested over both.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from serving.core import Caller, Hold, Plan, Price, Rate, Receipt, Usage
from serving.errors import Overloaded, ServingError
from serving.ledger import refusals
from serving.ledger.base import account_tag, rate_of
from serving.ledger.outbox import Entry, Outbox
from serving.ledger.store import NeverSent, Store

log = logging.getLogger(__name__)

SLOTS = tuple(f"{{s{number:02x}}}" for number in range(256))
_REAPED_AT_ONCE = 200
_SLOTS_AT_ONCE = 32
_RETRY_S = 0.5
_SENT_AT_ONCE = 256


def tag_of(account: str) -> str:
    """The hash tag of the slot that holds all of an account."""
    return f"{{s{account_tag(account)}}}"


@dataclass(slots=True)
class _Open:
    """A hold whose request runs in this process, and the completion tokens it has so far."""

    hold: Hold
    completion_tokens: int = 0


class RedisLedger:
    """The `base.Ledger` of this process. `away_requests`: how many requests may run at once that began while the store
    did not answer. `clock`, in microseconds, replaces the store's own in tests that move time."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        *,
        lease_s: float = 30.0,
        extend_s: float = 5.0,
        away_requests: int = 0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._lease_us = str(round(lease_s * 1_000_000))
        self._extend_s = extend_s
        self._away_requests = away_requests
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._on_their_way: set[int] = set()
        self._without_hold: list[str] = []
        self._always_working: list[asyncio.Task[None]] = []
        self._releasing: set[asyncio.Task[None]] = set()
        store.on_restart(self._resend_all)

    def start(self) -> None:
        """Begin to extend, to reap, and to send what the outbox holds."""
        self._resend_all()
        works = ((self._extend_s, self._keep_up), (_RETRY_S, self._send_waiting))
        self._always_working += [asyncio.create_task(_always(period_s, work)) for period_s, work in works]

    async def close(self, timeout_s: float = 5.0) -> None:
        """Wait until the store has acknowledged everything, at most `timeout_s`; the rest stays in the outbox."""
        self._away_requests = 0
        await asyncio.gather(*self._releasing)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._outbox.waiting:
                    await self._send_waiting()
                    await asyncio.sleep(0.05)
        if self._outbox.waiting:
            log.warning("%d settles wait in the outbox for the next start", self._outbox.waiting)
        self._tell_without_hold()
        for task in self._always_working:
            task.cancel()
        await asyncio.gather(*self._always_working, return_exceptions=True)
        await self._outbox.close()

    @property
    def waiting(self) -> int:
        return self._outbox.waiting

    async def hold(self, caller: Caller, request_id: str, model: str, price: Price, worst_case: Usage) -> Hold:
        plan = caller.plan
        price = price.at(plan.price_percent)
        limits = _texts(plan.monthly_credits, plan.max_concurrent, plan.requests_per_minute, plan.tokens_per_minute)
        try:
            code, *rest = await self._run(
                "hold",
                tag_of(caller.account),
                *(caller.account, caller.key_id, request_id, model),
                *(worst_case.prompt_tokens, worst_case.completion_tokens),
                *(price.input_per_1k, price.cached_per_1k, price.output_per_1k),
                *(self._lease_us, plan.id, *limits),
            )
        except (Overloaded, asyncio.CancelledError) as error:
            if isinstance(error, Overloaded) and self._may_begin_without(caller):
                return self._begun(_unrecorded(caller, request_id, model, price, worst_case))
            if not isinstance(error, NeverSent):
                # The store may have acted, or may yet: what nobody uses must not be held until its lease is over.
                releasing = asyncio.create_task(self._release(caller.account, request_id))
                self._releasing.add(releasing)
                releasing.add_done_callback(self._releasing.discard)
            raise
        if code != "ok":
            raise _refusal(code, rest, plan)
        completion, bound, amount, requests_at, tokens_at, now = map(int, rest)
        hold = Hold(
            request_id,
            *(caller.account, caller.key_id, model, price),
            Usage(worst_case.prompt_tokens, 0, completion),
            *(bound, amount, *_rates(plan, requests_at, tokens_at, now)),
        )
        return self._begun(hold)

    def _begun(self, hold: Hold) -> Hold:
        self._open[_name_of(hold)] = _Open(hold)
        return hold

    def _may_begin_without(self, caller: Caller) -> bool:
        """Whether a request of this caller may begin though the store does not answer."""
        if caller.metered or not self._away_requests:
            return False
        running = [known.hold for known in self._open.values()]
        if sum(not hold.recorded for hold in running) >= self._away_requests:
            return False
        most = caller.plan.max_concurrent
        return most is None or sum(hold.account == caller.account for hold in running) < most

    def note(self, hold: Hold, usage: Usage) -> None:
        known = self._open.get(_name_of(hold))
        if known is not None:
            known.completion_tokens = usage.completion_tokens

    async def settle(self, hold: Hold, usage: Usage, reason: str) -> Receipt:
        self._open.pop(_name_of(hold), None)
        counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        price = hold.price
        try:
            answer = await self._deliver(
                "settle",
                hold.account,
                *(hold.request_id, *map(str, counts), reason, hold.key_id, hold.model),
                *map(str, (price.input_per_1k, price.cached_per_1k, price.output_per_1k, hold.bound, hold.amount)),
            )
        except Overloaded:
            # It will be settled so as soon as the store is back.
            return Receipt(hold.request_id, usage, min(price.cost(usage), hold.bound))
        if answer[0] == "no account":
            return Receipt(hold.request_id, Usage(), 0)
        cost, prompt, cached, completion = map(int, answer[1:])
        return Receipt(hold.request_id, Usage(prompt, cached, completion), cost)

    async def release(self, hold: Hold) -> None:
        self._open.pop(_name_of(hold), None)
        await self._release(hold.account, hold.request_id)

    async def extend(self, holds: Iterable[Hold] | None = None) -> None:
        """Tell the store how far requests of this process are, by default all of them."""
        names = self._open if holds is None else [_name_of(hold) for hold in holds]
        by_tag: defaultdict[str, list[str | int]] = defaultdict(list)
        for name in names:
            if known := self._open.get(name):
                by_tag[tag_of(known.hold.account)] += (name, known.completion_tokens)
        await asyncio.gather(*(self._run("extend", tag, self._lease_us, *rest) for tag, rest in by_tag.items()))

    async def reap(self) -> int:
        """Settle the holds of all processes whose lease is over. Returns how many. A few slots at a time, so that
        requests need not wait for all of them."""
        reaped = 0
        for begin in range(0, len(SLOTS), _SLOTS_AT_ONCE):
            tags = SLOTS[begin : begin + _SLOTS_AT_ONCE]
            answers = await asyncio.gather(*(self._run("reap", tag, _REAPED_AT_ONCE) for tag in tags))
            reaped += sum(int(count) for _, count in answers)
        return reaped

    async def _run(self, script: str, tag: str, *arguments: str | int) -> list[str]:
        return await self._store.run(script, tag, "" if self._clock is None else self._clock(), *arguments)

    async def _deliver(self, script: str, account: str, *arguments: str) -> list[str]:
        """Through the outbox: when this ends, with an answer or Overloaded, a crash cannot lose it any more."""
        entry = self._outbox.add(script, tag_of(account), account, *arguments)
        try:
            return await self._send(entry)
        except ServingError:
            await self._outbox.on_disk(entry)
            raise

    async def _send(self, entry: Entry) -> list[str]:
        self._on_their_way.add(entry.number)
        try:
            answer = await self._run(entry.script, entry.tag, *entry.arguments)
        finally:
            self._on_their_way.discard(entry.number)
        self._outbox.acknowledge(entry)
        if answer[0] == "no account":
            log.error("request %s was settled for an account that is not in the store", entry.arguments[1])
        elif answer[0] == "lost":
            self._without_hold.append(entry.arguments[1])
        return answer

    async def _release(self, account: str, request_id: str) -> None:
        with contextlib.suppress(Overloaded):  # it will be released as soon as the store is back
            await self._deliver("release", account, request_id)

    async def _keep_up(self) -> None:
        """Extend, then reap: a store that was away for longer than a lease must hear first that requests still run."""
        self._outbox.compact()
        await self.extend()
        if reaped := await self.reap():
            log.warning("%d holds of requests that nobody settled were reaped", reaped)

    async def _send_waiting(self) -> None:
        waiting = [entry for entry in self._outbox.pending() if entry.number not in self._on_their_way]
        for begin in range(0, len(waiting), _SENT_AT_ONCE):
            batch = waiting[begin : begin + _SENT_AT_ONCE]
            outcomes = await asyncio.gather(*map(self._send, batch), return_exceptions=True)
            for entry, sent in zip(batch, outcomes, strict=True):
                if isinstance(sent, Overloaded):
                    return
                if isinstance(sent, BaseException):
                    # One that cannot be carried out must not keep the others back.
                    log.error("request %s cannot be settled, and waits: %s", entry.arguments[1], sent)
        self._tell_without_hold()

    def _tell_without_hold(self) -> None:
        if self._without_hold:
            known = (len(self._without_hold), self._without_hold[0])
            log.warning("the store had no hold of %d requests, %s the first: they were charged without", *known)
            self._without_hold.clear()

    def _resend_all(self) -> None:
        """A store that was started anew, or another one in its place, may lack what the former one acknowledged."""
        self._outbox.send_again()


async def _always(period_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        try:
            await work()
        except Overloaded:
            continue  # the store tells its own absence
        except Exception:
            log.exception("the ledger's work beside requests failed, and goes on")


def _unrecorded(caller: Caller, request_id: str, model: str, price: Price, worst_case: Usage) -> Hold:
    """A hold of which the store does not know, or not surely."""
    usage = Usage(worst_case.prompt_tokens, 0, worst_case.completion_tokens)
    of = (request_id, caller.account, caller.key_id, model, price, usage)
    return Hold(*of, bound=price.cost(usage), amount=0, recorded=False)


def _name_of(hold: Hold) -> str:
    return f"{hold.account}:{hold.request_id}"


def _texts(*values: int | None) -> tuple[str, ...]:
    return tuple("" if value is None else str(value) for value in values)


def _rates(plan: Plan, requests_at: int, tokens_at: int, now: int) -> tuple[Rate | None, Rate | None]:
    requests = rate_of(plan.requests_per_minute, requests_at, now) if plan.requests_per_minute else None
    tokens = rate_of(plan.tokens_per_minute, tokens_at, now) if plan.tokens_per_minute else None
    return requests, tokens


def _refusal(code: str, rest: list[str], plan: Plan) -> ServingError:
    """The error that an answer of the script `hold` means."""
    match code:
        case "requests" | "tokens":
            limit, wait_us, requests_at, tokens_at, now = map(int, rest)
            return refusals.rate_limited(code, limit, wait_us, *_rates(plan, requests_at, tokens_at, now))
        case "busy":
            return refusals.too_many_at_once(int(rest[0]))
        case "credit" | "cap":
            return refusals.short_of_credit(int(rest[0]), int(rest[1]), by_key=code == "cap")
        case _:
            return _REFUSALS[code]()


_REFUSALS: Mapping[str, Callable[[], ServingError]] = {
    "conflict": refusals.request_conflict,
    "no account": refusals.no_account,
    "suspended": refusals.suspended,
    "plan changed": refusals.plan_changed,
    "key revoked": refusals.key_revoked,
    "key expired": refusals.key_expired,
}
