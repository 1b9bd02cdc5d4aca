"""What the tests are made of: tokenizers of every kind, text that tries to break templates, requests."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "serving/demo/opus-v1-sm"
LLAMA3 = ROOT / "tests/fixtures/llama3-tiny"
SPELLINGS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPELLINGS += ["<|begin_of_text|>", "<|end_of_text|>", "text names= A; B\n", " character: A + B", "\n", " ", "<|im_"]

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)
"""Any text without lone surrogates, and without the mark that SentencePiece cannot tell from a space.

Hypothesis also tries the constants of our code, special tokens among them."""

ordinary_text = plain_text.filter(lambda text: not any(spelling in text for spelling in [*SPELLINGS[:9], "<unk>"]))
"""Text that spells no special token."""

hostile_text = st.lists(st.one_of(plain_text, st.sampled_from(SPELLINGS)), max_size=6).map("".join)
"""Text that also spells special tokens, headers, and white space at its ends."""

CORPUS = ["Hello, world! Ann said: the text names= A; B are ours.\n\nwriter character: A + B\n", "\u00e9t\u00e9 3 < 4 "]
FAMILIES = {
    "chatml-text": ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
    "llama3-writer": ["<unk>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
}
FAMILIES["llama3-writer"].append("<|eot_id|>")

KINDS: dict[str, dict[str, Any]] = {
    "byte level": {"pre": pre_tokenizers.ByteLevel(add_prefix_space=False)},
    "byte level, a space before each fragment": {"pre": pre_tokenizers.ByteLevel(add_prefix_space=True)},
    "sentencepiece, a mark before each fragment": {
        "norm": normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    },
    "metaspace, always": {"pre": pre_tokenizers.Metaspace(prepend_scheme="always", split=False)},
    "metaspace, first only": {"pre": pre_tokenizers.Metaspace(prepend_scheme="first", split=False)},
    "metaspace, never": {"pre": pre_tokenizers.Metaspace(prepend_scheme="never", split=False)},
}


def train(folder: Path, family: str, kind: str, *, special: bool = True, config: dict[str, Any] | None = None) -> Path:
    """A tiny BPE of that kind, saved as a checkpoint's. `special` False: its tokens are added, but not special."""
    parts = KINDS[kind]
    byte_level = kind.startswith("byte level")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=not byte_level, fuse_unk=not byte_level))
    if "pre" in parts:
        tokenizer.pre_tokenizer = parts["pre"]
    if "norm" in parts:
        tokenizer.normalizer = parts["norm"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = FAMILIES[family]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[tokens[0], *([] if byte_level else fallback)],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] == tokens[0]]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.ByteLevel() if byte_level else _sentencepiece_decoder(marks="never" not in kind)
    added = [AddedToken(token, normalized=False, special=special) for token in tokens[1:]]
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    says = config if config is not None else {"bos_token": tokens[1], "eos_token": {"content": tokens[2]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(says))
    return folder


def _sentencepiece_decoder(*, marks: bool) -> decoders.Decoder:
    parts: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if marks else []))
