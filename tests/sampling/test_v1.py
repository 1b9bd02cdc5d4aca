"""The adapter for Model Runner V1: whatever becomes of a batch, each row is what the references say of its request.

The batch is kept here as vLLM keeps it: requests come, end, are preempted and come back, and rows move to close gaps or
change places. Tokens are those that the adapter's logits allow, so that messages begin and end.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from serving.core import Dry, LogitsRules, Markers, RoleRule
from serving.sampling.arguments import KEY, to_extra_args
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import Headers
from serving.sampling.roles.reference import constrain, constraint
from serving.sampling.source import load_vocabulary
from serving.sampling.v1 import StoryRules
from tests.prompting.material import LLAMA3

SLOTS, CONTEXT, WIDTH = 8, 512, 840
"""The logits are wider than the tokenizer, which has 832 tokens."""
START, HEADER_END, END, EOS = 2, 3, 4, 1
CONFIG = SimpleNamespace(
    scheduler_config=SimpleNamespace(max_num_seqs=SLOTS),
    model_config=SimpleNamespace(
        tokenizer=str(LLAMA3), tokenizer_revision=None, max_model_len=CONTEXT, get_vocab_size=lambda: WIDTH
    ),
)
VOCABULARY = load_vocabulary(CONFIG)
CLASSES = VOCABULARY.classes()


def encoded(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.tokenizer.encode(text, add_special_tokens=False).ids)


TAIL = encoded("\n\n")
MARKERS = Markers(START, END, HEADER_END, header_tail=TAIL, eos=(EOS, END))
ROLES = [
    RoleRule(minimum_content=4),
    RoleRule(forbid_end=True, ignore_eos=True),
    RoleRule(headers=((*encoded("user"), HEADER_END, *TAIL),), minimum_content=2),
    RoleRule(
        headers=tuple((*encoded(role), HEADER_END, *TAIL) for role in ("writer", "user")),
        open_names=(encoded("writer character:"),),
        ignore_eos=True,
    ),
]
DRIES = [
    Dry(),
    Dry(multiplier=20.0, allowed_length=0, sequence_breakers=()),
    Dry(base=3.0, allowed_length=1, range=9, sequence_breakers=("e", "\n", "\u72d0")),
    Dry(multiplier=0.0),
]
RULES = [LogitsRules(MARKERS, dry, roles) for dry in (None, *DRIES) for roles in (None, *ROLES)]


@dataclass(eq=False)
class Request:
    """`rules` None: it asks for nothing. `prompt` None: it came as embeddings."""

    rules: LogitsRules | None
    prompt: list[int] | None
    output: list[int] = field(default_factory=list)

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(extra_args=None if self.rules is None else to_extra_args(self.rules))


class Batch:
    """A batch as vLLM keeps it, and the adapter that is told of it."""

    def __init__(self, adapter: StoryRules, rng: random.Random) -> None:
        self.adapter, self.rng = adapter, rng
        self.rows: list[Request] = []
        self.preempted: list[Request] = []

    def request(self) -> Request:
        rng = self.rng
        rules = rng.choice([None, *RULES]) if rng.random() < 0.9 else None
        if rng.random() < 0.05:
            return Request(rules, None)
        message = (START, *encoded("user"), HEADER_END, *TAIL, *(rng.randrange(5, 60) for _ in range(rng.randrange(8))))
        begin = [0, *message, END, START, *encoded(rng.choice(["", "writer", "writer character:"]))]
        return Request(rules, begin[: rng.randrange(1, len(begin) + 1)])

    def change(self) -> None:
        """Requests leave and come; what vLLM would say of it is said to the adapter."""
        rng = self.rng
        leaving = sorted(rng.sample(range(len(self.rows)), rng.randint(0, len(self.rows))))
        leaving = leaving if rng.random() < 0.5 else leaving[:1]
        for row in leaving:
            if rng.random() < 0.5:
                self.preempted.append(self.rows[row])
        coming = []
        for _ in range(rng.randint(0, SLOTS - len(self.rows) + len(leaving))):
            again = self.preempted and rng.random() < 0.5
            coming.append(self.preempted.pop(rng.randrange(len(self.preempted))) if again else self.request())
        del self.preempted[SLOTS:]
        told = self._told(leaving, coming)
        self.adapter.update_state(told if told.removed or told.added or told.moved else None)

    def _told(self, leaving: list[int], coming: list[Request]) -> BatchUpdate:
        rows: dict[int, Request] = dict(enumerate(self.rows))
        added, moved, free = [], [], list(leaving)
        for request in coming:
            # Into the lowest gap, without a word of who was there; else behind the last row.
            row = free.pop(0) if free else len(rows)
            rows[row] = request
            added.append((row, request.params, request.prompt, request.output))
        for row in free:
            del rows[row]
        removed = set(free)
        for gap in free:
            last = max(rows, default=-1)
            if last > gap:
                rows[gap] = rows.pop(last)
                moved.append((last, gap, MoveDirectionality.UNIDIRECTIONAL))
                if self.rng.random() < 0.3:
                    removed.remove(gap)  # who was there is replaced without a word too
        while len(rows) > 1 and self.rng.random() < 0.3:
            first, second = self.rng.sample(sorted(rows), 2)
            rows[first], rows[second] = rows[second], rows[first]
            moved.append((first, second, MoveDirectionality.SWAP))
        self.rows = [rows[row] for row in range(len(rows))]
        return BatchUpdate(batch_size=len(rows), removed=sorted(removed)[::-1], added=added, moved=moved)

    def step(self) -> None:
        """Logits of all rows, checked one by one; then each gets its likeliest token, and some lose a few."""
        if not self.rows:
            return
        given_logits = self._logits()
        logits = torch.from_numpy(given_logits.copy())
        assert self.adapter.apply(logits) is logits
        for row, request in enumerate(self.rows):
            expected = self._expected(request, given_logits[row])
            assert logits[row].tolist() == expected, (row, request)
            if request.prompt is not None and len(request.prompt) + len(request.output) < CONTEXT:
                request.output.append(int(np.argmax(expected)))
            if self.rng.random() < 0.02:
                del request.output[-self.rng.randint(1, 3) :]

    def _logits(self) -> npt.NDArray[np.float32]:
        values = np.random.default_rng(self.rng.randrange(2**32)).normal(0, 2, (len(self.rows), WIDTH))
        values[:, [START, HEADER_END, END, *TAIL]] += 4
        values[self.rng.randrange(len(self.rows)), self.rng.sample(range(WIDTH), 800)] = -np.inf
        return values.astype(np.float32)

    def _expected(self, request: Request, logits: npt.NDArray[np.float32]) -> list[float]:
        if request.rules is None or request.prompt is None:
            return [float(value) for value in logits]
        history, rules, row = [*request.prompt, *request.output], request.rules, logits.copy()
        if rules.dry is not None:
            breakers = VOCABULARY.breakers(rules.dry.sequence_breakers, rules.markers)
            headers = Headers.of(rules.markers, CLASSES.line_break)
            for token, penalty in penalties(history, rules.dry, breakers, headers).items():
                row[token] -= np.float32(penalty)
        values = [float(value) for value in row]
        if rules.roles is None:
            return values
        return constrain(values, constraint(history, rules.roles, rules.markers, CLASSES))


@pytest.fixture(scope="module")
def only_adapter() -> StoryRules:
    return StoryRules(CONFIG, torch.device("cpu"), is_pin_memory=False)


@pytest.fixture
def adapter(only_adapter: StoryRules) -> Iterator[StoryRules]:
    """Without any requests."""
    yield only_adapter
    empty(only_adapter)


def empty(adapter: StoryRules) -> None:
    adapter.update_state(BatchUpdate(batch_size=0, removed=list(range(SLOTS))[::-1], added=[], moved=[]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_each_row_is_as_the_references_say(only_adapter: StoryRules, seed: int) -> None:
    empty(only_adapter)
    batch = Batch(only_adapter, random.Random(seed))
    for _ in range(25):
        if batch.rng.random() < 0.4:
            batch.change()
        batch.step()


def test_slots_are_used_again_for_ever(adapter: StoryRules) -> None:
    """A slot that were lost now and then would be missing long before the end."""
    batch = Batch(adapter, random.Random(1))
    for _ in range(3_000):
        batch.change()
    full = [Request(RULES[-1], [0, START]) for _ in range(SLOTS)]
    added = [(row, request.params, request.prompt, request.output) for row, request in enumerate(full)]
    adapter.update_state(BatchUpdate(batch_size=SLOTS, removed=[], added=added, moved=[]))
    batch.rows = full
    for _ in range(30):
        batch.step()


def test_a_batch_without_rules_is_left_alone(adapter: StoryRules) -> None:
    logits = torch.randn(3, WIDTH)
    before = logits.clone()
    extras: list[dict[str, Any] | None] = [None, {}, {"x": 1}]
    added: list[Any] = [(row, SamplingParams(extra_args=extra), [1, 2], []) for row, extra in enumerate(extras)]
    adapter.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    assert torch.equal(adapter.apply(logits), before)
    adapter.update_state(None)
    assert torch.equal(adapter.apply(logits), before)


def test_the_greatest_logit_may_change(adapter: StoryRules) -> None:
    assert not adapter.is_argmax_invariant()


def test_impossible_rules_are_refused_before_the_engine() -> None:
    StoryRules.validate_params(SamplingParams(extra_args=to_extra_args(RULES[-1])))
    StoryRules.validate_params(SamplingParams())
    with pytest.raises(ValueError, match="markers"):
        StoryRules.validate_params(SamplingParams(extra_args={KEY: {"dry": {}}}))
