"""Renders one Jinja template that a stranger wrote, in a process of its own that has little time and memory.

A process, since nothing else ends a template that loops, or stops an operation that fills the memory; one for each
template, so that what breaks out of the sandbox finds no other caller's texts. It reads a job from its standard input
and writes the text, or what went wrong, to its output: one JSON value each. It imports nothing of ours.

Law: contents appear in no error. Told are the kind and the line of a mistake, never its words.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 1
MEMORY_BYTES = 256 << 20
OUTPUT_CHARS = 4 << 20


class _Generation(Extension):
    """`{% generation %}`, which marks answers for training: what is in it is written as it is."""

    tags = {"generation"}  # noqa: RUF012  # so Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(TemplateError):
    """The template itself refuses the chat."""


def _raise_exception(message: object = "") -> NoReturn:
    raise _Refused


def _environment() -> ImmutableSandboxedEnvironment:
    """Source: what transformers gives to chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = lambda value, **kwargs: json.dumps(value, ensure_ascii=False, **kwargs)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _line(error: BaseException) -> int | None:
    """The line of the template in which an error was raised."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def render(template: str, values: dict[str, Any]) -> dict[str, object]:
    """`text`, or `error` (a kind of mistake) and its `line`."""
    try:
        text = _environment().from_string(template).render(values)
    except _Refused as error:
        return {"error": "the template refuses this chat", "line": _line(error)}
    except MemoryError:
        return {"error": "it needs too much memory", "line": None}
    except Exception as error:  # noqa: BLE001  # a template can raise anything
        return {"error": type(error).__name__, "line": _line(error)}
    if len(text) > OUTPUT_CHARS:
        return {"error": "it writes too much", "line": None}
    return {"text": text}


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> None:
    job = json.load(sys.stdin.buffer)
    for template in ("{{ 'a' ~ 1 }}", "{{ 'a'.b.c }}"):
        render(template, {})  # opens what Python opens late, which the limits forbid
    _limit()
    json.dump(render(job["template"], job["values"]), sys.stdout)


if __name__ == "__main__":
    main()
