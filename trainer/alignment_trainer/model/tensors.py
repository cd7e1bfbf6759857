"""Are the tensors in a model's files those of its architecture? Asked of transformers itself, before a weight is read.

transformers renames and joins tensors while it loads (older names, folders of the bare body, experts in one tensor), so
it is given the names and shapes of the files as empty tensors, and says what it would have filled at random, what it
would have left out, and what does not fit.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from alignment_trainer.model.mistakes import InvalidModelError
from alignment_trainer.model.weight_files import FLOATS, Stored, same_numbers
from alignment_trainer.process.errors import describe

Shapes = Mapping[str, tuple[int, ...]]
_SHOWN = 3
"""Names of each kind that a message shows."""
_WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, DataParallel, PEFT and FSDP put before or into the names of what they wrap."""
_COMPARED = 2000
"""Names that a name is compared with: difflib takes about 20 microseconds each."""
_OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$", r"(^|\.)attn\.(masked_)?bias$")
"""What older versions of transformers saved and newer ones compute; their numbers do not matter."""
_ADAPTERS = ("lora_A", "lora_B", "lora_embedding")


@dataclass(frozen=True)
class Apart:
    """Tensors of a kind of model that need not agree with its files.

    new: made anew where they are missing, for example the head of a critic that starts from a language model.
    spare: left out where they are there, for example that language model's own head.
    """

    new: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Differences:
    """What transformers said, by the names of the architecture; shapes are (in the files, of the architecture)."""

    missing: Sequence[str]
    surplus: Sequence[str]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus or self.reshaped)


def check_tensors(network: Any, stored: Stored, apart: Apart) -> frozenset[str]:
    """The names in the files that are loaded. Raises InvalidModelError, with the nearest names, where they do not fit.

    network: transformers' model of the config, on the device `meta`.
    """
    _check_wrapped(network, stored)
    _check_doubled(network, stored)
    differences = _without(_loaded(network, stored), apart)
    if differences:
        raise InvalidModelError(_told(network, differences))
    used = _used(network, stored)
    _check_dtypes(stored, used)
    _check_tied(network, stored)
    return used


def differences_of(info: Mapping[str, Any]) -> Differences:
    """transformers' `output_loading_info` as sorted names."""
    reshaped = {name: (tuple(found), tuple(wanted)) for name, found, wanted in sorted(info["mismatched_keys"])}
    return Differences(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), reshaped)


def check_loaded(network: Any, info: Mapping[str, Any], apart: Apart) -> None:
    """The same once the weights are there: nothing is trained or asked that was not read. Raises InvalidModelError."""
    if differences := _without(differences_of(info), apart):
        raise InvalidModelError(_told(network, differences))


