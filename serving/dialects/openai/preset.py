"""text-generation-webui's generation options that OpenAI's requests lack, and which of them change nothing here.

Clients of that API send their whole preset, so every option is accepted. One that is declared with `unused` does
nothing on this server: `ignored` names those whose value asked for something, and the table in docs/dialects.md is
made of the same declarations. It does not: translate the options that are honoured (`translate.py` does).

Source: text-generation-webui at 1dcde41d, modules/api/typing.py, and SillyTavern 1.19 for what else is sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, inspect

from serving.core import Sampling
from serving.dialects import fields
from serving.dialects.dry import FlatDryWire

_KEY = "unused"
_MODES = "modes"
_OF_OURS = Sampling()
_NOTHING = ("", False, "instruct", "None")
"""What fields of a chat's mode ask for nothing with."""


Mode: TypeAlias = Literal["instruct", "chat", "chat-instruct"]


@dataclass(frozen=True, slots=True)
class Unused:
    """An option that changes nothing here. `neutral` are the values that ask for nothing, besides null.

    `of` is the option without which this one asks for nothing either, whatever it holds.
    """

    does: str
    neutral: tuple[object, ...]
    of: str | None = None


def only_in(*modes: Mode | None, description: str) -> Meta:
    """Declares a field that has a meaning in these modes of a chat alone; None is a prompt without messages."""
    return Meta(description=description, extra={_MODES: modes})


def unused(does: str, *neutral: object, of: str | None = None) -> Meta:
    """Declares a field that changes nothing."""
    return Meta(description=f"Changes nothing: {does}.", extra={_KEY: Unused(does, neutral, of)})


_USUAL_ORDER = [
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry",
    "temperature",
    "dynamic_temperature",
    "quadratic_sampling",
    "top_n_sigma",
    "top_k",
    "top_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "tfs",
    "top_a",
    "min_p",
    "adaptive_p",
    "mirostat",
    "xtc",
    "encoder_repetition_penalty",
    "no_repeat_ngram",
]
_WITHOUT_ADAPTIVE = [name for name in _USUAL_ORDER if name != "adaptive_p"]
_OLD_ORDER = [name for name in _WITHOUT_ADAPTIVE if name != "top_n_sigma"]
_OWN_ORDER = [*_OLD_ORDER]
_OWN_ORDER.insert(_OWN_ORDER.index("temperature"), "top_n_sigma")
_ORDERS = [
    order for usual in (_USUAL_ORDER, _WITHOUT_ADAPTIVE, _OLD_ORDER, _OWN_ORDER) for order in (usual, "\n".join(usual))
]
"""What SillyTavern (its page, its presets, its 1.12) and text-generation-webui send when nobody chose an order."""


class UnusedFields(FlatDryWire, kw_only=True):
    """The options that change nothing. Any value is taken: a preset is for many backends."""

    typical_p: Annotated[Any, unused("typical sampling", 1)] = None
    tfs: Annotated[Any, unused("tail-free sampling", 1)] = None
    top_a: Annotated[Any, unused("top-a sampling", 0)] = None
    epsilon_cutoff: Annotated[Any, unused("epsilon cutoff", 0)] = None
    eta_cutoff: Annotated[Any, unused("eta cutoff", 0)] = None
    top_n_sigma: Annotated[Any, unused("top-n-sigma sampling", 0, -1)] = None
    skew: Annotated[Any, unused("skew of probabilities", 0)] = None
    encoder_repetition_penalty: Annotated[Any, unused("bonus for tokens of the prompt", 1)] = None
    no_repeat_ngram_size: Annotated[Any, unused("ban of repeated runs of tokens", 0)] = None
    repetition_penalty_range: Annotated[
        Any, unused("the repetition penalty's range of tokens", 0, of="repetition_penalty")
    ] = None
    rep_pen_slope: Annotated[Any, unused("the repetition penalty's slope", 0, 1, of="repetition_penalty")] = None
    guidance_scale: Annotated[Any, unused("classifier-free guidance", 1)] = None
    negative_prompt: Annotated[Any, unused("the prompt to be guided away from", "", of="guidance_scale")] = None
    penalty_alpha: Annotated[Any, unused("contrastive search", 0)] = None
    num_beams: Annotated[Any, unused("beam search", 1)] = None
    length_penalty: Annotated[Any, unused("preference for long beams", 1, of="num_beams")] = None
    early_stopping: Annotated[Any, unused("when beams end", False, of="num_beams")] = None
    mirostat_mode: Annotated[Any, unused("Mirostat sampling", 0)] = None
    mirostat_tau: Annotated[Any, unused("Mirostat's target", 5, of="mirostat_mode")] = None
    mirostat_eta: Annotated[Any, unused("Mirostat's rate", 0.1, of="mirostat_mode")] = None
    temperature_last: Annotated[Any, unused("temperature behind the other samplers", False, of="temperature")] = None
    dynamic_temperature: Annotated[Any, unused("temperature by entropy", False)] = None
    dynatemp_low: Annotated[Any, unused("its lower bound", 1, of="dynamic_temperature")] = None
    dynatemp_high: Annotated[Any, unused("its upper bound", 1, of="dynamic_temperature")] = None
    dynatemp_exponent: Annotated[Any, unused("its curve", 1, of="dynamic_temperature")] = None
    smoothing_factor: Annotated[Any, unused("quadratic sampling", 0)] = None
    smoothing_curve: Annotated[Any, unused("its curve", 1, of="smoothing_factor")] = None
    xtc_probability: Annotated[Any, unused("exclusion of top choices", 0)] = None
    xtc_threshold: Annotated[Any, unused("its threshold", 0.1, of="xtc_probability")] = None
    adaptive_target: Annotated[Any, unused("adaptive-p sampling", 0, -0.01, -1)] = None
    adaptive_decay: Annotated[Any, unused("its decay", 0.9, of="adaptive_target")] = None
    sampler_priority: Annotated[Any, unused("the order of samplers", "", [], *_ORDERS)] = None
    banned_strings: Annotated[Any, unused("texts that are never written", "", [])] = None
    max_tokens_second: Annotated[Any, unused("a limit of speed", 0)] = None
    prompt_lookup_num_tokens: Annotated[Any, unused("speculation by prompt lookup", 0)] = None
    static_cache: Annotated[Any, unused("a fixed cache", False)] = None
    enable_thinking: Annotated[Any, unused("thinking before the answer, which these models never do", False, True)] = (
        None
    )
    reasoning_effort: Annotated[Any, unused("how long a reasoning model thinks", "", "medium", "none")] = None
    turn_template: Annotated[Any, unused("how turns are written; use `instruction_template_str`", "")] = None
    name1_instruct: Annotated[Any, unused("how the user's turns begin", "")] = None
    name2_instruct: Annotated[Any, unused("how the answers begin", "")] = None
    context_instruct: Annotated[Any, unused("what stands before the turns", "")] = None
    system_message: Annotated[Any, unused("the first system turn; send it as a message", "")] = None
    best_of: Annotated[Any, unused("the best of several answers", 1)] = None
    suffix: Annotated[Any, unused("a text behind the answer", "")] = None
    tools: Annotated[Any, unused("tools to call", [])] = None
    tool_choice: Annotated[Any, unused("which tool to call", "none", "auto", of="tools")] = None
    functions: Annotated[Any, unused("functions to call", [])] = None
    function_call: Annotated[Any, unused("which function to call", "none", "auto", of="functions")] = None


