"""Options of presets: whatever is sent passes, and exactly those that ask in vain are named."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.core import AnswerFormat, Grammar, PreparedRequest, Price
from serving.dialects.base import Context
from serving.dialects.catalog import Catalog, ModelInfo
from serving.dialects.library import Library
from serving.dialects.openai import wire
from serving.dialects.openai.preset import UnusedFields, declared, moded
from serving.dialects.openai.translate import text_to_core
from serving.edge.headers import IGNORED
from serving.errors import InvalidRequest
from tests.dialects.adapters import ADAPTERS, Adapter
from tests.service import Running

OPTIONS = declared(UnusedFields)
PRIMARIES = {name: option.neutral for name, option in OPTIONS.items()} | {
    "repetition_penalty": (1,),
    "temperature": (1,),
}
PATHS = [adapter for name, adapter in ADAPTERS.items() if name.startswith(("openai ", "textgen "))]

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OURS: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.sampled_from([1, 1.0, 1.1]),
    "temperature": st.sampled_from([1, 0.7, 0]),
    "do_sample": st.booleans(),
    "min_length": st.integers(0, 3),
    "ban_eos_token": st.booleans(),
    "add_bos_token": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "custom_token_bans": st.sampled_from(["", "5, 6", [7]]),
    "truncation_length": st.sampled_from([0, 600, 8192]),
    "auto_max_new_tokens": st.booleans(),
    "grammar_string": st.just(""),
    "seed": st.sampled_from([-1, 3]),
}


def value_of(name: str) -> st.SearchStrategy[Any]:
    return st.sampled_from([None, *OPTIONS[name].neutral]) | ANYTHING


PRESETS = st.fixed_dictionaries({}, optional={name: value_of(name) for name in OPTIONS} | OURS)


def neutral(preset: dict[str, Any], name: str) -> bool:
    """Whether an option asks for nothing: told by the values alone, as the table in the documents does."""
    value = preset.get(name)
    return value is None or any(value == usual for usual in PRIMARIES[name])


def asked_for_nothing(preset: dict[str, Any]) -> list[str]:
    found = (name for name in OPTIONS if not neutral(preset, name))
    return [name for name in found if (of := OPTIONS[name].of) is None or not neutral(preset, of)]


def named(response: Any) -> list[str]:  # noqa: ANN401  # httpx.Response
    header: str = response.headers.get(IGNORED, "")
    return header.split(", ") if header else []


MODES = st.sampled_from([None, "instruct", "chat", "chat-instruct"])
TEXTS = ["context", "user_bio", "greeting", "chat_instruct_command", "user_name", "name1", "bot_name", "name2"]
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(TEXTS, st.sampled_from([None, "", "Ann", "{{user}} <|prompt|>"])),
    "mode": MODES,
    "character": st.sampled_from([None, "", "Mara", "Ron"]),
    "continue_": st.sampled_from([None, False]),
    "role_config": st.sampled_from([None, {"assistant": {"role": "text"}}]),
}


@pytest.mark.parametrize("adapter", PATHS, ids=lambda adapter: f"{adapter.dialect.name} {adapter.endpoint.name}")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.fixed_dictionaries({}, optional=FIELDS))
async def test_any_fields_of_a_chat_pass_and_those_without_meaning_are_named(
    run: Running, adapter: Adapter, sent: dict[str, Any]
) -> None:
    run.play(script=lambda request: ["Hi"])
    body = {**adapter.body(stream=False), **sent}
    response = await run.client.post(adapter.path, json=body)
    assert response.status_code == 200, response.text
    mode = (sent.get("mode") or "instruct") if "messages" in body else None
    wire_model: type[msgspec.Struct] = adapter.endpoint.wire
    meanings = moded(wire_model)
    unused = [name for name in sent if mode not in meanings[name]]
    assert sorted(named(response)) == sorted(name for name in unused if sent[name] not in (None, "", False, "instruct"))


@pytest.mark.parametrize("adapter", PATHS, ids=lambda adapter: f"{adapter.dialect.name} {adapter.endpoint.name}")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(preset=PRESETS, stream=st.booleans())
async def test_any_part_of_any_preset_passes_and_is_never_silent(
    run: Running, adapter: Adapter, preset: dict[str, Any], stream: bool
) -> None:
    run.play(script=lambda request: ["Hi"])
    body = json.dumps({**adapter.body(stream=stream), "max_tokens": 5, **preset})
    response = await run.client.post(adapter.path, content=body)
    assert response.status_code == 200, response.text
    assert adapter.read(response.text).done
    assert named(response) == asked_for_nothing(preset)


SILLYTAVERN: dict[str, Any] = {
    "temperature": 1, "top_p": 0.95, "top_k": 0, "min_p": 0.01, "typical_p": 1, "typical": 1, "top_a": 0, "tfs": 1,
    "repetition_penalty": 1.1, "rep_pen": 1.1, "rep_pen_range": 0, "repetition_penalty_range": 0, "rep_pen_slope": 1,
    "frequency_penalty": 0, "presence_penalty": 0, "epsilon_cutoff": 0, "eta_cutoff": 0, "guidance_scale": 1,
    "negative_prompt": "", "penalty_alpha": 0, "mirostat_mode": 0, "mirostat_tau": 5, "mirostat_eta": 0.1,
    "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_length": 0, "min_tokens": 0, "num_beams": 1,
    "length_penalty": 1, "early_stopping": False, "do_sample": True, "add_bos_token": True, "ban_eos_token": False,
    "ignore_eos": False, "skip_special_tokens": True, "truncation_length": 4096, "dynamic_temperature": False,
    "dynatemp_low": 1, "dynatemp_high": 1, "dynatemp_exponent": 1, "smoothing_factor": 0, "smoothing_curve": 1,
    "dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 0,
    "dry_sequence_breakers": '["\\n", ":", "\\"", "*"]', "xtc_threshold": 0.1, "xtc_probability": 0, "nsigma": 0,
    "top_n_sigma": 0, "adaptive_target": -0.01, "adaptive_decay": 0.9, "temperature_last": True, "banned_strings": [],
    "custom_token_bans": "", "sampler_priority": OPTIONS["sampler_priority"].neutral[2], "stopping_strings": [],
    "skew": 0, "max_tokens_second": 0, "api_type": "ooba", "api_server": "http://here", "include_reasoning": True,
}  # fmt: skip
"""What SillyTavern sends with the sampler settings it starts with."""


async def test_the_settings_that_sillytavern_starts_with_ask_for_nothing(run: Running) -> None:
    response = await run.client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 5, **SILLYTAVERN})
    assert response.status_code == 200
    assert IGNORED not in response.headers


ORDERS = {
    "1.19": "repetition_penalty presence_penalty frequency_penalty dry temperature dynamic_temperature "
    "quadratic_sampling top_n_sigma top_k top_p typical_p epsilon_cutoff eta_cutoff tfs top_a min_p adaptive_p "
    "mirostat xtc encoder_repetition_penalty no_repeat_ngram",
    "1.12": "repetition_penalty presence_penalty frequency_penalty dry temperature dynamic_temperature "
    "quadratic_sampling top_k top_p typical_p epsilon_cutoff eta_cutoff tfs top_a min_p mirostat "
    "xtc encoder_repetition_penalty no_repeat_ngram",
}
"""The order of samplers that each version of SillyTavern sends when nobody chose one."""


@pytest.mark.parametrize("version", ORDERS)
async def test_the_usual_order_of_each_version_asks_for_nothing(run: Running, version: str) -> None:
    usual = ORDERS[version].split()
    for order, named in ((usual, None), (usual[::-1], "sampler_priority")):
        body = {"prompt": "Once", "max_tokens": 5, "sampler_priority": order}
        response = await run.client.post("/v1/completions", json=body)
        assert response.headers.get(IGNORED) == named


OF_THE_API = """
min_p top_k repetition_penalty repetition_penalty_range typical_p tfs top_a epsilon_cutoff
eta_cutoff guidance_scale negative_prompt penalty_alpha mirostat_mode mirostat_tau mirostat_eta temperature_last
do_sample seed encoder_repetition_penalty no_repeat_ngram_size min_length num_beams length_penalty early_stopping
truncation_length max_tokens_second custom_token_bans auto_max_new_tokens ban_eos_token add_bos_token
skip_special_tokens grammar_string dynamic_temperature dynatemp_low dynatemp_high dynatemp_exponent smoothing_factor
smoothing_curve dry_multiplier dry_base dry_allowed_length dry_sequence_breakers xtc_threshold xtc_probability
top_n_sigma adaptive_target adaptive_decay sampler_priority prompt_lookup_num_tokens static_cache enable_thinking
reasoning_effort
"""
"""The generation options of text-generation-webui."""


def test_every_option_of_the_api_is_declared() -> None:
    for kind in (wire.ChatCompletionRequest, wire.CompletionRequest):
        assert set(OF_THE_API.split()) <= set(kind.__struct_fields__)


async def asked(run: Running, **body: Any) -> PreparedRequest:  # noqa: ANN401  # JSON
    """What the engine is asked for a completion."""
    engine = run.play(script=lambda request: ["Hi"])
    response = await run.client.post("/v1/completions", json={"prompt": "Once upon a time", "max_tokens": 5, **body})
    assert response.status_code == 200, response.text
    return engine.asked[0]


async def test_spellings_of_the_same(run: Running) -> None:
    assert (await asked(run, seed=-1)).sampling.seed is None
    assert (await asked(run, do_sample=False, temperature=0.9)).sampling.temperature == 0
    assert (await asked(run, min_length=3)).sampling.min_tokens == 3
    assert (await asked(run, min_length=3, min_tokens=2)).sampling.min_tokens == 2
    assert (await asked(run, ban_eos_token=True)).rules == (await asked(run, ignore_eos=True)).rules
    assert (await asked(run, ban_eos_token=True, ignore_eos=False)).rules is None
    for bans in ("5,6", " 5, 6,", [5, 6]):
        assert (await asked(run, custom_token_bans=bans)).sampling.logit_bias == {5: -100, 6: -100}
    bias = {"5": 1, "7": 2}
    assert (await asked(run, custom_token_bans="5", logit_bias=bias)).sampling.logit_bias == {5: -100, 7: 2}


async def test_the_beginning_of_the_text(run: Running) -> None:
    with_bos, without = await asked(run), await asked(run, add_bos_token=False)
    assert with_bos.token_ids[1:] == without.token_ids


@pytest.mark.parametrize("bans", ["x", "1;2", "-1", "1.5", "9" * 5000, ",".join(["1"] * 1025), "2147483648"])
async def test_bans_that_are_none(run: Running, bans: str) -> None:
    response = await run.client.post("/v1/completions", json={"prompt": "Once", "custom_token_bans": bans})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "custom_token_bans"


async def test_grammars_are_the_operators_choice(run: Running) -> None:
    response = await run.client.post("/v1/completions", json={"prompt": "Once", "grammar_string": 'root ::= "yes"'})
    assert response.status_code == 501
    assert response.json()["error"]["param"] == "grammar_string"


def test_a_grammar_that_is_allowed() -> None:
    catalog = Catalog((ModelInfo("m", 0, Price()),))
    context = Context("id", 0, catalog, Library(), grammars=True)

    def core(**fields: Any) -> AnswerFormat | None:  # noqa: ANN401  # JSON
        body = {"prompt": "Once", **fields}
        return text_to_core(msgspec.convert(body, wire.CompletionRequest), context).answer_format

    assert core(grammar_string='root ::= "a"') == Grammar('root ::= "a"')
    assert core(grammar_string="") is None
    for fields in (
        {"response_format": {"type": "json_object"}, "grammar_string": "a"},
        {"grammar_string": "é" * 16_385},
    ):
        with pytest.raises(InvalidRequest) as error:
            core(**fields)
        assert error.value.param == "grammar_string"
