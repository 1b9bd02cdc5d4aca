"""`/internal/chat-prompt`: the prompt that a chat would be answered to, as text. Nothing is generated or charged."""

import msgspec

from serving.dialects.base import Call, Context, Standing
from serving.dialects.lines import encode
from serving.dialects.openai import wire
from serving.dialects.openai.lookup import look_up
from serving.dialects.openai.translate import chat_to_core


class ChatPromptWire(msgspec.Struct):
    prompt: str


async def chat_prompt(request: wire.ChatCompletionRequest, standing: Standing) -> bytes:
    """Special tokens that contents spell stand in it as they are spelled."""
    context = Context("", 0, standing.catalog, standing.library, grammars=True)
    core = chat_to_core(await look_up(request, context), context)
    return encode(ChatPromptWire(await standing.prompting(core.model).text_of(core.prompts[0])))


CHAT_PROMPT = Call(
    "internal.chat-prompt",
    "/internal/chat-prompt",
    "The prompt of a chat, as text",
    wire.ChatCompletionRequest,
    ChatPromptWire,
    chat_prompt,
)
