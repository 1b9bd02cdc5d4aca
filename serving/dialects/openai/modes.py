"""A request's messages -> the prompt: by its mode, its names and its template. It reads no files (`lookup.py` does).

| mode | what the model reads |
|---|---|
| instruct | the messages, by the role config, as OpenAI's clients expect |
| chat | the context as a system turn, then each message as a `text` turn with its speaker's name |
| chat-instruct | the context, a `user` turn that holds the command and the conversation, a `text` turn to answer |

A `text` turn with a name is how our models have learnt "Name: text". With a template of the caller's the same messages
are written by it; where it takes no names, the answer begins with "Name:" and ends at the next one.

Source: text-generation-webui, modules/chat.py, for what the modes are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving.core import ChatPrompt, Header, Message, TemplatePrompt
from serving.dialects.openai import wire
from serving.dialects.openai.preset import Mode, ignored
from serving.errors import InvalidRequest
from serving.prompting.roles import AssistantRole, RoleConfig, UserRole, read_names, to_message

_USER, _BOT = "You", "AI"
_COMMAND = 'Write the next reply of "<|character|>" in this conversation, and nothing else.\n\n<|prompt|>'
_MACROS = re.compile(r"\{\{(?:user|char|bot)\}\}|<(?:user|char|bot)>", re.IGNORECASE)
_PLACES = re.compile(r"<\|(?:character|prompt)\|>")

Request = wire.ChatCompletionRequest | wire.CompletionRequest


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat as it will be asked. `stop`: the texts that end its answer, beside those of the request."""

    prompt: ChatPrompt | TemplatePrompt
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Speakers:
    """The two of a role-play. By `roles` all turns are text, each with the name of its speaker."""

    user: str
    bot: str
    roles: RoleConfig

    @classmethod
    def of(cls, request: Request) -> "Speakers":
        """Raises InvalidRequest."""
        user, bot = request.user_name or request.name1 or _USER, request.bot_name or request.name2 or _BOT
        user_names = read_names(user, "user_name" if request.user_name else "name1")
        bot_names = read_names(bot, "bot_name" if request.bot_name else "name2")
        return cls(user, bot, RoleConfig(AssistantRole("text", bot_names), UserRole("text", user_names)))

    def named(self, text: str) -> str:
        """The text with the names in the places of `{{user}}` and `{{char}}`."""
        return _MACROS.sub(lambda found: self.user if "user" in found[0].lower() else self.bot, text)

    @property
    def prefix(self) -> str:
        """What the answer begins with where only its text can say whose it is."""
        return f"{self.bot}:"

    @property
    def stop(self) -> tuple[str, ...]:
        return f"\n{self.user}:", f"\n{self.bot}:"


def mode_of(request: Request) -> Mode | None:
    """How the messages are written; None where there are none."""
    return (request.mode or "instruct") if request.messages else None


def unused_of(request: Request) -> list[str]:
    """Names of the options that ask for something and change nothing."""
    return ignored(request, mode_of(request))


def chat_of(request: Request, messages: Sequence[wire.ChatMessage], roles: RoleConfig) -> Chat:
    """The messages by the request's mode; `roles` are those of the role config. Raises InvalidRequest."""
    if request.continue_ and messages[-1].role not in ("assistant", "text"):
        raise InvalidRequest("continue_ needs a last message whose role is assistant.", param="continue_")
    mode = mode_of(request)
    if mode == "instruct":
        return _instruct(request, messages, roles)
    speakers = Speakers.of(request)
    turns = [*_context(request, speakers), *_turns(messages, speakers.roles)]
    if request.greeting and _may_greet(messages):
        first = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
        turns.insert(first, Message("text", speakers.named(request.greeting), speakers.roles.assistant.names))
    return _chat(request, turns, speakers) if mode == "chat" else _chat_instruct(request, turns, speakers)


