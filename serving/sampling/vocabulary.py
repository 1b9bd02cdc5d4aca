"""What the samplers must know of a model's tokens: their texts, which hold a line break, which are special.

Made from a tokenizer.json once and kept on disk under the hash of that file, since decoding 128,000 tokens takes a good
part of a second. Knows no sampler's rule and no vLLM.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from serving.core import Markers
from serving.sampling.dry.params import Breakers
from serving.sampling.roles.reference import TokenClasses

LINE_BREAK: Final = 1
SPECIAL: Final = 2
NAME_START: Final = 4
"""Bits of `Vocabulary.kinds`; what they mean is said by `TokenClasses`."""

_FORMAT: Final = 2
"""Of the files on disk: raise it when what they hold changes."""
_MOST_STRINGS: Final = 256
_SEPARATOR: Final = 0xFF
"""A byte that no UTF-8 text holds, so nothing is found across two tokens."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """`kinds: [size] uint8`. `texts: [bytes] uint8` are the UTF-8 texts of all tokens, each with a separator behind it;
    that of token t begins at `starts[t]`. `size` is the width of a row of logits, which may be more than the tokenizer
    has tokens; those have no text."""

    kinds: npt.NDArray[np.uint8]
    texts: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, size: int, cache: Path | None = None) -> "Vocabulary":
        """From the tokenizer.json in `folder`; `cache` is a folder to keep the tables in, made if need be.

        Raises FileNotFoundError.
        """
        source = (folder / "tokenizer.json").read_bytes()
        tokenizer = Tokenizer.from_str(source.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        kept = cache / f"{hashlib.sha256(source).hexdigest()}-{size}-{_FORMAT}.npz" if cache else None
        tables = _read(kept, size) or _write(kept, _tables(tokenizer, json.loads(source), size))
        return cls(*tables, tokenizer)

    @property
    def size(self) -> int:
        """Token ids are below this."""
        return len(self.kinds)

    def classes(self) -> TokenClasses:
        """The same as sets, for the references."""
        having = (frozenset(np.flatnonzero(self.kinds & bit).tolist()) for bit in (LINE_BREAK, SPECIAL, NAME_START))
        return TokenClasses(*having)

    def breakers(self, strings: Sequence[str], markers: Markers) -> Breakers:
        """As `marked`, as a set, for the reference."""
        table, sequences = self.marked(strings, markers)
        return Breakers(frozenset(np.flatnonzero(table).tolist()), sequences)

    def marked(
        self, strings: Sequence[str], markers: Markers
    ) -> tuple[npt.NDArray[np.uint8], tuple[tuple[int, ...], ...]]:
        """What these strings stand for as breakers: `[size] uint8`, 1 for each token that is one, and runs of tokens.

        A string stands for every token whose text contains it, and for the last token that it is written with behind a
        letter; one that no token contains, and that is written with several, for the run of them. Every special token
        is a breaker too.
        """
        table = (self.kinds & SPECIAL != 0).astype(np.uint8)
        ids = [markers.start, markers.end, *markers.eos]
        sequences = []
        for string in strings:
            having, any_has, written = _meaning(self, string)
            table |= having
            if len(written) > 1 and not any_has:
                sequences.append(written)
            else:
                ids += written[-1:]
        table[[token for token in ids if token < len(table)]] = 1
        return table, tuple(dict.fromkeys(sequences))

    def _having(self, string: str) -> npt.NDArray[np.uint8]:
        """`[size] uint8`: 1 for each token whose text contains `string`."""
        table = np.zeros(len(self.kinds), np.uint8)
        table[np.searchsorted(self.starts, _find(self.texts, string.encode()), side="right") - 1] = 1
        return table

    def _written(self, string: str) -> tuple[int, ...]:
        """The tokens of `string` behind a letter."""
        whole = self.tokenizer.encode(f"a{string}", add_special_tokens=False)
        ids = tuple(token for token, (begin, _) in zip(whole.ids, whole.offsets, strict=True) if begin >= 1)
        return ids or tuple(whole.ids[-1:])


@lru_cache(maxsize=_MOST_STRINGS)
def _meaning(vocabulary: Vocabulary, string: str) -> tuple[npt.NDArray[np.uint8], bool, tuple[int, ...]]:
    """The tokens that have `string`, whether there are any, and those it is written with. A table is as large as the
    vocabulary: so few are kept."""
    having = vocabulary._having(string)
    return having, bool(having.any()), vocabulary._written(string)


def _find(haystack: npt.NDArray[np.uint8], needle: bytes) -> npt.NDArray[np.int64]:
    """Where `needle` begins. A filter for each of its bytes, so a common letter costs no more than a rare one."""
    last = len(haystack) - len(needle) + 1
    if last <= 0 or not needle:
        return np.empty(0, np.int64)
    at = np.flatnonzero(haystack[:last] == needle[0])
    for offset, byte in enumerate(needle[1:], 1):
        at = at[haystack[at + offset] == byte]
    return at


_Tables = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def _tables(tokenizer: Tokenizer, source: dict[str, object], size: int) -> _Tables:
    """Each token is decoded behind another one: alone, some decoders take off the space before it."""
    count = min(size, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
    (leader,) = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
    texts = tokenizer.decode_batch([[leader, token] for token in range(count)], skip_special_tokens=False)
    before = len(tokenizer.decode([leader], skip_special_tokens=False))
    texts = [text[before:] for text in texts]
    kinds = np.zeros(size, np.uint8)
    kinds[[at for at, text in enumerate(texts) if "\n" in text or "\r" in text]] |= LINE_BREAK
    added = source.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if token.get("special") and token["id"] < size:
            kinds[token["id"]] |= SPECIAL
    named = [at for at, text in enumerate(texts) if text[:1] == " " and not text[1:2].isspace()]
    kinds[named] |= NAME_START
    kinds[kinds & (LINE_BREAK | SPECIAL) != 0] &= ~np.uint8(NAME_START)
    encoded = [text.encode(errors="replace") for text in texts]
    lengths = np.fromiter((len(text) + 1 for text in encoded), np.int64, count)
    separator = bytes([_SEPARATOR])
    joined = np.frombuffer(separator.join(encoded) + separator, np.uint8)
    return kinds, joined, np.concatenate(([0], np.cumsum(lengths)[:-1]))


def _read(path: Path | None, size: int) -> _Tables | None:
    """None where nothing was kept, or what was kept cannot be read or be right."""
    if path is None or not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            tables = kept["kinds"], kept["texts"], kept["starts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    kinds, texts, starts = tables
    right = [table.dtype for table in tables] == [np.uint8, np.uint8, np.int64] and len(kinds) == size
    return tables if right and np.count_nonzero(texts == _SEPARATOR) == len(starts) else None


def _write(path: Path | None, tables: _Tables) -> _Tables:
    """A folder that cannot be written costs a second at the next start, and nothing else."""
    if path is None:
        return tables
    kinds, texts, starts = tables
    part = path.with_suffix(f".{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(part, kinds=kinds, texts=texts, starts=starts)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
    return tables
