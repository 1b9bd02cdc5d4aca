"""The bounds of wire fields, declared once for all dialects. A value outside is a 400 that names the field.

The bounds protect the engine (law 10): what lies inside was fuzzed against it. Counts and lengths bound what a request
costs the event loop: vLLM checks every stop string on every token, and compiles a schema before the first.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from serving.errors import InvalidRequest

# As far as SillyTavern's slider reaches.
Temperature = Annotated[float, Meta(ge=0, le=5, description="0 takes the likeliest token.")]
TopP = Annotated[float, Meta(gt=0, le=1, description="1 is off.")]
TopK = Annotated[int, Meta(ge=-1, le=1_000_000, description="0 and -1 are off.")]
MinP = Annotated[float, Meta(ge=0, le=1, description="0 is off.")]
Penalty = Annotated[float, Meta(ge=-2, le=2, description="0 is off; counts output tokens only.")]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=100, description="1 is off; counts prompt and output tokens.")]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="Makes the answer reproducible.")]
MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenCount = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20, description="Alternatives to report with each token, raw.")]
Choices = Annotated[int, Meta(ge=1, le=64, description="Answers to each prompt; with a seed each has its own.")]
Bias = Annotated[float, Meta(ge=-100, le=100)]
BiasedToken = Annotated[int, Meta(ge=0, le=2**31 - 1)]
LogitBias = Annotated[
    dict[BiasedToken, Bias], Meta(max_length=1024, description="Added to the logits of token ids, from -100 to 100.")
]
BannedTokens = Annotated[list[BiasedToken], Meta(max_length=1024)]
StopString = Annotated[str, Meta(max_length=1024)]
StopStrings = Annotated[list[StopString], Meta(max_length=256)]
Name = Annotated[str, Meta(max_length=1024)]
ModelName = Annotated[str, Meta(max_length=8192)]
"""Long enough for an escaped role config; bounded, since escapes are taken out in Python."""
FileName = Annotated[str, Meta(max_length=256)]
MAX_STORY_CHARS = 262_144
"""Names are put into such a text on the event loop, in some milliseconds."""
StoryText = Annotated[str, Meta(max_length=MAX_STORY_CHARS)]
TemplateText = Annotated[str, Meta(max_length=65_536)]
RoleNames = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=16)]

MAX_MESSAGES = 4096
MAX_PROMPTS = 128
MAX_INPUTS = 2048
MAX_SCHEMA_BYTES = 32 * 1024


class AssistantRoleWire(msgspec.Struct, kw_only=True):
    """How the answering turn is written."""

    role: Annotated[str, Meta(description="`assistant` or `text`.")]
    name: Annotated[Name | None, Meta(description="Who answers; needs the role `text`.")] = None
    open: Annotated[bool | None, Meta(description="The model chooses the names itself.")] = None


class UserRoleWire(msgspec.Struct, kw_only=True):
    """How turns of the role `user` are written."""

    role: Annotated[str, Meta(description="`user` or `text`.")]
    name: Annotated[Name | None, Meta(description="Who the user is in the story.")] = None


class RoleConfigWire(msgspec.Struct, kw_only=True):
    """How the roles of a chat become the model's."""

    assistant: Annotated[
        AssistantRoleWire | None, Meta(description="How `assistant` turns and the answer are written.")
    ] = None
    user: Annotated[UserRoleWire | None, Meta(description="How `user` turns are written.")] = None


def texts_or_ids(sent: str | list[str | int | list[int]], param: str, most: int) -> tuple[str | tuple[int, ...], ...]:
    """What a text, token ids, or a list of either holds, at most so many. Raises InvalidRequest."""
    if isinstance(sent, str):
        return (sent,)
    if not sent:
        raise InvalidRequest(f"{param} must not be an empty list.", param=param)
    if isinstance(sent[0], int):
        return (_ids(sent, param),)
    if len(sent) > most:
        raise InvalidRequest(f"{param} may hold at most {most} texts.", param=param)
    return tuple(item if isinstance(item, str) else _ids(item, param) for item in sent)


def _ids(sent: object, param: str) -> tuple[int, ...]:
    if not isinstance(sent, list) or not set(map(type, sent)) <= {int}:
        message = f"A list {param} holds texts, token ids, or lists of token ids: not a mixture."
        raise InvalidRequest(message, param=param)
    return tuple(sent)


def given(**values: object) -> dict[str, Any]:
    """Those that are not None: what was not sent takes core's default."""
    return {name: value for name, value in values.items() if value is not None}
