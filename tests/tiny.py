"""Tiny models with random weights that tests build for themselves, as folders that vLLM loads.

torch and transformers take seconds to import: only who needs weights does.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

CONTEXT_TOKENS, DIMENSIONS = 128, 64
LABELS = ("OK", "harassment", "gore")
_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'[]"
_PIECES = [*_SPECIAL.values(), *_CHARACTERS, *("##" + character for character in _CHARACTERS)]


def make_embedder(folder: Path, *, matryoshka: bool = False) -> Path:
    """A BERT whose vectors are those of its first token. `matryoshka`: that says it can shorten them."""
    from transformers import BertModel

    config = _config()
    if matryoshka:
        config.matryoshka_dimensions = [16, 32, DIMENSIONS]
    BertModel(config).save_pretrained(folder)
    return make_tokenizer(folder)


def make_classifier(folder: Path) -> Path:
    """A BERT that tells `LABELS` apart."""
    from transformers import BertForSequenceClassification

    config = _config()
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: index for index, label in enumerate(LABELS)}
    BertForSequenceClassification(config).save_pretrained(folder)
    return make_tokenizer(folder)


def make_tokenizer(folder: Path) -> Path:
    """The word-piece tokenizer of both, which knows single characters."""
    ids = {piece: index for index, piece in enumerate(_PIECES)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    ends = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **_SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _config() -> Any:  # noqa: ANN401  # transformers has no types here
    import torch
    from transformers import BertConfig

    torch.manual_seed(0)
    # vLLM's attention on CPU needs heads of 32 dimensions at least.
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": DIMENSIONS, "intermediate_size": 64}
    size = {"vocab_size": len(_PIECES), "max_position_embeddings": CONTEXT_TOKENS}
    return BertConfig(**size, **layers, initializer_range=0.2)


HEARD = ("<|de|>", "", "<|0.00|>", *" Hié", "<|0.50|>", "<|0.50|>", *" Tom.", "<|1.20|>", "<|endoftext|>")
"""What the Whisper says, by the position of the token before it, again and again: a language where only a start stands
before it, then two segments. An empty one is whatever its weights say."""


def make_whisper(folder: Path, *, multilingual: bool = True) -> Path:
    """A Whisper of random weights, whose text tokens are bytes. It hears `HEARD` in most sounds. One that is not
    multilingual is known by the size of its vocabulary, most of which is never said."""
    import torch
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    end = "<|endoftext|>"
    others = ["startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev", "nospeech"]
    letters = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab=letters | {end: len(letters)}, merges=[])
    special = [f"<|{name}|>" for name in (*others, "notimestamps")]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    times = [AddedToken(f"<|{step * 0.02:.2f}|>", special=False, normalized=False) for step in range(1501)]
    tokenizer.add_tokens(times)
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": DIMENSIONS}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    ends = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), len(letters))
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    size = len(tokenizer) if multilingual else 51_864
    config = WhisperConfig(vocab_size=size, decoder_start_token_id=start, **heads, **layers, **ends)
    model = WhisperForConditionalGeneration(config)
    tokens, positions = model.model.decoder.embed_tokens.weight.data, model.model.decoder.embed_positions.weight.data
    tokens *= 5
    tokens[len(letters)].normal_(std=0.1)  # the end is the padding, too, whose weights are nothing
    said = [id_ for piece in HEARD for id_ in tokenizer.encode(piece, add_special_tokens=False) or [-1]]
    for position in range(len(positions)):
        if said[position % len(said)] >= 0:
            positions[position] = 5 * tokens[said[position % len(said)]]
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder
