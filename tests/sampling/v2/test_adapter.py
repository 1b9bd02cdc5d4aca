"""The adapter for Model Runner V2, over request states as the runner keeps them: requests come, grow by a token or by
accepted drafts, and leave their slot to the next one; every row equals the references."""

import importlib
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor, UvaBackedTensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

from serving.core import Dry, LogitsRules, RoleRule
from serving.sampling.arguments import to_extra_args
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import Headers
from serving.sampling.heat.params import KEY
from serving.sampling.heat.v2 import Heat
from serving.sampling.roles.reference import constrain, constraint
from serving.sampling.v2 import StoryRules
from serving.settings import DEMO_MODEL_DIR
from tests.sampling.dry.strategies import CHATML, HEADERS, SENTENCES, SIZE, encoded, logits, vocabulary
from tests.sampling.interpreter import CUDA, DEVICE

if not CUDA:
    importlib.import_module("vllm.v1.worker.cpu.shm")  # what V2 does without on a CPU: pinned memory, streams

SLOTS, LONGEST, DRAFTS = 3, 700, 2
MARKERS = CHATML
RULES = (
    None,
    LogitsRules(MARKERS),
    LogitsRules(MARKERS, dry=Dry(multiplier=0.0)),
    LogitsRules(MARKERS, dry=Dry(allowed_length=1)),
    LogitsRules(MARKERS, dry=Dry(multiplier=2.0, base=1.5, allowed_length=0, sequence_breakers=(), range=40)),
    LogitsRules(MARKERS, dry=Dry(allowed_length=1, sequence_breakers=(" said", "Lucifer, the red-skinned"))),
    LogitsRules(MARKERS, roles=RoleRule(headers=((5, 6, 203), (5, 7, 203)), open_names=((5, 8),), minimum_content=4)),
    LogitsRules(MARKERS, Dry(allowed_length=1), RoleRule(headers=((9, 203),), forbid_end=True, ignore_eos=True)),
)


def params(rules: LogitsRules | None) -> SamplingParams:
    return SamplingParams(extra_args=to_extra_args(rules) if rules else None)


