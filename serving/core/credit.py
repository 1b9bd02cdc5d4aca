"""Who pays, and for what. Money is an `int` of microcredits."""

from dataclasses import dataclass

from serving.core.events import Usage


@dataclass(frozen=True, slots=True)
class Plan:
    """Prices and limits of an account; None is no limit, for `models` every model.

    `monthly_credits` (microcredits, granted at the start of each calendar month UTC) None: the plan is not metered.
    `api` False: its keys may not call the API. `price_percent` multiplies the models' prices.
    """

    id: str = "unlimited"
    models: frozenset[str] | None = None
    monthly_credits: int | None = None
    price_percent: int = 100
    max_context_tokens: int | None = None
    max_output_tokens: int | None = None
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    api: bool = True

    @property
    def metered(self) -> bool:
        return self.monthly_credits is not None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is authenticated. `key_id` names the key in logs and listings; it is not the key. `models` None: the key
    itself allows whatever the plan does. `capped`: the key has a cap of its own."""

    account: str
    key_id: str
    plan: Plan = Plan()
    models: frozenset[str] | None = None
    capped: bool = False

    @property
    def metered(self) -> bool:
        """Whether what may be spent hangs on what was spent before."""
        return self.plan.metered or self.capped

    def may_use(self, model: str) -> bool:
        return all(allowed is None or model in allowed for allowed in (self.models, self.plan.models))


@dataclass(frozen=True, slots=True)
class Price:
    """Microcredits for 1,000 tokens of each kind. Rounding happens once, on the whole, up."""

    input_per_1k: int = 0
    cached_per_1k: int = 0
    output_per_1k: int = 0

    def at(self, percent: int) -> "Price":
        """These prices, each at so many percent, rounded up."""
        if percent == 100:
            return self
        per_1k = (self.input_per_1k, self.cached_per_1k, self.output_per_1k)
        return Price(*(-(-price * percent // 100) for price in per_1k))

    def cost(self, usage: Usage) -> int:
        """Microcredits for `usage`."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        thousandths = (
            fresh * self.input_per_1k
            + usage.cached_tokens * self.cached_per_1k
            + usage.completion_tokens * self.output_per_1k
        )
        return -(-thousandths // 1000)


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit of so many a minute: what is left of it now, and in how many seconds all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Credit reserved before work.

    `bound` is the most the request may cost, in microcredits, and `usage` the most it may use for it. `amount` is what
    the account's credit was lowered by meanwhile: `bound`, or 0 on a plan that is not metered. `recorded` False: the
    store did not answer, and hears of the request when it is settled.
    """

    request_id: str
    account: str
    key_id: str
    model: str
    price: Price
    usage: Usage
    bound: int
    amount: int
    requests: Rate | None = None
    tokens: Rate | None = None
    recorded: bool = True


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was charged in the end, in microcredits."""

    request_id: str
    usage: Usage
    cost: int
