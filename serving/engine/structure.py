"""What an answer must follow -> a grammar that vLLM's compiler takes, or a refusal that names the field.

It is compiled in another process first (`structure_child.py`), which says whether the engine can do it in little time
and memory. Keeps the law that no request can kill an engine, or hold it up for others.
"""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

from serving.child import Child
from serving.core import Grammar, JsonFormat
from serving.errors import InvalidRequest

MOST_KNOWN = 256
"""Grammars that are remembered, the last ones used: clients send the same schema with every request."""
_REASON_CHARS = 200
_CHILD = Child(Path(__file__).with_name("structure_child.py"), "schemas and grammars", at_once=2)


def named(answer: JsonFormat | Grammar) -> tuple[str, str]:
    """What the answer must follow, for people, and the field that says so."""
    return ("grammar", "grammar_string") if isinstance(answer, Grammar) else ("JSON Schema", "response_format")


def refusal(answer: JsonFormat | Grammar, reason: str) -> InvalidRequest:
    """`reason` may be of many lines, and long."""
    kind, param = named(answer)
    return InvalidRequest(f"The {kind} cannot be used: {' '.join(reason.split())[:_REASON_CHARS]}", param=param)


@dataclass
class Structures:
    """The grammars of one engine."""

    _known: dict[JsonFormat | Grammar, asyncio.Task[dict[str, str]]] = field(default_factory=dict)

    async def grammar(self, answer: JsonFormat | Grammar) -> str:
        """In Lark's syntax, as llguidance extends it. Raises InvalidRequest, Overloaded."""
        # Taken out and put in again: what is at the beginning was not used for longest.
        task = self._known.pop(answer, None) or asyncio.create_task(_compiled(answer))
        self._known[answer] = task
        if len(self._known) > MOST_KNOWN:
            self._known.pop(next(iter(self._known)))
        try:
            # Others wait for the same.
            told = await asyncio.shield(task)
        except Exception:
            self._known.pop(answer, None)
            raise
        if "error" in told:
            raise refusal(answer, told["error"])
        return told["grammar"]


async def _compiled(answer: JsonFormat | Grammar) -> dict[str, str]:
    kind, text = ("grammar", answer.text) if isinstance(answer, Grammar) else ("json", answer.schema)
    told = await _CHILD.run(json.dumps({"kind": kind, "text": text}).encode())
    if told is None:
        return {"error": "it takes too much time or memory. Simplify it: smaller counts, fewer alternatives"}
    found: dict[str, str] = json.loads(told)
    return found