def text(rng: random.Random) -> list[int]:
    """What a prompt may hold, so that something in it is repeated."""
    turns = ((rng.choice(HEADERS), rng.choices(SENTENCES, k=rng.randrange(3))) for _ in range(rng.randrange(5)))
    ids = encoded("".join(f"<|im_start|>{header}\n{' '.join(content)}<|im_end|>\n" for header, content in turns))
    written = [[3, 5, 6], [3, 5, 8, 40], [3, 9], [3], [4], [4, 203], encoded(rng.choice(SENTENCES))]
    return [*ids, *rng.choice(written)][-rng.randrange(1, LONGEST // 2) :]


class Batch:
    """The request states, with what stands in them."""

    def __init__(self, speculative: bool) -> None:
        tokens = StagedWriteTensor((SLOTS, LONGEST), torch.int32, DEVICE, uva_instead_of_gpu=True)
        lengths = StagedWriteTensor(SLOTS, torch.int32, DEVICE)
        prompts = UvaBackedTensor(SLOTS, torch.int32), UvaBackedTensor(SLOTS, torch.int32)
        self.states = LogitsProcRequestState(DEVICE, SLOTS, SIZE, tokens, *prompts, lengths)
        model = SimpleNamespace(tokenizer=str(DEMO_MODEL_DIR), tokenizer_revision=None, get_vocab_size=lambda: SIZE)
        drafts = SimpleNamespace(num_speculative_tokens=DRAFTS) if speculative else None
        self.rules = StoryRules(SimpleNamespace(model_config=model, speculative_config=drafts), self.states)
        self.held: dict[int, tuple[list[int], LogitsRules | None]] = {}
        self.speculative = speculative

    def add(self, slot: int, ids: list[int], rules: LogitsRules | None) -> bool:
        self.held[slot] = list(ids), rules
        self.states.all_token_ids.stage_write(slot, 0, ids)
        self.states.total_len.stage_write_elem(slot, len(ids))
        return self.rules.add_request(slot, params(rules))

    def write(self) -> None:
        self.states.all_token_ids.apply_write()
        self.states.total_len.apply_write()
        self.rules.apply_staged_writes()

    def grow(self, slot: int, new: list[int]) -> None:
        ids = self.held[slot][0]
        self.states.all_token_ids.stage_write(slot, len(ids), new)
        ids += new
        self.states.total_len.stage_write_elem(slot, len(ids))

    def step(self, rng: random.Random) -> None:
        """One step of all requests, in any order; compares each row, and lets the requests grow."""
        slots = rng.sample(sorted(self.held), len(self.held))
        drafted = {slot: rng.choices([3, 4, 203, 5, 6, 9], k=rng.randrange(DRAFTS + 1)) for slot in slots}
        if not self.speculative:
            drafted = {slot: [] for slot in slots}
        rows = [(slot, place) for slot in slots for place in range(len(drafted[slot]) + 1)]
        inputs = [[self.held[slot][0][-1], *drafted[slot]][place] for slot, place in rows]
        lengths = [len(self.held[slot][0]) + len(drafted[slot]) for slot in slots]
        before = logits(len(rows), rng.randrange(1 << 30))
        context = LogitsContext(
            expanded_idx_mapping=ints([slot for slot, _ in rows]),
            idx_mapping=ints(slots),
            idx_mapping_np=np.array(slots, np.int32),
            expanded_local_pos=ints([place for _, place in rows]),
            input_ids=ints(inputs),
            pos=ints([0] * len(rows)),
            seq_lens_upper_bound_np=np.array(lengths, np.int32) + self.speculative,
        )
        after = self.rules.apply(torch.from_numpy(before.copy()).to(DEVICE), context).cpu().numpy()
        for number, (slot, place) in enumerate(rows):
            ids, rules = self.held[slot]
            wanted = expected([*ids, *drafted[slot][:place]], rules, before[number])
            np.testing.assert_array_equal(after[number].view(np.int32), wanted.view(np.int32))
        for slot in slots:
            self.grow(slot, [*drafted[slot][: rng.randrange(DRAFTS + 1)], rng.choice(encoded(rng.choice(SENTENCES)))])


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(DEVICE)


def expected(ids: list[int], rules: LogitsRules | None, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    row = row.copy()
    classes = vocabulary().classes()
    if rules and rules.dry:
        breakers = vocabulary().breakers(rules.dry.sequence_breakers, rules.markers)
        headers = Headers.of(rules.markers, classes.line_break)
        for token, penalty in penalties(ids, rules.dry, breakers, headers).items():
            row[token] -= np.float32(penalty)
    if rules and rules.roles:
        row = np.array(constrain(row.tolist(), constraint(ids, rules.roles, rules.markers, classes)), np.float32)
    return row


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "speculative"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(request.param)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1 << 30))
def test_rows_equal_the_references_as_requests_come_and_go(batch: Batch, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(4):
        for slot in range(SLOTS):
            if rng.random() < 0.5 or slot not in batch.held:
                rules = rng.choice(RULES)
                works = bool(rules and ((rules.dry and rules.dry.multiplier > 0) or rules.roles))
                assert batch.add(slot, text(rng), rules) == works
        batch.write()
        batch.step(rng)


def test_a_batch_without_rules_is_left_alone() -> None:
    batch = Batch(speculative=False)
    batch.add(0, [5, 6, 5], RULES[3])
    batch.add(1, [5, 6, 5], None)
    batch.write()
    given_logits = torch.zeros(1, SIZE)
    context: Any = SimpleNamespace(idx_mapping_np=np.array([1]))  # no other field is looked at
    assert batch.rules.apply(given_logits, context) is given_logits
    assert not given_logits.any()


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dry\.base"):
        StoryRules.validate_params(params(LogitsRules(MARKERS, dry=Dry(base=0.5))))


def test_more_sets_of_breakers_than_slots_are_seen_in_time() -> None:
    batch = Batch(speculative=False)
    rng = random.Random(1)
    for number in range(3 * SLOTS):
        string = chr(ord("a") + number) * (1 + number % 2) + ("ing the candles" if number % 3 == 0 else "")
        batch.add(number % SLOTS, text(rng), LogitsRules(MARKERS, Dry(allowed_length=1, sequence_breakers=(string,))))
        batch.write()
        batch.step(rng)


def test_only_the_rows_of_hot_requests_are_multiplied() -> None:
    batch = Batch(speculative=True)
    heat = Heat(None, batch.states)
    rows = [0, 0, 2, 1]
    for factors in ((0.5, 1.0, 0.4), (1.0, 0.75, 0.4), (1.0, 1.0, 1.0)):
        for slot, factor in enumerate(factors):
            assert heat.add_request(slot, SamplingParams(extra_args={KEY: factor})) == (factor != 1)
        heat.apply_staged_writes()
        before = torch.from_numpy(logits(len(rows), 3)).to(DEVICE)
        context: Any = SimpleNamespace(idx_mapping_np=np.array([0, 2, 1]), expanded_idx_mapping=ints(rows))
        after = heat.apply(before.clone(), context)
        wanted = before * torch.tensor([factors[slot] for slot in rows], device=DEVICE)[:, None]
        torch.testing.assert_close(after, wanted, rtol=0, atol=0)
