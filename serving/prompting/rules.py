"""What the logits rules of a request are in the token ids of one model, and which of them contradict its prompt.

It does not: apply them (`serving.sampling` does, behind the engine), or read wire models. Rules that can change nothing
are left out, so that an engine's samplers have nothing to do for requests that need none.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from serving.core import (
    ChatPrompt,
    GenerationRequest,
    LogitsRules,
    Markers,
    Message,
    Prompt,
    Role,
    RoleRule,
    Rules,
)
from serving.errors import InvalidRequest, Unsupported
from serving.prompting.format import Format
from serving.sampling.arguments import MOST_EOS
from serving.sampling.roles import params as role_params

SPEAKING: Final[Role] = "text"
"""The role whose headers name who speaks."""
_MOST_RULES = 1024
_FRAGMENT_TOKENS = 100_000
_PROBED_NAMES = ("Ann", "ron", "\u00c9mile", "7 of 9", "Who?")

Paths = tuple[tuple[int, ...], ...]


class RuleBook:
    """The rules as one model writes them. Paths of headers are encoded once for each set of roles and names."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self.markers: Final = _markers(form)
        self._before_names: Final = _before_names(form, self.markers)
        self._paths = lru_cache(maxsize=_MOST_RULES)(self._encode_paths)

    def resolve(self, request: GenerationRequest, prompt: Prompt, ids: Sequence[int]) -> LogitsRules | None:
        """The rules of one choice behind the prompt `ids`, None if there is nothing to do.

        Raises InvalidRequest for rules that contradict the prompt, the answer's format, or the model's roles;
        Unsupported where the tokenizer cannot keep them.
        """
        self._check(request)
        rules = request.rules
        dry = rules.dry if rules.dry is not None and rules.dry.multiplier > 0 else None
        roles = self._roles(request, prompt, ids)
        if dry is None and roles is None:
            return None
        return LogitsRules(self.markers, dry, roles)

    def _check(self, request: GenerationRequest) -> None:
        rules, known = request.rules, self._form.template.roles
        ends = {
            "disallow_message_end": rules.disallow_message_end,
            "minimum_message_content_tokens": rules.minimum_message_content_tokens > 0,
            "ignore_eos": request.stopping.ignore_eos,
        }
        for field, given in ends.items():
            if given and request.answer_format is not None:
                message = f"{field} cannot be combined with a JSON format or a grammar: these end by themselves"
                raise InvalidRequest(message, param=field)
        if rules.allowed_roles is not None and not rules.allowed_roles.issubset(known):
            raise InvalidRequest(f"allowed_roles may hold: {', '.join(known)}", param="allowed_roles")

    def _roles(self, request: GenerationRequest, prompt: Prompt, ids: Sequence[int]) -> RoleRule | None:
        """The role rule, if it can change anything."""
        rules, ignore_eos = request.rules, request.stopping.ignore_eos
        allowed = self._allowed(rules, prompt)
        restricts = (allowed is not None or rules.names is not None) and self._restricts(request, ids, allowed)
        if not (restricts or rules.disallow_message_end or rules.minimum_message_content_tokens or ignore_eos):
            return None
        headers, open_names = self._paths(allowed, rules.names) or ((), ())
        rule = RoleRule(
            headers,
            open_names,
            forbid_end=rules.disallow_message_end,
            minimum_content=rules.minimum_message_content_tokens,
            ignore_eos=ignore_eos,
        )
        try:
            role_params.check(rule)
        except ValueError as error:
            raise InvalidRequest(f"the roles and names cannot be held to: {error}", param="allowed_roles") from None
        return rule

    def _allowed(self, rules: Rules, prompt: Prompt) -> frozenset[Role] | None:
        """The roles that may be written, None for all. A header left open has its role already."""
        allowed = rules.allowed_roles if rules.allowed_roles != frozenset(self._form.template.roles) else None
        if not isinstance(prompt, ChatPrompt) or not prompt.header.open:
            return allowed
        if allowed is not None and prompt.header.role not in allowed:
            raise _contradiction(allowed)
        return frozenset({prompt.header.role})

    def _restricts(self, request: GenerationRequest, ids: Sequence[int], allowed: frozenset[Role] | None) -> bool:
        """Whether the model will write a header, and can be held to the rule in it. Raises InvalidRequest where the
        prompt's last message or header is not allowed, or a grammar stands in the way; Unsupported."""
        tail = self._form.read_tail(ids)
        last = tail.unfinished
        if allowed is not None and isinstance(last, Message) and last.role not in allowed:
            raise _contradiction(allowed)
        comes_now = isinstance(last, str) or (last is None and bool(tail.turns))
        if not comes_now and (request.stopping.at_message_end or request.answer_format is not None):
            return False
        if request.answer_format is not None:
            message = "allowed_roles needs a prompt whose last header is complete, where the answer has a format"
            raise InvalidRequest(message, param="allowed_roles")
        paths = self._paths(allowed, request.rules.names)
        if paths is None and request.rules.allowed_roles is None:
            return False  # a header left open is then what the model makes of it
        if paths is None:
            message = "this model's tokenizer joins headers and names: allowed_roles can only be had with given names"
            raise Unsupported(message, param="allowed_roles")
        if isinstance(last, str) and not self._begins(ids, *paths):
            raise _contradiction(allowed)
        return True

    def _begins(self, ids: Sequence[int], headers: Paths, open_names: Paths) -> bool:
        """Whether the prompt's unfinished header is the beginning of one of these, token by token."""
        start = max(at for at, token in enumerate(ids) if token == self.markers.start)
        written = tuple(ids[start + 1 :])
        begun = any(path[: len(written)] == written for path in (*headers, *open_names))
        return begun or any(written[: len(path)] == path for path in open_names)

    def _encode_paths(
        self, allowed: frozenset[Role] | None, names: tuple[str, ...] | None
    ) -> tuple[Paths, Paths] | None:
        """Whole headers, and beginnings behind which names are free; None where those cannot be written so."""
        headers: list[tuple[int, ...]] = []
        opened: list[tuple[int, ...]] = []
        for role in self._form.template.roles if allowed is None else sorted(allowed):
            headers.append(_header_ids(self._form, self.markers, role, names or () if role == SPEAKING else ()))
            if role == SPEAKING and names is None:
                if self._before_names is None:
                    return None
                opened.append(self._before_names)
        return tuple(headers), tuple(opened)


