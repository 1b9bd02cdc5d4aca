"""The Python package `openai`: its helpers that parse an answer by a pydantic model. The rest: tests/end_to_end."""

from collections.abc import Iterator
from typing import Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.end_to_end.conftest import MODEL, ServerProcess

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who is the captain?"}]


class Person(BaseModel):
    name: Literal["Mara", "Tom"]
    captain: bool


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.mark.parametrize("beta", [False, True])
def test_an_answer_is_parsed(client: openai.OpenAI, beta: bool) -> None:
    completions = client.beta.chat.completions if beta else client.chat.completions
    answer = completions.parse(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=60, response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_streamed_answer_is_parsed(client: openai.OpenAI) -> None:
    asked = client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=60, response_format=Person
    )
    with asked as stream:
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Person)
