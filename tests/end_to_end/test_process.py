"""The process: it drains, ends cleanly, leaves nothing behind, and says by its status what happened."""

import signal
import threading

import httpx
import psutil
import pytest

from tests.end_to_end.conftest import ServerProcess

STREAM = {"model": "opus-v1-sm", "prompt": "On and on", "stream": True}


def test_sigterm_lets_running_streams_finish(scripted: ServerProcess) -> None:
    with scripted.http() as http, http.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 300}) as answer:
        lines = answer.iter_lines()
        next(lines)
        status: list[int] = []
        stopper = threading.Thread(target=lambda: status.append(scripted.stop(signal.SIGTERM)))
        stopper.start()
        rest = list(lines)
        stopper.join()
    assert rest[-2:] == ["data: [DONE]", ""]
    assert '"finish_reason":"length"' in "".join(rest)
    assert status == [0]


def test_a_draining_server_refuses_new_work_and_is_not_ready(scripted: ServerProcess) -> None:
    with scripted.http() as http, http.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 600}) as answer:
        lines = answer.iter_lines()
        next(lines)
        scripted.process.send_signal(signal.SIGTERM)
        with scripted.http() as other:
            while other.get("/health/ready").status_code == 200:
                pass
            assert other.get("/health/live").status_code == 200
            refused = other.post("/v1/completions", json={"prompt": "More"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert list(lines)[-2] == "data: [DONE]"
    assert scripted.process.wait(timeout=30) == 0


def test_a_second_ctrl_c_ends_at_once(scripted: ServerProcess) -> None:
    with scripted.http() as http, http.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 4000}) as answer:
        lines = answer.iter_lines()
        next(lines)
        scripted.process.send_signal(signal.SIGINT)
        with scripted.http() as other:
            while other.get("/health/ready").status_code == 200:
                pass
        assert scripted.stop(signal.SIGINT) == 0
        assert '"error"' in list(lines)[-2]
    assert "Traceback" not in scripted.log.read_text()


def test_a_killed_server_takes_its_engines_along_and_frees_its_port(scripted: ServerProcess) -> None:
    family = scripted.descendants()
    assert family
    scripted.process.kill()
    scripted.process.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{scripted.url}/health/live")


def test_a_killed_engine_ends_the_process_with_status_1(demo: ServerProcess) -> None:
    """Runs last in this folder: the demo server does not survive it."""
    core = next(child for child in demo.descendants() if "EngineCore" in child.name() + " ".join(child.cmdline()))
    family = demo.descendants()
    body = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with demo.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        core.kill()
        rest = list(lines)
    assert '"error"' in rest[-2]
    assert "data: [DONE]" not in rest
    assert demo.process.wait(timeout=60) == 1, demo.log.read_text()[-2000:]
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
