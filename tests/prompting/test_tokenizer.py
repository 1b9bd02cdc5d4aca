"""The pair of tokenizers: what `split` never does, what is refused before it costs, what a token can cover."""

import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.prompting import tokenizer
from serving.prompting.format import Format
from serving.prompting.prepare import Prompting
from serving.prompting.tokenizer import TokenizerPair, TooManyTokens, model_folder
from tests.prompting.conftest import Train
from tests.prompting.material import FAMILIES, hostile_text

MOST = 1_000_000
quiet = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def pair(chatml: Prompting) -> TokenizerPair:
    return chatml.format.tokens


@quiet
@given(text=hostile_text)
def test_split_is_lossless_and_never_special(prompting: Prompting, text: str) -> None:
    pair = prompting.format.tokens
    (ids,) = pair.encode_split([text], MOST)
    assert set(pair.special_ids.values()).isdisjoint(ids)
    assert pair.decode(ids) == text


def test_raw_recognises_special_tokens(pair: TokenizerPair) -> None:
    ids = pair.encode_raw("<|im_start|>text\nHi<|im_end|>", MOST)
    assert (ids[0], ids[-1]) == (pair.special_ids["<|im_start|>"], pair.special_ids["<|im_end|>"])
    assert pair.decode(ids) == "<|im_start|>text\nHi<|im_end|>"
    assert pair.decode(ids, keep_special_tokens=False) == "text\nHi"


def test_a_special_token_that_the_model_could_merge_stays_plain(trained: Train) -> None:
    """Source: tokenizer.json files converted from SentencePiece hold merges that spell `</s>`."""
    folder = trained("chatml-text", "metaspace, never")
    data = json.loads((folder / "tokenizer.json").read_text())
    end = next(token["id"] for token in data["added_tokens"] if token["content"] == "</s>")
    vocabulary = data["model"]["vocab"]
    for piece in ("<", "/", "s", ">"):
        vocabulary.setdefault(piece, 10_000 + ord(piece))
    vocabulary |= {"</": 20_000, "s>": 20_001, "</s>": end}
    data["model"]["merges"] = [["<", "/"], ["s", ">"], ["</", "s>"], *data["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    pair = TokenizerPair.load(folder)
    (ids,) = pair.encode_split(["a</s>b"], MOST)
    assert set(pair.special_ids.values()).isdisjoint(ids)
    assert pair.decode(ids) == "a</s>b"


def test_a_tokenizer_that_cannot_split_is_refused(trained: Train) -> None:
    folder = trained("chatml-text", "metaspace, never")
    data = json.loads((folder / "tokenizer.json").read_text())
    end = next(token["id"] for token in data["added_tokens"] if token["content"] == "</s>")
    vocabulary = [["<unk>", 0.0], ["</s>", -1.0], *([letter, -9.0] for letter in "</s>ab \n")]
    data["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary}
    data["added_tokens"] = [{**data["added_tokens"][0], "id": 0}, {**data["added_tokens"][2], "id": 1}]
    assert end != 1
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="as plain text"):
        TokenizerPair.load(folder)


@pytest.mark.parametrize("encode", [lambda pair: pair.encode_raw, lambda pair: lambda t, m: pair.encode_split([t], m)])
def test_a_lone_surrogate_is_refused(
    pair: TokenizerPair, encode: Callable[[TokenizerPair], Callable[..., object]]
) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode") as refused:
        encode(pair)("a\ud800", MOST)
    assert refused.value.param == "prompt"


def test_the_count_is_exact_when_it_was_counted(pair: TokenizerPair) -> None:
    tokens = len(pair.encode_raw("Once upon a time", MOST))
    assert pair.encode_raw("Once upon a time", tokens)
    with pytest.raises(TooManyTokens) as over:
        pair.encode_raw("Once upon a time", tokens - 1)
    assert (over.value.tokens, over.value.exact) == (tokens, True)


@pytest.mark.parametrize("letter", ["a", " ", "\n", "\U0001f409", "\u6f22"])
@pytest.mark.parametrize("most", [4_096, 200_000])
def test_megabytes_of_anything_are_refused_with_a_true_number(pair: TokenizerPair, letter: str, most: int) -> None:
    text = letter * (1_200_000 // len(letter.encode()))
    with pytest.raises(TooManyTokens) as over:
        pair.encode_raw(text, most)
    assert most < over.value.tokens <= len(pair.raw.encode_batch_fast([text], add_special_tokens=False)[0])
    assert not over.value.exact


def test_many_small_texts_are_counted_together(pair: TokenizerPair) -> None:
    texts = ["Once upon a time."] * 3 * tokenizer.GROUP_TEXTS
    each = pair.encode_split(texts, MOST)
    assert len(each) == len(texts)
    assert all(ids == each[0] for ids in each)
    with pytest.raises(TooManyTokens) as over:
        pair.encode_split(texts, 2 * tokenizer.GROUP_TEXTS)
    assert over.value.tokens > 2 * tokenizer.GROUP_TEXTS


def test_a_text_over_the_size_for_one_piece_is_whole_in_the_end(pair: TokenizerPair) -> None:
    text = "Once upon a time. " * (tokenizer.MOST_BYTES_AT_ONCE // 18 + 100)
    assert pair.decode(pair.encode_raw(text, MOST)) == text


def test_the_longest_token_is_what_a_token_can_cover(prompting: Prompting) -> None:
    pair = prompting.format.tokens
    longest = max(len(pair.decode([token]).encode()) for token in range(pair.vocabulary_size))
    assert pair.longest_token_bytes == longest


def test_no_longest_token_where_the_tokenizer_changes_texts(trained: Train) -> None:
    folder = trained("chatml-text", "byte level")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "NFKC"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    pair = TokenizerPair.load(folder)
    assert pair.longest_token_bytes is None
    with pytest.raises(TooManyTokens) as over:
        pair.encode_raw("ab" * 1000, 10)
    assert over.value.exact


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(hostile_text, max_size=5))
def test_texts_encode_alone_as_they_do_together(any_format: Format, parts: list[str]) -> None:
    together = any_format.tokens.encode_split(parts, MOST)
    assert together == [any_format.tokens.encode_split([part], MOST)[0] for part in parts]


def test_a_folder_is_taken_as_it_is(trained: Train) -> None:
    folder = trained(next(iter(FAMILIES)), "byte level")
    assert model_folder(str(folder)) == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Prompting.load(str(folder))
