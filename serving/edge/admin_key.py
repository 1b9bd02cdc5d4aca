"""Whether the admin key was sent. It says nothing of what who has it may do."""

import hashlib
import hmac


def is_admin(authorization: str | None, key: str | None) -> bool:
    """Whether a header `Authorization` holds `key`; nobody has a key that is None. The time it takes tells nothing."""
    scheme, _, sent = (authorization or "").partition(" ")
    # Header bytes arrive as latin-1 text. Of hashes not even the length tells anything.
    digests = [hashlib.sha256(text).digest() for text in (sent.strip().encode("latin-1"), (key or "").encode())]
    return hmac.compare_digest(*digests) and scheme.lower() == "bearer" and bool(key)
