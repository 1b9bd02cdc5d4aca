"""The role config: where it comes from, what it may hold, what it makes of turns."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from serving.core import Header, Message
from serving.errors import InvalidRequest, UnknownModel
from serving.prompting.roles import (
    AssistantRole,
    RoleConfig,
    UserRole,
    generated_headers,
    read_names,
    resolve,
    split_model,
    to_message,
)

KNOWN = ["opus-v1-sm", "opus-v1-xl", "acme/opus", "acme/opus/tuned"]
TEXT_OPEN = RoleConfig(AssistantRole("text", open=True))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("opus-v1-sm", ("opus-v1-sm", None)),
        ("opus-v1-sm/text", ("opus-v1-sm", "text")),
        ("opus-v1-sm%2Ftext", ("opus-v1-sm", "text")),
        ("opus-v1-sm/", ("opus-v1-sm", "")),
        ("acme/opus", ("acme/opus", None)),
        ("acme/opus/tuned", ("acme/opus/tuned", None)),
        ("acme/opus/tuned/text", ("acme/opus/tuned", "text")),
        ("acme/opus/assistant", ("acme/opus", "assistant")),
        ('opus-v1-sm/{"a": "b/c"}', ("opus-v1-sm", '{"a": "b/c"}')),
    ],
)
def test_the_longest_configured_id_is_the_model(model: str, expected: tuple[str, str | None]) -> None:
    assert split_model(model, KNOWN) == expected


@pytest.mark.parametrize("model", ["", "opus", "opus-v1-small", "opus-v1-sm:text", "acme", "/text", "text"])
def test_an_id_that_is_not_configured_is_unknown(model: str) -> None:
    with pytest.raises(UnknownModel) as unknown:
        split_model(model, KNOWN)
    assert unknown.value.param == "model"


def test_without_any_config_the_model_is_an_assistant() -> None:
    assert resolve() == RoleConfig(AssistantRole("assistant", (), open=False), UserRole("user"))
    assert resolve().header() == Header("assistant")


def test_the_shorthands_are_what_the_documentation_says() -> None:
    assert resolve(suffix="text") == resolve({"assistant": {"role": "text", "open": True}}) == TEXT_OPEN
    assert resolve(suffix="assistant") == resolve({"assistant": {"role": "assistant", "open": False}})


@pytest.mark.parametrize("escape", [lambda text: text, quote, lambda text: quote(text, safe="")])
def test_a_suffix_may_be_json(escape: Callable[[str], str]) -> None:
    value = {"assistant": {"role": "text", "name": "Ann/Bo 100%"}, "user": {"role": "text", "name": "Ron"}}
    expected = RoleConfig(AssistantRole("text", ("Ann/Bo 100%",)), UserRole("text", ("Ron",)))
    model, suffix = split_model(f"opus-v1-sm/{escape(json.dumps(value))}", KNOWN)
    assert (model, resolve(suffix=suffix)) == ("opus-v1-sm", expected)


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({"role": "text"}, Header("text", open=True)),
        ({"role": "text", "open": None, "name": None}, Header("text", open=True)),
        ({"role": "text", "open": False}, Header("text")),
        ({"role": "text", "name": "Ann"}, Header("text", ("Ann",))),
        ({"role": "text", "name": "Ann", "open": True}, Header("text", ("Ann",))),
        ({"role": "text", "name": " Ann ;Bo;"}, Header("text", ("Ann", "Bo"))),
        ({"role": "text", "name": ""}, Header("text")),
        ({"role": "assistant"}, Header("assistant")),
        ({"role": "assistant", "open": True}, Header("assistant", open=True)),
        ({"role": "text", "mood": 1}, Header("text", open=True)),
    ],
)
def test_the_generated_header(fields: dict[str, Any], header: Header) -> None:
    assert resolve({"assistant": fields}).header() == header


def test_the_body_is_stronger_than_the_suffix_and_that_than_the_default() -> None:
    default = RoleConfig(AssistantRole("text", ("Default",)), UserRole("text", ("You",)))
    assert resolve(default=default) == default
    assert resolve(suffix="assistant", default=default) == RoleConfig(AssistantRole(), default.user)
    body = {"assistant": {"role": "text", "name": "Ann"}, "user": None}
    assert resolve(body, "assistant", default) == RoleConfig(AssistantRole("text", ("Ann",)), default.user)
    assert resolve({"user": {"role": "user"}}, "text", default) == RoleConfig(TEXT_OPEN.assistant, UserRole("user"))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("text", "role_config"),
        ([], "role_config"),
        ({"assistant": "text"}, "role_config.assistant"),
        ({"assistant": {}}, "role_config.assistant.role"),
        ({"assistant": {"role": "user"}}, "role_config.assistant.role"),
        ({"assistant": {"role": ["text"]}}, "role_config.assistant.role"),
        ({"assistant": {"role": "text", "name": 1}}, "role_config.assistant.name"),
        ({"assistant": {"role": "assistant", "name": "Ann"}}, "role_config.assistant.name"),
        ({"assistant": {"role": "text", "name": "A\nB"}}, "role_config.assistant.name"),
        ({"assistant": {"role": "text", "open": 1}}, "role_config.assistant.open"),
        ({"user": {"role": "assistant"}}, "role_config.user.role"),
        ({"user": {"role": "text", "name": "x" * 257}}, "role_config.user.name"),
    ],
)
def test_an_impossible_config_names_its_field(body: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolve(body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "suffix", ["", "user", "TEXT", "{", "[]", '"text"', "text/", '{"assistant": {"role": "x"}}', "[" * 9999]
)
def test_an_impossible_suffix_names_the_model(suffix: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolve(suffix=suffix)
    assert refused.value.param == "model"


def test_a_completion_is_restricted_only_where_a_role_is_given() -> None:
    assert generated_headers() == (None, None)
    assert generated_headers({"user": {"role": "text"}}) == (None, None)
    assert generated_headers(suffix="text") == (frozenset({"text"}), None)
    assert generated_headers({"assistant": {"role": "assistant"}}, "text") == (frozenset({"assistant"}), ())
    named = {"assistant": {"role": "text", "name": "Ann; Ron"}}
    assert generated_headers(named) == (frozenset({"text"}), ("Ann", "Ron"))
    assert generated_headers({"assistant": {"role": "text", "name": ""}}) == (frozenset({"text"}), ())


CONFIG = RoleConfig(AssistantRole("text", ("Ann",)), UserRole("text", ("Ron",)))


@pytest.mark.parametrize(
    ("role", "name", "config", "expected"),
    [
        ("system", None, CONFIG, Message("system", "Hi")),
        ("system", "example_user", CONFIG, Message("system", "Hi")),
        ("developer", None, CONFIG, Message("system", "Hi")),
        ("tool", None, CONFIG, Message("system", "Hi")),
        ("function", "lookup", CONFIG, Message("system", "Hi")),
        ("user", None, RoleConfig(), Message("user", "Hi")),
        ("user", None, CONFIG, Message("text", "Hi", ("Ron",))),
        ("user", "Sue", CONFIG, Message("text", "Hi", ("Sue",))),
        ("user", "", CONFIG, Message("text", "Hi")),
        ("assistant", None, RoleConfig(), Message("assistant", "Hi")),
        ("assistant", None, CONFIG, Message("text", "Hi", ("Ann",))),
        ("assistant", None, TEXT_OPEN, Message("text", "Hi")),
        ("assistant", "Sue; Tom", RoleConfig(), Message("text", "Hi", ("Sue", "Tom"))),
        ("text", None, RoleConfig(), Message("text", "Hi")),
        ("text", "Sue", RoleConfig(), Message("text", "Hi", ("Sue",))),
    ],
)
def test_turns_become_messages(role: str, name: str | None, config: RoleConfig, expected: Message) -> None:
    assert to_message(role, name, "Hi", config) == expected


@pytest.mark.parametrize(("role", "name", "param"), [("writer", None, "role"), ("user", "A\nB", "name")])
def test_an_impossible_turn_names_its_field(role: str, name: str | None, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        to_message(role, name, "Hi", CONFIG, "messages[3]")
    assert refused.value.param == f"messages[3].{param}"


def test_names_are_bounded() -> None:
    assert len(read_names(";".join("abcdefghijklmnop"), "name")) == 16
    with pytest.raises(InvalidRequest, match="16"):
        read_names(";".join("abcdefghijklmnopq"), "name")
    assert read_names("x" * 256 + ";;", "name") == ("x" * 256,)
    with pytest.raises(InvalidRequest, match="256"):
        read_names("x" * 257, "name")
