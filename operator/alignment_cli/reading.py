"""A manifest from its file, and everything that can be checked about it before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignment_api.contract.algorithms import Options, RewardModel
from alignment_api.contract.base import FieldPath, field_path
from alignment_api.contract.inputs import Data
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.sources import is_pattern, parse_source
from alignment_api.derived.source_fields import sources_read
from alignment_api.rules.policy import policy_problems, shape_problems
from alignment_api.yaml.manifest import InvalidManifest, Problem, problem_at, read_contract, read_manifest
from alignment_cli.errors import Refused
from alignment_operator.local.sources import local_job, missing_volumes

_SHOWN_ROWS = 20


@dataclass(frozen=True)
class Manifest:
    """A manifest's text with the job it means: relative sources stay relative to `file`."""

    file: Path
    text: str
    job: AlignmentJob

    def problem(self, path: FieldPath, message: str) -> Problem:
        """A mistake at that field."""
        return problem_at(self.text, str(self.file), path, message)

    def check_rules(self) -> None:
        """Raises InvalidManifest with every rule that a job which asks to start breaks."""
        read_manifest(self.text, str(self.file))

    def local_job(self, volumes: Mapping[str, Path]) -> AlignmentJob:
        """The job with its sources as this machine sees them."""
        return local_job(self.job, self.file.parent, volumes)


def read_file(file: Path, read: Callable[[str, str], AlignmentJob] = read_manifest) -> Manifest:
    """The manifest in `file`. Raises Refused where there is none, InvalidManifest with every mistake in it."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refused(f"{file}: there is no such file; write the path of a manifest, for example job.yaml") from None
    except IsADirectoryError:
        raise Refused(f"{file}: is a folder; write the path of a manifest, for example {file}/job.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: cannot be read: {error}") from None
    return Manifest(file, text, read(text, str(file)))


def parse_volumes(options: list[str]) -> dict[str, Path]:
    """`claim=folder` options. Raises Refused with the form."""
    volumes = {}
    for option in options:
        claim, separator, folder = option.partition("=")
        if not separator or not claim or not folder:
            raise Refused(f"--volume {option}: write --volume CLAIM=FOLDER, for example --volume data=./data")
        if not Path(folder).is_dir():
            raise Refused(f"--volume {option}: there is no folder {folder}; make it, or name another")
        volumes[claim] = Path(folder).absolute()
    return volumes


def check_templates(manifest: Manifest, platform: Platform | None) -> None:
    """Raises InvalidManifest where a podTemplate has a wrong shape, or the platform's policy does not let the job have
    what it asks for. Without a platform no policy is known.
    """
    spec = manifest.job.spec
    found = list(shape_problems(spec))
    if not found and platform is not None:
        found = list(policy_problems(spec, platform.policy))
    if found:
        raise InvalidManifest([manifest.problem(path, message) for path, message in found])


def read_platform(file: Path | None) -> Platform | None:
    """The platform in `file`. Raises Refused where it cannot be read, InvalidManifest with every mistake in it."""
    if file is None:
        return None
    try:
        return read_contract(Platform, file.read_text(), str(file))
    except OSError as error:
        raise Refused(f"--platform {file}: cannot be read: {error}") from None


def check_volumes(manifest: Manifest, volumes: Mapping[str, Path]) -> None:
    """Raises InvalidManifest where a claim has no folder here."""
    missing = missing_volumes(manifest.job, volumes)
    if missing:
        raise InvalidManifest([manifest.problem(path, message) for path, message in missing])


def check_files(manifest: Manifest, volumes: Mapping[str, Path]) -> list[str]:
    """What is wrong with the files that the manifest reads on this machine: missing ones, and invalid rows."""
    complaints: list[str] = []
    for path, text in sources_read(manifest.local_job(volumes).spec).items():
        source = parse_source(text)
        if source.scheme != "file":
            continue
        place = Path(source.path)
        problem = _missing(path, place)
        if problem is not None:
            complaints.append(str(manifest.problem(path, problem)))
        elif (data := _data_at(manifest.job, path)) is not None and data.on_invalid == "refuse":
            options = manifest.job.spec.algorithm.options if path[1] == "data" else RewardModel()
            field = field_path(path).rsplit(".source")[0].removesuffix(".evaluation")
            complaints += _invalid_rows(place, options, data, field)
    return complaints


def _data_at(job: AlignmentJob, path: FieldPath) -> Data | None:
    """The data whose rows stand at that field; None where something else does."""
    if path[1] == "data":
        return job.spec.data
    reward = next((reward.train for reward in job.spec.algorithm.rewards if reward.train is not None), None)
    return reward.preferences if reward is not None and "preferences" in path else None


def _missing(path: FieldPath, place: Path) -> str | None:
    if is_pattern(str(place)):
        return _unmatched(place)
    if not place.exists():
        beside = sorted(entry.name for entry in place.parent.iterdir())[:10] if place.parent.is_dir() else []
        return f"{place} does not exist; " + (f"beside it are {', '.join(beside)}" if beside else "check the path")
    if path[-2:] == ("model", "source") and not (place / "config.json").is_file():
        return f"{place} has no config.json; write the path of a Hugging Face model folder"
    return None


def _unmatched(pattern: Path) -> str | None:
    from alignment_trainer.data.patterns import NoSource, matching_files

    try:
        matching_files(pattern)
    except NoSource as error:
        return f"{pattern} {error}"
    return None


def _invalid_rows(place: Path, options: Options, data: Data, field: str) -> Iterator[str]:
    """options: of the algorithm that learns from the rows. field: of the data."""
    from alignment_trainer.data.layouts.numbers import Numbers
    from alignment_trainer.data.layouts.parsers import PARSERS
    from alignment_trainer.data.rows import InvalidRow, read_rows
    from alignment_trainer.process.errors import UserError

    rows, wanted, found = PARSERS[options.rows], Numbers.of(options, data), 0
    try:
        rows.check_source(place, place.name, data, field, wanted)
        for row in read_rows(place):
            try:
                rows.parse(row, data.columns, wanted)
            except InvalidRow as error:
                found += 1
                if found <= _SHOWN_ROWS:
                    yield f"{row.place}: {error}"
    except UserError as error:
        yield str(error)
    if found > _SHOWN_ROWS:
        yield f"{place.name}: ... and {found - _SHOWN_ROWS} more invalid rows"
    if found:
        yield f"{place.name}: mend these rows, or write {field}.onInvalid: drop"
