"""Texts to token ids and back, and counts of them. It only translates: `prompting` encodes, in its threads.

Nothing is charged: no engine takes part. What it costs is bounded by the size of a body.
"""

from serving.core import ChatPrompt
from serving.dialects.base import Context, Standing
from serving.dialects.lines import encode
from serving.dialects.openai.probes import wire
from serving.dialects.openai.translate import chat_to_core
from serving.dialects.openai.wire import ChatCompletionRequest, ChatMessage
from serving.errors import InvalidRequest


async def tokenize(request: wire.Tokenize, standing: Standing) -> bytes:
    prompting = standing.prompting(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("Send either prompt or messages.", param="prompt")
    if request.prompt is not None:
        ids = await prompting.encode(request.prompt, bos=request.add_special_tokens is not False, param="prompt")
    else:
        ids = await _chat_ids(
            request.messages or [], request.model, standing, request.add_generation_prompt is not False
        )
    info, _ = standing.catalog.resolve(request.model)
    spelled = await prompting.spell(ids) if request.return_token_strs else None
    return encode(wire.Tokenized(len(ids), standing.backend.pipeline.context_tokens(info.id), ids, spelled))


async def detokenize(request: wire.Detokenize, standing: Standing) -> bytes:
    return encode(wire.Detokenized(await standing.prompting(request.model).decode(request.tokens)))


async def token_encode(request: wire.TokenEncode, standing: Standing) -> bytes:
    if isinstance(request.text, str):
        ids = await standing.prompting(request.model).encode(
            request.text,
            bos=request.add_bos_token is not False,
            special=request.encode_special_tokens is not False,
        )
    else:
        ids = await _chat_ids(request.text, request.model, standing, answered=False)
    return encode(wire.Encoded(ids, len(ids)))


async def token_decode(request: wire.TokenDecode, standing: Standing) -> bytes:
    keep = request.decode_special_tokens is not False
    return encode(
        wire.Decoded(await standing.prompting(request.model).decode(request.tokens, keep_special_tokens=keep))
    )


async def internal_encode(request: wire.InternalEncode, standing: Standing) -> bytes:
    ids = await standing.prompting(request.model).encode(request.text)
    return encode(wire.Encoded(ids, len(ids)))


async def internal_decode(request: wire.InternalDecode, standing: Standing) -> bytes:
    """Without special tokens, as text-generation-webui does."""
    text = await standing.prompting(request.model).decode(request.tokens, keep_special_tokens=False)
    return encode(wire.Decoded(text))


async def token_count(request: wire.InternalEncode, standing: Standing) -> bytes:
    return encode(wire.TokenCount(len(await standing.prompting(request.model).encode(request.text))))


async def _chat_ids(messages: list[ChatMessage], model: str | None, standing: Standing, answered: bool) -> list[int]:
    """The ids of a chat, as a chat completion sends them to the engine; not `answered`: without its answer's header."""
    context = Context("", 0, standing.catalog, standing.library)
    (prompt,) = chat_to_core(ChatCompletionRequest(model=model, messages=messages), context).prompts
    assert isinstance(prompt, ChatPrompt)
    return await standing.prompting(model).encode_chat(prompt, answered=answered)
