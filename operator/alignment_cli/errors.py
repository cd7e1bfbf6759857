"""A user's mistakes reach the terminal as sentences, never as tracebacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

from alignment_api.yaml.manifest import InvalidManifest
from alignment_operator.local.folder import FolderDamaged, FolderInUse

Parameters = ParamSpec("Parameters")


class Refused(Exception):
    """Something only the user can mend; the text says what was found and what to write or type instead."""


def teaching(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A command whose refusals are printed to standard error, with exit code 1."""

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (Refused, InvalidManifest, FolderDamaged, FolderInUse) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None

    return run