def _contradiction(allowed: Iterable[Role] | None) -> InvalidRequest:
    roles = ", ".join(sorted(allowed or ())) or "all, with the names given"
    message = (
        f"the prompt ends in a message, or in a part of a header, that is not allowed; the allowed roles are: {roles}"
    )
    return InvalidRequest(message, param="allowed_roles")


def _markers(form: Format) -> Markers:
    """Raises ValueError where a model has more ends than a rule can hold."""
    template, special = form.template, form.tokens.special_ids
    eos = sorted({*form.other_ends, *(form.eos_ids & {form.message_end_id})})
    if len(eos) > MOST_EOS:
        raise ValueError(f"this model has {len(eos)} ends of sequence, and at most {MOST_EOS} are understood")
    ending = _fragment(form, template.header_end_text) if template.header_end_token else ()
    header = _fragment(form, template.header_text(SPEAKING) + template.header_end_text)
    return Markers(
        start=special[template.message_start],
        end=form.message_end_id,
        header_end=special[template.header_end_token] if template.header_end_token else header[-1],
        header_tail=ending,
        line_breaks=not template.header_end_token,
        after_end=_fragment(form, template.after_message),
        eos=tuple(eos),
    )


def _fragment(form: Format, text: str) -> tuple[int, ...]:
    """The ids of a text that stands behind a special token."""
    return tuple(form.tokens.encode_split([text], _FRAGMENT_TOKENS)[0]) if text else ()


def _header_ids(form: Format, markers: Markers, role: Role, names: Sequence[str]) -> tuple[int, ...]:
    """A whole header behind its message start, as the template writes it: never put together from parts."""
    template = form.template
    text = template.header_text(role, names)
    if not template.header_end_token:
        return _fragment(form, text + template.header_end_text)
    return (*_fragment(form, text), markers.header_end, *markers.header_tail)


def _before_names(form: Format, markers: Markers) -> tuple[int, ...] | None:
    """What all headers with names begin with; None where the tokenizer joins that, or a header's end, with names."""
    beginning = _fragment(form, form.template.header_text(SPEAKING) + form.template.names_marker)
    ending = (markers.header_end, *markers.header_tail)
    for name in _PROBED_NAMES:
        ids = _header_ids(form, markers, SPEAKING, (name,))
        if ids[: len(beginning)] != beginning or ids[-len(ending) :] != ending:
            return None
    return beginning
