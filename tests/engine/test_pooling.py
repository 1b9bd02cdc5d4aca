"""Embeddings and classes by real vLLM engines, held against transformers, and what the task port promises."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel

from serving.core.tasks import Classified, Embedded, PreparedTask, TokenLists
from serving.engine.pooling import Classifier, Embedder
from serving.errors import EngineFailed, InvalidRequest, PromptTooLong
from tests.conftest import ENGINE as SMALL
from tests.tiny import CONTEXT_TOKENS, DIMENSIONS, LABELS, make_classifier, make_embedder

IDS = (2, 10, 11, 12, 3)
ENGINE = SMALL | {"dtype": "float32"}
"""As transformers computes; vLLM would take half of it."""


def ask(*token_ids: tuple[int, ...], dimensions: int | None = None) -> PreparedTask[TokenLists]:
    return PreparedTask("r", TokenLists(token_ids, dimensions), sum(map(len, token_ids)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder(tmp_path_factory.mktemp("embedder"), matryoshka=True)


@pytest.fixture(scope="module")
async def embedder(folder: Path) -> AsyncIterator[Embedder]:
    engine = await Embedder.load(str(folder), engine=ENGINE)
    yield engine
    await engine.shutdown()


async def vectors(engine: Embedder, task: PreparedTask[TokenLists]) -> list[torch.Tensor]:
    outcome = await engine.perform(task)
    assert isinstance(outcome.result, Embedded)
    assert outcome.units == task.units
    return [torch.tensor(vector) for vector in outcome.result.vectors]


async def test_a_vector_is_the_models_own_of_length_one(embedder: Embedder, folder: Path) -> None:
    (vector,) = await vectors(embedder, ask(IDS))
    with torch.no_grad():
        wanted = BertModel.from_pretrained(folder)(torch.tensor([IDS])).last_hidden_state[0, 0]
    torch.testing.assert_close(vector, torch.nn.functional.normalize(wanted, dim=0), rtol=1e-4, atol=1e-5)


async def test_a_long_list_keeps_its_order(embedder: Embedder) -> None:
    inputs = [(2, 4 + number % 30, 4 + number // 30, 3) for number in range(100)]
    together = await vectors(embedder, ask(*inputs))
    assert len(together) == 100
    for number in (0, 31, 99):
        (alone,) = await vectors(embedder, ask(inputs[number]))
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)


async def test_a_shorter_vector_is_the_beginning_of_the_whole_one(embedder: Embedder) -> None:
    ((whole,), (short,), (same,)) = [
        await vectors(embedder, ask(IDS, dimensions=dimensions)) for dimensions in (None, 16, DIMENSIONS)
    ]
    torch.testing.assert_close(short, torch.nn.functional.normalize(whole[:16], dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same, whole)


@pytest.mark.parametrize(
    ("task", "error", "param"),
    [
        (ask(IDS, ()), InvalidRequest, "input"),
        (ask(IDS, (-1,)), InvalidRequest, "input"),
        (ask((10_000,)), InvalidRequest, "input"),
        (ask((True,)), InvalidRequest, "input"),
        (ask((5,) * (CONTEXT_TOKENS + 1)), PromptTooLong, "input"),
        (ask(IDS, dimensions=17), InvalidRequest, "dimensions"),
        (ask(IDS, dimensions=128), InvalidRequest, "dimensions"),
    ],
)
async def test_what_is_impossible_is_told_and_the_engine_goes_on(
    embedder: Embedder, task: PreparedTask[TokenLists], error: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(error) as told:
        await embedder.perform(task)
    assert told.value.param == param
    assert await vectors(embedder, ask((5,) * CONTEXT_TOKENS))


async def test_a_cancelled_task_leaves_nothing_to_do(embedder: Embedder) -> None:
    running = asyncio.create_task(embedder.perform(ask(*[(5,) * CONTEXT_TOKENS] * 500)))
    while not embedder.unfinished:  # noqa: ASYNC110  # nothing else tells that the engine has begun
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert embedder.unfinished == 0


async def test_a_model_that_cannot_be_shortened_says_so(tmp_path: Path) -> None:
    engine = await Embedder.load(str(make_embedder(tmp_path)), engine=ENGINE)
    try:
        with pytest.raises(InvalidRequest, match="cannot be shortened") as told:
            await engine.perform(ask(IDS, dimensions=32))
        assert told.value.param == "dimensions"
        assert len((await vectors(engine, ask(IDS, dimensions=DIMENSIONS)))[0]) == DIMENSIONS
    finally:
        await engine.shutdown()
    with pytest.raises(EngineFailed):
        await engine.perform(ask(IDS))


async def test_a_classifier_gives_each_label_its_score(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path)
    engine = await Classifier.load(str(folder), engine=ENGINE)
    try:
        outcome = await engine.perform(ask(IDS, IDS[::-1]))
    finally:
        await engine.shutdown()
    assert isinstance(outcome.result, Classified)
    with torch.no_grad():
        wanted = BertForSequenceClassification.from_pretrained(folder)(torch.tensor([IDS])).logits.softmax(-1)[0]
    first, second = outcome.result.scores
    assert tuple(first) == tuple(second) == LABELS
    torch.testing.assert_close(torch.tensor(list(first.values())), wanted, rtol=1e-4, atol=1e-5)
    assert first != second


async def test_a_model_of_another_kind_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot classify"):
        await Classifier.load(str(make_embedder(tmp_path)), engine=ENGINE)
