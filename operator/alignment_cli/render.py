"""`alignctl render`: the objects that the operator would create, by rehearsing its plan from start to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from alignment_api.contract.algorithms import STAGES
from alignment_api.contract.context import InstanceStatus, Outcome
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.sources import parse_source
from alignment_api.contract.status import Condition, DataReport, ModelReport
from alignment_api.yaml.text import dump_yaml
from alignment_cli.errors import Refused
from alignment_cli.memory import count_parameters
from alignment_cli.reading import Manifest, check_templates, read_platform
from alignment_operator.places import claims
from alignment_operator.plan.make_plan import make_plan
from alignment_operator.plan.types import Instance, Observed, Plan, PodView, VolumeView
from alignment_operator.resources import build_objects, build_pod, build_token

_UID = "00000000-0000-0000-0000-000000000000"
_START = datetime(2000, 1, 1, tzinfo=UTC)
_LONGEST = 100
"""Passes; a job without trouble is through after a dozen."""


def render(manifest: Manifest, platform_file: Path | None) -> str:
    """Every object as YAML documents: first what pods lean on, then the pods, stage by stage.

    The UID is made up, and so the short hash in names; the token is random on a cluster. Raises Refused where the job
    would not be admitted.
    """
    check_templates(manifest, None)
    platform = read_platform(platform_file) or Platform()
    job = _as_applied(manifest.job)
    parts: list[str] = []
    attempts: set[int] = set()
    for plan in _rehearse(job, platform, _parameters(manifest)):
        current = job.model_copy(update={"status": plan.status})
        if plan.create and plan.support is not None and plan.support.attempt not in attempts:
            objects = build_objects(current, plan.support, platform)
            token = [] if attempts else [build_token(current, "random, made by the operator")]
            fresh = [*token, *objects] if not attempts else [o for o in objects if o["kind"] == "ConfigMap"]
            attempts.add(plan.support.attempt)
            parts += [_document(f"what the pods of attempt {plan.support.attempt} lean on", o) for o in fresh]
        for instance in plan.create:
            parts.append(_document(f"stage {instance.stage}", build_pod(current, instance, platform)))
    return "".join(parts)


def _rehearse(job: AlignmentJob, platform: Platform, parameters: int | None) -> Iterator[Plan]:
    """The plans of a job whose every pod does well."""
    pods: tuple[PodView, ...] = ()
    volumes = {claim: VolumeView(("ReadWriteMany",)) for claim in claims(job, platform)}
    for second in range(_LONGEST):
        plan = make_plan(Observed(job, platform, pods, volumes), _START + timedelta(seconds=second))
        refusal = next((condition for condition in plan.status.conditions if _refuses(condition)), None)
        if refusal is not None:
            raise Refused(f"{job.metadata.name}: {refusal.message}")
        yield plan
        if plan.status.phase in ("Complete", "Suspended"):
            return
        job = job.model_copy(update={"status": plan.status})
        pods = _afterwards(pods, plan, parameters)
    raise AssertionError(f"the rehearsal of {job.metadata.name} does not end")


def _refuses(condition: Condition) -> bool:
    return (condition.type, condition.status) in (("Admitted", "False"), ("Failed", "True"))


def _afterwards(pods: Sequence[PodView], plan: Plan, parameters: int | None) -> tuple[PodView, ...]:
    """What the next pass sees: pods start, get ready, and those that lead a stage end well."""
    gone = {removal.name for removal in plan.delete}
    old = [_moved_on(pod, plan, parameters) for pod in pods if pod.name not in gone]
    return (*old, *(_started(instance) for instance in plan.create))


def _started(instance: Instance) -> PodView:
    return PodView(
        name=instance.name,
        uid=instance.name,
        role=instance.role,
        index=instance.index,
        life=instance.life,
        stage=instance.stage,
        phase="Pending" if instance.gated else "Running",
        created_at=_START,
        gated=instance.gated,
    )


def _moved_on(pod: PodView, plan: Plan, parameters: int | None) -> PodView:
    if pod.gated:
        released = pod.name in plan.release
        return replace(pod, gated=not released, phase="Running" if released else "Pending")
    if not pod.ready:
        return replace(pod, ready=True, status=InstanceStatus(state="ready", ready=True))
    leads = {stage.lead for stages in STAGES.values() for stage in stages}
    if pod.role not in leads or pod.ended:
        return pod
    return replace(pod, phase="Succeeded", ready=False, exit_code=0, outcome=_outcome(parameters))


def _outcome(parameters: int | None) -> Outcome:
    data = DataReport(format="preferences", rows=1, evaluation_rows=1, fingerprint="")
    model = ModelReport(parameters=parameters, fingerprint="") if parameters is not None else None
    return Outcome(result="succeeded", data=data, model=model)


def _parameters(manifest: Manifest) -> int | None:
    """Sizes are planned from the model's parameters where its files are here; else they are those of a small one."""
    source = parse_source(manifest.local_job({}).spec.model.source)
    folder = Path(source.path)
    return count_parameters(folder) if source.scheme == "file" and folder.is_dir() else None


def _as_applied(job: AlignmentJob) -> AlignmentJob:
    metadata = job.metadata.model_copy(update={"uid": _UID, "namespace": job.metadata.namespace or "default"})
    return job.model_copy(update={"metadata": metadata})


def _document(comment: str, manifest: dict[str, object]) -> str:
    return f"---\n# {comment}\n{dump_yaml(manifest)}"
