"""Response headers that are the same in every front: rates, what credit pays for, and those of errors."""

import math

from serving.core import Rate
from serving.errors import PayloadTooLarge, RateLimited, ServingError, Unauthenticated
from serving.pipeline import Granted

CLAMPED = "x-credit-clamped-max-tokens"
IGNORED = "x-ignored-parameters"
REQUEST_ID = "x-request-id"
RETRY_AFTER = "retry-after"
_RATE = "x-ratelimit-{}-{}"

EXPOSED = (
    REQUEST_ID,
    RETRY_AFTER,
    CLAMPED,
    IGNORED,
    *(_RATE.format(part, kind) for kind in ("requests", "tokens") for part in ("limit", "remaining", "reset")),
)
"""Those that a page of another origin may read."""


def granted_headers(granted: Granted) -> dict[str, str]:
    """Response headers of a request that has its hold."""
    hold, clamped_to = granted.hold, granted.clamped_to
    headers = rate_headers(hold.requests, hold.tokens)
    return headers if clamped_to is None else headers | {CLAMPED: str(clamped_to)}


def rate_headers(requests: Rate | None, tokens: Rate | None) -> dict[str, str]:
    """How the caller's rates stand; nothing of those it does not have. Source: OpenAI's rate limit headers."""
    headers: dict[str, str] = {}
    for kind, rate in (("requests", requests), ("tokens", tokens)):
        if rate is not None:
            # Rounded up: who waits for so long has waited long enough.
            told = {
                "limit": rate.limit,
                "remaining": rate.remaining,
                "reset": f"{math.ceil(rate.reset_s * 1000) / 1000:g}s",
            }
            headers |= {_RATE.format(part, kind): str(value) for part, value in told.items()}
    return headers


def error_headers(error: ServingError) -> dict[str, str]:
    """Response headers of an error before the first byte; its body is JSON in every front."""
    headers = {"content-type": "application/json"}
    if error.retry_after_s is not None:
        headers[RETRY_AFTER] = str(math.ceil(error.retry_after_s))
    if isinstance(error, RateLimited):
        headers |= rate_headers(error.requests, error.tokens)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, PayloadTooLarge):
        # The rest of the body is still coming: do not wait for it.
        headers["connection"] = "close"
    return headers
