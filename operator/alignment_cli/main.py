"""alignctl: the same manifest on a laptop, without a cluster. Also installed as kubectl-align."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from alignment_api.yaml.manifest import InvalidManifest, read_begun_manifest
from alignment_cli.errors import Refused, teaching
from alignment_cli.reading import check_files, check_templates, parse_volumes, read_file, read_platform

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align a language model from one manifest: here, or as a Kubernetes cluster would.",
)

ManifestFile = Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The manifest of an AlignmentJob.")]
Volume = Annotated[
    list[str] | None,
    typer.Option("--volume", metavar="CLAIM=FOLDER", help="The folder that stands for pvc://CLAIM here. Repeatable."),
]

PlatformFile = Annotated[
    Path | None,
    typer.Option(
        help="The platform's pools, defaults and policy as YAML. Default: the built-in ones, without a policy."
    ),
]


@app.command()
@teaching
def run(
    manifest: ManifestFile,
    folder: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/NAME.")] = None,
    volume: Volume = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew in a new folder; the old one stays.")] = False,
) -> None:
    """Run the job on this machine. Ctrl-C saves; the same command goes on from there."""
    from alignment_cli.run import RunOptions
    from alignment_cli.run import run as run_here

    options = RunOptions(folder, parse_volumes(volume or []), fresh)
    raise typer.Exit(run_here(read_file(manifest, read_begun_manifest), options, Console()))


@app.command()
@teaching
def validate(
    manifests: Annotated[list[Path], typer.Argument(metavar="JOB.YAML...", help="Manifests to check.")],
    volume: Volume = None,
    platform: PlatformFile = None,
) -> None:
    """Explain every mistake in manifests, and in the files they read, at once."""
    volumes, rules = parse_volumes(volume or []), read_platform(platform)
    wrong = False
    for file in manifests:
        try:
            manifest = read_file(file)
            check_templates(manifest, rules)
            complaints = check_files(manifest, volumes)
        except (InvalidManifest, Refused) as error:
            complaints = [str(error)]
        for complaint in complaints:
            typer.echo(complaint, err=True)
        wrong |= bool(complaints)
        if not complaints:
            typer.echo(f"{file}: valid")
    raise typer.Exit(int(wrong))


@app.command()
@teaching
def render(
    manifest: ManifestFile,
    platform: PlatformFile = None,
) -> None:
    """Print the objects that the operator would create, stage by stage."""
    from alignment_cli.render import render as render_objects

    typer.echo(render_objects(read_file(manifest), platform), nl=False)


@app.command()
@teaching
def status(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Say how far a run is, or how it ended."""
    from alignment_cli.status import print_status

    print_status(Console(), folder)


if __name__ == "__main__":
    app()