def _instruct(request: Request, messages: Sequence[wire.ChatMessage], roles: RoleConfig) -> Chat:
    if not request.instruction_template_str:
        return Chat(_own(request, _turns(messages, roles), roles.header()))
    plain = _turns(messages, RoleConfig())
    turns = [replace(turn, role="assistant" if turn.role == "text" else turn.role, names=()) for turn in plain]
    return Chat(_templated(request, turns, continued=bool(request.continue_)))


def _chat(request: Request, turns: list[Message], speakers: Speakers) -> Chat:
    if not request.chat_template_str:
        return Chat(_own(request, turns, speakers.roles.header()))
    continued = bool(request.continue_)
    # A template knows two sides, and the names as values.
    sides = [replace(turn, role=_side(turn, speakers.roles)) for turn in turns]
    prompt = TemplatePrompt(
        request.chat_template_str,
        tuple(sides),
        "chat_template_str",
        {"name1": speakers.user, "name2": speakers.bot, "user_bio": speakers.named(request.user_bio or "")},
        continued,
        "" if continued else speakers.prefix,
    )
    return Chat(prompt, speakers.stop)


def _chat_instruct(request: Request, turns: list[Message], speakers: Speakers) -> Chat:
    begun = turns.pop().content if request.continue_ else ""
    systems = [turn for turn in turns if turn.role == "system"]
    lines = "\n".join(_line(turn) for turn in turns if turn.role != "system")
    places = {"<|character|>": speakers.bot, "<|prompt|>": lines}
    command = _PLACES.sub(lambda found: places[found[0]], request.chat_instruct_command or _COMMAND)
    asked = [*systems, Message("user", command)]
    if not request.instruction_template_str:
        return Chat(ChatPrompt(tuple(asked), replace(speakers.roles.header(), begun=begun)))
    start = f"{speakers.prefix} {begun}" if begun else speakers.prefix
    return Chat(_templated(request, asked, begun=start), speakers.stop)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _context(request: Request, speakers: Speakers) -> list[Message]:
    """The system turn that says who the characters are."""
    told = [speakers.named(text).strip() for text in (request.context, request.user_bio) if text]
    return [Message("system", "\n\n".join(told))] if any(told) else []


def _may_greet(messages: Sequence[wire.ChatMessage]) -> bool:
    """A chat that begins with an answer has its greeting already."""
    spoken = next((turn for turn in messages if turn.role in ("user", "assistant", "text")), None)
    return spoken is None or spoken.role == "user"


def _own(request: Request, turns: Sequence[Message], header: Header) -> ChatPrompt:
    """Turns as the model itself writes them; to continue is to leave the last one without its end."""
    if not request.continue_:
        return ChatPrompt(tuple(turns), header)
    *before, last = turns
    return ChatPrompt(tuple(before), Header(last.role, last.names, begun=last.content))


def _templated(
    request: Request, turns: Sequence[Message], *, continued: bool = False, begun: str = ""
) -> TemplatePrompt:
    """Turns as an instruction template writes them."""
    param = "instruction_template" if request.instruction_template else "instruction_template_str"
    template = request.instruction_template_str or ""
    return TemplatePrompt(template, tuple(turns), param, continued=continued, begun=begun)


def _turns(messages: Sequence[wire.ChatMessage], roles: RoleConfig) -> list[Message]:
    return [
        to_message(turn.role, turn.name, content_of(turn, at), roles, f"messages[{at}]")
        for at, turn in enumerate(messages)
    ]


def _side(turn: Message, roles: RoleConfig) -> str:
    if turn.role == "system":
        return turn.role
    return "user" if turn.names == roles.user.names else "assistant"


def _line(turn: Message) -> str:
    return f"{', '.join(turn.names)}: {turn.content}" if turn.names else turn.content


def content_of(message: wire.ChatMessage, at: int) -> str:
    """The text of a message. Raises InvalidRequest for what is no text."""
    if isinstance(message.content, str):
        return message.content
    texts = []
    for number, part in enumerate(message.content or ()):
        if part.type != "text" or part.text is None:
            param = f"messages[{at}].content[{number}].type"
            raise InvalidRequest("Only parts of the type text are understood.", param=param)
        texts.append(part.text)
    return "".join(texts)