def outlined(network: Any, stored: Stored) -> tuple[Any, Mapping[str, Any]]:
    """The model as transformers makes it of such files, without a number, and its `output_loading_info`."""
    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}
    with silenced():
        outline, info = type(network).from_pretrained(
            None,
            config=network.config,
            state_dict=empty,
            device_map="meta",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    return outline, info


def _loaded(network: Any, stored: Stored) -> Differences:
    try:
        _, info = outlined(network, stored)
    except (RuntimeError, ValueError, IndexError) as error:  # tensors that cannot be joined into one
        wanted = {name: tuple(tensor.shape) for name, tensor in _as_saved(network).items()}
        found = {name: tensor.shape for name, tensor in stored.items()}
        differences = _compared(wanted, found, network.all_tied_weights_keys)
        if not differences:
            raise InvalidModelError(f"transformers cannot load its tensors: {describe(error)}") from error
        return differences
    return differences_of(info)


def _compared(wanted: Shapes, found: Shapes, tied: Collection[str]) -> Differences:
    both = sorted(wanted.keys() & found.keys())
    return Differences(
        sorted(wanted.keys() - found.keys() - set(tied)),
        sorted(found.keys() - wanted.keys()),
        {name: (found[name], wanted[name]) for name in both if found[name] != wanted[name]},
    )


def _as_saved(network: Any) -> Mapping[str, Any]:
    """The architecture's tensors by the names that `save_pretrained` would write."""
    from transformers.core_model_loading import revert_weight_conversion

    saved: Mapping[str, Any] = revert_weight_conversion(network, network.state_dict())
    return saved


def _without(differences: Differences, apart: Apart) -> Differences:
    missing = [name for name in differences.missing if name not in apart.new]
    surplus = [name for name in differences.surplus if name not in apart.spare]
    return Differences(missing, surplus, differences.reshaped)


def _used(network: Any, stored: Stored) -> frozenset[str]:
    """Names in the files without those that transformers ignores: old buffers, heads of another use."""
    patterns = [*(network._keys_to_ignore_on_load_unexpected or ()), *_OLD_BUFFERS]
    own = set(network.state_dict())
    ignored = {name for name in stored if name not in own and any(re.search(pattern, name) for pattern in patterns)}
    return frozenset(stored.keys() - ignored)


def _check_wrapped(network: Any, stored: Stored) -> None:
    """What wraps a model while it trains has left its mark in the names."""
    strange = sorted(stored.keys() - network.state_dict().keys())
    adapters = [name for name in strange if any(mark in name for mark in _ADAPTERS)]
    if adapters:
        raise InvalidModelError(
            f"tensor `{adapters[0]}` is of a LoRA adapter; merge it into its base (merge_and_unload) and save that"
        )
    for wrapper in _WRAPPERS:
        marked = [name for name in strange if name.startswith(wrapper) or f".{wrapper}" in name]
        if marked:
            raise InvalidModelError(
                f"{len(marked)} of {len(stored)} tensors carry `{wrapper}` in their names, as a wrapped model is saved:"
                f" `{marked[0]}`; write `{marked[0].replace(wrapper, '')}`: save the model inside the wrapper"
            )


def _check_doubled(network: Any, stored: Stored) -> None:
    """transformers takes names with and without the body's prefix, so both would be one tensor."""
    prefix = f"{network.base_model_prefix}."
    doubled = sorted(name for name in stored if prefix + name in stored)
    if doubled:
        raise InvalidModelError(
            f"tensors `{doubled[0]}` and `{prefix}{doubled[0]}` would be loaded as one; remove one of the two"
        )


def _check_dtypes(stored: Stored, used: frozenset[str]) -> None:
    packed = sorted(name for name in used if stored[name].dtype not in FLOATS)
    if packed:
        raise InvalidModelError(
            f"tensor `{packed[0]}` in {stored[packed[0]].file.name} is {stored[packed[0]].dtype}, as quantized weights "
            f"are ({len(packed)} of {len(used)} tensors); write a model in {', '.join(FLOATS)}"
        )


def _check_tied(network: Any, stored: Stored) -> None:
    """Where the config ties two tensors and the files hold two different ones, loaders disagree about what it means."""
    for name, source in network.all_tied_weights_keys.items():
        if name in stored and source in stored and not same_numbers(stored[name], stored[source]):
            raise InvalidModelError(
                f"the config ties `{name}` to `{source}` (tie_word_embeddings), and the files hold two different "
                "tensors of these names; write tie_word_embeddings: false into config.json, or remove the one that is "
                "not meant"
            )


def _told(network: Any, differences: Differences) -> str:
    family = type(network).__name__
    parts = [*_told_heads(network, differences)]
    parts += [
        f"tensor `{name}` has shape {list(found)}, {family} has {list(wanted)} by the config"
        for name, (found, wanted) in list(differences.reshaped.items())[:_SHOWN]
    ]
    parts += _listed(differences.missing, differences.surplus, f"lacks {{}} of the tensors of {family}")
    parts += _listed(differences.surplus, differences.missing, f"has {{}} that {family} does not have")
    return f"{'; '.join(parts)}. Save the model with save_pretrained, or write the config that belongs to it"


def _listed(names: Sequence[str], others: Sequence[str], sentence: str) -> Iterator[str]:
    if not names:
        return
    shown = [f"`{name}`{_nearest(name, others)}" for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    yield f"{sentence.format(len(names))}: {', '.join(shown)}{more}"


def _nearest(name: str, others: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, others[:_COMPARED], n=1, cutoff=0.6)
    return f" (nearest: `{near[0]}`)" if near else ""


def _told_heads(network: Any, differences: Differences) -> Iterator[str]:
    """The commonest reasons, in plain words."""
    causal = hasattr(network, "lm_head")
    if causal and any(name.startswith(("score.", "classifier.")) for name in differences.surplus):
        yield "it is a classifier (a reward model), which writes no text; write the language model"
    elif causal and any(name.startswith("lm_head.") for name in differences.missing):
        yield "it has no language-model head, and the config does not tie it to the embedding"
    elif not causal and any(name.startswith("score.") for name in differences.missing):
        yield "its config says that it is a classifier, and its head is missing"


@contextmanager
def silenced() -> Iterator[None]:
    """transformers prints a table of what differs; we say it in one sentence, where it matters."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
