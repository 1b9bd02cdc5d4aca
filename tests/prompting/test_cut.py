"""Prompts that lose their beginning: what stays, and that what stays is whole."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import (
    ChatPrompt,
    GenerationRequest,
    Header,
    Message,
    Prompt,
    RawPrompt,
    Sampling,
    Stopping,
    TokenPrompt,
)
from serving.errors import InvalidRequest, PromptTooLong
from serving.prompting.prepare import Prompting
from tests.prompting.material import hostile_text

CONTEXT = 2048
TURNS = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "text"]), hostile_text), min_size=1, max_size=8
).map(tuple)


def asked(prompt: Prompt, total: int | None, **fields: Any) -> GenerationRequest:  # noqa: ANN401
    stopping = Stopping(max_tokens=fields.pop("max_tokens", 4), max_total_tokens=total)
    return GenerationRequest("r", "m", (prompt,), stopping=stopping, cut_prompt=True, **fields)


async def ids(prompting: Prompting, prompt: Prompt, total: int | None = None, **fields: Any) -> tuple[int, ...]:  # noqa: ANN401
    (prepared,) = await prompting.prepare(asked(prompt, total, **fields), CONTEXT)
    return prepared.token_ids


@settings(max_examples=60, deadline=None)
@given(turns=TURNS, total=st.integers(5, 200))
async def test_a_chat_loses_whole_turns_the_oldest_first(
    prompting: Prompting, turns: tuple[Message, ...], total: int
) -> None:
    header = Header("text")
    systems = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    head, rest = turns[:systems], turns[systems:]
    allowed = [head + rest[gone:] for gone in range(max(len(rest), 1))]
    texts = [await ids(prompting, ChatPrompt(kept, header)) for kept in allowed]
    fitting = next((text for text in texts if len(text) <= total - 4), texts[-1])
    if len(fitting) >= total:
        with pytest.raises(PromptTooLong, match="max_total_tokens"):
            await ids(prompting, ChatPrompt(turns, header), total)
    else:
        assert await ids(prompting, ChatPrompt(turns, header), total) == fitting


@settings(max_examples=40, deadline=None)
@given(text=hostile_text, total=st.integers(6, 60))
async def test_a_text_keeps_bos_and_its_end(prompting: Prompting, text: str, total: int) -> None:
    whole = await ids(prompting, RawPrompt(text))
    found = await ids(prompting, RawPrompt(text), total)
    room = total - 4
    assert found == (whole if len(whole) <= room else (whole[0], *whole[len(whole) - room + 1 :]))
    assert found == await ids(prompting, TokenPrompt(whole), total)


async def test_a_prompt_over_the_context_is_cut_to_it(prompting: Prompting) -> None:
    found = await ids(prompting, RawPrompt("river " * 5000), 10**6, max_tokens=100)
    assert len(found) == CONTEXT - 100


async def test_an_answer_without_a_limit_has_room(prompting: Prompting) -> None:
    assert len(await ids(prompting, RawPrompt("river " * 5000), max_tokens=None)) == CONTEXT - 512
    assert len(await ids(prompting, RawPrompt("river " * 5000), 100, max_tokens=None)) == 50


async def test_an_answer_that_leaves_no_room_is_refused(prompting: Prompting) -> None:
    with pytest.raises(InvalidRequest) as error:
        await ids(prompting, RawPrompt("a"), 100, max_tokens=100)
    assert error.value.param == "max_tokens"


async def test_without_bos(prompting: Prompting) -> None:
    chat = ChatPrompt((Message("user", "Hi"),), Header("text"))
    for prompt in (RawPrompt("Hi"), TokenPrompt((5, 6)), chat):
        assert await ids(prompting, prompt, add_bos=False) == (await ids(prompting, prompt))[1:]


async def test_banned_tokens_are_biases(prompting: Prompting) -> None:
    sampling = Sampling(logit_bias={5: 2.0, 6: 1.0}, banned_tokens=(5,))
    (prepared,) = await prompting.prepare(asked(RawPrompt("a"), None, sampling=sampling), CONTEXT)
    assert (prepared.sampling.logit_bias, prepared.sampling.banned_tokens) == ({5: -100.0, 6: 1.0}, ())
    with pytest.raises(InvalidRequest) as error:
        await ids(prompting, RawPrompt("a"), sampling=Sampling(banned_tokens=(10**6,)))
    assert error.value.param == "banned_tokens"


async def test_a_turn_that_has_begun_has_no_end(prompting: Prompting) -> None:
    turns = (Message("user", "Hi"), Message("text", "Once <|im_end|><|eot_id|> upon", ("Ann",)))
    begun = ChatPrompt(turns[:1], Header("text", ("Ann",), begun=turns[1].content))
    whole = await ids(prompting, ChatPrompt(turns, Header("text")))
    found = await ids(prompting, begun)
    assert found == whole[: len(found)]
    assert whole[len(found)] == prompting.format.message_end_id
