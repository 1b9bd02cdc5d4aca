"""The laws of `ledger/base.py`, held by the ledger in memory under any order of operations."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from serving.core import Caller, Hold, Price, Receipt, Usage
from serving.errors import Conflict, InsufficientCredit
from serving.ledger import memory
from serving.ledger.memory import MemoryLedger, affordable

T = TypeVar("T")
ACCOUNTS = ("metered", "poor", "unlimited")
COUNTS = st.integers(0, 3000)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """A cached token never costs more than a fresh one: settings refuse it."""
    input_per_1k = draw(st.integers(0, 5000))
    return Price(input_per_1k, draw(st.integers(0, input_per_1k)), draw(st.integers(0, 5000)))


def run(work: Coroutine[Any, Any, T]) -> T:
    """The ledger in memory never waits: its coroutines end at their first step."""
    try:
        work.send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    raise AssertionError("the ledger in memory waited")


def within(hold: Hold, prompt: int, cached: int, completion: int) -> Usage:
    """A usage that the hold allows."""
    prompt = min(prompt, hold.usage.prompt_tokens)
    return Usage(prompt, min(cached, prompt), min(completion, hold.usage.completion_tokens))


class Ledger(RuleBasedStateMachine):
    """Holds, settles and releases in any order, each also again."""

    holds = Bundle("holds")
    resolved = Bundle("resolved")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = MemoryLedger()
        self.ledger.grant("metered", 20_000)
        self.ledger.grant("poor", 10)
        self.open: dict[str, Hold] = {}
        self.charged = dict.fromkeys(ACCOUNTS, 0)
        self.count = 0

    @rule(target=holds, account=st.sampled_from(ACCOUNTS), price=prices(), prompt=COUNTS, completion=COUNTS)
    def hold(self, account: str, price: Price, prompt: int, completion: int) -> Any:  # noqa: ANN401  # Hypothesis's own
        self.count += 1
        worst = Usage(prompt, 0, completion)
        free = self.ledger.balances[account].free if account in self.ledger.balances else None
        try:
            hold = run(self.ledger.hold(Caller(account, "key"), str(self.count), price, worst))
        except InsufficientCredit:
            assert free is not None
            assert price.cost(Usage(prompt, 0, min(1, completion))) > free
            return multiple()
        assert hold.usage.prompt_tokens == prompt
        assert hold.usage.completion_tokens <= completion
        if free is None:
            assert (hold.amount, hold.usage) == (0, worst)
        else:
            assert hold.amount == price.cost(hold.usage) <= free
            more = Usage(prompt, 0, hold.usage.completion_tokens + 1)
            assert hold.usage == worst or price.cost(more) > free
        self.open[hold.request_id] = hold
        return hold

    @rule(target=resolved, hold=consumes(holds), prompt=COUNTS, cached=COUNTS, completion=COUNTS)
    def settle(self, hold: Hold, prompt: int, cached: int, completion: int) -> tuple[Hold, Receipt]:
        usage = within(hold, prompt, cached, completion)
        receipt = run(self.ledger.settle(hold, usage))
        assert receipt == Receipt(hold.request_id, usage, hold.price.cost(usage))
        if hold.account != "unlimited":
            assert receipt.cost <= hold.amount
        self.charged[hold.account] += receipt.cost
        del self.open[hold.request_id]
        return hold, receipt

    @rule(target=resolved, hold=consumes(holds))
    def release(self, hold: Hold) -> tuple[Hold, Receipt]:
        run(self.ledger.release(hold))
        del self.open[hold.request_id]
        return hold, Receipt(hold.request_id, Usage(), 0)

    @rule(done=resolved, completion=COUNTS)
    def settle_again(self, done: tuple[Hold, Receipt], completion: int) -> None:
        hold, receipt = done
        assert run(self.ledger.settle(hold, within(hold, 0, 0, completion))) == receipt

    @rule(done=resolved)
    def release_again(self, done: tuple[Hold, Receipt]) -> None:
        run(self.ledger.release(done[0]))

    @rule(done=resolved)
    def use_an_id_again(self, done: tuple[Hold, Receipt]) -> None:
        with pytest.raises(Conflict):
            run(self.ledger.hold(Caller("unlimited", "key"), done[0].request_id, Price(), Usage(1, 0, 1)))

    @rule(hold=holds)
    def use_an_open_id_again(self, hold: Hold) -> None:
        with pytest.raises(Conflict):
            run(self.ledger.hold(Caller("metered", "key"), hold.request_id, Price(), Usage(1, 0, 1)))

    @rule(amount=st.integers(0, 5000))
    def grant(self, amount: int) -> None:
        self.ledger.grant("metered", amount)

    @invariant()
    def what_is_held_is_what_is_open(self) -> None:
        for account, balance in self.ledger.balances.items():
            assert balance.held == sum(hold.amount for hold in self.open.values() if hold.account == account)
            assert balance.used == self.charged[account]

    @invariant()
    def metered_accounts_stay_within_their_grant(self) -> None:
        for balance in self.ledger.balances.values():
            assert balance.granted is None or balance.used + balance.held <= balance.granted


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_miscounting_engine_is_not_charged_beyond_the_hold() -> None:
    ledger = MemoryLedger()
    ledger.grant("a", 100)
    hold = run(ledger.hold(Caller("a", "key"), "r", Price(1000, 1000, 1000), Usage(5, 0, 5)))
    assert run(ledger.settle(hold, Usage(50, 0, 50))).cost == hold.amount == 10


def test_a_limit_put_on_a_running_account_begins_at_what_was_used() -> None:
    ledger = MemoryLedger()
    hold = run(ledger.hold(Caller("a", "key"), "r", Price(1000, 1000, 1000), Usage(5, 0, 5)))
    run(ledger.settle(hold, Usage(5, 0, 5)))
    ledger.grant("a", 7)
    assert ledger.balances["a"].free == 7


def test_old_receipts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_REMEMBERED_RECEIPTS", 2)
    ledger = MemoryLedger()
    holds = [run(ledger.hold(Caller("a", "key"), str(n), Price(1000), Usage(1, 0, 1))) for n in range(4)]
    receipts = [run(ledger.settle(hold, Usage(1, 0, 1))) for hold in holds]
    assert [run(ledger.settle(hold, Usage(1, 0, 1))) for hold in holds[2:]] == receipts[2:]
    assert run(ledger.settle(holds[0], Usage(1, 0, 1))).cost == 0
    assert ledger.balances["a"].used == 4


@given(price=prices(), prompt=COUNTS, completion=COUNTS, free=st.integers(0, 10_000))
def test_what_is_affordable_is_the_most_that_is(price: Price, prompt: int, completion: int, free: int) -> None:
    worst = Usage(prompt, 0, completion)
    assume(price.cost(Usage(prompt, 0, min(1, completion))) <= free)
    granted = affordable(price, worst, free)
    assert price.cost(granted) <= free
    assert granted == worst or price.cost(granted + Usage(0, 0, 1)) > free


@given(price=prices(), prompt=COUNTS, cached=COUNTS, completion=COUNTS)
def test_a_cost_is_rounded_up_once(price: Price, prompt: int, cached: int, completion: int) -> None:
    cached = min(cached, prompt)
    exact = (prompt - cached) * price.input_per_1k + cached * price.cached_per_1k + completion * price.output_per_1k
    assert exact <= 1000 * price.cost(Usage(prompt, cached, completion)) < exact + 1000


async def test_a_thousand_at_once_never_overspend() -> None:
    ledger = MemoryLedger()
    ledger.grant("a", 1000)
    price = Price(1000, 0, 1000)

    async def ask(number: int) -> int:
        try:
            hold = await ledger.hold(Caller("a", "key"), str(number), price, Usage(5, 0, 15))
        except InsufficientCredit:
            return 0
        await asyncio.sleep(0)
        return (await ledger.settle(hold, hold.usage)).cost

    charged = sum(await asyncio.gather(*(ask(number) for number in range(1000))))
    assert charged == ledger.balances["a"].used == 1000
