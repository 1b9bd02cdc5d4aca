"""What a ledger refuses, in words: the same ones whichever ledger says them."""

from serving.core import Rate
from serving.errors import (
    Conflict,
    Forbidden,
    InsufficientCredit,
    NotFound,
    PlanChanged,
    RateLimited,
    Unauthenticated,
)


def request_conflict() -> Conflict:
    return Conflict("This request id is already in use. Send the request with another id.")


def no_account() -> Forbidden:
    return Forbidden("The account of this API key is not there any more.")


def suspended() -> Forbidden:
    return Forbidden("The account of this API key is suspended. Ask whoever runs this server.")


def plan_changed() -> PlanChanged:
    return PlanChanged("The account's plan has just changed. Try again.", retry_after_s=0)


def key_revoked() -> Unauthenticated:
    return Unauthenticated("This API key was revoked.")


def key_expired() -> Unauthenticated:
    return Unauthenticated("This API key has expired.")


def too_many_at_once(limit: int) -> RateLimited:
    message = f"This account may run {limit} requests at once. Try again when one of them is done."
    return RateLimited(message, retry_after_s=1)


def rate_limited(of: str, limit: int, wait_us: int, requests: Rate | None, tokens: Rate | None) -> RateLimited:
    """`of`: requests or tokens, of which a minute has `limit`; in `wait_us` microseconds there is one again."""
    message = f"This account may use {limit} {of} a minute. Try again in {-(-wait_us // 1_000_000)} s."
    return RateLimited(message, retry_after_s=wait_us / 1_000_000, requests=requests, tokens=tokens)


def short_of_credit(needed: int, left: int, *, by_key: bool) -> InsufficientCredit:
    """`needed` is the least that the request costs, `left` what there is; both in microcredits."""
    whose = "the cap of this API key" if by_key else "the account's credit"
    return InsufficientCredit(
        f"This request needs at least {needed} microcredits, and {left} are left of {whose}. "
        "Add credits, shorten the prompt, or wait for the next reset."
    )


def short_of_debit(amount: int, free: int) -> InsufficientCredit:
    return InsufficientCredit(f"{amount} microcredits cannot be taken: {free} are free.")


def unknown_account(account: str) -> NotFound:
    return NotFound(f"There is no account {account!r}.")


def unknown_key(key_id: str) -> NotFound:
    return NotFound(f"There is no key {key_id!r} of this account.")


def unknown_grant(grant_id: str) -> NotFound:
    return NotFound(f"There is no grant {grant_id!r} of this account.")


def taken(what: str) -> Conflict:
    """`what`: an id with its kind, such as `the grant id g1`."""
    return Conflict(f"{what} was used for something else.")
