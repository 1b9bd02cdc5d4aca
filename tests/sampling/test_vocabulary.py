"""What is known of the tokens: against the vocabulary files themselves, of every kind of tokenizer."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serving.core import Dry, Markers
from serving.sampling.vocabulary import LINE_BREAK, NAME_START, SPECIAL, Vocabulary
from tests.prompting.material import DEMO, FAMILIES, KINDS, LLAMA3, train

MARKERS = Markers(3, 4, 13, line_breaks=True)


def byte_alphabet() -> dict[str, int]:
    """How byte-level tokenizers write bytes as characters. Source: GPT-2, encoder.py."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


def spelled(folder: Path) -> dict[int, bytes]:
    """The bytes of each token, from the words of the vocabulary file; nothing is decoded."""
    data = json.loads((folder / "tokenizer.json").read_text())
    byte_level = data["decoder"]["type"] == "ByteLevel"
    alphabet = byte_alphabet()
    told = {}
    for word, token in data["model"]["vocab"].items():
        if byte_level and all(character in alphabet for character in word):
            told[token] = bytes(alphabet[character] for character in word)
        elif re.fullmatch("<0x[0-9A-F]{2}>", word):
            told[token] = bytes([int(word[3:5], 16)])
        else:
            told[token] = word.replace("\u2581", " ").encode()
    return told | {token["id"]: token["content"].encode() for token in data["added_tokens"]}


def special(folder: Path) -> set[int]:
    data = json.loads((folder / "tokenizer.json").read_text())
    return {token["id"] for token in data["added_tokens"] if token["special"]}


def begins_name(spelling: bytes) -> bool:
    text = spelling.decode(errors="replace")
    return text[:1] == " " and not text[1:2].isspace() and not re.search(r"[\r\n]", text)


