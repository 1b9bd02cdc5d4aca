"""OpenAI's requests -> core. The other direction is `tell.py`.

Source of the additions: DreamGen's API page (names, role config, model suffixes, samplers), and text-generation-webui's
for those of `preset.py`. An answer to a chat ends with its message; a text completion does too, unless `ignore_eos`
lets it run on through further messages.
"""

from typing import Any

import msgspec

from serving.core import (
    AnswerFormat,
    GenerationRequest,
    Grammar,
    JsonFormat,
    Prompt,
    RawPrompt,
    Rules,
    Sampling,
    Stopping,
    TemplatePrompt,
    TokenPrompt,
)
from serving.dialects import fields
from serving.dialects.base import Context
from serving.dialects.dry import read_dry
from serving.dialects.openai import wire
from serving.dialects.openai.modes import chat_of
from serving.errors import InvalidRequest, Unsupported
from serving.prompting.roles import generated_headers, resolve


def chat_to_core(request: wire.ChatCompletionRequest, context: Context) -> GenerationRequest:
    """A chat: turns by the role config, and one message as the answer."""
    model, suffix = context.catalog.resolve(request.model)
    chat = chat_of(request, request.messages, resolve(_role_config(request), suffix))
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return GenerationRequest(
        request_id=context.request_id,
        model=model.id,
        adapter=model.adapter,
        prompts=(chat.prompt,),
        n=request.n or 1,
        sampling=_sampling(request),
        stopping=_stopping(request, max_tokens, chat.stop, at_message_end=True),
        rules=_rules(request),
        answer_format=_answer_format(request, context),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        keep_special_tokens=request.skip_special_tokens is False,
        **_prompt_options(request),
    )


def text_to_core(request: wire.CompletionRequest, context: Context) -> GenerationRequest:
    """Prompts in the model's own format, where a model suffix only restricts the roles that may be generated; or a chat
    that is told as a text."""
    model, suffix = context.catalog.resolve(request.model)
    runs_on = _ignore_eos(request)
    prompts, stop = _text_prompts(request, suffix)
    headers = (None, None) if request.messages else generated_headers(_role_config(request), suffix)
    choices = len(prompts) * (request.n or 1)
    if choices > fields.MAX_PROMPTS:
        message = (
            f"{choices} choices are asked for, and at most {fields.MAX_PROMPTS} can be. Lower n or split the list."
        )
        raise InvalidRequest(message, param="prompt" if len(prompts) > 1 else "n")
    return GenerationRequest(
        request_id=context.request_id,
        model=model.id,
        adapter=model.adapter,
        prompts=prompts,
        n=request.n or 1,
        sampling=_sampling(request),
        stopping=_stopping(request, request.max_tokens, stop, at_message_end=not runs_on),
        rules=_rules(request, *headers),
        answer_format=_answer_format(request, context),
        logprobs=request.logprobs,
        echo=bool(request.echo),
        # Text that runs on through messages is unreadable without their ends and headers.
        keep_special_tokens=runs_on if request.skip_special_tokens is None else not request.skip_special_tokens,
        **_prompt_options(request),
    )


def _text_prompts(
    request: wire.CompletionRequest, suffix: str | None
) -> tuple[tuple[Prompt | TemplatePrompt, ...], tuple[str, ...]]:
    """The prompts, and the texts that end an answer beside those of the request."""
    if request.messages is not None:
        if request.prompt is not None:
            raise InvalidRequest("prompt cannot be combined with messages.", param="prompt")
        chat = chat_of(request, request.messages, resolve(_role_config(request), suffix))
        return (chat.prompt,), chat.stop
    if request.prompt is None:
        raise InvalidRequest("prompt is required.", param="prompt")
    return _prompts(request.prompt), ()


def _prompts(prompt: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    items = fields.texts_or_ids(prompt, "prompt", fields.MAX_PROMPTS)
    return tuple(RawPrompt(item) if isinstance(item, str) else TokenPrompt(item) for item in items)


def _sampling(request: wire.CommonRequest) -> Sampling:
    return Sampling(
        **fields.given(
            temperature=0.0 if request.do_sample is False else request.temperature,
            top_p=request.top_p,
            top_k=None if request.top_k is None else max(request.top_k, 0),
            min_p=request.min_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            seed=None if request.seed == -1 else request.seed,
            logit_bias=request.logit_bias,
            min_tokens=request.min_length if request.min_tokens is None else request.min_tokens,
            banned_tokens=_banned(request),
        )
    )


def _banned(request: wire.CommonRequest) -> tuple[int, ...]:
    """Token ids that may not be written: a list, or a text with commas."""
    banned = request.custom_token_bans or []
    if not isinstance(banned, str):
        return tuple(banned)
    try:
        ids = [int(part) for part in banned.split(",") if part.strip()]
        return tuple(msgspec.convert(ids, fields.BannedTokens))
    except (ValueError, msgspec.ValidationError):
        message = "custom_token_bans must be up to 1024 token ids with commas between them."
        raise InvalidRequest(message, param="custom_token_bans") from None


def _stopping(
    request: wire.CommonRequest, max_tokens: int | None, also: tuple[str, ...], *, at_message_end: bool
) -> Stopping:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Stopping(
        max_tokens=None if request.auto_max_new_tokens else max_tokens,
        max_total_tokens=request.truncation_length or None,
        stop=(*(text for text in stop if text), *also),
        at_message_end=at_message_end,
        ignore_eos=_ignore_eos(request),
    )


def _ignore_eos(request: wire.CommonRequest) -> bool:
    return bool(request.ban_eos_token if request.ignore_eos is None else request.ignore_eos)


def _prompt_options(request: wire.CommonRequest) -> dict[str, Any]:
    return {"add_bos": request.add_bos_token is not False, "cut_prompt": bool(request.truncation_length)}


def _rules(
    request: wire.CommonRequest, roles: frozenset[str] | None = None, names: tuple[str, ...] | None = None
) -> Rules:
    return Rules(
        allowed_roles=roles,
        names=names,
        minimum_message_content_tokens=request.minimum_message_content_tokens or 0,
        dry=read_dry(request.dry, request),
    )


def _role_config(request: wire.CommonRequest) -> object:
    return None if request.role_config is None else msgspec.to_builtins(request.role_config)


def _answer_format(request: wire.CommonRequest, context: Context) -> AnswerFormat | None:
    wanted = _json_format(request.response_format)
    if not request.grammar_string:
        return wanted
    if not context.grammars:
        message = "This server takes no grammars. Its operator can allow them, with the setting `grammars`."
        raise Unsupported(message, param="grammar_string")
    if wanted is not None:
        raise InvalidRequest("grammar_string cannot be combined with response_format.", param="grammar_string")
    if len(request.grammar_string.encode("utf-8", "surrogatepass")) > fields.MAX_SCHEMA_BYTES:
        message = f"grammar_string is larger than {fields.MAX_SCHEMA_BYTES} bytes."
        raise InvalidRequest(message, param="grammar_string")
    return Grammar(request.grammar_string)


def _json_format(wanted: wire.ResponseFormat | None) -> JsonFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonFormat()
    schema = wanted.json_schema.schema if wanted.json_schema else None
    param = "response_format.json_schema.schema"
    if schema is None:
        raise InvalidRequest(f"{param} is required.", param=param)
    try:
        text = msgspec.json.encode(schema)
    except RecursionError:  # decoding it was a few frames further up
        raise InvalidRequest(f"{param} is nested too deeply.", param=param) from None
    if len(text) > fields.MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"{param} is larger than {fields.MAX_SCHEMA_BYTES} bytes.", param=param)
    return JsonFormat(text.decode())
