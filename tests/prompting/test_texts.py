"""Texts -> the token ids of a pooling model."""

from pathlib import Path
from typing import Any

import pytest

from serving.core.tasks import Classify, Embed, PreparedTask, TaskRequest, TokenLists
from serving.errors import InvalidRequest, PromptTooLong
from serving.prompting.texts import MOST_TOKENS, Texts
from tests.tiny import make_tokenizer

CLS, SEP, A = 2, 3, 4
"""Of the tiny tokenizer, whose letters follow each other."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return Texts.load(str(make_tokenizer(tmp_path_factory.mktemp("embedder"))))


def asked(*inputs: Any, **fields: Any) -> TaskRequest[Embed | Classify]:  # noqa: ANN401  # texts or ids
    return TaskRequest("r", "m", Embed(inputs, **fields))


async def test_special_tokens_stand_around_each_text_and_ids_are_taken_as_they_are(texts: Texts) -> None:
    prepared = await texts.prepare(asked("b", (9, 8), "c a", dimensions=16))
    lists = ((CLS, A + 1, SEP), (9, 8), (CLS, A + 2, A, SEP))
    assert prepared == PreparedTask("r", TokenLists(lists, 16), units=9, longest_tokens=4)


async def test_a_special_token_spelled_in_a_text_is_text(texts: Texts) -> None:
    prepared = await texts.prepare(TaskRequest("r", "m", Classify(("[SEP]",))))
    (ids,) = prepared.work.token_ids
    assert ids.count(SEP) == 1
    assert ids[-1] == SEP
    assert len(ids) == 7


@pytest.mark.parametrize(
    ("inputs", "error", "said"),
    [
        (("a", ""), InvalidRequest, "empty"),
        (("\ud800",), InvalidRequest, "Unicode"),
        (("a" * 1_000_001,), PromptTooLong, "1000001 characters"),
        (("a " * 200_000, "a " * 200_000), PromptTooLong, "400000 tokens"),
        (((7,) * (MOST_TOKENS + 1),), PromptTooLong, f"{MOST_TOKENS + 1} tokens"),
    ],
)
async def test_what_cannot_be_prepared_is_told(
    texts: Texts, inputs: tuple[Any, ...], error: type[InvalidRequest], said: str
) -> None:
    with pytest.raises(error, match=said) as told:
        await texts.prepare(asked(*inputs))
    assert told.value.param == "input"


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Texts.load(str(tmp_path))