@pytest.fixture(scope="module", params=["demo", "llama3-tiny", *(f"{f}: {k}" for f in FAMILIES for k in KINDS)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two models of the tests, and tokenizers of every other kind."""
    if ":" not in request.param:
        return {"demo": DEMO, "llama3-tiny": LLAMA3}[request.param]
    family, kind = request.param.split(": ", 1)
    return train(tmp_path_factory.mktemp("tokenizer"), family, kind)


def test_kinds(folder: Path) -> None:
    spellings = spelled(folder)
    size = max(spellings) + 1
    kinds, specials = Vocabulary.load(folder, size).kinds, special(folder)
    assert kinds.dtype == np.uint8
    for token, spelling in spellings.items():
        assert bool(kinds[token] & LINE_BREAK) == bool(re.search(rb"[\r\n]", spelling)), (token, spelling)
        assert bool(kinds[token] & SPECIAL) == (token in specials), (token, spelling)
        if token not in specials:
            assert bool(kinds[token] & NAME_START) == begins_name(spelling), (token, spelling)
    for bit in (LINE_BREAK, NAME_START, SPECIAL):
        assert any(kinds & bit)


def test_classes_are_the_kinds_as_sets() -> None:
    vocabulary = Vocabulary.load(DEMO, 3072)
    classes = vocabulary.classes()
    for bit, ids in ((LINE_BREAK, classes.line_break), (SPECIAL, classes.special), (NAME_START, classes.name_start)):
        assert ids == {token for token in range(3072) if vocabulary.kinds[token] & bit}


def test_added_tokens_that_are_not_special(tmp_path: Path) -> None:
    folder = train(tmp_path, "chatml-text", "byte level", special=False)
    spellings = spelled(folder)
    kinds = Vocabulary.load(folder, max(spellings) + 1).kinds
    (start,) = [token for token, spelling in spellings.items() if spelling == b"<|im_start|>"]
    assert kinds[start] == 0


# ---- breakers --------------------------------------------------------------------------------------------------------


def test_breakers_of_one_character(folder: Path) -> None:
    """Every token that contains it, also inside; the default breakers are such."""
    spellings = spelled(folder)
    vocabulary = Vocabulary.load(folder, max(spellings) + 1)
    for string in Dry().sequence_breakers:
        expected = special(folder) | {MARKERS.start, MARKERS.end}
        expected |= {token for token, spelling in spellings.items() if string.encode() in spelling}
        found = vocabulary.breakers([string], MARKERS)
        written = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(f"a{string}", add_special_tokens=False)
        if any(string.encode() in spelling for spelling in spellings.values()):
            assert found.ids == expected | {written.ids[-1]}
            assert not found.sequences


def test_special_tokens_and_markers_always_break(folder: Path) -> None:
    vocabulary = Vocabulary.load(folder, 3072)
    markers = Markers(5, 6, 13, header_tail=(8,), after_end=(9,), eos=(2, 11))
    assert vocabulary.breakers([], markers).ids == special(folder) | {5, 6, 2, 11}


words = st.text("abdehnrst .,:\n\"'*", min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(string=words)
@pytest.mark.parametrize("model", [DEMO, LLAMA3], ids=["demo", "llama3-tiny"])
def test_breakers_of_several(model: Path, string: str) -> None:
    """A string that some token contains breaks by those tokens and by the last that it is written with; another one
    is the run of those that it is written with, but for letters at its beginning that join the letter before it."""
    spellings = spelled(model)
    vocabulary = Vocabulary.load(model, max(spellings) + 1)
    having = {token for token, spelling in spellings.items() if string.encode() in spelling}
    found = vocabulary.breakers([string], MARKERS)
    others = found.ids - special(model) - {MARKERS.start, MARKERS.end}
    if having:
        last = vocabulary.tokenizer.encode(f"a{string}", add_special_tokens=False).ids[-1]
        assert others == (having | {last}) - special(model)
        assert not found.sequences
    elif found.sequences:
        (sequence,) = found.sequences
        assert not others
        assert string.encode().endswith(b"".join(spellings[token] for token in sequence))
    else:
        (token,) = others
        assert string.encode().endswith(spellings[token])


@pytest.mark.parametrize("string", ["\u72d0", "\U0001f98a", "\u00e9\u00e8"])
def test_a_character_split_over_tokens_is_a_sequence(string: str) -> None:
    spellings = spelled(DEMO)
    found = Vocabulary.load(DEMO, 3072).breakers([string], MARKERS)
    (sequence,) = found.sequences
    assert b"".join(spellings[token] for token in sequence) == string.encode()


def test_equal_sequences_are_one() -> None:
    vocabulary = Vocabulary.load(DEMO, 3072)
    assert len(vocabulary.breakers(["\u72d0", "\U0001f98a", "\u72d0"], MARKERS).sequences) == 2


# ---- widths, and the tables on disk ----------------------------------------------------------------------------------


def test_logits_may_be_wider_or_narrower_than_the_tokenizer(folder: Path) -> None:
    own = max(spelled(folder)) + 1
    exact, wide, narrow = (Vocabulary.load(folder, size) for size in (own, own + 100, own - 50))
    assert (exact.size, wide.size, narrow.size) == (own, own + 100, own - 50)
    assert (wide.kinds[:own] == exact.kinds).all()
    assert not wide.kinds[own:].any()
    assert (narrow.kinds == exact.kinds[:-50]).all()
    assert wide.breakers(["\n", "e"], MARKERS) == exact.breakers(["\n", "e"], MARKERS)


def same(one: Vocabulary, other: Vocabulary) -> bool:
    arrays = ((one.kinds, other.kinds), (one.texts, other.texts), (one.starts, other.starts))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


def test_the_tables_are_kept_and_used(tmp_path: Path) -> None:
    cache = tmp_path / "made/if need be"
    fresh = Vocabulary.load(LLAMA3, 832)
    assert same(Vocabulary.load(LLAMA3, 832, cache), fresh)
    (kept,) = cache.iterdir()
    assert same(Vocabulary.load(LLAMA3, 832, cache), fresh)
    changed = fresh.kinds.copy()
    changed[7] = 99
    np.savez(kept, kinds=changed, texts=fresh.texts, starts=fresh.starts)
    assert Vocabulary.load(LLAMA3, 832, cache).kinds[7] == 99, "not read from the disk"


def test_each_tokenizer_and_width_has_its_own(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    folder.mkdir()
    shutil.copy(LLAMA3 / "tokenizer.json", folder)
    for size in (832, 900):
        Vocabulary.load(folder, size, cache)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"][0]["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert not Vocabulary.load(folder, 832, cache).kinds[0] & SPECIAL
    assert len(list(cache.iterdir())) == 3


def test_damaged_tables_are_made_again(tmp_path: Path) -> None:
    fresh = Vocabulary.load(LLAMA3, 832, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (b"", b"PK", b"nonsense", whole[:100], whole[: len(whole) // 2], whole[:-7], bytes(flipped)):
        kept.write_bytes(damaged)
        assert same(Vocabulary.load(LLAMA3, 832, tmp_path), fresh)
        assert kept.read_bytes() == whole, "not mended"


@pytest.mark.parametrize("lacking", ["kinds", "texts", "starts"])
def test_tables_of_another_shape_are_made_again(tmp_path: Path, lacking: str) -> None:
    fresh = Vocabulary.load(LLAMA3, 832, tmp_path)
    (kept,) = tmp_path.iterdir()
    tables: dict[str, Any] = {"kinds": fresh.kinds, "texts": fresh.texts, "starts": fresh.starts}
    for other in ({}, {lacking: tables[lacking][:-1]}, {lacking: tables[lacking].astype(np.float32)}):
        np.savez(kept, **({name: table for name, table in tables.items() if name != lacking} | other))
        assert same(Vocabulary.load(LLAMA3, 832, tmp_path), fresh)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert same(Vocabulary.load(LLAMA3, 832, tmp_path / "file"), Vocabulary.load(LLAMA3, 832))


def test_no_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path, 832)
