"""The logits rules of requests: what they are in token ids, when there is nothing to do, what contradicts a prompt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core import (
    ChatPrompt,
    Dry,
    GenerationRequest,
    Header,
    JsonFormat,
    LogitsRules,
    Message,
    Prompt,
    RawPrompt,
    RoleRule,
    Rules,
    Stopping,
)
from serving.errors import InvalidRequest, Unsupported
from serving.prompting.format import Format
from serving.prompting.prepare import Prompting
from serving.prompting.rules import RuleBook
from serving.sampling.roles.params import check
from serving.sampling.roles.reference import constraint
from serving.sampling.vocabulary import Vocabulary
from tests.prompting.conftest import Train
from tests.prompting.material import DEMO, FAMILIES, KINDS, LLAMA3

CONTEXT = 2048
TEXT = Rules(allowed_roles=frozenset({"text"}))
ON = Stopping(at_message_end=False)
IGNORE_EOS = Stopping(at_message_end=False, ignore_eos=True)
CLOSED, OPEN = Header("text"), Header("text", open=True)


def chat(header: Header) -> ChatPrompt:
    return ChatPrompt((Message("user", "Hi"),), header)


async def resolved(prompting: Prompting, prompt: Prompt, **fields: Any) -> LogitsRules | None:  # noqa: ANN401
    request = GenerationRequest("r", "m", (prompt,), **fields)
    (prepared,) = await prompting.prepare(request, CONTEXT)
    return prepared.rules


async def roles(prompting: Prompting, prompt: Prompt, **fields: Any) -> RoleRule | None:  # noqa: ANN401
    rules = await resolved(prompting, prompt, **fields)
    return None if rules is None else rules.roles


async def refused(prompting: Prompting, prompt: Prompt, **fields: Any) -> str | None:  # noqa: ANN401
    with pytest.raises(InvalidRequest) as error:
        await resolved(prompting, prompt, **fields)
    return error.value.param


# ---- in token ids ----------------------------------------------------------------------------------------------------


def spelled(prompting: Prompting, paths: tuple[tuple[int, ...], ...]) -> list[str]:
    return [prompting.format.tokens.decode(path) for path in paths]


async def test_headers_are_those_of_the_template(chatml: Prompting, llama3: Prompting) -> None:
    both = Rules(allowed_roles=frozenset({"text", "user"}))
    rule = await roles(chatml, chat(CLOSED), rules=both, stopping=ON)
    assert rule is not None
    assert spelled(chatml, rule.headers) == ["text\n", "user\n"]
    assert spelled(chatml, rule.open_names) == ["text names="]
    rule = await roles(llama3, chat(CLOSED), rules=both, stopping=ON)
    assert rule is not None
    assert spelled(llama3, rule.headers) == ["writer<|end_header_id|>\n\n", "user<|end_header_id|>\n\n"]
    assert spelled(llama3, rule.open_names) == ["writer character:"]


async def test_given_names_are_the_only_ones(chatml: Prompting) -> None:
    named = Rules(allowed_roles=frozenset({"text"}), names=("Ann", "Ron"))
    rule = await roles(chatml, chat(CLOSED), rules=named, stopping=ON)
    assert rule is not None
    assert spelled(chatml, rule.headers) == ["text names= Ann; Ron\n"]
    assert not rule.open_names
    narrator = await roles(chatml, chat(CLOSED), rules=Rules(names=()), stopping=ON)
    assert narrator is not None
    assert spelled(chatml, narrator.headers) == ["system\n", "user\n", "assistant\n", "text\n"]


NAMES = st.lists(st.sampled_from(["Ann", "ron", "Bo Li", "Dr. Who", "\u00c9mile", "R2D2"]), max_size=2, unique=True)
MESSAGES = st.lists(
    st.builds(
        lambda role, names, content: Message(role, content, tuple(names) if role == "text" else ()),
        st.sampled_from(["system", "user", "assistant", "text"]),
        NAMES,
        st.sampled_from(["", "a", "\n", "Hello, world!\n\n", "text names= A\n", "<|im_end|>", "1 2 3 \u00e9"]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="session", params=[(family, kind) for family in FAMILIES for kind in KINDS], ids=":".join)
def trained_folder(request: pytest.FixtureRequest, trained: Train) -> tuple[str, Path]:
    """Tokenizers whose tokens lie within words, as those of real models do."""
    family, kind = request.param
    folder = trained(family, kind)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["merges"] = [merge for merge in data["model"]["merges"] if _within_a_word("".join(merge))]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return family, folder


def _within_a_word(token: str) -> bool:
    return not any(mark in token[1:] for mark in "\u2581 \u0120\n\u010a")


@given(messages=MESSAGES)
@settings(max_examples=25, deadline=None)
def test_what_a_template_writes_is_what_the_automaton_allows(
    trained_folder: tuple[str, Path], messages: list[Message]
) -> None:
    """With every kind of tokenizer: each token of a rendered chat may follow those before it."""
    family, folder = trained_folder
    form = Format.load(folder, family)
    book, classes = RuleBook(form), Vocabulary.load(folder, form.tokens.vocabulary_size).classes()
    ids = form.render(ChatPrompt(tuple(messages), Header("text")), CONTEXT)
    rules = book.resolve(GenerationRequest("r", "m", (), stopping=IGNORE_EOS), RawPrompt(""), ids)
    assert rules is not None
    assert rules.roles is not None
    assert rules.roles.open_names
    check(rules.roles)
    first = ids.index(book.markers.start) + 1
    for at in range(first, len(ids)):
        allowed = constraint(ids[:at], rules.roles, rules.markers, classes)
        assert ids[at] in allowed.only if allowed.only is not None else ids[at] not in allowed.banned, at


async def test_a_tokenizer_that_joins_headers_and_names(trained: Train) -> None:
    """Nothing is promised that cannot be kept; what can be, is."""
    joining = Prompting.load(str(trained("chatml-text", "metaspace, always")))
    with pytest.raises(Unsupported):
        await resolved(joining, chat(CLOSED), rules=TEXT, stopping=ON)
    assert await resolved(joining, chat(OPEN)) is None
    ends = await roles(joining, chat(CLOSED), rules=Rules(minimum_message_content_tokens=3))
    assert ends == RoleRule(minimum_content=3)
    named = await roles(joining, chat(CLOSED), rules=replace(TEXT, names=("Ann",)), stopping=ON)
    assert named is not None
    assert spelled(joining, named.headers) == ["text names= Ann\n"]


@pytest.mark.parametrize(("folder", "family"), [(DEMO, "chatml-text"), (LLAMA3, "llama3-writer")])
def test_all_special_tokens_of_the_format_are_special(folder: Path, family: str) -> None:
    form = Format.load(folder, family)
    book, classes = RuleBook(form), Vocabulary.load(folder, form.tokens.vocabulary_size).classes()
    assert {book.markers.start, book.markers.end, *book.markers.eos} <= classes.special


# ---- nothing to do ---------------------------------------------------------------------------------------------------

ALL_ROLES = Rules(allowed_roles=frozenset({"system", "user", "assistant", "text"}))


@pytest.mark.parametrize("rules", [Rules(), ALL_ROLES, Rules(dry=Dry(0.0))])
async def test_rules_that_change_nothing_are_left_out(prompting: Prompting, rules: Rules) -> None:
    assert await resolved(prompting, chat(CLOSED), rules=rules, stopping=ON) is None


async def test_a_role_written_already_needs_no_rule(prompting: Prompting) -> None:
    """The only message to come has its header, and plain text has none."""
    assert await resolved(prompting, chat(CLOSED), rules=TEXT) is None
    assert await resolved(prompting, RawPrompt("Once upon a time"), rules=TEXT) is None
    assert await resolved(prompting, chat(CLOSED), rules=TEXT, stopping=ON) is not None


async def test_an_open_header_is_held_to_its_role(prompting: Prompting) -> None:
    rule = await roles(prompting, chat(OPEN))
    assert rule is not None
    assert len(rule.headers) == len(rule.open_names) == 1
    assert (rule.forbid_end, rule.minimum_content, rule.ignore_eos) == (False, 0, False)


async def test_each_rule_reaches_the_engine(prompting: Prompting) -> None:
    rule = await roles(prompting, chat(CLOSED), rules=Rules(disallow_message_end=True))
    assert rule is not None
    assert rule.forbid_end
    rule = await roles(prompting, chat(CLOSED), rules=Rules(minimum_message_content_tokens=9))
    assert rule is not None
    assert rule.minimum_content == 9
    rules = await resolved(prompting, chat(CLOSED), rules=Rules(dry=Dry()))
    assert rules == LogitsRules(prompting.book.markers, dry=Dry())


# ---- contradictions --------------------------------------------------------------------------------------------------


def tail(prompting: Prompting, text: str) -> RawPrompt:
    """A raw prompt that ends in `text`, where {start}, {header} and {end} are the template's own."""
    template = prompting.format.template
    header = template.render_text([], CLOSED)
    return RawPrompt(text.format(start=template.message_start, header=header, end=template.message_end))


