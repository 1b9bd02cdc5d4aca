"""Templates of strangers: what they write, what is data in it, and what they cannot do."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import GenerationRequest, Message, RawPrompt, Stopping, TemplatePrompt
from serving.errors import InvalidRequest, Overloaded
from serving.prompting import jinja
from serving.prompting.jinja import _broken, render
from serving.prompting.prepare import Prompting

SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>")
CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt(template: str, *contents: str, continued: bool = False, begun: str = "") -> TemplatePrompt:
    messages = tuple(Message(("user", "assistant")[at % 2], content) for at, content in enumerate(contents or ("Hi",)))
    return TemplatePrompt(template, messages, "instruction_template_str", {"name1": "Tom"}, continued, begun)


async def written(template: str, *contents: str, continued: bool = False) -> str:
    told = await render(prompt(template, *contents, continued=continued), SPECIAL, bos="<s>", eos="<|im_end|>")
    return told.text.replace(told.seam, "")


async def refused(template: str, *contents: str, continued: bool = False) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as error:
        await written(template, *contents, continued=continued)
    return error.value


# ---- what is written -------------------------------------------------------------------------------------------------


async def test_a_chat_as_tokenizers_write_it() -> None:
    assert await written(CHATML, " Hi ", "Yes") == (
        "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_what_templates_use() -> None:
    assert await written("{% generation %}{{ name1 }}{% endgeneration %}|{{ messages | tojson }}") == (
        'Tom|[{"role": "user", "content": "Hi"}]'
    )
    assert await written("{% for at in range(9) %}{% if at > 1 %}{% break %}{% endif %}{{ at }}{% endfor %}") == "01"
    assert await written("{% set ns = namespace(x='a') %}{% set ns.x = ns.x ~ 'b' %}{{ ns.x }}{{ eos_token }}") == (
        "ab<|im_end|>"
    )
    assert await written("{{ 'none' if tools is none else 'some' }}{{ strftime_now('%Y') | length }}") == "none4"


async def test_a_turn_is_continued_where_its_content_ends() -> None:
    assert await written(CHATML, "Hi", "Once upon", continued=True) == (
        "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOnce upon"
    )
    assert (await refused("{{ messages[0].content }}", "Hi", "Once", continued=True)).param == "continue_"


# ---- contents are data -----------------------------------------------------------------------------------------------

PIECES = st.lists(
    st.sampled_from([*SPECIAL, "<", "<|", "im_end", "|>", "a", " ", "\n", "<|im_<|im_end|>end|>"]), max_size=8
)


@given(text=PIECES.map("".join), start=st.integers(0, 30), end=st.integers(0, 30))
def test_no_part_of_a_broken_text_spells_a_special_token(text: str, start: int, end: int) -> None:
    broken = _broken(text, SPECIAL, "\ufdd0")
    assert broken.replace("\ufdd0", "") == text
    assert not any(token in broken[start:end] for token in SPECIAL)


@settings(max_examples=8, deadline=None)
@given(contents=st.lists(PIECES.map("".join), min_size=20, max_size=20))
async def test_only_the_template_writes_special_tokens(chatml: Prompting, contents: list[str]) -> None:
    """Many contents at once, since each template costs a process."""
    template = "{% for message in messages %}<|im_start|>{{ message.content[1:] }}{% endfor %}"
    written = await ids(chatml, prompt(template, *contents))
    start = chatml.format.tokens.special_ids["<|im_start|>"]
    assert [token for token in written if token in chatml.format.hidden][1:] == [start] * len(contents)


async def test_ids_are_those_of_the_text_where_no_special_token_is_spelled(chatml: Prompting) -> None:
    text = await chatml.text_of(prompt(CHATML, "Once upon a time, 3 < 4.", "Yes"))
    assert await ids(chatml, prompt(CHATML, "Once upon a time, 3 < 4.", "Yes")) == await chatml.encode(text)


async def test_what_the_answer_begins_with_is_data(chatml: Prompting) -> None:
    token = chatml.format.message_end_id
    assert (await ids(chatml, prompt(CHATML, begun="<|im_end|>"))).count(token) == (
        await ids(chatml, prompt(CHATML))
    ).count(token)


async def test_characters_that_mark_seams_can_be_sent() -> None:
    assert await written("{{ messages[0].content }}", "a\ufdd0<s>\ufdd1") == "a\ufdd0<s>\ufdd1"
    assert (await refused("x", "".join(map(chr, range(0xFDD0, 0xFDF0))))).param == "messages"


async def ids(chatml: Prompting, asked: TemplatePrompt) -> list[int]:
    request = GenerationRequest("id", "m", (asked,), stopping=Stopping(max_tokens=1))
    (prepared,) = await chatml.prepare(request, 4096)
    return list(prepared.token_ids)


# ---- what templates cannot do ----------------------------------------------------------------------------------------

MISTAKES = {
    "a\n{% if %}": "in line 2: TemplateSyntaxError",
    "a\n\n{{ messages[9].content.x }}": "in line 3: UndefinedError",
    "\n{{ raise_exception(messages[0].content) }}": "in line 2: the template refuses this chat",
    "{{ 1 / 0 }}": "in line 1: ZeroDivisionError",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "in line 1: SecurityError",
    "{{ cycler.__init__.__globals__ }}": "in line 1: SecurityError",
    "{{ raise_exception.__globals__.sys }}": "in line 1: SecurityError",
    "{{ messages.append(1) }}": "in line 1: SecurityError",
    "{% include '/etc/passwd' %}": "in line 1: TypeError",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}": "in line 1: RecursionError",
}


@pytest.mark.parametrize("template", MISTAKES)
async def test_a_mistake_is_told_by_its_line_and_kind(template: str) -> None:
    error = await refused(template, "private words")
    assert error.param == "instruction_template_str"
    assert error.message == f"instruction_template_str fails {MISTAKES[template]}."


GREEDY = {
    "memory": "{% set ns = namespace(x='aaaaaaaa') %}{% for at in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "one large text": "{{ 'a' * 10 ** 12 }}",
    "one large number": "{{ '%1000000000d' % 1 }}",
    "output": "{{ 'a' * 5000000 }}",
    "time": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "time in one operation": "{{ ('a' * 9999999).count('a' * 4999999 ~ 'b') }}{{ 3 ** (10 ** 8) }}",
}


@pytest.mark.parametrize("template", GREEDY.values(), ids=GREEDY)
async def test_a_greedy_template_is_ended(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        jinja._CHILD, "wall_s", 60.0
    )  # here the limits of the process decide, however busy the machine is
    began = time.process_time()
    assert (await refused(template)).param == "instruction_template_str"
    assert time.process_time() - began < 2


async def test_a_template_that_waits_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja._CHILD, "wall_s", 0.0)
    assert "time" in (await refused("{{ 1 }}")).message


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja._CHILD, "most_waiting", 6)
    told = await asyncio.gather(*(written("{{ 1 }}") for _ in range(8)), return_exceptions=True)
    assert [type(each) for each in told] == [str] * 6 + [Overloaded] * 2
    assert await written("{{ 1 }}") == "1"


async def test_the_prompt_is_raw(chatml: Prompting) -> None:
    told = await render(prompt("a"), SPECIAL, bos="", eos="")
    assert (type(told), told.text, told.param) == (RawPrompt, "a", "messages")
