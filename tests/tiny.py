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
