"""What every generating endpoint tells of credit, rates, plans and keys: refusals, headers, and ends in mid-stream."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

import httpx
import pytest

from serving.core import PreparedRequest, Rate, Usage
from serving.edge.headers import CLAMPED, rate_headers
from serving.engine.scripted import Chunk
from serving.errors import (
    Forbidden,
    InsufficientCredit,
    Overloaded,
    PromptTooLong,
    RateLimited,
    ServingError,
    Unauthenticated,
    UnknownModel,
)
from serving.ledger.base import Key
from tests.dialects.adapters import ADAPTERS, Adapter
from tests.dialects.test_connections import Gate, endless, is_at_rest
from tests.service import PRICE, SM, XL, Running, bearer, running, until

POOR = 30
"""Microcredits of the plan `poor`."""

STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


async def ask(
    run: Running, adapter: Adapter, key: str, *, stream: bool = False, prompt: str = "Once"
) -> httpx.Response:
    return await run.client.post(adapter.path, json=adapter.body(prompt, stream=stream), headers=bearer(key))


def refused(adapter: Adapter, response: httpx.Response, kind: type[ServingError]) -> str:
    """The message of an error that has the status and the shape it should have."""
    assert response.status_code == adapter.errors.status(kind), response.text
    told = adapter.errors.complaint(response.json())
    assert response.json() == adapter.errors.body(kind(told.message, param=told.param))
    return told.message


def asked(run: Running) -> PreparedRequest:
    (choice,) = run.stages[SM].engine.asked
    return choice


async def postings(run: Running, key: Key) -> list[tuple[str, int]]:
    """Reason and completion tokens of each charge."""
    found = [posting async for posting in run.ledger.postings(key.account)]
    return [(posting.reason, posting.usage.completion_tokens) for posting in found if posting.kind == "charge"]


# ---- credit ----------------------------------------------------------------------------------------------------------


@STREAMED
async def test_without_credit_nothing_is_generated(run: Running, adapter: Adapter, stream: bool) -> None:
    key, _ = await run.key_of("broke")
    message = refused(adapter, await ask(run, adapter, key, stream=stream), InsufficientCredit)
    assert "microcredits" in message
    assert run.stages[SM].engine.asked == []
    assert run.open_holds == 0


async def test_a_key_at_its_cap_is_refused(run: Running, adapter: Adapter) -> None:
    key, _ = await run.key_of("unlimited", cap=0)
    refused(adapter, await ask(run, adapter, key), InsufficientCredit)
    assert run.stages[SM].engine.asked == []


@STREAMED
async def test_what_credit_pays_for_is_generated_and_said(run: Running, adapter: Adapter, stream: bool) -> None:
    run.play(script=endless)
    key, record = await run.key_of("poor")
    response = await ask(run, adapter, key, stream=stream)
    told = adapter.read(response.text)
    paid = (POOR * 1000 - PRICE.input_per_1k * told.prompt_tokens) // PRICE.output_per_1k
    assert response.headers[CLAMPED] == str(paid)
    assert (told.reason, told.completion_tokens, asked(run).max_tokens) == ("length", paid, paid)
    assert await postings(run, record) == [("finish", paid)]
    refused(adapter, await ask(run, adapter, key, stream=stream), InsufficientCredit)


@STREAMED
async def test_who_can_pay_is_not_clamped(run: Running, adapter: Adapter, stream: bool) -> None:
    key, record = await run.key_of("metered")
    response = await ask(run, adapter, key, stream=stream)
    assert CLAMPED not in response.headers
    assert adapter.read(response.text).done
    account = await run.ledger.account(record.account)
    assert account is not None
    assert (account.used, account.held) == (run.used, 0)


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name.startswith("openai")])
async def test_each_of_several_choices_is_clamped(run: Running, name: str) -> None:
    adapter = ADAPTERS[name]
    run.play(script=endless)
    key, _ = await run.key_of("poor")
    response = await run.client.post(adapter.path, json=adapter.body(stream=False) | {"n": 3}, headers=bearer(key))
    choices = run.stages[SM].engine.asked
    assert [str(choice.max_tokens) for choice in choices] == [response.headers[CLAMPED]] * 3


async def test_a_plan_has_its_own_prices(run: Running, adapter: Adapter) -> None:
    run.play(script=lambda request: ["a", "b"])
    key, _ = await run.key_of("dear")
    response = await ask(run, adapter, key, stream=True)
    told = adapter.read(response.text)
    usage = Usage(told.prompt_tokens, 0, told.completion_tokens)
    assert run.used == PRICE.at(250).cost(usage) > PRICE.cost(usage)
    if adapter.dialect.name == "dreamgen":
        *_, before, last = [json.loads(line)["usage"]["completionCredits"] for line in response.text.splitlines()]
        assert before == last == run.used / 1_000_000


# ---- rates -----------------------------------------------------------------------------------------------------------


@STREAMED
async def test_how_the_rates_stand_is_said(run: Running, adapter: Adapter, stream: bool) -> None:
    run.play(script=lambda request: ["a", "b"])
    key, _ = await run.key_of("slow")
    first, second, third = [await ask(run, adapter, key, stream=stream) for _ in range(3)]
    for response, left in ((first, "1"), (second, "0")):
        assert adapter.read(response.text).done
        assert response.headers["x-ratelimit-limit-requests"] == "2"
        assert response.headers["x-ratelimit-remaining-requests"] == left
        assert response.headers["x-ratelimit-limit-tokens"] == "100"
        assert 0 < int(response.headers["x-ratelimit-remaining-tokens"]) < 100
    assert 0 < float(first.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
    message = refused(adapter, third, RateLimited)
    assert "2 requests a minute" in message
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(third.headers["retry-after"]) <= 30
    assert len(run.stages[SM].engine.asked) == 2


async def test_tokens_have_a_rate_too(run: Running, adapter: Adapter) -> None:
    run.play(script=lambda request: [("a", tuple(range(10, 110)))])
    key, _ = await run.key_of("slow")
    assert adapter.read((await ask(run, adapter, key)).text).done
    response = await ask(run, adapter, key)
    assert "100 tokens a minute" in refused(adapter, response, RateLimited)
    assert response.headers["x-ratelimit-remaining-tokens"] == "0"
    assert float(response.headers["x-ratelimit-reset-tokens"].removesuffix("s")) > 60


async def test_more_at_once_than_the_plan_allows(run: Running, adapter: Adapter) -> None:
    gate = Gate(1)
    run.play(gate=gate)
    key, _ = await run.key_of("single")
    first = asyncio.create_task(ask(run, adapter, key))
    await gate.door.knocked.wait()
    response = await ask(run, adapter, key)
    refused(adapter, response, RateLimited)
    assert response.headers["retry-after"] == "1"
    gate.door.opened.set()
    assert adapter.read((await first).text).done
    assert adapter.read((await ask(run, adapter, key)).text).done


async def test_an_error_behind_the_hold_still_says_the_rates(run: Running, adapter: Adapter) -> None:
    key, _ = await run.key_of("slow")
    run.service.admission.draining = True
    try:
        response = await ask(run, adapter, key, stream=True)
    finally:
        run.service.admission.draining = False
    refused(adapter, response, Overloaded)
    assert response.headers["x-ratelimit-remaining-requests"] == "1"
    assert run.open_holds == 0


def test_a_rate_that_is_not_there_says_nothing() -> None:
    assert rate_headers(None, None) == {}
    assert rate_headers(Rate(20, 19, 1.2), None) == {
        "x-ratelimit-limit-requests": "20",
        "x-ratelimit-remaining-requests": "19",
        "x-ratelimit-reset-requests": "1.2s",
    }


@pytest.mark.parametrize(("reset_s", "told"), [(0, "0s"), (60, "60s"), (0.0001, "0.001s"), (125.5, "125.5s")])
def test_a_reset_is_never_told_too_early(reset_s: float, told: str) -> None:
    assert rate_headers(None, Rate(1, 0, reset_s))["x-ratelimit-reset-tokens"] == told


# ---- plans -----------------------------------------------------------------------------------------------------------


async def test_a_plan_limits_prompt_and_output(run: Running, adapter: Adapter) -> None:
    run.play(script=endless)
    key, _ = await run.key_of("short")
    told = adapter.read((await ask(run, adapter, key)).text)
    assert (told.reason, told.completion_tokens) == ("length", 3)
    run.play(script=endless)
    response = await ask(run, adapter, key, prompt="river " * 60)
    assert response.status_code == PromptTooLong.status
    tokens, limit = map(int, re.findall(r"\d+", adapter.errors.complaint(response.json()).message))
    assert tokens > limit == 40
    assert run.stages[SM].engine.asked == []


async def test_a_plan_without_the_api_is_forbidden(run: Running, adapter: Adapter) -> None:
    key, _ = await run.key_of("closed")
    refused(adapter, await ask(run, adapter, key), Forbidden)


async def test_a_plan_that_changed_a_moment_ago_holds_at_once(run: Running, adapter: Adapter) -> None:
    """The change is not told, so this process still thinks of the old plan when it holds."""
    run.play(script=endless)
    key, record = await run.key_of("broke")
    refused(adapter, await ask(run, adapter, key), InsufficientCredit)
    await run.ledger.change_account(record.account, plan="short")
    told = adapter.read((await ask(run, adapter, key)).text)
    assert (told.done, told.completion_tokens) == (True, 3)
    assert asked(run).max_tokens == 3


async def test_a_models_list_that_names_none_of_ours(run: Running, adapter: Adapter) -> None:
    key, _ = await run.key_of("unlimited", models=("gone",))
    response = await ask(run, adapter, key)
    refused(adapter, response, UnknownModel)


# ---- keys and accounts that end --------------------------------------------------------------------------------------


async def suspend(run: Running, key: Key) -> None:
    await run.ledger.change_account(key.account, state="suspended")
    await run.keys.tell(f"account:{key.account}")


async def revoke(run: Running, key: Key) -> None:
    await run.keys.revoke(key.account, key.id)


async def revoke_untold(run: Running, key: Key) -> None:
    """As another process does whose message is lost."""
    await run.ledger.revoke_key(key.account, key.id)


End: TypeAlias = Callable[[Running, Key], Awaitable[None]]
ENDS = pytest.mark.parametrize(
    ("end", "kind"),
    [(revoke, Unauthenticated), (revoke_untold, Unauthenticated), (suspend, Forbidden)],
    ids=["revoked", "revoked elsewhere", "suspended"],
)


@ENDS
async def test_a_key_that_ended_is_refused(run: Running, adapter: Adapter, end: End, kind: type[ServingError]) -> None:
    key, record = await run.key_of("unlimited")
    assert adapter.read((await ask(run, adapter, key)).text).done
    await end(run, record)
    run.play()
    message = refused(adapter, await ask(run, adapter, key), kind)
    assert key not in message
    assert run.stages[SM].engine.asked == []


@ENDS
async def test_what_runs_ends_within_a_second(
    run: Running, web: httpx.AsyncClient, adapter: Adapter, end: End, kind: type[ServingError]
) -> None:
    gate = Gate(2)
    engine = run.play(script=endless, gate=gate)
    key, record = await run.key_of("metered")
    other, _ = await run.key_of("metered")
    told = ""
    async with web.stream("POST", adapter.path, json=adapter.body(stream=True), headers=bearer(key)) as response:
        await gate.door.knocked.wait()
        ended = asyncio.get_running_loop().time()
        await end(run, record)
        told = "".join([text async for text in response.aiter_text()])
        took_s = asyncio.get_running_loop().time() - ended
    answer = adapter.read(told)
    assert (response.status_code, answer.text, answer.done) == (200, "word word ", False)
    assert answer.error is not None
    message = adapter.errors.complaint(answer.error).message
    assert answer.error == adapter.errors.frame(kind(message))
    assert took_s < 1
    await until(lambda: is_at_rest(run))
    assert engine.endings == ["aborted"]
    assert await postings(run, record) == [("revoked", 2)]
    run.play()
    assert adapter.read((await ask(run, adapter, other)).text).done


@ENDS
async def test_a_whole_answer_that_is_cut_short_is_an_error(
    run: Running, adapter: Adapter, end: End, kind: type[ServingError]
) -> None:
    gate = Gate(1)
    run.play(script=endless, gate=gate)
    key, record = await run.key_of("metered")
    asking = asyncio.create_task(ask(run, adapter, key))
    await gate.door.knocked.wait()
    await end(run, record)
    refused(adapter, await asking, kind)
    assert await postings(run, record) == [("revoked", 1)]


async def test_other_ends_have_their_reasons(run: Running, adapter: Adapter) -> None:
    def script(request: PreparedRequest) -> Iterator[Chunk]:
        yield "One"
        raise LookupError("private words")

    key, record = await run.key_of("metered")
    run.play(script=script)
    await ask(run, adapter, key, stream=True)
    run.play(script=lambda request: ["One", " two"])
    await ask(run, adapter, key, stream=True)
    assert await postings(run, record) == [("error", 1), ("finish", 2)]


# ---- books that are not open -----------------------------------------------------------------------------------------


async def test_before_the_books_are_open(adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running(tmp_path_factory.mktemp("data")) as run:
        assert (await run.client.get("/health/ready")).json()["books"] == "open"
        await run.service.backing.close()
        response = await run.client.post(adapter.path, json=adapter.body(stream=True, model=XL))
        message = refused(adapter, response, Overloaded)
        assert "starting or stopping" in message
        assert response.headers["retry-after"] == "1"
        ready = await run.client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"], ready.json()["books"]) == (503, "not ready", "closed")
        assert (await run.client.get("/health/live")).status_code == 200
