"""The role automaton as it is defined, to be read and to be compared with. Its kernels are `host.py` and `device.py`.

The state is a function of the history alone, so preemption, resumption and draft tokens need no care:

| state | history ends with | what may follow |
|---|---|---|
| AFTER_END | a message end and a part of what the format puts behind it | the next token of that; EOS |
| BETWEEN | a message end and all of that, or one token with a line break | a message start; EOS |
| HEADER | a message start and what headers of the rule begin with | the next tokens of all those headers |
| NAMES | the same, and names that the model chooses | ordinary tokens without a line break; a header end |
| CONTENT | anything else | everything but a message start, and ends that come too early |

EOS may not follow with `ignore_eos`. The first token of chosen names begins with one space; after MOST_NAME_TOKENS only
the header's end may follow, and behind it what belongs to it. CONTENT forbids the message start; the message end if
messages must not end, or have too few tokens; every other EOS if the message has too few tokens, or with `ignore_eos`.
Unreadable histories are CONTENT, so nothing is ever impossible for want of a state. Content is counted from the end of
the last header, or, where that cannot be read, from the last message start or end; the prompt's open message counts.

Where the allowed tokens are listed (AFTER_END, BETWEEN, HEADER) and all of them are impossible already, their logits
become 0. In NAMES and CONTENT nearly the whole vocabulary is allowed, and nothing that can be combined with these rules
empties it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from serving.core import Markers, RoleRule
from serving.sampling.headers import LONGEST_HEADER_TOKENS, Headers
from serving.sampling.roles.params import MOST_NAME_TOKENS


@dataclass(frozen=True, slots=True)
class TokenClasses:
    """What is known of the vocabulary: tokens that hold a line break, that are special, and that begin a name (one
    space, not followed by white space)."""

    line_break: frozenset[int]
    special: frozenset[int]
    name_start: frozenset[int]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What may follow: the tokens in `only`, or, where it is None, all but those in `banned`."""

    only: frozenset[int] | None = None
    banned: frozenset[int] = frozenset()
    rescued: bool = False
    """Whether `only` is a list whose logits become 0 if all are impossible already."""


def constraint(token_ids: Sequence[int], rule: RoleRule, markers: Markers, classes: TokenClasses) -> Constraint:
    """What may follow the history `token_ids`."""
    count = len(token_ids)
    ends = frozenset() if rule.ignore_eos else frozenset(markers.eos) - {markers.end}
    borders = (markers.start, markers.end)
    border = next((at for at in range(count - 1, -1, -1) if token_ids[at] in borders), -1)
    if border >= 0 and token_ids[border] == markers.end:
        behind = tuple(token_ids[border + 1 :])
        if behind == markers.after_end or (len(behind) == 1 and behind[0] in classes.line_break):
            return Constraint(ends | {markers.start}, rescued=True)
        if behind == markers.after_end[: len(behind)]:
            return Constraint(ends | {markers.after_end[len(behind)]}, rescued=True)
    content = border + 1
    if border >= 0 and token_ids[border] == markers.start:
        over, inside = _header(token_ids, border, markers, classes)
        found = _in_header(tuple(token_ids[border + 1 :]), rule, markers, classes) if inside else None
        if found is not None:
            return found
        content = over or content
    return Constraint(banned=_banned(count - content, rule, markers))


def _header(token_ids: Sequence[int], start: int, markers: Markers, classes: TokenClasses) -> tuple[int, bool]:
    """Where the header that begins at `start` is over (0: nowhere), and whether the history ends inside of it."""
    headers = Headers.of(markers, classes.line_break)
    most = min(len(token_ids), start + LONGEST_HEADER_TOKENS)
    end = next((at for at in range(start + 1, most) if token_ids[at] in headers.ends), -1)
    if end < 0:
        return 0, len(token_ids) - start < LONGEST_HEADER_TOKENS
    over = headers.end(token_ids, start)
    waits_for_tail = over == len(token_ids) and over - end - 1 < len(markers.header_tail)
    return over, waits_for_tail and over - start < LONGEST_HEADER_TOKENS


def _in_header(written: tuple[int, ...], rule: RoleRule, markers: Markers, classes: TokenClasses) -> Constraint | None:
    """What may follow the part of a header `written`; None where no header of the rule begins so."""
    size = len(written)
    opened = next((path for path in rule.open_names if written[: len(path)] == path), None)
    if opened is None:
        paths = (*rule.headers, *rule.open_names)
        edges = frozenset(path[size] for path in paths if len(path) > size and path[:size] == written)
        return Constraint(edges, rescued=True) if edges else None
    names = written[len(opened) :]
    if not names:
        return Constraint(classes.name_start)
    if markers.header_end in names:  # else this would not be inside of a header: what is left is its tail
        tail = names[names.index(markers.header_end) + 1 :]
        return Constraint(frozenset({markers.header_tail[len(tail)]}), rescued=True)
    if len(names) >= MOST_NAME_TOKENS:
        return Constraint(frozenset({markers.header_end}), rescued=True)
    borders = {markers.start, markers.end, *markers.eos}  # not all tokenizers flag them as special
    return Constraint(banned=(classes.line_break | classes.special | borders) - {markers.header_end})


def _banned(content_tokens: int, rule: RoleRule, markers: Markers) -> frozenset[int]:
    early = content_tokens < rule.minimum_content
    banned = {markers.start}
    if early or rule.forbid_end:
        banned.add(markers.end)
    if early or rule.ignore_eos:
        banned.update(set(markers.eos) - {markers.end})
    return frozenset(banned)


def constrain(logits: list[float], constraint: Constraint) -> list[float]:
    """The row of logits that is left."""
    only = constraint.only
    if only is None:
        return [-inf if token in constraint.banned else logit for token, logit in enumerate(logits)]
    row = [logit if token in only else -inf for token, logit in enumerate(logits)]
    if constraint.rescued and all(row[token] == -inf for token in only):
        for token in only:
            row[token] = 0.0
    return row
