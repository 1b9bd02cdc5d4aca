"""Server-sent events as the OpenAI protocol uses them: data frames, comments, and the closing mark."""

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients ignore it, proxies see that the connection lives."""


def frame(json: bytes) -> bytes:
    """One event whose data is `json`, which must be on one line."""
    return b"data: " + json + b"\n\n"
