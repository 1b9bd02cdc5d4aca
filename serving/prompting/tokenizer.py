"""Two tokenizers of one model: `raw` recognises special tokens in a text, `split` never does.

Two instances that are never toggled: toggling one shared instance leaks special tokens between threads. Neither adds
anything of its own (no BOS by post-processor). It also finds a model's files.

It does not: know templates or requests, or decide in which thread it runs (`prepare.py` does).

Laws: a text encoded by `split` never yields the id of an added token. No single call into the tokenizer holds the
interpreter lock for longer than a few milliseconds: `encode` and `decode` of tokenizers 0.23 hold it while they work,
`encode_batch_fast` and `decode_batch` do not; but `Encoding.ids` and freeing an Encoding do (10 to 20 ms for each
million tokens), so texts are encoded in bounded groups, and what cannot fit is refused before its ids are asked for.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serving.errors import InvalidRequest

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")
"""What is read of a model: the first must be there."""

GROUP_CHARS = 131_072
GROUP_TEXTS = 256
"""Texts are encoded in groups of about so many, since a group is handed over and freed at once."""

MOST_BYTES_AT_ONCE = 1_000_000
"""A text of more bytes could be more than a million tokens: it is looked at in slices first."""


class TooManyTokens(Exception):
    """Texts have `tokens` tokens, or (not `exact`) at least so many, and fewer were asked for."""

    def __init__(self, tokens: int, *, exact: bool) -> None:
        super().__init__(f"{'' if exact else 'at least '}{tokens} tokens")
        self.tokens = tokens
        self.exact = exact


def model_folder(source: str, revision: str | None = None) -> Path:
    """The local folder with a model's `FILES`: `source` itself, or those files of that hub id at `revision`."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download  # only here: a local folder needs no hub

    return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))


