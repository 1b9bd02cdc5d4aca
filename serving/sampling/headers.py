"""Where the headers of messages stand in a history: what both samplers must agree on.

Knows no sampler and no vLLM. The definition is local, so that a kernel can decide about any position by looking at the
`LONGEST_HEADER_TOKENS` before it, and nothing needs to be remembered between steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from serving.core import Markers

LONGEST_HEADER_TOKENS: Final = 128
"""What follows a message start by so many tokens is content, whether its header was ended or not."""


@dataclass(frozen=True, slots=True)
class Headers:
    """A header begins with the token `start` and ends with the first of `ends`, or, where `tail` is not empty, with as
    much of `tail` as follows that one."""

    start: int
    ends: frozenset[int]
    tail: tuple[int, ...] = ()

    @classmethod
    def of(cls, markers: Markers, line_breaks: frozenset[int]) -> "Headers":
        """The headers of a model; `line_breaks` are all tokens that hold one."""
        ends = frozenset({markers.header_end})
        return cls(markers.start, ends | line_breaks if markers.line_breaks else ends, markers.header_tail)

    def positions(self, token_ids: Sequence[int]) -> list[bool]:
        """For each position whether it belongs to a header, its start and its end included."""
        inside = [False] * len(token_ids)
        for start, token in enumerate(token_ids):
            if token != self.start:
                continue
            for at in range(start, self.end(token_ids, start)):
                inside[at] = True
        return inside

    def end(self, token_ids: Sequence[int], start: int) -> int:
        """Where the header that begins at `start` is over: behind its end, before the next message start, at the
        longest a header can be, or at the end of `token_ids`."""
        most = min(len(token_ids), start + LONGEST_HEADER_TOKENS)
        for at in range(start + 1, most):
            if token_ids[at] == self.start:
                return at
            if token_ids[at] in self.ends:
                over = at + 1
                for expected in self.tail:
                    if over >= most or token_ids[over] != expected:
                        break
                    over += 1
                return over
        return most
