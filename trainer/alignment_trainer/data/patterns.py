"""Files by a pattern of their names: which they are, in which order, and what keeps them from being one source."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from alignment_api.contract.sources import is_pattern
from alignment_trainer.data.kinds import KINDS, kind_of_file, suffix_of

_SHOWN = 10


class NoSource(ValueError):
    """What is wrong with the files that a pattern names; behind the source's name it is a sentence."""


def parted(path: str) -> tuple[str, str]:
    """The folder above the first name that is a pattern, and what comes below it; that is empty of other paths."""
    parts = path.split("/")
    first = next((place for place, part in enumerate(parts) if is_pattern(part)), len(parts))
    return "/".join(parts[:first]), "/".join(parts[first:])


def matching_files(path: Path) -> list[Path]:
    """The files of a pattern, in order of their paths. Raises NoSource."""
    above, pattern = parted(path.as_posix())
    folder = Path(above or ("/" if path.is_absolute() else "."))
    if not folder.is_dir():
        raise NoSource(f"matches nothing: there is no folder {folder}")
    found = {entry.relative_to(folder).as_posix(): entry for entry in _below(folder, pattern.split("/"))}
    folders = {name for name, entry in found.items() if not entry.is_file()}
    beside = (entry.name for entry in folder.iterdir())
    return [found[name] for name in one_source(pattern, found.keys() - folders, folders, beside)]


def one_source(pattern: str, files: Iterable[str], folders: Collection[str], beside: Iterable[str]) -> list[str]:
    """The names that match, sorted by their characters' numbers (`part-10` stands before `part-2`). Raises NoSource.

    files, folders: names below the pattern's folder, with `/` between. beside: what to show where nothing matches.
    """
    for name in _matching(pattern, folders):
        raise NoSource(f"matches `{name}`, which is a folder; write `{pattern}/*` or narrow the pattern")
    found = _matching(pattern, files)
    if not found:
        around = sorted(beside)
        more = f" and {len(around) - _SHOWN} more" if len(around) > _SHOWN else ""
        raise NoSource(f"matches nothing; its folder holds {', '.join(around[:_SHOWN]) or 'nothing'}{more}")
    for name in found:
        if any(part.startswith(".") for part in name.split("/")):
            raise NoSource(f"matches `{name}`, which is hidden; narrow the pattern")
        if not kind_of_file(name):
            raise NoSource(f"matches `{name}`, which is no {KINDS} file; narrow the pattern, as `*.jsonl` does")
    _refuse_mixed(found)
    return found


def _refuse_mixed(names: Sequence[str]) -> None:
    first = {suffix_of(name): name for name in reversed(names)}
    if len(first) > 1:
        one, other = sorted(first.values())[:2]
        raise NoSource(f"matches files of several kinds, as `{one}` and `{other}`; write a pattern of one kind")


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    parts = [_regex(part) for part in pattern.split("/")]
    return sorted(name for name in names if _fits(parts, name.split("/")))


def _fits(parts: Sequence[re.Pattern[str]], names: Sequence[str]) -> bool:
    return len(parts) == len(names) and all(map(re.Pattern.fullmatch, parts, names))


def _regex(part: str) -> re.Pattern[str]:
    """Of one name. As in a shell, a leading dot is matched by a dot alone."""
    visible = r"(?!\.)" if is_pattern(part[:1]) else ""
    signs = {"*": ".*", "?": "."}
    return re.compile(visible + "".join(signs.get(letter) or re.escape(letter) for letter in part), re.DOTALL)


def folders_of(names: Iterable[str]) -> set[str]:
    """Those that files of such names lie in."""
    return {folder for name in names for folder in accumulate(name.split("/")[:-1], "{}/{}".format)}


def _below(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What matches them, folders too."""
    regex = _regex(parts[0])
    for entry in folder.iterdir():
        if regex.fullmatch(entry.name):
            if len(parts) == 1:
                yield entry
            elif entry.is_dir():
                yield from _below(entry, parts[1:])
