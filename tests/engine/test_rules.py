"""The rules of requests in a real engine: they reach the logits, each request's its own, and none can do harm."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from serving.core import (
    ChatPrompt,
    Dry,
    GenerationRequest,
    Header,
    LogitsRules,
    Markers,
    Message,
    PreparedRequest,
    RawPrompt,
    RoleRule,
    Rules,
    Sampling,
    Stopping,
)
from serving.engine.local import LocalEngine
from serving.errors import InvalidRequest
from serving.prompting.prepare import Prompting
from tests.conftest import MODEL
from tests.engine.harness import CONTEXT_TOKENS, EOS, VOCAB_SIZE, Answer, answer, ask, forced, streaming

START, HEADER_END, END, OTHER_EOS = 2, 3, EOS, 1
"""tests/fixtures/llama3-tiny: here the message end is an end of sequence too."""
PUSHED = {START: 8.0, HEADER_END: 6.0, END: 8.0, OTHER_EOS: 6.0}
"""Logits of what begins and ends messages, so that there are many, and of what must not be written."""
PAST = (
    Message("user", "Tell of the fox, the fox and the crow."),
    Message("text", "It was late.", ("Mia",)),
)


@pytest.fixture(scope="module")
def prompting() -> Prompting:
    return Prompting.load(str(MODEL), template="llama3-writer")


@pytest.fixture
async def engine(local_engine: LocalEngine) -> AsyncIterator[LocalEngine]:
    """The shared one, which must be as it was afterwards."""
    yield local_engine
    await local_engine.check_health()
    assert (await answer(local_engine, forced(99, max_tokens=3))).token_ids == (99, 99, 99)
    assert local_engine.unfinished == 0


async def prepared(prompting: Prompting, rules: Rules, prompt: Any = None, **fields: Any) -> PreparedRequest:  # noqa: ANN401
    """A request behind a message end, which goes on past message ends."""
    text = prompting.format.template.render_text(PAST)
    stopping = Stopping(max_tokens=fields.pop("max_tokens", 150), at_message_end=False, ignore_eos=True)
    chosen: dict[str, Any] = {"temperature": 1.0, "logit_bias": PUSHED} | fields
    sampling = Sampling(**chosen)
    request = GenerationRequest("r", "m", (prompt or RawPrompt(text),), 1, sampling, stopping, rules)
    (made,) = await prompting.prepare(request, CONTEXT_TOKENS)
    return made


def messages(prompting: Prompting, told: Answer) -> list[list[int]]:
    """The ids behind each message start."""
    ids, found = list(told.token_ids), []
    for at, token in enumerate(ids):
        if token == START:
            following = next((later for later in range(at + 1, len(ids)) if ids[later] == START), len(ids))
            found.append(ids[at + 1 : following])
    return found


# ---- they reach the logits -------------------------------------------------------------------------------------------


async def test_no_other_role(engine: LocalEngine, prompting: Prompting) -> None:
    request = await prepared(prompting, Rules(allowed_roles=frozenset({"user"})))
    header = prompting.format.render(ChatPrompt((), Header("user")), CONTEXT_TOKENS)[2:]
    found = messages(prompting, await answer(engine, request))
    assert len(found) > 5
    assert all(ids[: len(header)] == header[: len(ids)] for ids in found)


async def test_names_are_as_they_were_given(engine: LocalEngine, prompting: Prompting) -> None:
    request = await prepared(prompting, Rules(allowed_roles=frozenset({"text"}), names=("Mia", "Lucifer")))
    header = prompting.format.render(ChatPrompt((), Header("text", ("Mia", "Lucifer"))), CONTEXT_TOKENS)[2:]
    found = messages(prompting, await answer(engine, request))
    assert len(found) > 3
    assert all(ids[: len(header)] == header[: len(ids)] for ids in found)


async def test_messages_do_not_end(engine: LocalEngine, prompting: Prompting) -> None:
    prompt = ChatPrompt(PAST, Header("text", ("Mia",)))
    told = await answer(engine, await prepared(prompting, Rules(disallow_message_end=True), prompt))
    assert not {START, END, OTHER_EOS} & set(told.token_ids)
    assert told.finished.reason == "length"


async def test_messages_have_enough_content(engine: LocalEngine, prompting: Prompting) -> None:
    """The prompt's open message counts from where it stands, and each later one from its header's end."""
    begun = f"{prompting.format.template.render_text((), Header('text', ('Mia',)))}It was"
    before = len(prompting.format.tokens.encode_raw("It was", 10))
    request = await prepared(prompting, Rules(minimum_message_content_tokens=12), RawPrompt(begun), max_tokens=400)
    told = await answer(engine, request)
    assert told.token_ids.index(END) >= 12 - before
    found = messages(prompting, told)
    assert len(found) > 5
    for ids in found:
        if END in ids:
            content = ids.index(END) - ids.index(HEADER_END) - 3
            assert content >= 12


async def test_without_rules_nothing_is_held(engine: LocalEngine, prompting: Prompting) -> None:
    """What the tests above push the model to is what it does without rules."""
    request = replace(await prepared(prompting, Rules(disallow_message_end=True)), rules=None)
    ids = (await answer(engine, request)).token_ids
    assert {START, END, OTHER_EOS} <= set(ids)


async def test_dry_forbids_what_would_be_repeated(engine: LocalEngine, prompting: Prompting) -> None:
    """Greedy, and pushed to one token: with DRY it may not follow itself again and again."""
    pushed = {"temperature": 0.0, "logit_bias": {300: 50.0}}
    dry = Dry(multiplier=100.0, base=1.0, allowed_length=2)
    # Inside a message: in a header DRY does nothing.
    asked = await prepared(prompting, Rules(dry=dry), ChatPrompt((), Header("text")), max_tokens=20, **pushed)
    assert (await answer(engine, replace(asked, rules=None))).token_ids == (300,) * 20
    told = await answer(engine, asked)
    runs = [told.token_ids[at : at + 4] for at in range(20)]
    assert (300, 300) in [run[:2] for run in runs]
    assert (300,) * 4 not in runs


# ---- each request's its own ------------------------------------------------------------------------------------------


MANY = [
    Rules(),
    Rules(dry=Dry()),
    Rules(dry=Dry(multiplier=5.0, base=1.2, allowed_length=1, sequence_breakers=("e",))),
    Rules(dry=Dry(multiplier=2.0, range=20)),
    Rules(allowed_roles=frozenset({"text"}), dry=Dry(allowed_length=0, multiplier=3.0)),
    Rules(allowed_roles=frozenset({"user", "assistant"})),
    Rules(allowed_roles=frozenset({"text"}), names=("Mia",), minimum_message_content_tokens=7),
    Rules(minimum_message_content_tokens=3),
    Rules(disallow_message_end=True, dry=Dry(multiplier=1000.0, base=100.0, sequence_breakers=())),
]


async def test_requests_beside_each_other_are_as_alone(engine: LocalEngine, prompting: Prompting) -> None:
    """With seeds, in different orders: no parameter and no state of one request reaches another."""
    asked = [
        replace(await prepared(prompting, rules, seed=seed, max_tokens=60), index=number)
        for number, (rules, seed) in enumerate((rules, seed) for seed in (1, 2) for rules in MANY)
    ]
    alone = [(await answer(engine, request)).token_ids for request in asked]
    assert len(set(alone)) > len(MANY)
    together = await asyncio.gather(*(answer(engine, request) for request in asked))
    assert [told.token_ids for told in together] == alone
    backwards = await asyncio.gather(*(answer(engine, request) for request in asked[::-1]))
    assert [told.token_ids for told in backwards] == alone[::-1]


# ---- none can do harm ------------------------------------------------------------------------------------------------


MARKERS = Markers(START, END, HEADER_END, header_tail=(20, 20), eos=(OTHER_EOS, END))
IMPOSSIBLE: list[LogitsRules] = [
    LogitsRules(MARKERS, dry=Dry(multiplier=float("nan"))),
    LogitsRules(MARKERS, dry=Dry(multiplier=-1.0)),
    LogitsRules(MARKERS, dry=Dry(base=10**400)),
    LogitsRules(MARKERS, dry=Dry(base=True)),
    LogitsRules(MARKERS, dry=Dry(allowed_length=2**31)),
    LogitsRules(MARKERS, dry=Dry(range=-1)),
    LogitsRules(MARKERS, dry=Dry(sequence_breakers=("",))),
    LogitsRules(MARKERS, dry=Dry(sequence_breakers=("\ud800",))),
    LogitsRules(MARKERS, dry=Dry(sequence_breakers=("x",) * 65)),
    LogitsRules(MARKERS, roles=RoleRule(headers=((),))),
    LogitsRules(MARKERS, roles=RoleRule(headers=((-1,),))),
    LogitsRules(MARKERS, roles=RoleRule(headers=((2**31,),))),
    LogitsRules(MARKERS, roles=RoleRule(headers=((5,),) * 33)),
    LogitsRules(MARKERS, roles=RoleRule(headers=((5, 6),), open_names=((5,),))),
    LogitsRules(MARKERS, roles=RoleRule(minimum_content=-1)),
    LogitsRules(MARKERS, roles=RoleRule(minimum_content=2**70)),
    LogitsRules(replace(MARKERS, start=-1), roles=RoleRule()),
    LogitsRules(replace(MARKERS, header_tail=(1,) * 5), roles=RoleRule()),
    LogitsRules(replace(MARKERS, eos=tuple(range(9))), roles=RoleRule()),
]


@pytest.mark.parametrize("rules", IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
async def test_impossible_rules_are_refused(engine: LocalEngine, rules: LogitsRules) -> None:
    async with streaming(engine, ask(rules=rules)) as stream:
        with pytest.raises(InvalidRequest):
            await anext(stream)


BEYOND = VOCAB_SIZE + 5


@pytest.mark.parametrize(
    "rules",
    [
        LogitsRules(Markers(BEYOND, BEYOND + 1, BEYOND + 2), Dry(), RoleRule(forbid_end=True)),
        LogitsRules(MARKERS, roles=RoleRule(headers=((BEYOND, 7),))),
        LogitsRules(MARKERS, roles=RoleRule(headers=((7, BEYOND), (7, 2**31 - 1)))),
        LogitsRules(MARKERS, roles=RoleRule(open_names=((BEYOND,),), minimum_content=2**31 - 1)),
        LogitsRules(MARKERS, Dry(allowed_length=2**31 - 1, range=2**31 - 1, sequence_breakers=("\U0001f98a" * 64,))),
    ],
    ids=range(5),
)
@pytest.mark.parametrize("last", [(), (START,), (START, 7)], ids=["content", "header", "later"])
async def test_ids_that_the_model_has_not_do_no_harm(
    engine: LocalEngine, rules: LogitsRules, last: tuple[int, ...]
) -> None:
    told = await answer(engine, ask(rules=rules, token_ids=(50, 51, 52, *last), ignore_eos=True))
    assert all(0 <= token < VOCAB_SIZE for token in told.token_ids)
