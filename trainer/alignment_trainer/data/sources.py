"""Sources of the spec as paths in this process: files and volumes by the Context, others by a pinned download."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from alignment_api.contract.inputs import Model
from alignment_api.contract.sources import parse_source
from alignment_trainer.data.kinds import KINDS, kind_of_file, rows_among
from alignment_trainer.data.patterns import NoSource, folders_of, matching_files, one_source, parted
from alignment_trainer.object_store.download import Found, cached, revision_of
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.errors import UserError

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Resolved:
    """Where a source is here. revision: the commit of an hf:// source, the digest of what an s3:// one lists."""

    path: Path
    revision: str | None = None


def resolve_model(
    model: Model, sources: Mapping[str, str], pinned: str | None = None, field: str = "spec.model"
) -> Resolved:
    """The model's folder; of an hf:// model the commit `pinned`, else what `revision` names now; of an s3:// model what
    is there, if it is what was pinned.

    field: where the manifest says it. Raises UserError where there is none.
    """
    scheme = parse_source(model.source).scheme
    if scheme == "hf":
        return _download_model(parse_source(model.source).path, pinned or model.revision, field)
    if scheme == "s3":
        return _fetch_model(ObjectStore.of(model.source, f"{field}.source"), pinned)
    return Resolved(local_path(model.source, sources, f"{field}.source", "ModelNotFound"))


def resolve_data(source: str, sources: Mapping[str, str], split: str, revision: str, field: str) -> Resolved:
    """The file, folder or pattern of files of a data source; of an hf:// one the files of the split. Raises UserError.

    A pattern is one of files that are here.
    """
    scheme = parse_source(source).scheme
    if parse_source(source).is_pattern:
        try:
            return _match_fetched(source, field) if scheme == "s3" else _match_local(source, sources, field)
        except NoSource as error:
            raise UserError("DataNotFound", f"{field}: `{source}` {error}") from None
    if scheme == "hf":
        return _download_data(parse_source(source).path, split, revision, field)
    if scheme == "s3":
        return _fetch_data(source, field)
    return Resolved(local_path(source, sources, field, "DataNotFound"))


def local_path(source: str, sources: Mapping[str, str], field: str, reason: str) -> Path:
    """Where a pvc:// or file:// source is here. Raises UserError where nothing is mounted, or nothing there."""
    path = _path_here(source, sources, field, reason)
    if not path.exists():
        around = sorted(p.name for p in path.parent.iterdir())[:10] if path.parent.is_dir() else []
        beside = f"beside it are {', '.join(around)}" if around else f"{path.parent} is empty or does not exist"
        raise UserError(reason, f"{field}: `{source}` does not exist ({path}); {beside}")
    return path


def _path_here(source: str, sources: Mapping[str, str], field: str, reason: str) -> Path:
    if source not in sources:
        raise UserError(reason, f"{field}: the runtime gave no path for `{source}`; it knows {sorted(sources)}")
    return Path(sources[source])


def _match_local(source: str, sources: Mapping[str, str], field: str) -> Resolved:
    path = _path_here(source, sources, field, "DataNotFound")
    matching_files(path)
    return Resolved(path)


def _download_model(repository: str, revision: str, field: str) -> Resolved:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(MODEL_FILES))
    except GatedRepoError as error:
        message = f"{field}.source: `hf://{repository}` is gated; name a Secret with HF_TOKEN in spec.credentials"
        raise UserError("ModelNotAllowed", message) from error
    except RevisionNotFoundError as error:
        message = f"{field}.revision: `hf://{repository}` has no `{revision}`; write a branch, tag or commit"
        raise UserError("ModelNotFound", message) from error
    except RepositoryNotFoundError as error:
        message = f"spec.model.source: the hub shows no `hf://{repository}`; check the name, or spec.credentials"
        raise UserError("ModelNotFound", message) from error
    return Resolved(Path(folder), Path(folder).name)


def _download_data(repository: str, split: str, revision: str, field: str) -> Resolved:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(repository, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        message = f"{field}: the hub shows no data set `hf://{repository}` at `{revision}`; check name and credentials"
        raise UserError("DataNotFound", message) from error
    files = [sibling.rfilename for sibling in info.siblings or []]
    wanted = split_files(files, split)
    if not wanted:
        listed = ", ".join(name for name in files if kind_of_file(name)) or "none that can be read"
        raise UserError("DataNotFound", f"{field}: `hf://{repository}` has no files of split `{split}`; found {listed}")
    folder = snapshot_download(repository, repo_type="dataset", revision=info.sha, allow_patterns=wanted)
    return Resolved(Path(folder), info.sha)


def _fetch_model(store: ObjectStore, pinned: str | None) -> Resolved:
    if pinned is None:
        store.reach()
    below = list(store.found(""))
    objects = [found for found in below if any(fnmatch(found.name, pattern) for pattern in MODEL_FILES)]
    if not any(found.name == "config.json" for found in objects):
        raise UserError("ModelNotFound", f"{store.field}: `{store}` holds no config.json; {_listed(below)}")
    revision = revision_of(objects)
    if pinned not in (None, revision):
        raise UserError(
            "ModelChanged",
            f"{store.field}: `{store}` is not the model that `prepare` pinned: its objects have changed since; restore "
            "them, or begin a new job",
        )
    return Resolved(cached(store, objects), revision)


def _fetch_data(source: str, field: str) -> Resolved:
    store = ObjectStore.of(source, field)
    store.reach()
    below = list(store.found(""))
    wanted = set(rows_among(found.name for found in below))
    objects = [found for found in below if found.name in wanted]
    if objects:
        return Resolved(cached(store, objects), revision_of(objects))
    folder, name = next(store.parents(), (store, ""))
    objects = [found for found in folder.found(name) if found.name == name]
    if not objects or not kind_of_file(name):
        what = f"neither a {KINDS} file nor a folder with any"
        raise UserError("DataNotFound", f"{field}: `{source}` is {what}; {_listed(below)}")
    return Resolved(cached(folder, objects) / name, revision_of(objects))


def _match_fetched(source: str, field: str) -> Resolved:
    above, pattern = parted(source)
    store = ObjectStore.of(above, field)
    store.reach()
    below = {found.name: found for found in store.found("")}
    beside = {name.partition("/")[0] for name in below}
    objects = [below[name] for name in one_source(pattern, below, folders_of(below), beside)]
    return Resolved(cached(store, objects) / pattern, revision_of(objects))


def _listed(found: Sequence[Found]) -> str:
    names = ", ".join(each.name for each in found[:10])
    return f"below it are {names}" if names else "below it is nothing"


def split_files(files: list[str], split: str) -> list[str]:
    """The data files of a split by the hub's naming: `data/train_prefs-00000-of-00001.parquet`, `train.jsonl`."""
    named = re.compile(rf"(^|/){re.escape(split)}([-.][^/]*|/[^/]*)$")
    return rows_among(name for name in files if named.search(name))
