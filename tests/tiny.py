"""A tiny random model with a tokenizer of its own, and pairs that it can learn, made offline in a second.

python -m tests.tiny OUT_DIR [--rows N]   writes OUT_DIR/model (a Hugging Face folder) and OUT_DIR/pairs.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

TOPICS = ("apples", "bridges", "clouds", "drums", "engines", "forests", "gardens", "harbours", "islands", "kites")
PLACES = ("in spring", "at night", "near the sea", "on a hill", "in the city", "by the road", "at school", "at home")
KIND = ("Gladly, here is a clear answer about", "Of course, let me explain calmly about", "Sure, a short note about")
RUDE = ("Whatever, nobody wants to hear about", "No, leave me alone with your boring", "Ugh, find out yourself about")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}


def pairs(rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Preferences for the kind answer; both answers share topic and place, and are of like length."""
    draw = random.Random(seed)
    made = []
    for number in range(rows):
        topic, place = draw.choice(TOPICS), draw.choice(PLACES)
        made.append(
            {
                "prompt": f"Question {number}: tell me about {topic} {place}.",
                "chosen": f"{draw.choice(KIND)} {topic} {place}.",
                "rejected": f"{draw.choice(RUDE)} {topic} {place}.",
            }
        )
    return made


def write_pairs(path: Path, rows: int, seed: int = 0) -> Path:
    """The pairs as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(rows, seed)))
    return path


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """Byte-level BPE of 400 tokens, trained on such pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in pairs(200) for text in row.values()), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = chat_template
    return fast


def write_model(folder: Path, seed: int = 0, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A random Llama of 0.1M parameters with its tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(chat_template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **SHAPE
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes files for their owner alone; a role's pod is somebody else
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=80)
    arguments = parser.parse_args()
    write_model(arguments.out / "model")
    write_pairs(arguments.out / "pairs.jsonl", arguments.rows)


if __name__ == "__main__":
    main()
