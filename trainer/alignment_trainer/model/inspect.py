"""The model before anything costly loads it: is it there, is it whole, what is it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from alignment_api.contract.inputs import Model
from alignment_api.contract.spec import AlignmentJobSpec, Lora
from alignment_api.contract.status import ModelReport, ModelShape, ProbeReport
from alignment_api.derived.decoder import shape_in
from alignment_api.derived.role_memory import GIB
from alignment_api.derived.sizing import probe_bytes
from alignment_trainer.data.files import fingerprint
from alignment_trainer.data.sources import MODEL_FILES, Resolved
from alignment_trainer.model.config import read_config, say_noise
from alignment_trainer.model.config_numbers import check_numbers
from alignment_trainer.model.folder import causal_network, classifier_network, config_of, read_json, tokenizer_of
from alignment_trainer.model.mistakes import InvalidModelError, UnsupportedModelError
from alignment_trainer.model.weight_files import Stored, count_parameters, digest_of_finite, read_headers
from alignment_trainer.process.errors import UserError, describe

if TYPE_CHECKING:
    from alignment_trainer.model.proof import Built

log = logging.getLogger(__name__)

Check = Callable[[Any], "Built"]
"""Makes what is trained or asked of a config's model. Raises UnsupportedModelError."""


@dataclass(frozen=True)
class Named:
    """A model as the manifest names it. field: where: `spec.model`."""

    model: Model
    field: str

    def mistake(self, found: str, reason: str = "InvalidModel") -> UserError:
        """The model is not what it should be."""
        return UserError(reason, f"{self.field}.source: `{self.model.source}`: {found}")


@dataclass(frozen=True)
class Pinned:
    """A model that was found and is what it should be."""

    named: Named
    resolved: Resolved
    report: ModelReport


@dataclass(frozen=True)
class Inspection:
    """What is asked of a model beside its being whole.

    memory: bytes of weights that may be loaded to probe them. longest: tokens that a sequence may have, if that is
    known. former: what an earlier life found, if any. lora: the adapters that shall be trained beside its layers.
    """

    memory: int = 2 * GIB
    longest: int | None = None
    former: ModelReport | None = None
    lora: Lora | None = None


def inspection_of(spec: AlignmentJobSpec, former: ModelReport | None) -> Inspection:
    """What a job asks of its models. former: what an earlier life found."""
    return Inspection(probe_bytes(spec), spec.training.max_length, former, spec.training.lora)


def check_model(
    named: Named, resolved: Resolved, checks: Sequence[Check], inspection: Inspection | None = None
) -> ModelReport:
    """Proves that a model is what its files say and that it can be trained or asked. Raises UserError.

    Headers and descriptions come first; then every byte is read once; a small part of it is computed at last.
    """
    try:
        return _inspect(named, resolved, checks, inspection or Inspection())
    except (InvalidModelError, UnsupportedModelError) as error:
        raise named.mistake(str(error), error.reason) from error


def _inspect(named: Named, resolved: Resolved, checks: Sequence[Check], inspection: Inspection) -> ModelReport:
    folder = resolved.path
    _check_folder(folder)
    networks = [_architecture(folder, check) for check in checks]
    _check_longest(networks[0].network.config, inspection.longest)
    _check_targets(networks[0], inspection.lora)
    stored = read_headers(folder)
    used = frozenset[str]().union(*(_check_files(built, stored) for built in networks))
    tokenizer = load_tokenizer(named.model.source, folder, named.field)
    _check_description(networks[0], tokenizer, folder)
    digest = _fingerprint_of_finite(folder, stored, used)
    _, noise = read_config(folder)
    say_noise(noise, named.model.source)
    return ModelReport(
        parameters=count_parameters(stored),
        fingerprint=digest,
        shape=shape_of(networks[0].network),
        revision=resolved.revision,
        dropout=dict(noise),
        probe=_probed(folder, checks, count_parameters(stored), digest, inspection),
    )


def language_model(config: Any) -> Built:
    """As a language model: the policy."""
    from alignment_trainer.model.heads import scorer
    from alignment_trainer.model.probe import TEMPERATURE
    from alignment_trainer.model.proof import Built
    from alignment_trainer.model.tensors import Apart

    network = causal_network(config)
    return Built(network, scorer(network, temperature=TEMPERATURE), Apart())


def value_model(config: Any) -> Built:
    """As a base of critics and reward models, which get a head of one label where they have none."""
    from alignment_trainer.model.heads import value_scorer
    from alignment_trainer.model.load import apart_of_values
    from alignment_trainer.model.proof import Built

    config.num_labels = 1
    network = classifier_network(config)
    return Built(network, value_scorer(network), apart_of_values(config))


