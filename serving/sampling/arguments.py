"""How the rules of a request travel to the process that samples: as plain JSON values in vLLM's `extra_args`.

`to_extra_args` and `from_extra_args` are inverse. The latter checks everything, since a vLLM server of its own may be
asked by others than this service; its ValueError becomes a 400 there. Standard library only.
"""

from collections.abc import Mapping
from typing import Any, Final

from serving.core import Dry, LogitsRules, Markers, RoleRule
from serving.sampling.dry import params as dry_params
from serving.sampling.roles import params as role_params

KEY: Final = "story_rules"
MOST_EOS: Final = 8
MOST_TAIL: Final = 4
_INT32_MAX: Final = 2**31 - 1


def to_extra_args(rules: LogitsRules) -> dict[str, Any]:
    """The `extra_args` of one request."""
    markers, dry, roles = rules.markers, rules.dry, rules.roles
    told: dict[str, Any] = {"markers": _plain(markers)}
    if dry is not None:
        told["dry"] = _plain(dry)
    if roles is not None:
        told["roles"] = _plain(roles)
    return {KEY: told}


def from_extra_args(extra_args: Mapping[str, Any] | None) -> LogitsRules | None:
    """The rules in `extra_args`, None where there are none. Raises ValueError naming what is impossible."""
    told = (extra_args or {}).get(KEY)
    if told is None:
        return None
    if not isinstance(told, Mapping) or not isinstance(told.get("markers"), Mapping):
        raise ValueError(f"{KEY} must be an object with markers")
    dry, roles = told.get("dry"), told.get("roles")
    return LogitsRules(
        _markers(told["markers"]), None if dry is None else _dry(dry), None if roles is None else _roles(roles)
    )


def _plain(value: Markers | Dry | RoleRule) -> dict[str, Any]:
    """A dataclass as JSON has it: tuples are lists."""
    return {name: _listed(getattr(value, name)) for name in value.__dataclass_fields__}


def _listed(value: object) -> object:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _markers(told: Mapping[str, Any]) -> Markers:
    markers = Markers(
        start=_token(told, "start"),
        end=_token(told, "end"),
        header_end=_token(told, "header_end"),
        header_tail=_tokens(told.get("header_tail", ()), "header_tail"),
        line_breaks=_flag(told, "line_breaks"),
        after_end=_tokens(told.get("after_end", ()), "after_end"),
        eos=_tokens(told.get("eos", ()), "eos"),
    )
    if markers.header_end in (markers.start, markers.end, *markers.eos):
        raise ValueError("markers.header_end must not be another marker")
    if max(len(markers.header_tail), len(markers.after_end)) > MOST_TAIL or len(markers.eos) > MOST_EOS:
        raise ValueError(f"markers hold at most {MOST_TAIL} tokens behind a header or a message, and {MOST_EOS} of eos")
    return markers


def _dry(told: object) -> Dry:
    if not isinstance(told, Mapping):
        raise ValueError("dry must be an object")
    default = Dry()
    breakers = told.get("sequence_breakers", default.sequence_breakers)
    if not isinstance(breakers, list | tuple):
        raise ValueError("dry.sequence_breakers must be a list of strings")
    dry = Dry(
        multiplier=told.get("multiplier", default.multiplier),
        base=told.get("base", default.base),
        allowed_length=told.get("allowed_length", default.allowed_length),
        sequence_breakers=tuple(breakers),
        range=told.get("range", default.range),
    )
    dry_params.check(dry)
    return dry


def _roles(told: object) -> RoleRule:
    if not isinstance(told, Mapping):
        raise ValueError("roles must be an object")
    minimum = told.get("minimum_content", 0)
    if type(minimum) is not int or not 0 <= minimum <= _INT32_MAX:
        raise ValueError(f"roles.minimum_content must be a whole number from 0 to {_INT32_MAX}")
    rule = RoleRule(
        headers=_paths(told.get("headers", ()), "headers"),
        open_names=_paths(told.get("open_names", ()), "open_names"),
        forbid_end=_flag(told, "forbid_end"),
        minimum_content=minimum,
        ignore_eos=_flag(told, "ignore_eos"),
    )
    role_params.check(rule)
    return rule


def _paths(value: object, name: str) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"roles.{name} must be a list of lists of token ids")
    return tuple(_tokens(path, name) for path in value)


def _tokens(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(item) is int and 0 <= item <= _INT32_MAX for item in value):
        raise ValueError(f"{name} must hold token ids")
    return tuple(value)


def _token(told: Mapping[str, Any], name: str) -> int:
    value = told.get(name)
    if type(value) is not int or not 0 <= value <= _INT32_MAX:
        raise ValueError(f"markers.{name} must be a token id")
    return value


def _flag(told: Mapping[str, Any], name: str) -> bool:
    value = told.get(name, False)
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false")
    return value
