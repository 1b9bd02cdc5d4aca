"""From texts to what a pooling engine takes: the model's token ids, its own special tokens around each text.

It does not: know which task it is for, prices or plans, or how long a text the engine takes.

Laws: contents are data: a special token spelled in a text is plain text. They are encoded in a thread.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from serving.core.tasks import Classify, Embed, PreparedTask, TaskRequest, TokenLists
from serving.errors import InvalidRequest, PromptTooLong
from serving.prompting.tokenizer import TokenizerPair, TooManyTokens, model_folder

MOST_TOKENS = 300_000
"""Of all inputs of a request. Source: OpenAI's embeddings API."""

_MOST_CHARS = 1_000_000
"""Of one input: more could be more than a million tokens, whose ids alone hold the interpreter lock for long."""


def labels_of(source: str, revision: str | None = None) -> tuple[str, ...]:
    """What a classifier tells apart, by its configuration or transformers' default. Blocks, as `Texts.load` does."""
    config = json.loads((model_folder(source, revision) / "config.json").read_text(encoding="utf-8"))
    return tuple(config.get("id2label", {0: "LABEL_0", 1: "LABEL_1"}).values())


@dataclass(frozen=True, slots=True)
class Texts:
    """Prepares the tasks of one model. `before` and `behind` are the special tokens around each text."""

    tokenizers: TokenizerPair
    before: tuple[int, ...]
    behind: tuple[int, ...]

    @classmethod
    def load(cls, source: str, revision: str | None = None) -> "Texts":
        """From a local folder or a hub id. Blocks (files, perhaps a download).

        Raises FileNotFoundError without a tokenizer.json.
        """
        text = (model_folder(source, revision) / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a").ids
        at = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
        pair = TokenizerPair(tokenizer, tokenizer, {}, {}, tokenizer.get_vocab_size(), None, spaced=False)
        return cls(pair, tuple(whole[:at]), tuple(whole[at + len(plain) :]))

    async def prepare(self, request: TaskRequest[Embed | Classify]) -> PreparedTask[TokenLists]:
        """Token ids of each input; those that were sent are taken as they are. Raises InvalidRequest, PromptTooLong."""
        inputs = request.work.inputs
        texts = [text for text in inputs if isinstance(text, str)]
        encoded = iter(await asyncio.to_thread(self._encode, texts))
        token_ids = tuple(next(encoded) if isinstance(each, str) else each for each in inputs)
        units = sum(map(len, token_ids))
        if units > MOST_TOKENS:
            raise _too_long(units)
        dimensions = request.work.dimensions if isinstance(request.work, Embed) else None
        return PreparedTask(request.request_id, TokenLists(token_ids, dimensions), units, max(map(len, token_ids)))

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        for text in texts:
            if not text:
                raise InvalidRequest("An input must not be an empty text.", param="input")
            if len(text) > _MOST_CHARS:
                message = f"An input has {len(text)} characters, and may have {_MOST_CHARS}: shorten it."
                raise PromptTooLong(message, param="input")
        try:
            encoded = self.tokenizers.encode_split(texts, MOST_TOKENS, "input")
        except TooManyTokens as error:
            raise _too_long(error.tokens) from None
        return [(*self.before, *ids, *self.behind) for ids in encoded]


def _too_long(tokens: int) -> PromptTooLong:
    message = f"The inputs have {tokens} tokens, and may have {MOST_TOKENS} together: send fewer at a time."
    return PromptTooLong(message, param="input")
