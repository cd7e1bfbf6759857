"""What describes a model beside its weights: config, generation config, tokenizer. Written by the export, tried first.

`check_description` writes into a scratch folder what the export will write weeks later, and reads it back.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignment_trainer.model.config import Noise, with_noise
from alignment_trainer.model.folder import config_of, read_json, tokenizer_of
from alignment_trainer.model.mistakes import InvalidModelError
from alignment_trainer.process.errors import describe

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WRITTEN_ANEW = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def write_description(network: Any, noise: Noise, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Config (of so many bits: dtype, and with its own dropout), generation config of a language model, tokenizer."""
    config = with_noise(network.config.to_dict(), noise) | {
        "dtype": dtype,
        "architectures": [type(network).__name__],
    }
    type(network.config).from_dict(config).save_pretrained(folder)
    if network.can_generate():
        writable(network.generation_config)[0].save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def writable(generation: Any) -> tuple[Any, dict[str, object]]:
    """The generation config without options that do nothing in it, which transformers reads and will not write.

    Options of sampling where it does not sample, of beams where there is one. Returns what was left out, too.
    """
    unread = [] if generation.do_sample is True else [*_SAMPLING]
    unread += [] if (generation.num_beams or 1) > 1 else [*_BEAMS]
    mended, left_out = copy.deepcopy(generation), {}
    for name in unread:
        if (value := getattr(generation, name, None)) is not None:
            left_out[name] = value
            setattr(mended, name, None)
    return mended, left_out


def check_description(network: Any, noise: Noise, tokenizer: Any, folder: Path) -> None:
    """Writes the export without its weights and reads it back. Raises InvalidModelError, by file.

    network: transformers' model, on any device. folder: of the model as it came.
    """
    if network.can_generate():
        network.generation_config = read_generation(network, folder)
        _say_left_out(network.generation_config, folder)
    with TemporaryDirectory(prefix="description-") as name:
        scratch = Path(name)
        try:
            write_description(network, noise, tokenizer, scratch, "float32")
        except (ValueError, TypeError, OSError) as error:
            raise InvalidModelError(_unwritable(error, folder)) from error
        _check_same(config_of(scratch).to_dict(), with_noise(network.config.to_dict(), noise))
        _check_tokenizer(tokenizer_of(scratch), tokenizer)


def check_token_ids(network: Any, tokenizer: Any, folder: Path) -> None:
    """Every id that a text or a config may name is a row of the embedding. Raises InvalidModelError with both."""
    rows = int(network.get_input_embeddings().weight.shape[0])
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= rows:
        raise InvalidModelError(
            f"its tokenizer has ids up to {highest} (`{token}`), its embedding has {rows} rows (0 to {rows - 1}): a "
            "text with such a token could not be read; write the tokenizer that belongs to the model, or resize the "
            "embedding (resize_token_embeddings) and save both"
        )
    for file, field, found in _named_ids(folder):
        if not 0 <= found < rows:
            raise InvalidModelError(
                f"{file}: `{field}` is {found}, the embedding has rows 0 to {rows - 1}; write the token's id, or null"
            )


def _named_ids(folder: Path) -> Iterator[tuple[str, str, int]]:
    """File, field and id of every special token that a config names."""
    for file in ("config.json", GENERATION):
        path = folder / file
        said = read_json(path) if path.is_file() else {}
        for field in _TOKENS:
            ids = said.get(field)
            for found in ids if isinstance(ids, list) else [ids]:
                if isinstance(found, int):
                    yield file, field, found


def read_generation(network: Any, folder: Path) -> Any:
    """As transformers' loading takes it: the file's, else made of the config."""
    from transformers import GenerationConfig

    if not (folder / GENERATION).is_file():
        return network.generation_config
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError) as error:
        raise InvalidModelError(
            f"{GENERATION} cannot be read: {describe(error)}; mend it, or remove the file"
        ) from error


def _say_left_out(generation: Any, folder: Path) -> None:
    _, left_out = writable(generation)
    if left_out:
        fields = ", ".join(f"{name} {value}" for name, value in left_out.items())
        log.info("%s: %s says %s, which does nothing there; the export leaves it out", folder, GENERATION, fields)


def _unwritable(error: Exception, folder: Path) -> str:
    words = describe(error)
    file = GENERATION if "GenerationConfig" in words or "num_return_sequences" in words else "its config or tokenizer"
    return (
        f"{file} can be read and not written again, so that the trained model could not be exported: {words}; mend it "
        f"in {folder}"
    )


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    apart = sorted(n for n in wanted if n not in _WRITTEN_ANEW and _json(found.get(n)) != _json(wanted[n]))
    if apart:
        name = apart[0]
        raise InvalidModelError(
            f"config.json: `{name}` is {_json(wanted[name])}, and {_json(found.get(name))} once transformers has "
            "written it and read it again, so that the exported model would be another; mend it"
        )


def _json(value: object) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def _check_tokenizer(found: Any, wanted: Any) -> None:
    if found.get_vocab() != wanted.get_vocab() or found.chat_template != wanted.chat_template:
        raise InvalidModelError(
            "its tokenizer has other tokens, or another template, once transformers has written it and read it again; "
            "save it with save_pretrained and compare"
        )
