"""Behind the engine: an open header is taken off, special tokens are taken out, however the text is cut."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core import Delta, Event, Finished, Started, TokenLogprob, Usage
from serving.prompting.reader import HEADER_CHARS, OpenHeader, TextReader
from serving.prompting.templates import CHATML_TEXT, LLAMA3_WRITER, TEMPLATES, Template

HIDDEN = {1: "<s>", 2: "</s>", 3: "<|im_start|>", 4: "<|im_end|>", 5: "<|end_header_id|>"}
IDS = {spelling: token for token, spelling in HIDDEN.items()}
END = Finished(0, "stop", Usage(3, 0, 9))

Piece = str
"""A token: a special one by its spelling, else text."""


def token_ids(pieces: Iterable[Piece]) -> tuple[int, ...]:
    return tuple(IDS.get(piece, 100) for piece in pieces)


def told(reader: TextReader, events: Iterable[Event]) -> tuple[str, list[tuple[str, ...]], list[TokenLogprob], int]:
    """Text, names, logprobs and the number of token ids that are told."""
    names: list[tuple[str, ...]] = []
    logprobs: list[TokenLogprob] = []
    text, tokens = "", 0
    for event in events:
        for out in reader.on_event(event):
            if isinstance(out, Delta):
                text += out.text
                tokens += len(out.token_ids)
                logprobs += out.logprobs
                names += [] if out.names is None else [out.names]
    return text, names, logprobs, tokens


def cut(pieces: list[Piece], cuts: list[int], *, early: bool) -> list[Event]:
    """Deltas of a text cut anywhere; ids come all at first, or (not `early`) with the text that completes them."""
    text = "".join(pieces)
    bounds = [0, *sorted(at for at in cuts if at < len(text)), len(text)]
    deltas: list[Event] = []
    sent = 0
    for start, end in pairwise(bounds):
        ready = len(pieces) if early else _begun(pieces, end)
        deltas.append(Delta(0, text[start:end], token_ids(pieces[sent:ready])))
        sent = max(sent, ready)
    return [Started(0, 3), *deltas, END]


def _begun(pieces: list[Piece], chars: int) -> int:
    """How many tokens must have come for so much text."""
    count = length = 0
    while count < len(pieces) and length < chars:
        length += len(pieces[count])
        count += 1
    return count


pieces = st.lists(
    st.one_of(
        st.sampled_from(list(IDS)), st.sampled_from(["Once", " <", "<|", "|>", "a", "\n", " names= Ann", "\n\n"])
    ),
    max_size=12,
)
cuts = st.lists(st.integers(1, 120), max_size=12)


@given(pieces, cuts, st.booleans())
def test_special_tokens_are_taken_out_however_the_text_is_cut(said: list[Piece], at: list[int], early: bool) -> None:
    text, names, _, tokens = told(TextReader(0, HIDDEN), cut(said, at, early=early))
    assert tokens == len(said)
    assert names == []
    assert text == "".join(piece for piece in said if piece not in IDS)


def headers(template: Template) -> OpenHeader:
    return OpenHeader(template, template.header_text("text"))


@given(st.sampled_from(list(TEMPLATES.values())), pieces, cuts, st.booleans())
def test_a_header_is_read_however_the_text_is_cut(
    template: Template, said: list[Piece], at: list[int], hidden: bool
) -> None:
    specials = HIDDEN if hidden else {}
    whole = told(TextReader(0, specials, headers(template)), cut(said, [], early=True))
    assert told(TextReader(0, specials, headers(template)), cut(said, at, early=True)) == whole


@pytest.mark.parametrize(
    ("template", "said", "text", "names"),
    [
        (CHATML_TEXT, [" names", "=", " Ann", ";", " Bo", "\n", "Once"], "Once", [("Ann", "Bo")]),
        (CHATML_TEXT, ["\n", "\n", "Once"], "\nOnce", [()]),
        (CHATML_TEXT, ["\n\n", "Once"], "\nOnce", [()]),
        (CHATML_TEXT, ["\n"], "", [()]),
        (CHATML_TEXT, [" names= An"], "", []),
        (CHATML_TEXT, ["book ", "of"], "book of", []),
        (CHATML_TEXT, [], "", []),
        (LLAMA3_WRITER, [" character:", " An"], "", []),
        (CHATML_TEXT, ["\n", "a", "<|im_end|>", "\n"], "a\n", [()]),
        (LLAMA3_WRITER, [" character:", " Ann + Bo", "<|end_header_id|>", "\n\n", "Once"], "Once", [("Ann", "Bo")]),
        (LLAMA3_WRITER, ["<|end_header_id|>", "\n\n", "\nOnce"], "\nOnce", [()]),
        (LLAMA3_WRITER, ["<|end_header_id|>", "Once"], "Once", [()]),
        (LLAMA3_WRITER, ["<|end_header_id|>", "\n"], "", [()]),
        (LLAMA3_WRITER, [" chara"], " chara", []),
    ],
)
@pytest.mark.parametrize("at", [[], list(range(1, 60))])
def test_who_speaks_is_told_once(
    template: Template, said: list[Piece], text: str, names: list[tuple[str, ...]], at: list[int]
) -> None:
    found = told(TextReader(0, HIDDEN, headers(template)), cut(said, at, early=False))
    assert found == (text, names, [], len(said))


def test_names_that_the_prompt_began_count() -> None:
    reader = TextReader(0, HIDDEN, OpenHeader(CHATML_TEXT, "text names= Ann"))
    assert told(reader, cut(["; Bo\n", "Hi"], [], early=False))[:2] == ("Hi", [("Ann", "Bo")])


@pytest.mark.parametrize("template", TEMPLATES.values())
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_header_without_end_is_content(template: Template, size: int) -> None:
    reader = TextReader(0, {}, headers(template))
    said, seen = "x" * 1000 + "\n<|end_header_id|>\n\n", ""
    for start in range(0, len(said), size):
        (delta,) = reader.on_event(Delta(0, said[start : start + size], (100,)))
        assert isinstance(delta, Delta)
        assert delta.names is None
        seen += delta.text
        assert len(seen) >= start + size - HEADER_CHARS or len(seen) == len(said)
    assert seen == said


def test_what_only_looks_special_stays() -> None:
    said = Delta(0, "write <|im_end|> here", (100, 101, 102))
    assert TextReader(0, HIDDEN).on_event(said) == (said,)


def test_what_is_held_back_comes_at_the_end() -> None:
    reader = TextReader(0, HIDDEN)
    assert reader.on_event(Delta(0, "a <|im_", (100, 4))) == (Delta(0, "a ", (100, 4)),)
    assert reader.on_event(END) == (Delta(0, "<|im_", ()), END)


def test_an_event_that_needs_nothing_is_told_as_it_is() -> None:
    reader = TextReader(0, HIDDEN)
    for event in (Started(0, 3), Delta(0, "a < b", (100,)), END):
        (same,) = reader.on_event(event)
        assert same is event


# ---- logprobs --------------------------------------------------------------------------------------------------------


def logprobs(*texts: str) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(IDS.get(text, 100), text, -1.0) for text in texts)


@pytest.mark.parametrize(
    ("template", "said", "kept"),
    [
        (CHATML_TEXT, [" names= Ann", "\n", "Once", "\n"], ["Once", "\n"]),
        (CHATML_TEXT, [" names= Ann", "\n\n", "Once"], ["\n\n", "Once"]),
        (CHATML_TEXT, ["\n", "\ufffd", "", "b"], ["\ufffd", "", "b"]),
        (LLAMA3_WRITER, [" character", "<|end_header_id|>", "\n\n", "Once", "\n\n"], ["Once", "\n\n"]),
        (LLAMA3_WRITER, ["<|end_header_id|>", "\n", "\n", "\n", "Once"], ["\n", "Once"]),
        (LLAMA3_WRITER, ["<|end_header_id|>", "\n\n\n", "Once"], ["\n\n\n", "Once"]),
        (LLAMA3_WRITER, ["<|end_header_id|>", "Once", "\n\n"], ["Once", "\n\n"]),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_logprobs_of_header_tokens_are_dropped(
    template: Template, said: list[str], kept: list[str], keep: bool, at_once: bool
) -> None:
    reader = TextReader(0, {} if keep else HIDDEN, headers(template))
    groups = [said] if at_once else [[piece] for piece in said]
    deltas = [Delta(0, "".join(group), token_ids(group), logprobs(*group)) for group in groups]
    assert [each.text for each in told(reader, [*deltas, END])[2]] == kept


def test_logprobs_of_special_tokens_go_with_their_text() -> None:
    said = ["a", "<|im_end|>"]
    delta = Delta(0, "a<|im_end|>", token_ids(said), logprobs(*said))
    assert told(TextReader(0, HIDDEN), [delta, END])[2] == list(logprobs("a"))


def test_logprobs_of_what_was_no_header_are_kept() -> None:
    said = ["x" * 200, "y" * 200]
    deltas = [Delta(0, piece, (100,), logprobs(piece)) for piece in said]
    assert told(TextReader(0, HIDDEN, headers(CHATML_TEXT)), [*deltas, END])[2] == list(logprobs(*said))