class PresetFields(UnusedFields, kw_only=True):
    """The options that are honoured."""

    preset: Annotated[fields.FileName | None, Meta(description="A preset of the server's: its options count.")] = None
    do_sample: Annotated[bool | None, Meta(description="False takes the likeliest token, as temperature 0 does.")] = (
        None
    )
    min_length: Annotated[
        fields.TokenCount | None, Meta(description="The same as `min_tokens`, which is stronger.")
    ] = None
    ban_eos_token: Annotated[bool | None, Meta(description="The same as `ignore_eos`, which is stronger.")] = None
    add_bos_token: Annotated[bool | None, Meta(description="False: no BOS is put before the prompt.")] = None
    skip_special_tokens: Annotated[
        bool | None,
        Meta(description="Leave special tokens out of the text; true, but for a text completion with `ignore_eos`."),
    ] = None
    custom_token_bans: Annotated[
        fields.BannedTokens | str | None,
        Meta(description="Token ids that are never written, also as a text with commas: a `logit_bias` of -100."),
    ] = None
    truncation_length: Annotated[
        fields.TokenCount | None,
        Meta(
            description="Prompt and answer have at most so many tokens together: a prompt that is too long for that "
            "loses its beginning, a chat its oldest turns. 0 is off."
        ),
    ] = None
    auto_max_new_tokens: Annotated[
        bool | None, Meta(description="The answer may take the rest of the context, whatever `max_tokens` says.")
    ] = None
    grammar_string: Annotated[
        str | None, Meta(description="A grammar in GBNF that the answer follows; its first rule is `root`.")
    ] = None


# ---- what is told of them --------------------------------------------------------------------------------------------


@cache
def declared(wire: type[msgspec.Struct]) -> dict[str, Unused]:
    """The fields of a request that change nothing, by name."""
    return {name: extra[_KEY] for name, extra in _extras(wire) if _KEY in extra}


def _extras(wire: type[msgspec.Struct]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is declared of each field beside its type."""
    kind = inspect.type_info(wire)
    assert isinstance(kind, inspect.StructType)
    for field in kind.fields:
        yield field.name, getattr(field.type, "extra", None) or {}


@cache
def moded(wire: type[msgspec.Struct]) -> dict[str, tuple[Mode | None, ...]]:
    """The fields of a request that have a meaning in some modes alone, by name."""
    return {name: extra[_MODES] for name, extra in _extras(wire) if _MODES in extra}


def ignored(request: UnusedFields, mode: Mode | None = None) -> list[str]:
    """Names of the options in a request that ask for something and change nothing; `mode` None: it is no chat."""
    found = [
        name
        for name, option in declared(type(request)).items()
        if _asks(request, name, option.neutral) and _counts(request, option)
    ]
    modes = moded(type(request)).items()
    return found + [name for name, where in modes if mode not in where and _asks(request, name, _NOTHING)]


def _asks(request: UnusedFields, name: str, neutral: tuple[object, ...]) -> bool:
    value = getattr(request, name)
    return value is not None and value not in neutral


def _counts(request: UnusedFields, option: Unused) -> bool:
    """Whether the option on which this one hangs is on."""
    if option.of is None:
        return True
    primary = declared(type(request)).get(option.of)
    neutral = primary.neutral if primary is not None else (getattr(_OF_OURS, option.of),)
    return _asks(request, option.of, neutral)
