"""The role config of the DreamGen API: who speaks in a chat's turns, and whose turn is generated.

Where it comes from (the body, a suffix of the model id, the model's default), what it may hold, and what it makes of
turns with a role, perhaps a name, and content. It does not: know wire models (plain values in) or templates.

Law: unknown fields never fail, known fields with impossible values always do, and the error's `param` names the field.
Source: DreamGen API, "Role specification"; `open` is documented there by its name alone, see `AssistantRole`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from serving.core import Header, Message, Role
from serving.errors import InvalidRequest, UnknownModel

NAME_CHARS = 256
NAMES = 16


@dataclass(frozen=True, slots=True)
class AssistantRole:
    """What `assistant` turns are, and the turn to generate. `names` () is none, or the narrator where role is `text`.

    `open`: the model chooses the names itself. The documentation does not say what it means; `/text` stands for
    role `text`, open, and every documented example with a name leaves it out: so a name closes the header.
    """

    role: Role = "assistant"
    names: tuple[str, ...] = ()
    open: bool = False


@dataclass(frozen=True, slots=True)
class UserRole:
    """What `user` turns are."""

    role: Role = "user"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoleConfig:
    """How OpenAI's roles are written by the model. A name on a turn is stronger than this."""

    assistant: AssistantRole = AssistantRole()
    user: UserRole = UserRole()

    def header(self) -> Header:
        """The header of the turn to generate."""
        return Header(self.assistant.role, self.assistant.names, self.assistant.open)


# ---- where a role config comes from ----------------------------------------------------------------------------------


def split_model(model: str, known: Iterable[str]) -> tuple[str, str | None]:
    """The configured model id in `opus-v1-sm/text`, and the suffix behind it (None without one).

    Ids may contain slashes: the longest id that `model` is, or begins with before a `/`. Raises UnknownModel.
    """
    ids = sorted(known, key=len, reverse=True)
    for spelled in (model, unquote(model)):
        for model_id in ids:
            if spelled == model_id:
                return model_id, None
            if spelled.startswith(f"{model_id}/"):
                return model_id, spelled[len(model_id) + 1 :]
    raise UnknownModel("there is no such model; the models route lists those there are", param="model")


def resolve(body: object = None, suffix: str | None = None, default: RoleConfig | None = None) -> RoleConfig:
    """The role config of a request: the body's `role_config`, else the model's suffix, else the default, each for
    `assistant` and `user` by itself. Raises InvalidRequest."""
    config = default or RoleConfig()
    if suffix is not None:
        config = _read(_suffix_value(suffix), config, "model")
    return config if body is None else _read(body, config, "role_config")


def generated_headers(
    body: object = None, suffix: str | None = None
) -> tuple[frozenset[Role] | None, tuple[str, ...] | None]:
    """The roles that a raw prompt's continuation may write, and the names in their headers, as the `assistant` config
    says them; None is any. Raises InvalidRequest."""
    assistant = resolve(body, suffix, RoleConfig(AssistantRole(role=""))).assistant
    if not assistant.role:
        return None, None
    return frozenset({assistant.role}), None if assistant.open else assistant.names


def _suffix_value(suffix: str) -> object:
    if suffix in ("text", "assistant"):
        return {"assistant": {"role": suffix, "open": suffix == "text"}}
    for spelled in (suffix, unquote(suffix)):
        try:
            value = json.loads(spelled)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    raise InvalidRequest('behind a model id may stand "/text", "/assistant" or "/" and a role config', param="model")


def _read(value: object, config: RoleConfig, param: str) -> RoleConfig:
    """A role config as JSON gives it, over `config`. A suffix is one field to its caller, `model`."""
    fields = _object(value, param)
    inner = "model" if param == "model" else f"{param}.assistant"
    if (assistant := fields.get("assistant")) is not None:
        config = RoleConfig(_read_assistant(_object(assistant, inner), inner), config.user)
    inner = "model" if param == "model" else f"{param}.user"
    if (user := fields.get("user")) is not None:
        role, names = _read_speaker(_object(user, inner), ("user", "text"), inner)
        config = RoleConfig(config.assistant, UserRole(role, names or ()))
    return config


def _read_assistant(fields: Mapping[str, object], param: str) -> AssistantRole:
    role, names = _read_speaker(fields, ("assistant", "text"), param)
    is_open = fields.get("open")
    if is_open is not None and not isinstance(is_open, bool):
        raise InvalidRequest("open must be true or false", param=_field(param, "open"))
    if is_open is None:
        is_open = role == "text"
    return AssistantRole(role, names or (), is_open and names is None)


def _read_speaker(
    fields: Mapping[str, object], roles: tuple[Role, ...], param: str
) -> tuple[Role, tuple[str, ...] | None]:
    """Role and names; None when no name is given, () when it is the narrator's."""
    role = fields.get("role")
    if not isinstance(role, str) or role not in roles:
        raise InvalidRequest(f"role must be one of: {', '.join(roles)}", param=_field(param, "role"))
    name = fields.get("name")
    if name is None:
        return role, None
    if not isinstance(name, str):
        raise InvalidRequest("name must be a string", param=_field(param, "name"))
    if role != "text":
        raise InvalidRequest("a name needs the role text", param=_field(param, "name"))
    return role, read_names(name, _field(param, "name"))


def _object(value: object, param: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidRequest("a role config must be an object", param=param)
    return value


def _field(param: str, name: str) -> str:
    return param if param == "model" else f"{param}.{name}"


# ---- turns -----------------------------------------------------------------------------------------------------------


def to_message(role: str, name: str | None, content: str, config: RoleConfig, param: str = "messages") -> Message:
    """A turn of an OpenAI chat as the model writes it. Raises InvalidRequest; `param` is the turn's, `messages[3]`.

    A name (also "", the narrator) makes a `user` or `assistant` turn `text`. A system turn's name is not one of a
    character (SillyTavern marks example dialogue so): it stays `system`. The models know no tools: what a tool
    answered is a fact for the model, as system turns are.
    """
    if role in ("system", "developer", "tool", "function"):
        return Message("system", content)
    if role not in ("user", "assistant", "text"):
        raise InvalidRequest(
            "role must be one of: system, developer, user, assistant, text, tool, function", param=f"{param}.role"
        )
    if name is not None:
        return Message("text", content, read_names(name, f"{param}.name"))
    if role == "user":
        return Message(config.user.role, content, config.user.names)
    if role == "assistant":
        return Message(config.assistant.role, content, config.assistant.names)
    return Message("text", content)


def read_names(name: str, param: str) -> tuple[str, ...]:
    """`A; B` is two names, `""` none (the narrator). Raises InvalidRequest for what cannot stand in a header."""
    names = tuple(part for part in (part.strip() for part in name.split(";")) if part)
    if len(names) > NAMES:
        raise InvalidRequest(f"a turn has at most {NAMES} names", param=param)
    for part in names:
        if len(part) > NAME_CHARS:
            raise InvalidRequest(f"a name has at most {NAME_CHARS} characters", param=param)
        if part.splitlines() != [part]:
            raise InvalidRequest("a name must be one line", param=param)
    return names
