"""What can go wrong with a request, as the caller is told.

    ServingError
     +- InvalidRequest        400  a field is impossible; `param` names it
     |   +- PromptTooLong     400  prompt and context limit do not fit; the message says both
     +- Unauthenticated       401  no key, or not a valid one
     +- InsufficientCredit    402  the account cannot pay for the least of this request
     +- Forbidden             403  the key may not do this
     +- NotFound              404  no such address
     |   +- UnknownModel      404  no such model for this key (a dialect may answer another status)
     +- MethodNotAllowed      405  the address exists, for another method
     +- Conflict              409  the same id was used for something else
     +- PayloadTooLarge       413  the body is over the limit
     +- RateLimited           429  too many requests or tokens; `retry_after_s` says when
     +- EngineFailed          500  the engine died or broke; nothing the caller sent is wrong
     +- Unsupported           501  understood, and not built (yet)
     +- Overloaded            503  loading, draining or full; `retry_after_s` says when
     |   +- PlanChanged       503  the account's plan is another one than the caller's: authenticate again, at once
     +- Timeout               504  the engine took too long

`code` is stable and for programs; `message` is for people, says what to do, and never repeats a prompt.
Each dialect, and the admin API, renders all of them in its own shape; only their `http.py` catches them.
"""

from typing import ClassVar

from serving.core import Rate


class ServingError(Exception):
    """Base of every error a caller is told about."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(ServingError):
    status = 400
    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unauthenticated(ServingError):
    status = 401
    code = "invalid_api_key"


class InsufficientCredit(ServingError):
    status = 402
    code = "insufficient_credit"


class Forbidden(ServingError):
    status = 403
    code = "forbidden"


class NotFound(ServingError):
    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ServingError):
    status = 405
    code = "method_not_allowed"


class Conflict(ServingError):
    status = 409
    code = "conflict"


class PayloadTooLarge(ServingError):
    status = 413
    code = "payload_too_large"


class RateLimited(ServingError):
    """`requests` and `tokens` are how the caller's rates stand, where it has them."""

    status = 429
    code = "rate_limited"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        requests: Rate | None = None,
        tokens: Rate | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.requests = requests
        self.tokens = tokens


class EngineFailed(ServingError):
    status = 500
    code = "engine_failed"


class Unsupported(ServingError):
    status = 501
    code = "unsupported"


class Overloaded(ServingError):
    status = 503
    code = "overloaded"


class PlanChanged(Overloaded):
    """The caller was authenticated a moment before its account's plan changed."""


class Timeout(ServingError):
    status = 504
    code = "timeout"
