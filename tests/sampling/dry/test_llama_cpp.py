"""The reference says what llama.cpp's DRY sampler said, as it is recorded in `llama_cpp.json` by `llama_cpp.cpp`.

The recorded cases are those where both are defined alike: an allowed length of at least 1 (at 0, llama.cpp counts
repetitions of no token) and breakers of one token (of a sequence of several, llama.cpp breaks only the end of the
history, and penalises its tokens). `range` is llama.cpp's penalty_last_n, which is off at 0 and never more than the
history here. What is left differs in two ways, which are asserted too: llama.cpp counts repetitions of more than 50
tokens, and limits the exponent so that it does not overflow, where the reference limits the penalty.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from serving.core import Dry
from serving.sampling.dry.params import MOST_LENGTH, MOST_PENALTY, Breakers
from serving.sampling.dry.reference import longest_repetitions, penalties

RECORDED = Path(__file__).parent / "llama_cpp.json"


@cache
def recorded() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(RECORDED.read_text())
    return cases


def asked(case: dict[str, Any]) -> tuple[list[int], Dry, Breakers]:
    dry = Dry(case["multiplier"], case["base"], case["allowed_length"], (), case["range"])
    return case["token_ids"], dry, Breakers(frozenset(case["breakers"]))


def test_the_record_is_worth_comparing_with() -> None:
    said = [case["penalties"] for case in recorded()]
    assert len(said) >= 300
    assert sum(map(bool, said)) >= 100
    assert any(MOST_LENGTH in longest_repetitions(*asked(case)).values() for case in recorded())
    assert any(value > MOST_PENALTY for penalties in said for value in penalties.values())


def test_the_reference_agrees_with_llama_cpp() -> None:
    for case in recorded():
        said = {int(token): value for token, value in case["penalties"].items()}
        lengths = longest_repetitions(*asked(case))
        own = penalties(*asked(case))
        assert own.keys() == said.keys(), case
        for token, penalty in own.items():
            if lengths[token] == MOST_LENGTH or penalty == MOST_PENALTY:
                assert said[token] >= penalty * (1 - 1e-5), case
            else:
                assert said[token] == pytest.approx(penalty, rel=1e-5), case