@dataclass(frozen=True, slots=True)
class TokenizerPair:
    """The two tokenizers. Ids run below `vocabulary_size`; `special_ids` are those of every added token, and
    `hidden` the added tokens that are not part of what a model says (white space runs can be added tokens, and are).

    `longest_token_bytes` is the most UTF-8 bytes of a text that one token can stand for, None where the tokenizer
    changes texts so that no such number is certain. `spaced`: a fragment is decoded with a space before it.
    """

    raw: Tokenizer
    split: Tokenizer
    special_ids: Mapping[str, int]
    hidden: Mapping[int, str]
    vocabulary_size: int
    longest_token_bytes: int | None
    spaced: bool

    @classmethod
    def load(cls, folder: Path) -> "TokenizerPair":
        """Raises FileNotFoundError without a tokenizer.json, ValueError where `split` cannot keep its law."""
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        data = json.loads(text)
        raw = Tokenizer.from_str(text)
        split = Tokenizer.from_str(json.dumps(_splitting(data)))
        split.encode_special_tokens = True
        for tokenizer in (raw, split):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        special_ids = {token["content"]: int(token["id"]) for token in data.get("added_tokens", ())}
        _check_split(split, special_ids)
        vocabulary = raw.get_vocab(with_added_tokens=True)
        longest = _longest_token_bytes(data, vocabulary)
        spaced = raw.decode(split.encode("a", add_special_tokens=False).ids, skip_special_tokens=False) == " a"
        hidden = {int(token["id"]): token["content"] for token in data.get("added_tokens", ()) if token.get("special")}
        return cls(raw, split, special_ids, hidden, max(vocabulary.values()) + 1, longest, spaced)

    # ---- text to ids -------------------------------------------------------------------------------------------------

    def encode_raw(self, text: str, most: int, param: str = "prompt") -> list[int]:
        """Ids of a text whose special tokens are special. Raises as `encode_split` does."""
        return self.encode_raw_parts([text], most, param)[0]

    def encode_raw_parts(self, texts: Sequence[str], most: int, param: str = "prompt") -> list[list[int]]:
        """The same for each of several texts; `most` counts all of them."""
        return self._encode(self.raw, texts, most, param)

    def encode_split(self, texts: Sequence[str], most: int, param: str = "prompt") -> list[list[int]]:
        """Ids of each text, all of it plain. Raises InvalidRequest (not Unicode), TooManyTokens (over `most` in
        all: counting and refusing costs less than asking for all the ids)."""
        return self._encode(self.split, texts, most, param)

    def _encode(self, tokenizer: Tokenizer, texts: Sequence[str], most: int, param: str) -> list[list[int]]:
        self._check_bytes(texts, most, param)
        encoded: list[list[int]] = []
        total = done = 0
        for group in _groups(texts):
            if _utf8_bytes(group[0]) > MOST_BYTES_AT_ONCE:
                self._check_slices(tokenizer, group[0], most - total)
            encodings = tokenizer.encode_batch_fast(group, add_special_tokens=False)
            done += len(group)
            total += sum(map(len, encodings))
            if total > most:
                raise TooManyTokens(total, exact=done == len(texts))
            encoded += [encoding.ids for encoding in encodings]
        return encoded

    def _check_bytes(self, texts: Sequence[str], most: int, param: str) -> None:
        """Refuses what is not Unicode, and what has more bytes than `most` of the longest token."""
        try:
            size_bytes = sum(map(_utf8_bytes, texts))
        except UnicodeEncodeError:
            raise InvalidRequest("the text is not valid Unicode (a lone surrogate)", param=param) from None
        longest = self.longest_token_bytes
        if longest is not None and size_bytes > most * longest:
            raise TooManyTokens(-(-size_bytes // longest), exact=False)

    def _check_slices(self, tokenizer: Tokenizer, text: str, most: int) -> None:
        """Refuses a very long text by its slices, so that it is never one Encoding of millions of tokens.

        A cut can break a token into at most as many as it has bytes, so the slices' count without as much for each
        cut is not over the text's own.
        """
        if self.longest_token_bytes is None:
            return
        counted = 0
        for start in range(0, len(text), GROUP_CHARS):
            (encoding,) = tokenizer.encode_batch_fast([text[start : start + GROUP_CHARS]], add_special_tokens=False)
            counted += len(encoding) - self.longest_token_bytes
            if counted > most:
                raise TooManyTokens(counted, exact=False)

    # ---- ids to text -------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, keep_special_tokens: bool = True) -> str:
        """The text of ids, which must lie in the vocabulary."""
        (text,) = self.raw.decode_batch([list(ids)], skip_special_tokens=not keep_special_tokens)
        return text

    def spell(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells each id: no two alike. An id that no token has is its number."""
        return [self.raw.id_to_token(token) or str(token) for token in ids]

    def decode_fragments(self, fragments: Sequence[Sequence[int]]) -> list[str]:
        """The texts that `encode_split` was given."""
        texts = self.raw.decode_batch([list(ids) for ids in fragments], skip_special_tokens=False) if fragments else []
        return [text.removeprefix(" ") for text in texts] if self.spaced else texts


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    chars = 0
    for text in texts:
        if group and (chars + len(text) > GROUP_CHARS or len(group) >= GROUP_TEXTS):
            yield group
            group, chars = [], 0
        group.append(text)
        chars += len(text)
    if group:
        yield group


# ---- reading tokenizer.json ------------------------------------------------------------------------------------------


def _splitting(data: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of `split`: every added token special, and none that the model could merge by itself.

    A template's fragments always follow a special token, so a Metaspace that marks only the very first text of an
    input must not mark them.
    """
    added = [{**token, "special": True} for token in data.get("added_tokens", ())]
    spellings = {token["content"] for token in added}
    model = dict(data["model"])
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in spellings]
    return {**data, "added_tokens": added, "model": model, "pre_tokenizer": _unmarked(data.get("pre_tokenizer"))}


def _merged(merge: str | list[str]) -> str:
    return "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)


def _unmarked(part: object) -> object:
    if isinstance(part, dict) and "pretokenizers" in part:
        return {**part, "pretokenizers": [_unmarked(each) for each in part["pretokenizers"]]}
    if isinstance(part, dict) and part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
        return {**{key: value for key, value in part.items() if key != "add_prefix_space"}, "prepend_scheme": "never"}
    return part


def _check_split(split: Tokenizer, special_ids: Mapping[str, int]) -> None:
    forbidden = set(special_ids.values())
    for spelling in special_ids:
        for text in (spelling, f"a{spelling}b {spelling} {spelling}\n"):
            if not forbidden.isdisjoint(split.encode(text, add_special_tokens=False).ids):
                raise ValueError(f"this tokenizer cannot encode {spelling} as plain text")


_LOSSLESS = {"Prepend", "Replace", "Split", "ByteLevel", "Metaspace", "Digits", "Punctuation"}


def _longest_token_bytes(data: dict[str, Any], vocabulary: Mapping[str, int]) -> int | None:
    """A byte-level token has one character for each byte; others are spelled, `\u2581` for a space."""
    parts = list(_parts(data.get("normalizer"))) + list(_parts(data.get("pre_tokenizer")))
    kinds = {part["type"] for part in parts}
    byte_level = "ByteLevel" in kinds
    whole = byte_level or bool(data["model"].get("byte_fallback"))
    kept = all(part.get("behavior", "Isolated") == "Isolated" for part in parts)
    spaces = all(part.get("content") == "\u2581" for part in parts if part["type"] == "Replace")
    bare = not any(token.get("lstrip") or token.get("rstrip") for token in data.get("added_tokens", ()))
    if not (kinds <= _LOSSLESS and whole and kept and spaces and bare):
        return None
    added = {token["content"] for token in data.get("added_tokens", ())}
    return max(
        len(token) if byte_level and token not in added else len(token.replace("\u2581", " ").encode())
        for token in vocabulary
    )


def _parts(part: object) -> Iterable[dict[str, Any]]:
    """The normalizers or pre-tokenizers that a (possibly nested) sequence consists of."""
    if not isinstance(part, dict):
        return
    inner = part.get("normalizers") or part.get("pretokenizers")
    if inner is None:
        yield part
        return
    for each in inner:
        yield from _parts(each)
