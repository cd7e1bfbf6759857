"""Families that were proven to follow packed rows, each by a test; any other is proven by `prepare` or refused."""

KNOWN_GOOD = (
    *("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma3_text", "smollm3", "granite", "cohere2"),
    *("olmo", "olmo2", "olmo3", "starcoder2", "glm", "glm4", "helium", "ernie4_5", "exaone4", "seed_oss"),
    *("arcee", "apertus", "hunyuan_v1_dense", "diffllama", "persimmon", "bitnet", "gpt2", "gpt_neox", "opt", "biogpt"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"),
)
"""By `model_type` of config.json; tests/unit/trainer/test_families.py tries every one of them."""

ADVICE = "choose a model of a family that is known to work: " + ", ".join(KNOWN_GOOD[:6]) + " (docs/models.md has all)"
