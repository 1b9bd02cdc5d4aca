"""What a generation is refused, and cut to, before the engine sees it: by plan, credit and admission."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from serving import telemetry
from serving.core import (
    Caller,
    ChatPrompt,
    Finished,
    GenerationRequest,
    Header,
    Message,
    Plan,
    RawPrompt,
    Sampling,
    Usage,
)
from serving.errors import (
    InsufficientCredit,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    ServingError,
    UnknownModel,
)
from tests.paths import CALLER, PROMPT_TOKENS, Path, counted, path, request, with_credit
from tests.service import PRICE, until

# ---- before the engine -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def refused(made: Path, error: type[ServingError], calls: list[str]) -> AsyncIterator[None]:
    with pytest.raises(error):
        yield
    assert made.engine.asked == []
    assert made.ledger.calls == calls
    made.assert_at_rest()


async def test_a_refused_slot_releases_the_hold() -> None:
    made = path("a")
    made.admission.draining = True
    async with refused(made, Overloaded, ["hold", "release"]):
        await made.run(request())


async def test_nothing_runs_that_cannot_be_paid() -> None:
    made = path("a")
    before = counted(telemetry.REFUSALS)
    async with refused(made, InsufficientCredit, []):
        await made.run(request(), with_credit(PRICE.cost(Usage(PROMPT_TOKENS, 0, 1)) - 1))
    code = InsufficientCredit.code
    assert counted(telemetry.REFUSALS)[code,] == before.get((code,), 0) + 1


async def test_credit_for_less_than_a_token_of_each_choice_is_given_back() -> None:
    made = path("a")
    async with refused(made, InsufficientCredit, ["hold", "release"]):
        await made.run(request(n=3), with_credit(PRICE.cost(Usage(PROMPT_TOKENS, 0, 2))))
    assert made.granted == []


async def test_an_impossible_prompt_is_never_held() -> None:
    made = path("a", context_tokens=PROMPT_TOKENS)
    async with refused(made, InvalidRequest, []):
        await made.run(request())


async def test_a_model_that_is_not_there_and_one_that_is_not_allowed_are_the_same() -> None:
    made = path("a")
    told = []
    restricted = Caller("alice", "key_1", Plan(models=frozenset({"other"})))
    for caller, model in ((CALLER, "nope"), (restricted, "m")):
        with pytest.raises(UnknownModel) as error:
            await made.run(GenerationRequest("r", model, (RawPrompt("x"),)), caller)
        told.append(error.value.message)
    assert told[0] == told[1]
    assert made.ledger.calls == []


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens_paid", "n", "asked", "each"),
    [(10, 1, None, 10), (10, 1, 4, 4), (10, 3, None, 3), (10, 3, 2, 2), (2, 2, 9, 1)],
)
async def test_a_hold_cuts_max_tokens(tokens_paid: int, n: int, asked: int | None, each: int) -> None:
    made = path(*["a"] * 50)
    caller = with_credit(PRICE.cost(Usage(PROMPT_TOKENS, 0, tokens_paid)))
    sampling = Sampling(min_tokens=50)
    events = await made.run(request(n, asked, sampling=sampling), caller)
    assert [choice.max_tokens for choice in made.engine.asked] == [each] * n
    assert all(choice.sampling.min_tokens <= each for choice in made.engine.asked)
    assert {event.reason for event in events if isinstance(event, Finished)} == {"length"}
    account = await made.ledger.inner.account("alice")
    assert account is not None
    assert (account.used, account.held) == (PRICE.cost(Usage(PROMPT_TOKENS, 0, n * each)), 0)
    (granted,) = made.granted
    assert granted.hold.request_id == "r"
    assert granted.clamped_to == (None if each == asked else each)


@pytest.mark.parametrize(("limit", "asked", "given"), [(9, None, 4), (9, 3, 3), (9, 4, 4), (6, 9, 1)])
async def test_a_plan_limits_the_context(limit: int, asked: int | None, given: int) -> None:
    made = path(*["a"] * 50)
    await made.run(request(1, asked), Caller("alice", "key_1", Plan(max_context_tokens=limit)))
    assert made.engine.asked[0].max_tokens == given
    assert made.granted[0].clamped_to is None


async def test_a_prompt_over_the_plans_context_is_told_both_numbers() -> None:
    chat = ChatPrompt((Message("user", "Once"),), Header("assistant"))
    for limit in (1, PROMPT_TOKENS):
        for prompt, param in ((RawPrompt("Once"), "prompt"), (chat, "messages")):
            made = path("a")
            caller = Caller("alice", "key_1", Plan(max_context_tokens=limit))
            with pytest.raises(
                PromptTooLong, match=rf"has \d+ tokens, and the context of this plan is {limit}:"
            ) as error:
                await made.run(GenerationRequest("r", "m", (prompt,)), caller)
            assert error.value.param == param
            assert (made.ledger.calls, made.engine.asked) == ([], [])


@pytest.mark.parametrize(("limit", "asked", "given"), [(5, None, 5), (5, 9, 5), (5, 3, 3), (None, 3, 3)])
async def test_a_plan_limits_the_output(limit: int | None, asked: int | None, given: int) -> None:
    made = path(*["a"] * 50)
    await made.run(request(1, asked), Caller("alice", "key_1", Plan(max_output_tokens=limit)))
    assert made.engine.asked[0].max_tokens == given


async def test_a_choice_occupies_the_engine_while_it_runs() -> None:
    opened = asyncio.Event()
    made = path("a", gate=lambda choice, number: _wait(opened))
    task = asyncio.create_task(made.run(request(n=3)))
    await until(lambda: made.admission.running_choices == 3)
    opened.set()
    await task
    made.assert_at_rest()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
