"""Models from their folders: transformers' network, its tokenizer, and the packed model on the same parameters."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment_api.contract.spec import Lora
from alignment_trainer.model.adapters import Adapters, InFront, NewAdapters, file_name, put_beside, targets_in
from alignment_trainer.model.config import Noise, read_config, say_noise
from alignment_trainer.model.description import read_generation
from alignment_trainer.model.folder import causal_network, classifier_network, tokenizer_of
from alignment_trainer.model.heads import PackedModel, ValueHead, scorer, value_scorer
from alignment_trainer.model.precision import CASTS
from alignment_trainer.model.products import frozen_products
from alignment_trainer.model.tensors import Apart, check_loaded, outlined
from alignment_trainer.model.weight_files import Stored, read_headers
from alignment_trainer.model.weights import FolderWeights, Weights, fill

VALUE_HEAD = "score.weight"
"""Name of a value model's head in its folder, as transformers' sequence classifiers have it."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32 with its tokenizer. `scorer` shares the parameters of `network`, transformers' own model.

    weights: where its numbers are read; of an outline the parameters are on the device `meta` until something does.
    noise: what its config had of dropout, which is off here and goes back into an export.
    head_is_new: a value model's head that nothing was trained into yet. adapters: where they alone are trained.
    """

    network: Any
    tokenizer: Any
    scorer: PackedModel
    weights: Weights
    noise: Noise = field(default_factory=dict)
    head_is_new: bool = False
    adapters: Adapters | None = None

    def restored(self, saved: Weights) -> Weights:
        """Where its numbers are read once it was trained; `saved` has those of what was trained alone."""
        return saved if self.adapters is None else InFront(self.adapters.trained, saved, self.weights)


def load_model(folder: Path, recompute: int = 0, temperature: float = 1.0) -> LoadedModel:
    """The same as `outline_model`, with its numbers."""
    return filled(outline_model(folder, recompute, temperature))


def load_value_model(folder: Path, recompute: int = 0, seed: int = 0, zero_head: bool = False) -> LoadedModel:
    """The same as `outline_value_model`, with its numbers."""
    return filled(outline_value_model(folder, recompute, seed, zero_head))


def filled(model: LoadedModel) -> LoadedModel:
    """The model with all of its numbers in the memory of this process, on the CPU, in fp32."""
    names = {name: name for name, _ in model.network.named_parameters()}
    fill((model.network, model.scorer), names, model.weights, lambda _: torch.device("cpu"))
    return model


def frozen(model: LoadedModel, precision: str, device: torch.device) -> PackedModel:
    """The model's scorer to be asked alone, on a device, its weights held in what they are computed in.

    Under autocast with bf16 that is bf16 for all products, and the numbers are those of weights in fp32; embeddings
    and norms, which are computed with in fp32, stay so.
    """
    halves = products_of(model.scorer, precision)
    fill((model.scorer,), model.scorer.hub_names, model.weights, lambda _: device, halves)
    return model.scorer.to(device).eval()


def products_of(scorer: PackedModel, precision: str) -> Sequence[nn.Parameter]:
    """What a frozen model holds in bf16."""
    return frozen_products(scorer) if CASTS[precision] else ()


def outline_model(folder: Path, recompute: int = 0, temperature: float = 1.0) -> LoadedModel:
    """The causal language model of a Hugging Face folder, in fp32 (the master weights), without its numbers.

    temperature: of sampling; log-probs are those of logits / temperature.
    Raises FileNotFoundError for a folder without a config, UnsupportedModelError for a model with a logit transform,
    InvalidModelError where a weight would be filled at random or left out.
    """
    config, noise = _read_config(folder)
    causal, stored, _ = _outline(causal_network, folder, config, Apart())
    causal.generation_config = read_generation(causal, folder)
    weights = _with_buffers(causal, stored, {})
    return LoadedModel(causal, tokenizer_of(folder), scorer(causal, recompute, temperature), weights, noise)


def outline_value_model(folder: Path, recompute: int = 0, seed: int = 0, zero_head: bool = False) -> LoadedModel:
    """The sequence classifier of one label in a Hugging Face folder, in fp32, or one made of its language model.

    The new head of a language model is normal with standard deviation 1 / sqrt(hidden size + 1) by `seed` (Stiennon et
    al. 2020), or zero where `zero_head` says so: a critic that expects nothing yet. Its numbers are not there yet.
    Raises FileNotFoundError for a folder without a config, UnsupportedModelError for another kind of classifier,
    InvalidModelError where any other weight would be filled at random or left out.
    """
    config, noise = _read_config(folder)
    config.num_labels = 1
    classifier, stored, is_new = _outline(classifier_network, folder, config, apart_of_values(config))
    packed, tokenizer = value_scorer(classifier, recompute), tokenizer_of(folder)
    shape = classifier.score.weight.shape
    new = {VALUE_HEAD: new_head(shape, seed, zero_head)} if VALUE_HEAD in is_new else {}
    classifier.config.pad_token_id = _padding_apart(tokenizer)
    return LoadedModel(classifier, tokenizer, packed, _with_buffers(classifier, stored, new), noise, bool(new))


def adapted(model: LoadedModel, lora: Lora, base: str, seed: int) -> LoadedModel:
    """An outline of which adapters are trained, and a value model's head: it says what it said before.

    base: the model, as peft shall name it. Raises UserError, UnsupportedModelError.
    """
    modules, shapes = targets_in(model.network, lora), named_shapes(model.scorer)
    put_beside(model.network, lora, modules)
    head = model.scorer.head
    head.weight.requires_grad_(isinstance(head, ValueHead))
    beside = PackedModel(model.network, head)
    beside.hub_names = {name: file_name(own) for name, own in beside.hub_names.items()}
    trained = frozenset(beside.hub_names[name] for name, p in beside.named_parameters() if p.requires_grad)
    adapters = Adapters(lora, base, modules, shapes, trained)
    new = {name: shape for name, shape in named_shapes(beside).items() if name not in shapes}
    weights = InFront(frozenset(new), NewAdapters(new, seed), model.weights)
    return replace(model, scorer=beside, weights=weights, adapters=adapters)


def named_shapes(scorer: PackedModel) -> dict[str, tuple[int, ...]]:
    """Of every parameter, by its name in the model's folder."""
    return {scorer.hub_names[name]: tuple(parameter.shape) for name, parameter in scorer.named_parameters()}


