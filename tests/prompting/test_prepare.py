"""Requests become prepared choices: ids, limits, ends, rules; errors that name their field and repeat nothing."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from serving.core import (
    ChatPrompt,
    GenerationRequest,
    Header,
    JsonFormat,
    Message,
    Prompt,
    RawPrompt,
    Rules,
    Sampling,
    Stopping,
    TokenPrompt,
)
from serving.errors import InvalidRequest, PromptTooLong, ServingError
from serving.prompting.prepare import Prompting
from tests.prompting.conftest import Train

CONTEXT = 2048
HI = ChatPrompt((Message("user", "Hi"),), Header("text"))
OPEN = replace(HI, header=Header("text", open=True))


def asked(*prompts: Prompt, **fields: Any) -> GenerationRequest:  # noqa: ANN401
    return GenerationRequest("r", "m", prompts or (HI,), **fields)


async def refused(prompting: Prompting, request: GenerationRequest, context_tokens: int = CONTEXT) -> ServingError:
    with pytest.raises(ServingError) as error:
        await prompting.prepare(request, context_tokens)
    return error.value


# ---- ids -------------------------------------------------------------------------------------------------------------


async def test_a_chat_is_written_with_its_template(prompting: Prompting) -> None:
    (prepared,) = await prompting.prepare(asked(), CONTEXT)
    template, tokens = prompting.format.template, prompting.format.tokens
    assert tokens.decode(prepared.token_ids) == template.render_text(HI.messages, HI.header, template.bos)


async def test_raw_and_token_prompts_have_one_bos(prompting: Prompting) -> None:
    bos, tokens = prompting.format.bos_id, prompting.format.tokens
    ids = tuple(tokens.encode_raw("Hi there", 100))
    spelled = prompting.format.template.bos + "Hi there"
    prompts = (
        RawPrompt("Hi there"),
        RawPrompt(spelled),
        TokenPrompt(ids),
        TokenPrompt((bos or 0, *ids)),
        RawPrompt(""),
    )
    prepared = await prompting.prepare(asked(*prompts), CONTEXT)
    assert [each.token_ids for each in prepared] == [(bos, *ids)] * 4 + [(bos,)]


async def test_a_model_without_bos_needs_a_prompt(trained: Train) -> None:
    prompting = Prompting.load(str(trained("chatml-text", "byte level", config={"bos_token": None})))
    assert (await prompting.prepare(asked(RawPrompt("a")), CONTEXT))[0].token_ids[0] != prompting.format.bos_id
    for empty in (RawPrompt(""), TokenPrompt(())):
        assert (await refused(prompting, asked(empty))).param == "prompt"


@pytest.mark.parametrize("token", [-1, 10**6, 2**70])
async def test_ids_outside_the_vocabulary_are_refused(prompting: Prompting, token: int) -> None:
    error = await refused(prompting, asked(TokenPrompt((1, token))))
    assert (type(error), error.param) == (InvalidRequest, "prompt")


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (RawPrompt("secret \ud800"), "prompt"),
        (ChatPrompt((Message("user", "secret \udfff"),), Header("text")), "messages"),
        (ChatPrompt((Message("text", "", ("secret\nB",)),), Header("text")), "messages"),
        (ChatPrompt((Message("secret", ""),), Header("text")), "messages"),
    ],
)
async def test_errors_never_repeat_contents(prompting: Prompting, prompt: Prompt, param: str) -> None:
    error = await refused(prompting, asked(prompt))
    assert (error.status, error.param) == (400, param)
    assert "secret" not in str(error)
    assert error.__cause__ is None


# ---- choices ---------------------------------------------------------------------------------------------------------


async def test_choices_are_prompt_major_and_differ_reproducibly(prompting: Prompting) -> None:
    request = asked(RawPrompt("a"), RawPrompt("b"), n=3, sampling=Sampling(seed=2**63 - 2))
    prepared = await prompting.prepare(request, CONTEXT)
    assert [each.request_id for each in prepared] == [f"r-{index}" for index in range(6)]
    assert [each.index for each in prepared] == list(range(6))
    assert [each.first_of_prompt for each in prepared] == [True, False, False] * 2
    assert [each.sampling.seed for each in prepared] == [2**63 - 2, 2**63 - 1, -(2**63)] * 2
    assert prepared == await prompting.prepare(request, CONTEXT)
    assert {each.sampling.seed for each in await prompting.prepare(asked(n=2), CONTEXT)} == {None}


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_tokens", "max_total_tokens", "expected"),
    [(None, None, 90), (7, None, 7), (500, None, 90), (None, 15, 5), (3, 15, 3), (9, 15, 5), (None, 900, 90)],
)
async def test_max_tokens_is_the_least_of_all_limits(
    prompting: Prompting, max_tokens: int | None, max_total_tokens: int | None, expected: int
) -> None:
    stopping = Stopping(max_tokens=max_tokens, max_total_tokens=max_total_tokens)
    request = asked(
        TokenPrompt((prompting.format.bos_id or 0,) * 10), stopping=stopping, sampling=Sampling(min_tokens=6)
    )
    (prepared,) = await prompting.prepare(request, 100)
    assert prepared.max_tokens == expected
    assert prepared.sampling.min_tokens == min(6, expected)


@pytest.mark.parametrize("size", [100, 101, 5000])
async def test_a_prompt_that_fills_the_context_says_both_numbers(prompting: Prompting, size: int) -> None:
    ids = (prompting.format.bos_id or 0,) * size
    error = await refused(prompting, asked(TokenPrompt(ids)), 100)
    assert isinstance(error, PromptTooLong)
    assert f"{size} tokens" in error.message
    assert "100" in error.message
    text = RawPrompt(" a b c" * size)
    error = await refused(prompting, asked(text), 100)
    assert isinstance(error, PromptTooLong)
    assert "100" in error.message


async def test_a_chat_over_the_context_is_counted_whole(prompting: Prompting) -> None:
    (prepared,) = await prompting.prepare(asked(), CONTEXT)
    size = len(prepared.token_ids)
    error = await refused(prompting, asked(), size)
    assert f"has {size} tokens" in error.message
    assert error.param == "messages"
    error = await refused(prompting, asked(), size - 1)
    assert f"has {size} tokens" in error.message
    assert (await prompting.prepare(asked(), size + 1))[0].max_tokens == 1


async def test_a_chat_of_very_many_turns_is_refused_unwritten(prompting: Prompting) -> None:
    many = ChatPrompt((Message("not even looked at", ""),) * 5000, Header("text"))
    assert "at least 10000 tokens" in (await refused(prompting, asked(many))).message


async def test_max_total_tokens_below_the_prompt_says_both_numbers(prompting: Prompting) -> None:
    request = asked(TokenPrompt((prompting.format.bos_id or 0,) * 10), stopping=Stopping(max_total_tokens=10))
    error = await refused(prompting, request)
    assert isinstance(error, PromptTooLong)
    assert "10 tokens" in error.message
    assert error.param == "max_total_tokens"


async def test_max_tokens_zero_is_for_echo_alone(prompting: Prompting) -> None:
    stopping = Stopping(max_tokens=0)
    assert (await prompting.prepare(asked(echo=True, stopping=stopping), CONTEXT))[0].max_tokens == 0
    assert (await refused(prompting, asked(stopping=stopping))).param == "max_tokens"


# ---- ends ------------------------------------------------------------------------------------------------------------


async def test_ignore_eos_forbids_eos_and_never_a_message_end(prompting: Prompting) -> None:
    (prepared,) = await prompting.prepare(asked(stopping=Stopping(ignore_eos=True)), CONTEXT)
    assert (prepared.ignore_eos, prepared.stop_token_ids) == (True, (prompting.format.message_end_id,))
    assert prepared.rules is not None
    assert prepared.rules.roles is not None
    assert prepared.rules.roles.ignore_eos
    assert not prepared.rules.roles.forbid_end


async def test_stop_strings_stay_strings(prompting: Prompting) -> None:
    stop = (prompting.format.template.message_end, "\nAnn:")
    (prepared,) = await prompting.prepare(asked(stopping=Stopping(stop=stop, include_stop=True)), CONTEXT)
    assert (prepared.stop, prepared.include_stop) == (stop, True)


# ---- headers, JSON, echo ---------------------------------------------------------------------------------------------


async def test_an_open_header_stays_open(prompting: Prompting) -> None:
    (prepared,) = await prompting.prepare(asked(OPEN, stopping=Stopping(stop=("Ann:",))), CONTEXT)
    assert prepared.open_header
    assert prompting.format.read(prepared.token_ids).unfinished == prompting.format.template.header_text("text")


@pytest.mark.parametrize("fields", [{"answer_format": JsonFormat()}, {"stopping": Stopping(stop=("###", "\n"))}])
async def test_an_open_header_is_closed_where_it_could_not_be_written(prompting: Prompting, fields: Any) -> None:  # noqa: ANN401
    (prepared,) = await prompting.prepare(asked(OPEN, **fields), CONTEXT)
    assert not prepared.open_header
    assert prompting.format.read(prepared.token_ids).unfinished == Message("text", "")


async def test_json_ends_by_itself(prompting: Prompting) -> None:
    request = asked(answer_format=JsonFormat(), stopping=Stopping(at_message_end=False))
    (prepared,) = await prompting.prepare(request, CONTEXT)
    assert (prepared.ignore_eos, prepared.stop_token_ids[0]) == (False, prompting.format.message_end_id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rules": Rules(disallow_message_end=True)}, "disallow_message_end"),
        ({"rules": Rules(minimum_message_content_tokens=1)}, "minimum_message_content_tokens"),
        ({"stopping": Stopping(ignore_eos=True)}, "ignore_eos"),
    ],
)
async def test_json_and_rules_on_ends_exclude_each_other(prompting: Prompting, fields: Any, param: str) -> None:  # noqa: ANN401
    error = await refused(prompting, asked(answer_format=JsonFormat(), **fields))
    assert (type(error), error.param) == (InvalidRequest, param)


async def test_echo_is_the_prompt_as_text(prompting: Prompting) -> None:
    form = prompting.format
    raw = f"{form.template.message_end}Hi"
    ids = tuple(form.tokens.encode_raw(raw, 100))
    prepared = await prompting.prepare(asked(RawPrompt(raw), TokenPrompt(ids), HI, echo=True, logprobs=0), CONTEXT)
    assert [each.echo_text for each in prepared] == [raw, "Hi", form.template.render_text(HI.messages, HI.header)]
    assert all(each.prompt_logprobs for each in prepared)
    kept = await prompting.prepare(asked(TokenPrompt(ids), echo=True, keep_special_tokens=True), CONTEXT)
    assert (kept[0].echo_text, kept[0].prompt_logprobs) == (raw, False)
    (plain,) = await prompting.prepare(asked(logprobs=3), CONTEXT)
    assert (plain.echo_text, plain.prompt_logprobs, plain.logprobs) == (None, False, 3)


# ---- the loop --------------------------------------------------------------------------------------------------------


async def held_part(work: asyncio.Future[Any]) -> float:
    """The part of the time of `work` in which the loop was held for longer than 20 ms at a time."""
    begun = last = time.perf_counter()
    held_s = 0.0
    while not work.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        held_s += now - last if now - last > 0.020 else 0.0
        last = now
    return held_s / (last - begun)


@pytest.mark.parametrize("letter", ["a", "Once upon a time ", "\U0001f409"])
async def test_two_megabytes_do_not_hold_the_loop(chatml: Prompting, letter: str) -> None:
    """Were the interpreter lock held, all of the time would be; what a busy machine takes is much less."""
    text = letter * (2_000_000 // len(letter.encode()))
    for prompt in (RawPrompt(text), ChatPrompt((Message("user", text),), Header("text"))):
        work = asyncio.ensure_future(chatml.prepare(asked(prompt), 250_000))
        assert await held_part(work) < 0.5
        assert isinstance(work.exception(), PromptTooLong)


async def test_encode_and_decode_are_each_others_inverse(prompting: Prompting) -> None:
    text = f"Once{prompting.format.template.message_end} upon a time. " * 500
    ids = await prompting.encode(text)
    assert ids[0] == prompting.format.bos_id
    assert await prompting.decode(ids[1:]) == text
    assert await prompting.decode(ids, keep_special_tokens=False) == "Once upon a time. " * 500
    with pytest.raises(InvalidRequest):
        await prompting.decode([10**6])
    with pytest.raises(PromptTooLong, match="1000000"):
        await prompting.encode("\U0001f409" * 1_000_000)
