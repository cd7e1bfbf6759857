"""Chat formats of model families, as their documentation describes them, in templates of our own wording.

`told` and `talk` are what the documentation says a conversation looks like, by hand: what is learned stands between
« and ». Where a format cannot be learned from, they are what the refusal says.
"""

# ruff: noqa: RUF001 (bars of full width are what DeepSeek writes)

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """source: where the format is documented. special: its special tokens; the first begins a text where `bos`.

    told: a question and its answer, of one turn each. talk: those of two turns each.
    """

    source: str
    template: str
    special: tuple[str, ...]
    eos: str
    told: str
    talk: str
    bos: bool = False
    system: str = ""
    """The question behind the system message `Be brief.`, up to what is learned; or what the refusal says."""


def chatml(opening: str = "", before: str = "", join: str = "\n") -> str:
    """Turns between <|im_start|> and <|im_end|>. opening: what comes first. before: of the assistant's text."""
    return (
        opening + "{% for m in messages %}<|im_start|>{{ m.role }}" + join + before + "{{ m.content }}<|im_end|>"
        "{% if JOIN %}{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant" + join + "{% endif %}"
    ).replace("JOIN", "true" if join == "\n" else "false")


HI, YES, SO, NO = "Tell me.", "Gladly.", "More.", "No."
"""What the two say, in turn."""
_HELPS = "<|im_start|>system\nYou help.<|im_end|>\n"
_DEFAULT = "{% if messages[0].role != 'system' %}" + _HELPS + "{% endif %}"
_CHATML_TOLD = "<|im_start|>user\nTell me.<|im_end|>\n<|im_start|>assistant\n«Gladly.<|im_end|>»"
_CHATML_TALK = (
    "<|im_start|>user\nTell me.<|im_end|>\n<|im_start|>assistant\n«Gladly.<|im_end|>»\n"
    "<|im_start|>user\nMore.<|im_end|>\n<|im_start|>assistant\n«No.<|im_end|>»"
)
_CHATML_SYSTEM = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTell me.<|im_end|>\n<|im_start|>assistant\n"
)
_GEMMA_TOLD = "<bos><start_of_turn>user\nTell me.<end_of_turn>\n<start_of_turn>model\n«Gladly.<end_of_turn>»"
_GEMMA_TALK = (
    "<bos><start_of_turn>user\nTell me.<end_of_turn>\n<start_of_turn>model\n«Gladly.<end_of_turn>»\n"
    "<start_of_turn>user\nMore.<end_of_turn>\n<start_of_turn>model\n«No.<end_of_turn>»"
)

