"""The written form of turns, against literals; reading it back, also where clients write it loosely."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core import Header, Message
from serving.errors import InvalidRequest
from serving.prompting.templates import CHATML_TEXT, LLAMA3_WRITER, TEMPLATES, Template, Transcript

STORY = (
    Message("system", "You are a writer."),
    Message("user", "Length: 100 words"),
    Message("text", "Once.", ("Alice",)),
    Message("text", "Night fell."),
    Message("text", "Both spoke.", ("Alice", "Bob")),
    Message("assistant", "Done."),
)

CHATML_GOLDEN = (
    "<s><|im_start|>system\nYou are a writer.<|im_end|>\n"
    "<|im_start|>user\nLength: 100 words<|im_end|>\n"
    "<|im_start|>text names= Alice\nOnce.<|im_end|>\n"
    "<|im_start|>text\nNight fell.<|im_end|>\n"
    "<|im_start|>text names= Alice; Bob\nBoth spoke.<|im_end|>\n"
    "<|im_start|>assistant\nDone.<|im_end|>\n"
)

LLAMA3_GOLDEN = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a writer.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nLength: 100 words<|eot_id|>"
    "<|start_header_id|>writer character: Alice<|end_header_id|>\n\nOnce.<|eot_id|>"
    "<|start_header_id|>writer<|end_header_id|>\n\nNight fell.<|eot_id|>"
    "<|start_header_id|>writer character: Alice + Bob<|end_header_id|>\n\nBoth spoke.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nDone.<|eot_id|>"
)

HEADERS = [
    (Header("text", ("Bob",)), "<|im_start|>text names= Bob\n",
     "<|start_header_id|>writer character: Bob<|end_header_id|>\n\n"),
    (Header("text"), "<|im_start|>text\n", "<|start_header_id|>writer<|end_header_id|>\n\n"),
    (Header("assistant"), "<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    (Header("text", open=True), "<|im_start|>text", "<|start_header_id|>writer"),
    (Header("text", ("A", "B"), open=True), "<|im_start|>text names= A; B",
     "<|start_header_id|>writer character: A + B"),
]  # fmt: skip


def pairs(template: Template, text: str) -> list[tuple[str, str]]:
    """A written text taken apart at the template's special tokens, as ids are."""
    specials = [template.message_start, template.header_end_token, template.message_end, *template.ends]
    found: list[tuple[str, str]] = [("", "")]
    while text:
        special = next((each for each in specials if each and text.startswith(each)), "")
        if special:
            found.append((special, ""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + text[0])
        text = text[len(special) or 1 :]
    return found


@pytest.mark.parametrize(("template", "golden"), [(CHATML_TEXT, CHATML_GOLDEN), (LLAMA3_WRITER, LLAMA3_GOLDEN)])
def test_a_story_is_written_as_the_model_was_trained(template: Template, golden: str) -> None:
    assert template.render_text(STORY, bos=template.bos) == golden
    assert template.read(pairs(template, golden)) == Transcript(STORY)


@pytest.mark.parametrize(("header", "chatml", "llama3"), HEADERS)
def test_the_generated_header_is_closed_or_open(header: Header, chatml: str, llama3: str) -> None:
    for template, golden in ((CHATML_TEXT, chatml), (LLAMA3_WRITER, llama3)):
        assert template.render_text((), header) == golden
        unfinished = template.read(pairs(template, golden)).unfinished
        text = template.header_text(header.role, header.names)
        assert unfinished == (text if header.open else Message(header.role, "", header.names))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # SillyTavern's ChatML preset: the system turn has no message end
        ("<|im_start|>system\nPlot\n<|im_start|>text names= Ann\nHi<|im_end|>\n<|im_start|>text names= Bo\n",
         Transcript((Message("system", "Plot\n"), Message("text", "Hi", ("Ann",))), Message("text", "", ("Bo",)))),
        ("<|im_start|>text names=Ann;Bo \nHi", Transcript((), Message("text", "Hi", ("Ann", "Bo")))),
        ("<|im_start|>text names=\nHi", Transcript((), Message("text", "Hi"))),
        ("<|im_start|>text\n\nHi", Transcript((), Message("text", "\nHi"))),
        ("<|im_start|>", Transcript((), "")),
        ("<|im_start|>text names= An", Transcript((), "text names= An")),
        ("<|im_start|>text<|im_end|>\n", Transcript((Message("text", ""),))),
        ("<|im_start|>narrator\nHi</s>", Transcript((Message("narrator", "Hi"),))),
        ("Once upon a time", Transcript(())),
        ("stray<|im_end|>\n", Transcript(())),
    ],
)  # fmt: skip
def test_chatml_is_read_as_clients_write_it(text: str, expected: Transcript) -> None:
    assert CHATML_TEXT.read(pairs(CHATML_TEXT, text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # SillyTavern's Llama 3 preset: a newline between turns
        ("<|start_header_id|>system<|end_header_id|>\n\nPlot<|eot_id|>\n"
         "<|start_header_id|>writer character: Bo<|end_header_id|>\n\n",
         Transcript((Message("system", "Plot"),), Message("text", "", ("Bo",)))),
        ("<|start_header_id|>writer<|end_header_id|>", Transcript((), Message("text", ""))),
        ("<|start_header_id|>writer<|end_header_id|>\n", Transcript((), Message("text", ""))),
        ("<|start_header_id|>writer<|end_header_id|>\n\n\nHi", Transcript((), Message("text", "\nHi"))),
        ("<|start_header_id|>writer<|end_header_id|>\n\na<|end_header_id|>b",
         Transcript((), Message("text", "a<|end_header_id|>b"))),
        ("<|start_header_id|>writer chara", Transcript((), "writer chara")),
        ("<|start_header_id|>writer<|end_header_id|>\n\nEnd.<|end_of_text|>", Transcript((Message("text", "End."),))),
    ],
)  # fmt: skip
def test_llama3_is_read_as_clients_write_it(text: str, expected: Transcript) -> None:
    assert LLAMA3_WRITER.read(pairs(LLAMA3_WRITER, text)) == expected


@pytest.mark.parametrize("name", ["", " A", "A\n", "A\nB", "A\rB", "A\u2028B"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=str)
def test_a_name_that_cannot_be_read_back_is_refused(template: Template, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        template.pairs([Message("text", "Hi", (name,))])
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "name"),
    [(CHATML_TEXT, "A;B"), (LLAMA3_WRITER, "A + B"), (LLAMA3_WRITER, "A +"), (LLAMA3_WRITER, "+ B")],
)
def test_a_name_that_joins_names_is_refused(template: Template, name: str) -> None:
    with pytest.raises(InvalidRequest, match="joins names"):
        template.pairs([], Header("text", (name,)))


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="system, user, assistant, text"):
        LLAMA3_WRITER.pairs([Message("writer", "Hi")])


name = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(str.strip)


@given(st.lists(name, max_size=4), st.sampled_from(["text", "user", "system", "assistant"]))
def test_a_header_that_is_written_can_be_read(names: list[str], role: str) -> None:
    for template in TEMPLATES.values():
        try:
            text = template.header_text(role, names)
        except InvalidRequest:
            continue
        assert template.read_header(text) == (role, tuple(names))
