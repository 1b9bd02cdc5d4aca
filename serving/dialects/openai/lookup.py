"""The files that a request names -> the request with what they say, so that translation needs no files.

A preset's options count instead of those sent, as does what a character's file says. A file is only read where the
request's mode uses it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from serving.dialects.base import Context
from serving.dialects.library import Library
from serving.dialects.openai import wire
from serving.dialects.openai.modes import mode_of
from serving.dialects.openai.preset import moded
from serving.edge.body import describe
from serving.errors import InvalidRequest

W = TypeVar("W", wire.ChatCompletionRequest, wire.CompletionRequest)

_NOT_OPTIONS = {"preset", "model", "stream", "stream_options", "n", "user", "role_config", "max_tokens"}
"""What is the request's own, and not a preset's."""


async def look_up(request: W, context: Context) -> W:
    """Raises InvalidRequest, naming the field whose file is missing or cannot be used."""
    if not (request.preset or request.character or request.instruction_template):
        return request
    return await asyncio.to_thread(_read, request, context.library)


def _read(request: W, library: Library) -> W:
    modes, mode = moded(type(request)), mode_of(request)
    found: dict[str, Any] = {}
    if request.preset:
        found |= _options(library.preset(request.preset))
    if request.character and mode in modes["character"]:
        character = library.character(request.character)
        found |= {"bot_name": character.name, "context": character.context, "greeting": character.greeting}
        found |= {"user_name": character.user} if character.user else {}
    if request.instruction_template not in (None, "", "None") and mode in modes["instruction_template"]:
        found["instruction_template_str"] = library.instruction_template(request.instruction_template)
    return msgspec.structs.replace(request, **found)


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's options, checked as a request's are."""
    known = {field.encode_name: field.name for field in msgspec.structs.fields(wire.CommonRequest)}
    options = {name: values[name] for name in known.keys() & values.keys() - _NOT_OPTIONS}
    try:
        checked = msgspec.convert(options, wire.CommonRequest)
    except msgspec.ValidationError as error:
        reason, _ = describe(str(error))
        raise InvalidRequest(f"The preset cannot be used: {reason}", param="preset") from None
    return {known[name]: getattr(checked, known[name]) for name in options}
