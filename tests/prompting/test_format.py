"""Turns to token ids and back, for every kind of tokenizer; what a checkpoint says about its ends."""

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.core import ChatPrompt, Header, Message
from serving.prompting.format import Ends, Format
from serving.prompting.prepare import Prompting
from serving.prompting.templates import Transcript
from tests.prompting.conftest import Train
from tests.prompting.material import FAMILIES, SPELLINGS, hostile_text, ordinary_text

MOST = 1_000_000
quiet = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.lists(st.sampled_from(["Ann", "Bo", "C. D", "\u00c9l\u00e9onore", "<|im_end|>", "names="]), max_size=2)


def turns(contents: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Message, ...]]:
    text = st.builds(Message, st.just("text"), contents, names.map(tuple))
    other = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), contents)
    return st.lists(st.one_of(text, other), max_size=5).map(tuple)


def special_count(form: Format, ids: list[int]) -> int:
    special = set(form.tokens.special_ids.values())
    return sum(token in special for token in ids)


@quiet
@given(messages=turns(hostile_text), is_open=st.booleans())
def test_what_is_written_is_read_again(any_format: Format, messages: tuple[Message, ...], is_open: bool) -> None:
    ids = any_format.render(ChatPrompt(messages, Header("text", open=is_open)), MOST)
    begun = any_format.template.header_text("text") if is_open else Message("text", "")
    assert any_format.read(ids) == Transcript(messages, begun)
    assert any_format.read_tail(ids).unfinished == begun


@quiet
@given(messages=turns(hostile_text))
def test_contents_and_names_never_become_special(any_format: Format, messages: tuple[Message, ...]) -> None:
    ids = any_format.render(ChatPrompt(messages, Header("text")), MOST)
    each = 3 if any_format.template.header_end_token else 2
    assert special_count(any_format, ids) == 1 + each * len(messages) + each - 1


@quiet
@given(messages=turns(ordinary_text), is_open=st.booleans())
def test_ids_are_those_of_the_written_text(any_format: Format, messages: tuple[Message, ...], is_open: bool) -> None:
    header = Header("text", ("Ann",), open=is_open)
    messages = tuple(message for message in messages if "<|im_end|>" not in message.names)
    written = any_format.template.render_text(messages, header, bos=any_format.template.bos)
    raw = any_format.tokens.raw.encode(written, add_special_tokens=False).ids
    assert any_format.render(ChatPrompt(messages, header), MOST) == raw


@pytest.mark.parametrize("family", FAMILIES)
def test_added_tokens_that_are_not_special_are_split_too(trained: Train, family: str) -> None:
    form = Format.load(trained(family, "byte level", special=False), family)
    hostile = ChatPrompt((Message("user", "".join(FAMILIES[family])),), Header("text"))
    plain = ChatPrompt((Message("user", "x"),), Header("text"))
    assert special_count(form, form.render(hostile, MOST)) == special_count(form, form.render(plain, MOST))
    assert set(form.hidden.values()) >= {form.template.message_start, form.template.message_end}


def test_both_modes_at_once_never_leak(prompting: Prompting) -> None:
    """8 threads, each over 500 chats and as many raw prompts on the same pair."""
    form = prompting.format
    content = "x ".join(SPELLINGS)
    plain = (Message("user", "x"), Message("text", "x", ("Ann",)))
    chat = ChatPrompt(tuple(replace(turn, content=content) for turn in plain), Header("text", open=True))
    expected = form.render(chat, MOST), form.tokens.encode_raw(content, MOST)
    leaks: list[int] = []

    def work(number: int) -> None:
        for turn in range(500):
            got = form.render(chat, MOST), form.tokens.encode_raw(content, MOST)
            if got != expected:
                leaks.append(number * 10_000 + turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert leaks == []
    assert special_count(form, expected[0]) == special_count(form, form.render(ChatPrompt(plain, chat.header), MOST))


CHATML_ENDS = [
    (True, False, Ends((4, 2), ignore_eos=False)),
    (True, True, Ends((4,), ignore_eos=True)),
    (False, False, Ends((2,), ignore_eos=False)),
    (False, True, Ends((), ignore_eos=True)),
]
LLAMA3_ENDS = [
    (True, False, Ends((4, 1), ignore_eos=False)),
    (True, True, Ends((4,), ignore_eos=True)),
    (False, False, Ends((1,), ignore_eos=True)),
    (False, True, Ends((), ignore_eos=True)),
]


@pytest.mark.parametrize(("at_message_end", "ignore_eos", "ends"), CHATML_ENDS)
def test_what_ends_a_choice_on_chatml(chatml: Prompting, at_message_end: bool, ignore_eos: bool, ends: Ends) -> None:
    special = chatml.format.tokens.special_ids
    assert (special["</s>"], special["<|im_end|>"]) == (2, 4)
    assert chatml.format.ends(at_message_end=at_message_end, ignore_eos=ignore_eos) == ends


@pytest.mark.parametrize(("at_message_end", "ignore_eos", "ends"), LLAMA3_ENDS)
def test_what_ends_a_choice_on_llama3(llama3: Prompting, at_message_end: bool, ignore_eos: bool, ends: Ends) -> None:
    special = llama3.format.tokens.special_ids
    assert (special["<|end_of_text|>"], special["<|eot_id|>"]) == (1, 4)
    assert llama3.format.ends(at_message_end=at_message_end, ignore_eos=ignore_eos) == ends


@pytest.mark.parametrize(
    ("says", "bos", "eos"),
    [
        ({}, "<s>", []),
        ({"bos_token": None, "eos_token": "</s>"}, None, ["</s>"]),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": False}, None, []),
        ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, None, ["<|im_end|>"]),
        ({"bos_token": "</s>", "eos_token": "</s>"}, "</s>", ["</s>"]),
        ({"bos_token": "<gone>"}, None, []),
    ],
)
def test_bos_and_eos_are_the_checkpoints_own(
    trained: Train, says: dict[str, Any], bos: str | None, eos: list[str]
) -> None:
    form = Format.load(trained("chatml-text", "byte level", config=says), "chatml-text")
    special = form.tokens.special_ids
    assert form.bos_id == (special[bos] if bos else None)
    assert form.eos_ids == {special[end] for end in eos}
    assert form.other_ends == (special["</s>"],)  # expected by the template, whatever the checkpoint says


def test_eos_ids_of_the_model_config_count(trained: Train) -> None:
    folder = trained("chatml-text", "byte level", config={})
    (folder / "config.json").write_text(json.dumps({"bos_token_id": None, "eos_token_id": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    form = Format.load(folder, "chatml-text")
    assert form.bos_id is None
    assert form.eos_ids == {3, 5}


def test_a_tokenizer_without_the_templates_tokens_is_refused(trained: Train) -> None:
    with pytest.raises(ValueError, match="needs the token"):
        Format.load(trained("chatml-text", "byte level"), "llama3-writer")
    with pytest.raises(ValueError, match="unknown template"):
        Format.load(trained("chatml-text", "byte level"), "alpaca")


def test_a_tokenizer_that_eats_white_space_at_special_tokens_is_refused(trained: Train) -> None:
    folder = trained("chatml-text", "byte level")
    data = json.loads((folder / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="differently in parts"):
        Format.load(folder, "chatml-text")
