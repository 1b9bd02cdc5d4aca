"""Writes samples.md: what the model says to prompts written by hand, none of them from the generator.

One sample per prompt, seeds fixed beforehand, nothing left out. Uses plain transformers, so it also checks that the
files load there. Run: python deploy/demo-model/sample.py
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sample_prompts import PROMPTS, Prompt
from turns import Turn

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "serving" / "demo" / "opus-v1-sm"
TEMPERATURE, MIN_P = 1.0, 0.0
"""As a client gets it that sends neither."""
REPLY_TOKENS, STORY_TOKENS = 160, 600


@dataclass(frozen=True)
class Writer:
    """The model with its tokenizer, and the ids that shape a document."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def id_of(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found

    def encode(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        return ids

    def prompt_ids(self, turns: list[Turn], header: str) -> list[int]:
        """All turns, then an opened one. An empty header leaves the choice of role and name to the model."""
        start, end = self.id_of("<|im_start|>"), self.id_of("<|im_end|>")
        ids = [self.id_of("<s>")]
        for turn in turns:
            ids += [start, *self.encode(turn.header + "\n"), *self.encode(turn.content), end, *self.encode("\n")]
        return [*ids, start, *(self.encode(header + "\n") if header else [])]

    def write(self, prompt: Prompt, seed: int) -> tuple[str, bool]:
        """The text, special tokens shown, and whether the model ended it by itself."""
        ids = self.prompt_ids(list(prompt.turns), prompt.header)
        stops = [self.id_of("</s>")] + ([] if prompt.whole_story else [self.id_of("<|im_end|>")])
        torch.manual_seed(seed)
        output = self.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=True,
            temperature=TEMPERATURE,
            min_p=MIN_P,
            top_k=0,
            eos_token_id=stops,
            max_new_tokens=STORY_TOKENS if prompt.whole_story else REPLY_TOKENS,
        )[0, len(ids) :].tolist()
        return self.tokenizer.decode(output), output[-1] in stops


def load(folder: Path) -> Writer:
    torch.set_num_threads(1)  # the model is small; more would only wait for each other
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Writer(model.eval(), AutoTokenizer.from_pretrained(folder))


def shown(prompt: Prompt, text: str) -> str:
    before = "".join(f"<|im_start|>{turn.header}\n{turn.content}<|im_end|>\n" for turn in prompt.turns)
    opened = "<|im_start|>" + (prompt.header + "\n" if prompt.header else "")
    return f"## {prompt.title}\n\nPrompt\n```\n<s>{before}{opened}\n```\nModel\n```\n{text}\n```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=HERE / "samples.md")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    writer = load(arguments.folder)
    parts, ended = [], 0
    for number, prompt in enumerate(PROMPTS):
        text, by_itself = writer.write(prompt, arguments.seed + number)
        ended += by_itself
        parts.append(shown(prompt, text))
    head = (
        "# Samples\n\n"
        f"Written by `sample.py`: temperature {TEMPERATURE}, min_p {MIN_P}, one sample per prompt, seeds "
        f"{arguments.seed} to {arguments.seed + len(PROMPTS) - 1}, nothing left out. The prompts are written by hand. "
        f"{ended} of {len(PROMPTS)} ended by themselves.\n\n"
    )
    arguments.out.write_text(head + "\n".join(parts), encoding="utf-8")
    print(f"{arguments.out}: {ended} of {len(PROMPTS)} ended by themselves")


if __name__ == "__main__":
    main()
