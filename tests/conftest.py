"""One real engine for all tests that want one: `local_engine`, started once a session and shared."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving.engine.local import LocalEngine

MODEL = Path(__file__).parent / "fixtures/llama3-tiny"
ENGINE = {"kv_cache_memory_bytes": 64 << 20}

# What vLLM and torch themselves warn of, and Python 3.12 of a fork beside threads (tests fork for speed).
THIRD_PARTY = (
    "ignore:.*`torch.distributed.reduce_op` is deprecated:FutureWarning",
    "ignore:builtin type .* has no __module__ attribute:DeprecationWarning",
    "ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning",
    "ignore:Unclosed context <zmq:ResourceWarning",
    "ignore::DeprecationWarning:torch.*",
    "ignore::DeprecationWarning:vllm.*",
)


def pytest_configure(config: pytest.Config) -> None:
    # vLLM pins its worker to one core, where it starves when something else runs there: let it move.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for line in THIRD_PARTY:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
async def local_engine() -> AsyncIterator["LocalEngine"]:
    """The tiny Llama 3 of tests/fixtures (random weights) behind a real vLLM."""
    from serving.engine.local import LocalEngine

    engine = await LocalEngine.load(str(MODEL), engine=ENGINE)
    yield engine
    await engine.shutdown()
