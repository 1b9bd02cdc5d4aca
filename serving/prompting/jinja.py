"""A caller's own Jinja template and turns -> text in the model's format, in which contents are data.

The template runs in another process with little time and memory (`jinja_child.py`): here it is only waited for. It does
not: know where templates come from, or encode.

Laws: a special token spelled in a content is broken by a seam, a character that nothing else holds, before the template
sees it, and stays broken whatever the template does with the content: at the seam the text is encoded in parts. What
remains: a template that puts a token together from its own characters and a content's, or from two contents, writes it.
Contents appear in no error.
"""

import asyncio
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from serving.child import Child
from serving.core import Message, RawPrompt, TemplatePrompt
from serving.errors import InvalidRequest

_CHILD = Child(Path(__file__).with_name("jinja_child.py"), "templates", at_once=4)
_SEAMS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that Unicode leaves to programs for their own use."""


async def render(prompt: TemplatePrompt, special: Collection[str], *, bos: str, eos: str) -> RawPrompt:
    """The text that the template writes; `special` are the spellings of special tokens. Raises InvalidRequest,
    Overloaded."""
    seam, end, job = await asyncio.to_thread(_job, prompt, special, bos, eos)
    told = await _CHILD.run(job)
    if told is None:
        raise InvalidRequest(f"{prompt.param} takes too much time or memory.", param=prompt.param)
    answer: dict[str, Any] = await asyncio.to_thread(json.loads, told)
    if "error" in answer:
        where = "" if answer["line"] is None else f" in line {answer['line']}"
        raise InvalidRequest(f"{prompt.param} fails{where}: {answer['error']}.", param=prompt.param)
    text: str = answer["text"]
    if prompt.continued:
        text, found, _ = text.partition(end)
        if not found:
            raise InvalidRequest(f"{prompt.param} does not write the turn to continue.", param="continue_")
    return RawPrompt(text + _broken(prompt.begun, special, seam), seam, "messages")


def _job(prompt: TemplatePrompt, special: Collection[str], bos: str, eos: str) -> tuple[str, str, bytes]:
    """The seam, the mark behind a turn to continue, and what the process reads."""
    seam, end, *_ = _unused(prompt)
    turns = [_turn(message, special, seam) for message in prompt.messages]
    if prompt.continued:
        turns[-1]["content"] += end
    values: dict[str, object] = {name: _broken(text, special, seam) for name, text in prompt.values.items()}
    values |= {"messages": turns, "tools": None, "documents": None, "bos_token": bos, "eos_token": eos}
    values["add_generation_prompt"] = not prompt.continued
    return seam, end, json.dumps({"template": prompt.template, "values": values}).encode()


def _unused(prompt: TemplatePrompt) -> list[str]:
    """Characters that neither the template nor a content holds."""
    texts = list(_texts(prompt))
    found = [mark for mark in _SEAMS if not any(mark in text for text in texts)]
    if len(found) < 2:
        raise InvalidRequest(
            "The messages hold too many characters that are none (U+FDD0 to U+FDEF).", param="messages"
        )
    return found


def _texts(prompt: TemplatePrompt) -> Iterator[str]:
    yield from (prompt.template, prompt.begun, *prompt.values.values())
    for message in prompt.messages:
        yield from (message.content, *message.names)


def _turn(message: Message, special: Collection[str], seam: str) -> dict[str, str]:
    turn = {"role": message.role, "content": _broken(message.content, special, seam)}
    if message.names:
        turn["name"] = _broken("; ".join(message.names), special, seam)
    return turn


def _broken(text: str, special: Collection[str], seam: str) -> str:
    """The text with a seam inside of every special token that it spells."""
    for token in special:
        if len(token) > 1 and token in text:
            text = text.replace(token, token[0] + seam + token[1:])
    return text
