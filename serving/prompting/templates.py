"""Templates as data: how a family of models writes turns, one entry in `TEMPLATES` per family.

A conversation and its written form are the same list of pairs seen from two sides: a special token, and the text that
follows it up to the next one. `pairs` writes them, `read` reads them back; what turns pairs into token ids and back is
`tokenizer.py`. So the text of a turn between two special tokens is one fragment, which is what makes the ids equal to
those of the written text in tokenizers that treat the start of a fragment in a way of their own (a prepended space).

It does not: know token ids, roles of a request, or what a model is allowed to write.

Law: `read(pairs(messages, header))` gives `messages` and `header` again; what would break that is refused by `pairs`.
Source: the Opus V1 model cards; protocols of SillyTavern's DreamGen presets for what `read` tolerates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from serving.core import Header, Message, Role
from serving.errors import InvalidRequest

Pair = tuple[str, str]
"""A special token as it is spelled ("" for none), and the text behind it."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """Turns read back. `unfinished` is what the last turn is in the middle of: its header (the text so far), its
    content (the message so far), or None between turns and outside of any."""

    turns: tuple[Message, ...]
    unfinished: str | Message | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """One family's way to write turns. All fields are spellings.

    `header_end_token` "" when the header ends with plain text alone. `bos` and `ends` (ends of sequence) are what the
    family expects where a checkpoint's own configuration is silent. `roles` maps an API role to the one written.
    """

    name: str
    bos: str
    message_start: str
    header_end_token: str
    header_end_text: str
    message_end: str
    after_message: str
    ends: tuple[str, ...]
    names_marker: str
    names_join: str
    names_split: str
    roles: Mapping[Role, str]

    # ---- headers -----------------------------------------------------------------------------------------------------

    def header_text(self, role: Role, names: Sequence[str] = ()) -> str:
        """`text names= A; B`. Raises InvalidRequest for a role or name that the family cannot write."""
        written = self.roles.get(role)
        if written is None:
            raise InvalidRequest(f"this model writes the roles {', '.join(self.roles)} only", param="messages")
        for name in names:
            self._check_name(name)
        return f"{written}{self.names_marker} {self.names_join.join(names)}" if names else written

    def _check_name(self, name: str) -> None:
        if not name or name != name.strip() or name.splitlines() != [name]:
            raise InvalidRequest("a name must be one line, without white space around it", param="messages")
        if self.names_split in f" {name} ":
            message = f'this model joins names with "{self.names_split.strip()}": a name cannot contain it'
            raise InvalidRequest(message, param="messages")

    def read_header(self, text: str) -> tuple[Role, tuple[str, ...]]:
        """The API role and the names of a header's text. A role that the family does not know stays as it is."""
        written, _, rest = text.partition(self.names_marker)
        written = written.strip()
        role = next((api for api, own in self.roles.items() if own == written), written)
        names = (name.strip() for name in rest.split(self.names_split))
        return role, tuple(name for name in names if name)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def pairs(self, messages: Iterable[Message], header: Header | None = None, bos: str = "") -> list[Pair]:
        """The conversation, then the header of the turn to generate: closed, or open after its role and names."""
        pairs: list[Pair] = [(bos, "")] if bos else []
        for message in messages:
            pairs += self._header(message.role, message.names, message.content)
            pairs.append((self.message_end, self.after_message))
        if header is not None and header.open:
            pairs.append((self.message_start, self.header_text(header.role, header.names)))
        elif header is not None:
            pairs += self._header(header.role, header.names, header.begun)
        return pairs

    def _header(self, role: Role, names: Sequence[str], content: str) -> list[Pair]:
        text = self.header_text(role, names)
        if not self.header_end_token:
            return [(self.message_start, f"{text}{self.header_end_text}{content}")]
        return [(self.message_start, text), (self.header_end_token, f"{self.header_end_text}{content}")]

    def render_text(self, messages: Iterable[Message], header: Header | None = None, bos: str = "") -> str:
        """The same as text, for people: contents that spell a special token cannot be told from it here."""
        return "".join(special + text for special, text in self.pairs(messages, header, bos))

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, pairs: Iterable[Pair]) -> Transcript:
        """Turns out of pairs that begin at `message_start`, `header_end_token` or an end (any other special token).

        Tolerates a turn without its end before the next one, and any text between turns. Text outside of turns is
        not reported.
        """
        turns: list[Message] = []
        header: str | None = None
        message: Message | None = None
        for special, text in pairs:
            if not special:
                continue
            if special == self.header_end_token:
                if header is not None:
                    message, header = self._message(header, self._without_header_end(text)), None
                elif message is not None:
                    message = replace(message, content=f"{message.content}{special}{text}")
                continue
            if header is not None:
                message = self._message(header, "")
            if message is not None:
                turns.append(message)
            header, message = None, None
            if special == self.message_start:
                header, ended, content = text, "", ""
                if not self.header_end_token:
                    header, ended, content = text.partition(self.header_end_text)
                if ended:
                    message, header = self._message(header, content), None
        return Transcript(tuple(turns), message if header is None else header)

    def _message(self, header: str, content: str) -> Message:
        role, names = self.read_header(header)
        return Message(role, content, names)

    def _without_header_end(self, text: str) -> str:
        """Takes off the text of a header's end, or what there is of it at the end of a prompt."""
        for length in range(len(self.header_end_text), 0, -1):
            if text.startswith(self.header_end_text[:length]):
                return text[length:]
        return text


CHATML_TEXT = Template(
    name="chatml-text",
    bos="<s>",
    message_start="<|im_start|>",
    header_end_token="",
    header_end_text="\n",
    message_end="<|im_end|>",
    after_message="\n",
    ends=("</s>", "<|end_of_text|>", "<|endoftext|>"),
    names_marker=" names=",
    names_join="; ",
    names_split=";",
    roles=MappingProxyType({"system": "system", "user": "user", "assistant": "assistant", "text": "text"}),
)

LLAMA3_WRITER = Template(
    name="llama3-writer",
    bos="<|begin_of_text|>",
    message_start="<|start_header_id|>",
    header_end_token="<|end_header_id|>",
    header_end_text="\n\n",
    message_end="<|eot_id|>",
    after_message="",
    ends=("<|eot_id|>", "<|end_of_text|>"),
    names_marker=" character:",
    names_join=" + ",
    names_split=" + ",
    roles=MappingProxyType({"system": "system", "user": "user", "assistant": "assistant", "text": "writer"}),
)

TEMPLATES: Mapping[str, Template] = MappingProxyType({t.name: t for t in (CHATML_TEXT, LLAMA3_WRITER)})
