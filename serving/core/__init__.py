"""The nouns of the service: what is asked, what is prepared, what the engine says, who pays.

Frozen dataclasses of plain data, standard library only. Nothing here knows a wire protocol, an engine or a store. Units
stand in the names. `tasks` has those of work without a token stream.
"""

from serving.core.asked import (
    AnswerFormat,
    Distribution,
    Dry,
    GenerationRequest,
    Grammar,
    JsonFormat,
    Rules,
    Sampling,
    Stopping,
)
from serving.core.credit import Caller, Hold, Plan, Price, Rate, Receipt
from serving.core.events import Delta, Event, Finished, FinishReason, Started, TokenLogprob, Usage
from serving.core.prepared import LogitsRules, Markers, PreparedRequest, RoleRule
from serving.core.prompts import ChatPrompt, Header, Message, Prompt, RawPrompt, Role, TemplatePrompt, TokenPrompt

__all__ = [
    "AnswerFormat",
    "Caller",
    "ChatPrompt",
    "Delta",
    "Distribution",
    "Dry",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "Grammar",
    "Header",
    "Hold",
    "JsonFormat",
    "LogitsRules",
    "Markers",
    "Message",
    "Plan",
    "PreparedRequest",
    "Price",
    "Prompt",
    "Rate",
    "RawPrompt",
    "Receipt",
    "Role",
    "RoleRule",
    "Rules",
    "Sampling",
    "Started",
    "Stopping",
    "TemplatePrompt",
    "TokenLogprob",
    "TokenPrompt",
    "Usage",
]
