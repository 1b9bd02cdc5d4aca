"""The laws of `ledger/base.py` as a machine that does anything in any order, over any ledger and its books.

`LedgerLaws` drives a subject alone or, step by step, beside the ledger in memory: then both must give the same answers
and stand alike. After every step the laws are checked on what the subject tells of itself (`snapshots.py`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from serving.core import Caller, Hold, Plan, Price, Receipt, Usage
from serving.errors import (
    Conflict,
    Forbidden,
    InsufficientCredit,
    NotFound,
    PlanChanged,
    RateLimited,
    ServingError,
    Unauthenticated,
)
from serving.ledger.base import Account, Grant, Key, month_of
from tests.ledger.snapshots import LOST, Snapshot, check, check_step, told_apart
from tests.ledger.subjects import (
    ACCOUNTS,
    COUNTS,
    LEASE_S,
    Clock,
    Refused,
    Subject,
    answer,
    awaited,
    in_memory,
    look,
    prices,
    usages,
    without_rates,
)

T = TypeVar("T")
SECOND_US, DAY_US = 1_000_000, 86_400_000_000

PLANS = {
    plan.id: plan
    for plan in (
        Plan("free", monthly_credits=30_000),
        Plan("paid", monthly_credits=0, price_percent=150),
        Plan("tight", monthly_credits=5_000, max_concurrent=2, requests_per_minute=4, tokens_per_minute=3_000),
        Plan("open", price_percent=33),
        Plan("fair", max_concurrent=3, requests_per_minute=5, tokens_per_minute=5_000),
    )
}
WAITS_US = st.sampled_from((0, 0, 0, 0, 0, 1, 999, 1_000, SECOND_US, 61 * SECOND_US))
AGAIN = st.booleans()
ACCOUNT = st.sampled_from((*ACCOUNTS[:1] * 4, *ACCOUNTS[1:2] * 3, *ACCOUNTS[2:]))
PLAN = st.sampled_from(("free", "open", "tight", "fair", "paid", "free", "tight"))
STALE_PLAN = st.sampled_from((*[None] * 25, *PLANS))


@dataclass
class Request:
    """What the machine knows of a request: how it was asked for, and what became of it."""

    ask: Callable[[Subject, Price], Awaitable[Hold]]
    price: Price
    hold: Hold
    lease_us: int
    noted_tokens: int = 0
    state: Literal["open", "reaped", "over"] = "open"
    receipt: Receipt = field(default=Receipt("", Usage(), 0))


class LedgerLaws(RuleBasedStateMachine):
    """A subclass says what the subject is, with empty books and holds of `LEASE_S`, and whether it is `compared`."""

    compared: ClassVar[bool] = True
    keys, holds = Bundle("keys"), Bundle("holds")

    async def subject(self, clock: Clock) -> Subject:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.sides = [self.runner.run(self.subject(self.clock))]
        if self.compared:
            self.sides.append(in_memory(self.clock))
        self.requests: dict[tuple[str, str], Request] = {}
        self.seen: dict[str, Snapshot] = {}

    def teardown(self) -> None:
        for side in self.sides:
            self.runner.run(awaited(side.close()))
        self.runner.close()

    # ---- one step ----

    def do(self, act: Callable[[Subject], Awaitable[T]], *, again: bool = False) -> T | Refused:
        """The answer of every side, which are one. With `again` the step is done twice, which is as good as once."""
        answers = [self.runner.run(answer(act(side))) for side in self.sides]
        assert all(other == answers[0] for other in answers[1:]), answers
        if again:
            before = self.look()
            assert self.do(act) == answers[0]
            assert self.look() == before
        return answers[0]

    def look(self) -> dict[str, Snapshot]:
        """How all accounts stand, on every side alike."""
        looks = [self.runner.run(look(side)) for side in self.sides]
        for other in looks[1:]:
            assert other.keys() == looks[0].keys()
            for name, snapshot in looks[0].items():
                before = len(self.seen[name].postings) if name in self.seen else 0
                assert told_apart(snapshot, other[name], before) == []
        return looks[0]

    @invariant()
    def laws(self) -> None:
        seen = self.look()
        for name, snapshot in seen.items():
            open_holds = [request.hold for request in self.requests.values() if request.state == "open"]
            check(snapshot, [hold for hold in open_holds if hold.account == name])
            check_step(self.seen.get(name), snapshot, self.clock.now_ms)
        self.seen = seen

    # ---- accounts and keys ----

    @initialize(target=keys, plan=PLAN)
    def begin(self, plan: str) -> Any:  # noqa: ANN401  # Hypothesis's own
        for name in ACCOUNTS[:2]:
            self.open_account(name, plan, again=False)
            self.seen = self.look()
            self.grant(name, 0, 10_000, 20, 0, 0)
        return multiple(*(self.add_key(name, 0, None, 0, again=False) for name in ACCOUNTS[:2]))

    @rule(name=ACCOUNT, plan=PLAN, again=AGAIN)
    def open_account(self, name: str, plan: str, again: bool) -> None:
        opened = self.do(lambda side: side.books.open_account(name, plan), again=again)
        if name in self.seen and self.seen[name].account.plan != plan:
            assert opened == Refused(Conflict)
        else:
            assert isinstance(opened, Account)
            assert opened.plan == plan
        assert self.do(lambda side: side.books.accounts()) == sorted({*self.seen, name})

    @rule(name=ACCOUNT, plan=PLAN, state=st.sampled_from((None, "active", "suspended")), again=AGAIN)
    def change_account(self, name: str, plan: str, state: Literal["active", "suspended"] | None, again: bool) -> None:
        """A plan or a state; who is suspended seldom stays so."""
        changes = self.seen[name].account.state == "suspended" if name in self.seen else False
        if changes or state:
            changed = self.do(lambda side: side.books.change_account(name, state=state or "active"), again=again)
        else:
            changed = self.do(lambda side: side.books.change_account(name, plan=plan), again=again)
        assert isinstance(changed, Account) if name in self.seen else changed == Refused(NotFound)

    @rule(name=ACCOUNT, wait_us=WAITS_US)
    def look_at(self, name: str, wait_us: int) -> None:
        """What a page shows: an account and what its plan gives it this month."""
        self.clock.now_us += wait_us
        if name in self.seen:
            plan = PLANS[self.seen[name].account.plan]
            account = self.do(lambda side: side.books.account(name, plan), again=True)
            assert isinstance(account, Account)

    @rule(
        target=keys,
        name=ACCOUNT,
        number=st.integers(0, 2),
        cap=st.none() | st.integers(0, 20_000),
        lives_s=st.sampled_from((0, 0, 0, 40, 86_400)),
        again=AGAIN,
    )
    def add_key(self, name: str, number: int, cap: int | None, lives_s: int, again: bool) -> Any:  # noqa: ANN401
        key_id, expires_ms = f"key_{name}{number}", self.clock.now_ms + lives_s * 1000 if lives_s else 0
        key = Key(key_id, name, "a key", "sk-", f"digest-{key_id}", models=("m",), cap=cap, expires_ms=expires_ms)
        added = self.do(lambda side: side.books.add_key(key))
        if name not in self.seen:
            assert added == Refused(NotFound)
            return multiple()
        assert added == (Refused(Conflict) if key_id in self.seen[name].keys else None)
        if again:
            assert self.do(lambda side: side.books.add_key(replace(key, id=key_id + "x"))) == Refused(Conflict)
        return multiple() if added else key

    @rule(key=keys, of=st.sampled_from(("cy", "cy", "bob", "ann")))
    def revoke(self, key: Key, of: str) -> None:
        revoked = self.do(lambda side: side.books.revoke_key(of, key.id), again=True)
        assert revoked == Refused(NotFound) if of != key.account else isinstance(revoked, Key)

    # ---- credit ----

    @rule(
        name=ACCOUNT,
        number=st.integers(0, 4),
        amount=st.integers(1, 15_000),
        priority=st.sampled_from((5, 10, 20)),
        later_ms=st.sampled_from((0, 0, 0, 86_400_000)),
        lives_ms=st.sampled_from((0, 0, -1, 1, 20_000, 7_200_000, 300_000_000)),
    )
    def grant(self, name: str, number: int, amount: int, priority: int, later_ms: int, lives_ms: int) -> None:
        effective_ms = self.clock.now_ms + later_ms if later_ms else 0
        expires_ms = self.clock.now_ms + lives_ms if lives_ms else 0
        asked = Grant(f"g{number}", amount, "purchase", priority, effective_ms, expires_ms)
        given = self.do(lambda side: side.books.grant(name, asked), again=True)
        if isinstance(given, Grant):
            assert (given.amount, given.priority, given.effective_ms) == (amount, priority, effective_ms)
        else:
            assert given.kind is (Conflict if name in self.seen else NotFound)

    @rule(name=ACCOUNT, number=st.none() | st.integers(0, 4), wait_us=WAITS_US)
    def void(self, name: str, number: int | None, wait_us: int) -> None:
        """A grant, or what the plan gave for this month."""
        self.clock.now_us += wait_us
        plan = self.seen[name].account.plan if name in self.seen else ""
        grant_id = f"plan:{month_of(self.clock.now_ms)[0]}:{plan}" if number is None else f"g{number}"
        taken = self.do(lambda side: side.books.void(name, grant_id), again=True)
        given = name in self.seen and any(posting.grant == grant_id for posting in self.seen[name].postings)
        assert taken == Refused(NotFound) if not given else not isinstance(taken, Refused) and taken >= 0

    @rule(name=ACCOUNT, number=st.integers(0, 3), amount=st.integers(1, 8_000), wait_us=WAITS_US, again=AGAIN)
    def debit(self, name: str, number: int, amount: int, wait_us: int, again: bool) -> None:
        self.clock.now_us += wait_us
        left = self.do(lambda side: side.books.debit(name, f"d{number}", amount), again=again)
        assert not isinstance(left, Refused) or left.kind in (NotFound, Conflict, InsufficientCredit)

    # ---- requests ----

    @rule(
        target=holds,
        key=keys,
        stale=STALE_PLAN,
        price=prices(),
        prompt=COUNTS,
        completion=COUNTS,
        wait_us=WAITS_US,
        again=AGAIN,
    )
    def hold(
        self, key: Key, stale: str | None, price: Price, prompt: int, completion: int, wait_us: int, again: bool
    ) -> Any:  # noqa: ANN401
        self.clock.now_us += wait_us
        plan = PLANS[stale or self.seen[key.account].account.plan]
        worst = Usage(prompt, 0, completion)
        request_id = f"r{sum(account == key.account for account, _ in self.requests)}"

        def ask(side: Subject, price: Price) -> Awaitable[Hold]:
            caller = Caller(key.account, key.id, plan)
            return side.ledger.hold(caller, request_id, f"m{prompt % 2}", price, worst)

        expected = self.refusal(key, plan)
        hold = self.do(lambda side: ask(side, price), again=again)
        after = self.look()[key.account]
        left = after.left(key.id, plan)
        if isinstance(hold, Refused):
            if expected is None and hold.kind is InsufficientCredit:
                assert left is not None
                assert price.at(plan.price_percent).cost(Usage(prompt, 0, min(1, completion))) > left
            elif expected is not None or hold.kind is not RateLimited:
                assert hold.kind is expected
            else:
                assert plan.requests_per_minute
            return multiple()
        assert expected is None
        assert hold.price == price.at(plan.price_percent)
        self.check_hold(hold, plan, worst, left)
        request = Request(ask, price, hold, self.clock.now_us + round(LEASE_S * SECOND_US))
        self.requests[key.account, request_id] = request
        return key.account, request_id

    @rule(target=holds, key=keys, price=prices(), usage=usages(), count=st.integers(2, 7), wait_us=WAITS_US)
    def hold_many(self, key: Key, price: Price, usage: Usage, count: int, wait_us: int) -> Any:  # noqa: ANN401
        """At once, or nearly so: as many as may run, and as the rates allow."""
        asked = usage.prompt_tokens // count, usage.completion_tokens // count
        made = [self.hold(key, None, price, *asked, wait_us, again=False) for _ in range(count)]
        return multiple(*(at for at in made if isinstance(at, tuple)))

    @rule(
        target=holds,
        key=keys,
        price=prices(),
        worst=usages(),
        told=st.none() | usages(),
        end=st.sampled_from(("settled", "settled", "open", "reaped", "reaped next month")),
    )
    def run(self, key: Key, price: Price, worst: Usage, told: Usage | None, end: str) -> Any:  # noqa: ANN401
        """A request, or one whose process died: that one may be settled late, too."""
        at = self.hold(key, None, price, worst.prompt_tokens, worst.completion_tokens, 0, again=False)
        if not isinstance(at, tuple):
            return at
        self.laws()  # what others give back below is free again, and this one did not pass it over
        if told is not None:
            self.note(at, told, 0)
        if end == "settled":
            self.settle(at, told or worst, 1, again=False)
        elif end != "open":
            self.wait(31 * SECOND_US if end == "reaped" else 0)
            self.reap(0)
        return at

    def refusal(self, key: Key, plan: Plan) -> type[ServingError] | None:
        """Why a hold is refused for, whatever it asks and however the rates stand."""
        seen = self.seen[key.account]
        stored = seen.keys[key.id]
        if seen.account.state == "suspended":
            return Forbidden
        if seen.account.plan != plan.id:
            return PlanChanged
        if stored.revoked_ms or 0 < stored.expires_ms <= self.clock.now_ms:
            return Unauthenticated
        return RateLimited if plan.max_concurrent and seen.account.running >= plan.max_concurrent else None

    def check_hold(self, hold: Hold, plan: Plan, worst: Usage, left: int | None) -> None:
        """All that was asked, or as much as could be paid: one token more would cost more than is left now."""
        assert hold.bound == hold.price.cost(hold.usage)
        assert hold.amount == (hold.bound if plan.metered else 0)
        assert left is None or left >= 0
        for rate, limit in ((hold.requests, plan.requests_per_minute), (hold.tokens, plan.tokens_per_minute)):
            assert (rate and rate.limit) == limit
            assert rate is None or rate.remaining <= rate.limit - (rate is hold.requests)
        if hold.usage != worst:
            assert left is not None
            assert 0 < hold.usage.completion_tokens < worst.completion_tokens
            assert hold.price.cost(hold.usage + Usage(0, 0, 1)) > hold.bound + left

    @rule(at=holds, other=st.booleans())
    def hold_again(self, at: tuple[str, str], other: bool) -> None:
        request = self.requests[at]
        price = replace(request.price, output_per_1k=request.price.output_per_1k + 100 * other)
        answer = self.do(lambda side: without_rates(request.ask(side, price)), again=True)
        assert answer == (Refused(Conflict) if other else replace(request.hold, requests=None, tokens=None))

    @rule(at=holds, usage=usages(), wait_us=WAITS_US)
    def note(self, at: tuple[str, str], usage: Usage, wait_us: int) -> None:
        self.clock.now_us += wait_us
        request = self.requests[at]
        self.do(lambda side: side.note(request.hold, usage), again=True)
        if request.state == "open":
            request.lease_us = self.clock.now_us + round(LEASE_S * SECOND_US)
            request.noted_tokens = max(request.noted_tokens, usage.completion_tokens)

    @rule(at=holds, usage=usages(), wait_us=WAITS_US, again=AGAIN)
    def settle(self, at: tuple[str, str], usage: Usage, wait_us: int, again: bool) -> None:
        self.clock.now_us += wait_us
        request = self.requests[at]
        hold, before = request.hold, request.receipt
        receipt = self.do(lambda side: side.ledger.settle(hold, usage, "finish"), again=again)
        assert isinstance(receipt, Receipt)
        assert 0 <= receipt.cost <= hold.bound
        cost = min(hold.price.cost(usage), hold.bound)
        if request.state == "over":
            assert receipt == before
        elif request.state == "reaped" and hold.amount and cost > before.cost:
            assert receipt.usage == usage
            assert before.cost <= receipt.cost <= cost
        else:
            assert receipt == Receipt(hold.request_id, usage, cost)
        request.state, request.receipt = "over", receipt

    @rule(at=holds, again=AGAIN)
    def release(self, at: tuple[str, str], again: bool) -> None:
        request = self.requests[at]
        self.do(lambda side: side.ledger.release(request.hold), again=again)
        if request.state != "over":
            request.state, request.receipt = "over", Receipt(request.hold.request_id, Usage(), 0)

    @rule(at=holds, usage=usages())
    def settle_what_the_store_lost(self, at: tuple[str, str], usage: Usage) -> None:
        hold = replace(self.requests[at].hold, request_id=f"{LOST}{at[1]}")
        receipt = self.do(lambda side: side.ledger.settle(hold, usage, "finish"), again=True)
        assert isinstance(receipt, Receipt)
        assert receipt.cost <= hold.bound

    # ---- time ----

    @rule(by_us=st.sampled_from((0, 0, 0, 1, 999, 31 * SECOND_US, 61 * SECOND_US, 7_200 * SECOND_US, DAY_US)))
    def wait(self, by_us: int) -> None:
        """0: until the next month begins."""
        self.clock.now_us = self.clock.now_us + by_us if by_us else month_of(self.clock.now_ms)[2] * 1000

    @rule(wait_us=WAITS_US)
    def reap(self, wait_us: int) -> None:
        self.clock.now_us += wait_us
        due = [
            request
            for request in self.requests.values()
            if request.state == "open" and request.lease_us <= self.clock.now_us
        ]
        assert self.do(lambda side: side.reap()) == len(due)
        for request in due:
            usage = Usage(request.hold.usage.prompt_tokens, 0, request.noted_tokens)
            cost = min(request.hold.price.cost(usage), request.hold.bound)
            request.state, request.receipt = "reaped", Receipt(request.hold.request_id, usage, cost)
        assert self.do(lambda side: side.reap()) == 0
