"""Where the samplers' adapters find the vocabulary of the model that vLLM has loaded."""

from pathlib import Path
from typing import Any

from vllm import envs

from serving.sampling.vocabulary import Vocabulary


def load_vocabulary(vllm_config: Any) -> Vocabulary:  # noqa: ANN401
    """Blocks: reads files, perhaps from the hub's cache. Raises FileNotFoundError without a tokenizer.json."""
    model = vllm_config.model_config
    folder = Path(model.tokenizer)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # only here: a local folder needs no hub

        folder = Path(
            snapshot_download(model.tokenizer, revision=model.tokenizer_revision, allow_patterns=["tokenizer.json"])
        )
    return Vocabulary.load(folder, model.get_vocab_size(), Path(envs.VLLM_CACHE_ROOT) / "story-serving")