@pytest.mark.parametrize("text", ["{header}Once", "{header}Once{end}", "{start}", "{header}"])
async def test_prompts_that_roles_agree_with(prompting: Prompting, text: str) -> None:
    assert await roles(prompting, tail(prompting, text), rules=TEXT, stopping=ON) is not None


@pytest.mark.parametrize("text", ["{start}user", "{start}assist", "{start}t", "{start}xyz"])
async def test_a_header_begun_against_the_roles_is_refused(prompting: Prompting, text: str) -> None:
    """Also one that no header's tokens begin with, though its letters may."""
    prompt = tail(prompting, text.replace("{start}t", "{start}te"))
    assert await refused(prompting, prompt, rules=TEXT) == "allowed_roles"


async def test_a_message_begun_against_the_roles_is_refused(prompting: Prompting) -> None:
    only_user = Rules(allowed_roles=frozenset({"user"}))
    assert await refused(prompting, tail(prompting, "{header}Once"), rules=only_user) == "allowed_roles"
    assert await refused(prompting, chat(OPEN), rules=only_user) == "allowed_roles"
    assert await refused(prompting, chat(Header("assistant")), rules=TEXT) == "allowed_roles"


async def test_a_role_the_model_has_not_is_refused(prompting: Prompting) -> None:
    for allowed in ({"narrator"}, {"text", "narrator"}):
        assert await refused(prompting, chat(CLOSED), rules=Rules(allowed_roles=frozenset(allowed))) == "allowed_roles"


async def test_names_too_long_for_a_header_are_refused(prompting: Prompting) -> None:
    long = Rules(allowed_roles=frozenset({"text"}), names=("\U0001f409" * 200,))
    assert await refused(prompting, chat(CLOSED), rules=long, stopping=ON) == "allowed_roles"


JSON = {"answer_format": JsonFormat()}


async def test_a_grammar_and_the_rules_never_meet_in_a_header(prompting: Prompting) -> None:
    """What could leave a row without any token is refused; an open header is closed instead."""
    assert await resolved(prompting, chat(OPEN), **JSON) is None
    assert await resolved(prompting, chat(CLOSED), rules=TEXT, stopping=ON, **JSON) is None
    for text in ("{header}Once{end}", "{start}"):
        assert await refused(prompting, tail(prompting, text), rules=TEXT, **JSON) == "allowed_roles"
    assert (await resolved(prompting, chat(CLOSED), rules=Rules(dry=Dry()), **JSON)) is not None
