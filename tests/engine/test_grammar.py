"""Grammars on a real engine: followed to the letter, or refused by name. An ambiguous one can be slow: see the docs."""

from dataclasses import replace

import pytest

from serving.core import Delta, Grammar
from serving.engine.local import LocalEngine
from serving.errors import InvalidRequest
from tests.engine.harness import ask

LISTS = 'root ::= item item*\nitem ::= "- " [a-c] "\\n"\n'


async def answer(engine: LocalEngine, grammar: str, seed: int = 0) -> str:
    request = ask(answer_format=Grammar(grammar), max_tokens=12, sampling={"seed": seed})
    events = [event async for event in engine.generate(replace(request, request_id=f"grammar-{seed}"))]
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_an_answer_follows_its_grammar(local_engine: LocalEngine) -> None:
    assert {await answer(local_engine, 'root ::= "yes" | "no"', seed) for seed in range(6)} <= {"yes", "no"}
    for seed in range(3):
        lines = (await answer(local_engine, LISTS, seed)).split("\n")
        assert set(lines[:-1]) <= {"- a", "- b", "- c"}
        assert "- a- b- c".find(lines[-1]) >= 0


BROKEN = ["root ::= b", "root ::= " + "(" * 20_000, "\0"]


@pytest.mark.parametrize("grammar", BROKEN, ids=lambda grammar: repr(grammar[:12]))
async def test_a_grammar_that_is_none_is_refused(local_engine: LocalEngine, grammar: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        await answer(local_engine, grammar)
    assert error.value.param == "grammar_string"
    await local_engine.check_health()
