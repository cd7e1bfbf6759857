"""Where the rows of a job are: its data sources as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alignment_api.contract.inputs import Data
from alignment_trainer.data.files import fingerprint
from alignment_trainer.data.rows import above_of, data_files
from alignment_trainer.data.sources import Resolved, resolve_data


@dataclass(frozen=True)
class DataSources:
    """Where the rows are. evaluation: None where a share of the training rows is held out."""

    train: Resolved
    evaluation: Resolved | None

    @property
    def identity(self) -> dict[str, str | None]:
        """What tells these rows from others: the content of the files."""
        return {"train": _content(self.train), "evaluation": _content(self.evaluation) if self.evaluation else None}


def find_data(data: Data, field: str, sources: Mapping[str, str], pinned: str | None) -> DataSources:
    """Finds the data; of an hf:// data set the commit `pinned`, if any. Raises UserError where there is none.

    field: where the manifest says it: `spec.data`.
    """
    train = resolve_data(data.source, sources, data.split, pinned or data.revision, f"{field}.source")
    if data.evaluation.source is None:
        return DataSources(train, None)
    held_out = f"{field}.evaluation.source"
    return DataSources(train, resolve_data(data.evaluation.source, sources, data.split, data.revision, held_out))


def _content(resolved: Resolved) -> str:
    """The commit of a hub's data set, the digest of a bucket's list, else a fingerprint of the files."""
    if resolved.revision is not None:
        return resolved.revision
    return fingerprint(data_files(resolved.path), above_of(resolved.path))
