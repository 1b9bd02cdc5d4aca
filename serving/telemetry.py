"""Every Prometheus series of ours and every log field, declared once, and how both are written out.

Counts nothing by itself and decides nothing. Keeps two laws: contents of messages are never put into a series or a log
record, and labels are of low cardinality (never what a caller sent). Imports
neither vllm nor torch: vLLM's own series are added to `/metrics` only where vllm is loaded already.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, Final, Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.registry import Collector

from serving import __version__

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)
_BETWEEN_CHUNKS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_WHOLE_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# ---- series ----------------------------------------------------------------------------------------------------------

REQUESTS = Counter("serving_requests", "Requests answered, by HTTP status", ["dialect", "endpoint", "model", "status"])
SAMPLER_REQUESTS = Counter(
    "serving_sampler_requests", "Requests that use a sampler of ours: dry or roles", ["model", "sampler"]
)
DISCONNECTS = Counter("serving_client_disconnects", "Callers gone before their answer was complete", ["dialect"])
TOKENS = Counter(
    "serving_tokens", "Tokens charged; kind is prompt (cached ones too), cached or completion", ["model", "kind"]
)
UNITS = Counter("serving_task_units", "Units charged of tasks: tokens, seconds of audio, or images", ["model"])
MICROCREDITS = Counter("serving_charged_microcredits", "What callers were charged", ["model"])
HOLDS = Counter("serving_holds", "Requests that the ledger let in")
UNRECORDED = Counter(
    "serving_holds_unrecorded", "Requests let in while the credit store did not answer: it hears of them when they end"
)
REFUSALS = Counter("serving_hold_refusals", "Requests that the ledger refused, by error code", ["code"])
SETTLES = Counter(
    "serving_settles",
    "Holds resolved; reason is finish, disconnect, error or revoked, and release when nothing was generated",
    ["reason"],
)
FIRST_TOKEN = Histogram(
    "serving_time_to_first_token_seconds",
    "From a request's acceptance to the first event of the engine",
    ["model"],
    buckets=_FIRST_TOKEN_S,
)
BETWEEN_CHUNKS = Histogram(
    "serving_time_between_chunks_seconds",
    "Between two chunks of one choice; a chunk may hold several tokens",
    ["model"],
    buckets=_BETWEEN_CHUNKS_S,
)
DURATION = Histogram(
    "serving_request_seconds", "From a request's acceptance to its receipt", ["model"], buckets=_WHOLE_S
)
RUNNING = Gauge("serving_running_choices", "Choices being generated", multiprocess_mode="livesum")
SETTLES_WAITING = Gauge(
    "serving_settles_waiting",
    "Settles and releases that the credit store has not acknowledged: they are sent when it is back",
    multiprocess_mode="livesum",
)
ENGINE_UP = Gauge("serving_engine_up", "1 when the model's engine is ready", ["model"], multiprocess_mode="livemin")
BUILD = Gauge("serving_build_info", "The version that runs", ["version"], multiprocess_mode="livemax")
BUILD.labels(__version__).set(1)


class _EngineSeries(Collector):
    """vLLM's series of all engines of this process.

    vLLM 0.32 takes those of former engines out of the registry when it makes another (metrics/prometheus.py), so they
    are kept here, and engines that have a series in common are told as one.
    """

    def __init__(self) -> None:
        self._kept: list[Collector] = []

    def keep(self) -> None:
        """Take over what an engine has registered. The registry has no public list; vLLM reads the same field."""
        for collector, names in list(REGISTRY._collector_to_names.items()):
            if any(name.startswith("vllm:") for name in names):
                REGISTRY.unregister(collector)
                self._kept.append(collector)

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for collector in self._kept:
            for family in collector.collect():
                if family.name in merged:
                    merged[family.name].samples.extend(family.samples)
                else:
                    merged[family.name] = family
        return merged.values()


_engine_series = _EngineSeries()
REGISTRY.register(_engine_series)


def keep_engine_series() -> None:
    """Call when an engine is loaded, and before another one is."""
    _engine_series.keep()


def exposition() -> bytes:
    """The text of `/metrics`: our series, and with an engine in this process vLLM's beside them.

    With PROMETHEUS_MULTIPROC_DIR the series of all processes are merged; the variable must be set before
    prometheus_client is imported.
    """
    return generate_latest(_registry())


def _registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    if "vllm" in sys.modules:
        from vllm.v1.metrics.prometheus import get_prometheus_registry

        registry: CollectorRegistry = get_prometheus_registry()
        return registry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


# ---- logs ------------------------------------------------------------------------------------------------------------

LOG_FIELDS: Final = (
    "request_id",
    "account",
    "key_id",
    "dialect",
    "endpoint",
    "model",
    "status",
    "code",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_microcredits",
    "duration_ms",
)
"""What may stand beside a message, given as `extra=`. Anything else in `extra` is not written: neither prompts nor
answers can come into a log by a careless call."""


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Text(logging.Formatter):
    """For people: `12:00:00 info serving.app ready model=opus`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        return super().formatMessage(record) + fields


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name in LOG_FIELDS if (value := record.__dict__.get(name)) is not None}


def configure_logging(style: Literal["text", "json"] = "text", level: str = "info") -> None:
    """Write every logger of this process to stderr in one style; uvicorn's and vLLM's own handlers are taken off.

    `level` is of our own loggers; libraries speak from `warning` on. Call it once, before vllm is imported, and with
    VLLM_CONFIGURE_LOGGING=0: else vLLM sets up its own loggers when it is.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if style == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("serving").setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "vllm"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