def apart_of_values(config: Any) -> Apart:
    """What a value model need not find in its files: made of a language model its head is new, the other is spare."""
    if is_classifier(config):
        return Apart()
    with torch.device("meta"):
        causal = causal_network(config)
    body = f"{causal.base_model_prefix}."
    head = frozenset(name for name in causal.state_dict() if not name.startswith(body))
    return Apart(new=frozenset({VALUE_HEAD}), spare=head)


def is_classifier(config: Any) -> bool:
    """Whether a folder says that it scores texts, with a head that was trained."""
    return str((config.architectures or ["none"])[0]).endswith("ForSequenceClassification")


def new_head(shape: torch.Size, seed: int, zero: bool) -> Tensor:
    """The numbers of a value model's new head. shape: (1, hidden size)."""
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.0 if zero else 1 / math.sqrt(shape[1] + 1)
    return torch.randn(shape, generator=generator) * deviation


def _outline(make: Callable[[Any], Any], folder: Path, config: Any, apart: Apart) -> tuple[Any, Stored, set[str]]:
    """transformers' model on the device `meta`, its files' tensors, and which of its own are new.

    Nothing else may be new, left out or reshaped.
    """
    stored = read_headers(folder)
    with torch.device("meta"):
        network = make(config)
    outline, info = outlined(network, stored)
    check_loaded(outline, info, apart)
    return outline, stored, set(info["missing_keys"])


def _with_buffers(network: Any, stored: Stored, new: Mapping[str, Tensor]) -> FolderWeights:
    """Where the parameters' numbers are read. Buffers get theirs now: from the files, else by transformers' own start.

    A buffer is small, and every rank needs all of it.
    """
    weights = FolderWeights(network, stored, new)
    kept = {name for name, _ in network.named_non_persistent_buffers()}
    for name, buffer in list(network.named_buffers()):
        numbers = torch.empty_like(buffer, device="cpu")
        if name not in kept:
            numbers = weights.read(name, 0, prod(buffer.shape)).view(buffer.shape).to(buffer.dtype)
        numbers._is_hf_initialized = name not in kept  # type: ignore[attr-defined]
        module, _, key = name.rpartition(".")
        network.get_submodule(module)._buffers[key] = numbers
    for module in network.modules():
        module._is_hf_initialized = False
    for parameter in network.parameters():
        parameter._is_hf_initialized = True
    network.initialize_weights()
    return weights


def _read_config(folder: Path) -> tuple[Any, Noise]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no config.json; spec.model.source must be a Hugging Face folder with config, tokenizer and "
            "safetensors"
        )
    config, noise = read_config(folder)
    say_noise(noise, str(folder))
    return config, noise


def _padding_apart(tokenizer: Any) -> int | None:
    """The padding token, unless completions end with it.

    transformers' classifiers score the last token that is not padding, so they would score the token before the end.
    Without one they take a single text at a time, and score the end.
    """
    same = tokenizer.pad_token_id == tokenizer.eos_token_id
    return None if same else tokenizer.pad_token_id
