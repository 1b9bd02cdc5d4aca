"""The official client against a real server process with the demo model on a real engine."""

import json
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from serving.settings import DEMO_MODEL_DIR
from tests.end_to_end.conftest import LLAMA3, LLAMA3_DIR, MODEL, ServerProcess

TURN: ChatCompletionMessageParam = {"role": "user", "name": "Tom", "content": "Who is there?"}
CHAT: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "A role-play between Mara, the captain of a ship, and Tom, a boy who hides on it."},
    TURN,
]


@pytest.fixture(scope="module")
def client(demo: ServerProcess) -> Iterator[openai.OpenAI]:
    with demo.client() as client:
        yield client


def test_chat_answers_with_one_message_that_ends_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=300, temperature=0.0)
    choice = answer.choices[0]
    assert choice.message.content
    assert "<|im" not in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == MODEL


def test_a_streamed_chat_is_the_whole_chat_in_parts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=80, temperature=0.0)
    stream = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=80, stream=True, stream_options={"include_usage": True}, temperature=0.0
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_with_an_open_header_the_speaker_is_the_message_name(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=f"{MODEL}/text", messages=CHAT, max_tokens=120, temperature=0.0)
    message = answer.choices[0].message.model_dump()
    assert isinstance(message["name"], str)
    assert not message["content"].startswith(" names=")


def test_a_named_header_is_closed(client: openai.OpenAI) -> None:
    roles = {"assistant": {"role": "text", "name": "Mara"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=120, extra_body={"role_config": roles}, temperature=0.0
    )
    assert "name" not in answer.choices[0].message.model_dump(exclude_unset=True)
    assert answer.choices[0].message.content


def test_n_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=CHAT, n=3, seed=11, temperature=1.0, max_tokens=30
        )
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=12, logprobs=True, top_logprobs=3, temperature=0.0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert answer.usage
    assert len(logprobs.content) == answer.usage.completion_tokens
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy takes the likeliest
        assert token.logprob <= 0
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content


def test_a_stop_string_ends_the_answer_and_is_left_out(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=60, temperature=0.0)
    content = whole.choices[0].message.content
    assert content
    stop = content[5:9]
    cut = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=60, stop=[stop], temperature=0.0)
    assert cut.choices[0].message.content == content[: content.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_max_tokens_ends_with_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CHAT, max_completion_tokens=3, temperature=0.0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 3


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Mara", "Tom"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=f"{MODEL}/text",
        messages=CHAT,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
        temperature=0.0,
    )
    person = json.loads(answer.choices[0].message.content or "")
    assert person["name"] in ("Mara", "Tom")
    assert 1 <= person["age"] <= 99


PROMPT = "<|im_start|>system\nA story about a lost ship.<|im_end|>\n<|im_start|>text names= Mara\n"


def test_completions_streamed_and_whole_are_equal(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=50, temperature=0.0)
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=50, stream=True, temperature=0.0)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert whole.choices[0].text


def test_completions_take_lists_and_token_ids(client: openai.OpenAI) -> None:
    one = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=10, temperature=0.0)
    two = client.completions.create(model=MODEL, prompt=[PROMPT, "Once"], n=2, max_tokens=10, temperature=0.0)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert two.choices[0].text == two.choices[1].text == one.choices[0].text
    ids = client.completions.create(model=MODEL, prompt=[[1, 300, 301], [1, 302]], max_tokens=5, temperature=0.0)
    assert len(ids.choices) == 2
    assert ids.usage
    assert ids.usage.prompt_tokens == 5


def test_echo_shows_the_prompt_and_its_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=4, echo=True, logprobs=1)
    assert answer.choices[0].text.startswith("Once upon a time")
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.token_logprobs
    assert logprobs.token_logprobs[:1] == [None]
    assert answer.usage
    assert len(logprobs.token_logprobs) == answer.usage.total_tokens
    alone = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=0, echo=True)
    assert alone.choices[0].text == "Once upon a time"
    assert alone.usage
    assert alone.usage.completion_tokens == 0


def test_logit_bias_is_honoured(client: openai.OpenAI) -> None:
    free = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1, logprobs=1, temperature=0.0)
    banned = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=6, logit_bias={str(i): -100 for i in range(6, 262)}, temperature=0.0
    )
    assert free.choices[0].text
    assert banned.choices[0].text


def test_a_second_model_serves_beside_the_first(client: openai.OpenAI) -> None:
    """Random weights of the Llama 3 family, whose id has a slash: the message end is its end of sequence."""
    for model in (LLAMA3, f"{LLAMA3}/text", MODEL):
        answer = client.chat.completions.create(model=model, messages=CHAT, max_tokens=20)
        assert answer.model == model.removesuffix("/text")
        assert answer.usage
        assert 0 < answer.usage.completion_tokens <= 20


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids == [f"{model}{suffix}" for model in (MODEL, LLAMA3) for suffix in ("", "/text", "/assistant")]
    assert client.models.retrieve(f"{MODEL}/text").id == f"{MODEL}/text"


def test_errors_are_the_clients_own(demo: ServerProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=CHAT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=CHAT, temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="word " * 5000)
    assert long.value.code == "context_length_exceeded"
    assert "4096" in long.value.message
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()


def test_a_closed_stream_leaves_the_engine(demo: ServerProcess, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    demo.until("serving_running_choices", 0, seconds=5)
    for path in (DEMO_MODEL_DIR, LLAMA3_DIR):
        demo.until(f'vllm:num_requests_running{{engine="0",model_name="{path}"}}', 0, seconds=5)
