"""Writes the test fixture with the Llama 3 special tokens: a tiny tokenizer and a model of random weights.

It exists to test templates, stop tokens and loading; it writes nonsense by design. Seeded, so a rerun gives the same
files. Run: python deploy/demo-model/make_llama3_tiny.py
"""

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import bpe

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "llama3-tiny"
SEED = 3
VOCAB_SIZE = 832
CONTEXT = 2048
SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
# Written for this file. The merges should hold the header words and everyday English, no more is needed.
TEXT = """
system user assistant writer writer character: Alice writer character: Bob writer character: Alice + Bob
writer character: Ron writer character: Hermione writer character: Mia writer character: Lucifer writer narrator
You are an intelligent, skilled, versatile writer. Your task is to write a story based on the information below.
You are an intelligent, skilled, versatile writer. Your task is to write a role-play based on the information below.
## Overall plot description: ## Style description: ## Characters: ### Alice ### Bob ## Current scene
## Summary of past events Length: 100 words Length: 40 words Length: 250 words Plot: Alice meets Bob. Speaker: Alice
The old harbour was quiet in the morning. Alice walked along the wall and looked at the boats. The water was grey and
the wind was cold, but she did not mind. "Good morning," said Bob. "You are early today." He was mending a net, and his
hands were quick. "I could not sleep," she answered. "Somebody was singing under my window the whole night long."
Bob laughed. "That was the wind in the chimney." Alice shook her head. "The wind does not know my name," she said. They
went to look at the house together. Behind the door they found a small box, and in the box there was a letter. Nobody
had opened it for many years. She read it slowly, first with her finger on the words, then again aloud. It was about a
garden, a key and a promise. "We should go there," Bob said. "Before it gets dark." So they took a lamp and some bread,
and they followed the road up the hill, through the wood and over the bridge. At the end of the road there stood a gate.
The key was heavy. It turned. Inside there were apple trees, and under the trees somebody had put a table with three
chairs. "Three," whispered Alice. "Who is the third one for?" They waited and they listened. Then the gate opened again.
What is your name? Where do you come from? Why are you here? Who told you about this place? When will you come back?
I think that this would be the best way. I do not know what to say. I have never seen anything like this before. We
have to go now. They will be looking for us. It was one of those days which begin slowly and then never seem to end.
Hello! How can I help you today? Here is a list of things you can try. First, open the window. Second, take the letter.
Third, write down what happened. Please tell me more about your story, your characters and the world they live in.
The captain, the teacher, the baker, the doctor and the old woman from the market were all waiting for the same train.
There was nothing to be done about it; there never is. Winter came, then spring, and the river carried the ice away.
"""


def main() -> None:
    torch.manual_seed(SEED)
    tokenizer = bpe.train_bpe(TEXT.strip().split("\n"), VOCAB_SIZE, SPECIAL_TOKENS, bpe.LLAMA3_SPLIT)
    bpe.save(tokenizer, FOLDER, bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|end_of_text|>", max_length=CONTEXT)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, "the text is too short for this vocabulary"
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|eot_id|>"],
        pad_token_id=ids["<|end_of_text|>"],
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=[ids["<|end_of_text|>"], ids["<|eot_id|>"]],
        pad_token_id=ids["<|end_of_text|>"],
    )
    model.save_pretrained(FOLDER)
    (FOLDER / "model.safetensors").chmod(0o644)
    print(f"{FOLDER}: vocabulary {tokenizer.get_vocab_size()}, {model.num_parameters()} parameters")


if __name__ == "__main__":
    main()
