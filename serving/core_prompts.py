"""The nouns of a prompt: who says what, and the forms in which a prompt is asked. `core.py` has the others, and these.

Frozen dataclasses of plain data, standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Role: TypeAlias = str
"""`system`, `user` (an instruction out of character), `assistant` or `text` (prose): data, not an enumeration."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn and who speaks. `names` without entries on a `text` turn is the narrator."""

    role: Role
    content: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """The header of the turn to generate. `open`: the model itself chooses the names that follow the role. Behind a
    header that is not, `begun` is what the turn says already."""

    role: Role
    names: tuple[str, ...] = ()
    open: bool = False
    begun: str = ""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Turns to render with the model's template. Contents are data: a special token spelled in them is plain text."""

    messages: tuple[Message, ...]
    header: Header


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """Text already in the model's format: special tokens spelled in it are special tokens.

    `seam` is a character that is no part of the text: where it stands, the text is encoded in parts, so that what is
    spelled over it is no special token. `param` names the field that the text came from.
    """

    text: str
    seam: str = ""
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class TemplatePrompt:
    """Turns to render with a Jinja template of the caller's, which `param` names.

    Special tokens spelled in the template are that; contents are data, as in a ChatPrompt. `values`: what else the
    template may use. `continued`: the answer goes on with the last turn. `begun` stands behind what is rendered.
    """

    template: str
    messages: tuple[Message, ...]
    param: str
    values: Mapping[str, str] = field(default_factory=dict)
    continued: bool = False
    begun: str = ""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, taken as they are (a missing BOS is still added)."""

    token_ids: tuple[int, ...]


Prompt: TypeAlias = ChatPrompt | RawPrompt | TokenPrompt
"""What can be encoded."""
