"""The native API against the same server process: JSON lines, and the story going on."""

import json

from tests.end_to_end.conftest import MODEL, ServerProcess

MARK = "Quixabella"
INPUT = f"<|im_start|>system\nA story about Mara, Tom and {MARK}.<|im_end|>\n<|im_start|>text names= Mara\n"


def test_lines_come_as_json(demo: ServerProcess) -> None:
    body = {"modelId": MODEL, "input": INPUT, "samplingParams": {"kind": "basic", "maxTokens": 40, "temperature": 0}}
    with demo.http() as http, http.stream("POST", "/api/v1/model/completion", json=body) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert all(line["success"] for line in lines)
    assert [line for line in lines if "finishReason" in line] == [lines[-1]]
    usage = lines[-1]["usage"]
    assert usage["outputTokens"] == 40
    assert usage["completionCredits"] > 0
    outputs = [line["usage"]["outputTokens"] for line in lines]
    assert outputs == sorted(outputs)


def test_the_story_goes_on_past_message_ends(demo: ServerProcess) -> None:
    params = {"maxTokens": 400, "temperature": 0}
    answer = demo.post("/api/v1/model/completion", {"input": INPUT, "samplingParams": params, "stream": False})
    assert "<|im_end|>\n<|im_start|>text" in answer["output"]
    assert "</s>" not in answer["output"]


def test_a_stop_sequence_is_included(demo: ServerProcess) -> None:
    params = {"maxTokens": 400, "temperature": 0, "stopSequences": ["<|im_end|>"]}
    answer = demo.post("/api/v1/model/completion", {"input": INPUT, "samplingParams": params, "stream": False})
    assert answer["output"].endswith("<|im_end|>")
    assert answer["finishReason"] == "stop"


def test_what_was_sent_is_in_no_log_and_no_metric(demo: ServerProcess) -> None:
    """The log is that of all processes of the server, the engine's too."""
    assert MARK not in demo.log.read_text()
    with demo.http() as http:
        assert MARK not in http.get("/metrics").text