def reward_model(config: Any) -> Built:
    """As a reward model that exists: its head has been trained, for one label."""
    architecture = (config.architectures or ["none"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise UnsupportedModelError(
            f"it is a {architecture}, which scores nothing; write a sequence classifier with one label, or `train` to "
            "make one of it"
        )
    if config.num_labels != 1:
        raise UnsupportedModelError(
            f"it has {config.num_labels} labels, a reward is one number; write a sequence classifier with one label "
            "(num_labels: 1)"
        )
    return value_model(config)


def shape_of(network: Any) -> ModelShape | None:
    """What the memory of transformers' model follows from, on any device; None where its config does not say."""
    shape = shape_in(network.config.to_dict())
    if shape is None:
        return None
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings()
    own_head = head is not None and head.weight is not embedding
    weights = embedding.numel() + (head.weight.numel() if own_head else 0)
    return shape.model_copy(update={"embeddings": weights, "tied": head is not None and not own_head})


def parameter_shapes(folder: Path, check: Check) -> dict[str, tuple[int, ...]]:
    """Of what is made of the folder's config, by the names in a model's folder; no memory is taken."""
    import torch

    config = config_of(folder)
    with torch.device("meta"):
        packed = check(config).scorer
    return {packed.hub_names[name]: tuple(parameter.shape) for name, parameter in packed.named_parameters()}


def check_same_tokenizer(named: Named, tokenizer: Any, policy: Any) -> None:
    """Raises UserError where a model would read the policy's token ids as other texts."""
    theirs, ours = tokenizer.get_vocab(), policy.get_vocab()
    differing = sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
    special = {
        name: (getattr(tokenizer, name), getattr(policy, name))
        for name in ("bos_token", "eos_token")
        if getattr(tokenizer, name) != getattr(policy, name)
    }
    found = [f"{len(differing)} tokens differ, for example `{differing[0]}`"] if differing else []
    found += [f"its {name} is `{its}`, the policy's `{own}`" for name, (its, own) in special.items()]
    if found:
        raise named.mistake(
            f"its tokenizer is not the policy's: {'; '.join(found)}. Rewards are asked by the policy's token ids: "
            "write a model of the same family as spec.model",
            "TokenizerMismatch",
        )


def load_tokenizer(source: str, folder: Path, field: str = "spec.model") -> Any:
    """The tokenizer of a model's folder. Raises UserError."""
    try:
        for file in folder.glob("*token*.json"):
            read_json(file)  # what transformers makes of them names no file
        return tokenizer_of(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower
        found = f"its tokenizer cannot be loaded: {describe(error)}"
        raise Named(Model(source=source), field).mistake(found) from error


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over config, tokenizer and weights, by name and content."""
    return fingerprint([path for pattern in MODEL_FILES for path in folder.glob(pattern)], folder)


def _fingerprint_of_finite(folder: Path, stored: Stored, used: frozenset[str]) -> str:
    """The same, by a reading that refuses numbers that are not finite."""
    paths = [path for pattern in MODEL_FILES for path in folder.glob(pattern)]
    return fingerprint(paths, folder, partial(digest_of_finite, stored, used))


def _check_folder(folder: Path) -> None:
    """What can be told of the config alone."""
    path = folder / "config.json"
    if not path.is_file():
        raise InvalidModelError(f"{folder} has no config.json; write a Hugging Face folder: config, tokenizer, weights")
    if (folder / "adapter_config.json").is_file():
        raise InvalidModelError(
            f"{folder} has an adapter_config.json, so it is a LoRA adapter, or has one beside it; merge it into its "
            "base (merge_and_unload), and write the folder of the merged model"
        )
    config = read_json(path)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "of an unnamed kind")
        raise InvalidModelError(
            f"config.json has a quantization_config ({method}); quantized weights can be neither trained nor compared: "
            "write the model that it was made of, in bf16, fp16 or fp32"
        )
    check_numbers(config)


def _architecture(folder: Path, check: Check) -> Built:
    """Builds the model without memory (device `meta`), so that an unsupported one is refused before a GPU starts."""
    import torch

    try:
        config, _ = read_config(folder)
        with torch.device("meta"):
            return check(config)
    except _OF_THE_CONFIG as error:
        raise InvalidModelError(f"its config cannot be used: {describe(error)}") from error


_OF_THE_CONFIG = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, ImportError, RuntimeError),
    StrictDataclassError,
)
"""What transformers raises of a config that it does not know, or that does not add up."""


def _check_longest(config: Any, longest: int | None) -> None:
    """A window is not computed, so no sequence may be longer; nor is a position that the model does not name."""
    limits = [
        (getattr(config, "sliding_window", None), "attends to {} tokens at most (sliding_window)"),
        (_positions(config), "has {} positions (max_position_embeddings, by the scaling of its rotary embedding)"),
    ]
    for limit, words in limits:
        if limit and longest is not None and longest > limit:
            raise UnsupportedModelError(
                f"{config.model_type} {words.format(limit)}, and spec.training.maxLength is {longest}; write "
                f"maxLength: {limit} or less"
            )


def _positions(config: Any) -> int | None:
    """None where they have no end (ALiBi). A scaled rotary embedding reaches factor times as far."""
    named = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    if not named:
        return None
    scaled = scaling.get("original_max_position_embeddings", named) * scaling.get("factor", 1.0)
    return max(int(named), int(scaled))


def _check_targets(built: Built, lora: Lora | None) -> None:
    from alignment_trainer.model.adapters import targets_in

    if lora is not None:
        targets_in(built.network, lora)


def _check_files(built: Built, stored: Stored) -> frozenset[str]:
    from alignment_trainer.model.tensors import check_tensors

    return check_tensors(built.network, stored, built.apart)


def _check_description(built: Built, tokenizer: Any, folder: Path) -> None:
    from alignment_trainer.model.description import check_description, check_token_ids

    check_token_ids(built.network, tokenizer, folder)
    check_description(built.network, read_config(folder)[1], tokenizer, folder)


def _probed(
    folder: Path, checks: Sequence[Check], parameters: int, digest: str, inspection: Inspection
) -> ProbeReport | None:
    """The worst of all that is made of the model; what an earlier life found of the same files stands."""
    from alignment_trainer.model.proof import prove

    former = inspection.former
    if former is not None and former.fingerprint == digest and former.probe is not None:
        return former.probe
    reports = [prove(folder, read_config(folder)[0], check, parameters, inspection.memory) for check in checks]
    worst = max(reports, key=lambda report: max(report.alone, report.neighbour), default=None)
    if worst is not None:
        log.info("packed rows are computed as texts alone", extra=worst.model_dump())
    return worst