FORMATS = {
    "ChatML": Format(
        source="OpenAI, chatml.md (2023)",
        template=chatml(),
        special=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        told=_CHATML_TOLD,
        talk=_CHATML_TALK,
        system=_CHATML_SYSTEM,
    ),
    "Qwen 2.5, SmolLM2": Format(
        source="Qwen documentation, Key Concepts, Control Tokens & Chat Template; model cards",
        template=chatml(_DEFAULT),
        special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        eos="<|im_end|>",
        told=_HELPS + _CHATML_TOLD,
        talk=_HELPS + _CHATML_TALK,
        system=_CHATML_SYSTEM,
    ),
    "Qwen 3": Format(  # the last answer holds its thoughts, empty or not; earlier ones are written without
        source="Qwen3 model cards, Switching Between Thinking and Non-Thinking Mode, Best Practices 4",
        template=chatml(before="{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"),
        special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        eos="<|im_end|>",
        told="<|im_start|>user\nTell me.<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nGladly.<|im_end|>»",
        talk="assistant turn 1: the chat template writes it otherwise once others follow",
        system=_CHATML_SYSTEM,
    ),
    "Llama 3": Format(
        source="Meta, Llama 3 model cards and prompt formats",
        template="{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        eos="<|eot_id|>",
        bos=True,
        told="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTell me.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Gladly.<|eot_id|>»",
        talk="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTell me.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Gladly.<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nMore.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«No.<|eot_id|>»",
        system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nTell me.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "Llama 2": Format(  # no generation prompt: the answer begins behind [/INST], with its blank
        source="Meta, Llama 2 model cards and prompt formats",
        template="{% set sys = messages[0].content if messages[0].role == 'system' else none %}"
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
        "{% if loop.first and sys %}<<SYS>>\n{{ sys }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
        special=("<s>", "</s>"),
        eos="</s>",
        bos=True,
        told="<s>[INST] Tell me. [/INST]« Gladly. </s>»",
        talk="<s>[INST] Tell me. [/INST]« Gladly. </s>»<s>[INST] More. [/INST]« No. </s>»",
        system="<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nTell me. [/INST]",
    ),
    "Mistral": Format(
        source="Mistral AI, cookbook, Chat templates (v3)",
        template="{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
        special=("<s>", "</s>", "[INST]", "[/INST]"),
        eos="</s>",
        bos=True,
        told="<s>[INST] Tell me.[/INST]« Gladly.</s>»",
        talk="<s>[INST] Tell me.[/INST]« Gladly.</s>»[INST] More.[/INST]« No.</s>»",
        system="the chat template refuses turns of roles system, user",
    ),
    "Gemma 2": Format(
        source="Google, Gemma formatting and system instructions",
        template="{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos=True,
        told=_GEMMA_TOLD,
        talk=_GEMMA_TALK,
        system="the chat template refuses turns of roles system, user",
    ),
    "Gemma 3": Format(  # the system message is the beginning of the first question
        source="Google, Gemma formatting and system instructions",
        template="{{ bos_token }}{% set sys = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if loop.first %}{{ sys }}{% endif %}{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos=True,
        told=_GEMMA_TOLD,
        talk=_GEMMA_TALK,
        system="<bos><start_of_turn>user\nBe brief.\n\nTell me.<end_of_turn>\n<start_of_turn>model\n",
    ),
    "Phi-3": Format(  # the end of the text stands behind the last turn alone
        source="Microsoft, Phi-3 model cards, Chat Format",
        template="{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        special=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        told="<|user|>\nTell me.<|end|>\n<|assistant|>\n«Gladly.<|end|>\n<|endoftext|>»",
        talk="assistant turn 1: the chat template writes it otherwise once others follow",
        system="<|system|>\nBe brief.<|end|>\n<|user|>\nTell me.<|end|>\n<|assistant|>\n",
    ),
    "Phi-4": Format(
        source="Microsoft, Phi-4 model card, Input Formats",
        template=chatml(join="<|im_sep|>"),
        special=("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"),
        eos="<|im_end|>",
        told="<|im_start|>user<|im_sep|>Tell me.<|im_end|><|im_start|>assistant<|im_sep|>«Gladly.<|im_end|>»",
        talk="<|im_start|>user<|im_sep|>Tell me.<|im_end|><|im_start|>assistant<|im_sep|>«Gladly.<|im_end|>»"
        "<|im_start|>user<|im_sep|>More.<|im_end|><|im_start|>assistant<|im_sep|>«No.<|im_end|>»",
        system="<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Tell me.<|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
    ),
    "DeepSeek V3": Format(
        source="DeepSeek-V2 and V3 model cards and repositories, chat template",
        template="{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        eos="<｜end▁of▁sentence｜>",
        bos=True,
        told="<｜begin▁of▁sentence｜><｜User｜>Tell me.<｜Assistant｜>«Gladly.<｜end▁of▁sentence｜>»",
        talk="<｜begin▁of▁sentence｜><｜User｜>Tell me.<｜Assistant｜>«Gladly.<｜end▁of▁sentence｜>»"
        "<｜User｜>More.<｜Assistant｜>«No.<｜end▁of▁sentence｜>»",
        system="<｜begin▁of▁sentence｜>Be brief.<｜User｜>Tell me.<｜Assistant｜>",
    ),
    "Zephyr": Format(  # its roles are text, only the end of a turn is a token
        source="Hugging Face H4, zephyr-7b-beta model card, Intended uses",
        template="{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        special=("<s>", "</s>"),
        eos="</s>",
        bos=True,
        told="<|user|>\nTell me.</s>\n<|assistant|>\n«Gladly.</s>»",
        talk="<|user|>\nTell me.</s>\n<|assistant|>\n«Gladly.</s>»\n<|user|>\nMore.</s>\n<|assistant|>\n«No.</s>»",
        system="<|system|>\nBe brief.</s>\n<|user|>\nTell me.</s>\n<|assistant|>\n",
    ),
    "OLMo 2": Format(
        source="Ai2, OLMo-2-Instruct model cards, Chat template",
        template="{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '' if loop.last else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n' }}<|assistant|>\n{% endif %}",
        special=("<|endoftext|>",),
        eos="<|endoftext|>",
        bos=True,
        told="<|endoftext|><|user|>\nTell me.\n<|assistant|>\n«Gladly.<|endoftext|>»",
        talk="<|endoftext|><|user|>\nTell me.\n<|assistant|>\n«Gladly.<|endoftext|>»\n"
        "<|user|>\nMore.\n<|assistant|>\n«No.<|endoftext|>»",
        system="<|endoftext|><|system|>\nBe brief.\n<|user|>\nTell me.\n<|assistant|>\n",
    ),
    "Granite 3": Format(
        source="IBM, Granite 3 prompt engineering guide",
        template="{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        special=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        eos="<|end_of_text|>",
        told="<|start_of_role|>user<|end_of_role|>Tell me.<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>«Gladly.<|end_of_text|>»",
        talk="<|start_of_role|>user<|end_of_role|>Tell me.<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>«Gladly.<|end_of_text|>»\n"
        "<|start_of_role|>user<|end_of_role|>More.<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>«No.<|end_of_text|>»",
        system="<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Tell me.<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    ),
}
