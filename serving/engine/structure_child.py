"""Compiles one JSON Schema or grammar that a stranger wrote, in a process of its own that has little time and memory.

A process, since nothing else ends a compiler: seen were 90 s and more for `{"multipleOf": 999983}` or an `allOf` of 19
patterns, and all memory for `{"minItems": 1000000000}`. It reads a job (`kind`, `text`) from its standard input and
writes the grammar to use, or why there is none, to its output: one JSON object. It imports nothing of ours.
"""

import json
import resource
import sys
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

CPU_S = 1
"""Hundreds of properties, and enumerations of thousands of texts, take a tenth of it."""
MEMORY_BYTES = 1 << 30
MOST_NESTED = 64
"""Objects and lists in one another: the compiler calls itself for each. Source: vLLM's own bound of a schema."""
MOST_SYMBOLS = 20_000
"""Of a grammar. llguidance allows 500,000: a schema of 1 KB with fewer took 3 s to compile, and 1.5 s for a token."""
FIRST_BYTES = 16
"""Those that are tried, each the lowest that may follow."""

# Told to look ahead, llguidance goes through all text that can follow in one way only, before every token: 9 ms for a
# text of 30 KB, 0.3 s for a list of 1,000 texts of 1 KB, and for each choice anew.
_HEAD = '%llguidance {"no_forcing": true}\n'


def grammar(kind: str, text: str) -> str:
    """What to give the compiler for a JSON Schema (`kind` "json") or a grammar. Raises ValueError with the reason."""
    if kind != "json":
        if "%llguidance" in text:
            raise ValueError("%llguidance is not allowed")
        return _HEAD + any_to_lark(text).replace("%llguidance {}", "", 1)
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("it must be an object")
    if _nested(schema) > MOST_NESTED:
        raise ValueError(f"objects and lists may be nested {MOST_NESTED} deep")
    # Its white space is ours to choose: a small model can fill the whole answer with it.
    return f"{_HEAD}start: %json {json.dumps(schema | {'x-guidance': {'whitespace_flexible': False}})}"


def _nested(value: object) -> int:
    depth, level = 0, [value]
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return depth


def compiled(lark: str) -> str:
    """Why this cannot be followed, even for its first bytes; empty when it can."""
    limits = llguidance.LLParserLimits(max_grammar_size=MOST_SYMBOLS, verbose_errors=False)
    source = llguidance.LLMatcher.grammar_from_lark(lark)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), source, log_level=0, limits=limits)
    for _ in range(FIRST_BYTES):
        if matcher.is_stopped():  # with an error, too
            break
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        matcher.consume_token((mask & -mask).bit_length() - 1)
    return str(matcher.get_error())


def answer(kind: str, text: str) -> dict[str, Any]:
    """`grammar`, or `error`: why there is none."""
    try:
        lark = grammar(kind, text)
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # noqa: BLE001  # the translator of grammars raises many
        return {"error": str(error)}
    reason = compiled(lark)
    if not reason:
        return {"grammar": lark}
    # Not where in our text it is, and not that text again.
    return {"error": reason.rpartition("failed to compile JSON schema: ")[2].partition("\n   1 | ")[0]}


def main() -> None:
    job = json.load(sys.stdin.buffer)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(answer(job["kind"], job["text"]), sys.stdout)


if __name__ == "__main__":
    main()
