"""The series and the log lines."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import Gauge

from serving import telemetry


def test_it_imports_neither_vllm_nor_torch() -> None:
    code = "import sys, serving.telemetry; sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_our_series_are_exposed_under_one_prefix() -> None:
    telemetry.TOKENS.labels("m", "completion").inc(3)
    text = telemetry.exposition().decode()
    assert 'serving_tokens_total{kind="completion",model="m"} 3.0' in text
    assert "serving_build_info{version=" in text
    ours = [value for value in vars(telemetry).values() if hasattr(value, "_labelnames")]
    assert ours
    assert all(series._name.startswith("serving_") for series in ours)


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("style", ["text", "json"])
def test_only_known_fields_are_logged(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("json" if style == "json" else "text")
    logging.getLogger("serving.x").info("done", extra={"model": "m", "status": 200, "prompt": "a secret"})
    line = capsys.readouterr().err
    assert "a secret" not in line
    if style == "json":
        record = json.loads(line)
        assert (record["message"], record["model"], record["status"], record["level"]) == ("done", "m", 200, "info")
    else:
        assert "serving.x done model=m status=200" in line


def test_series_of_several_engines_are_told_as_one() -> None:
    """As vLLM does: the second engine would throw the first one's series out, and registers the same names."""
    for number, model in enumerate(("first", "second")):
        gauge = Gauge("vllm:kept_for_test", "of an engine", ["model_name"])
        gauge.labels(model).set(number)
        telemetry.keep_engine_series()
    text = telemetry.exposition().decode()
    assert 'vllm:kept_for_test{model_name="first"} 0.0' in text
    assert 'vllm:kept_for_test{model_name="second"} 1.0' in text
    assert text.count("# TYPE vllm:kept_for_test gauge") == 1
