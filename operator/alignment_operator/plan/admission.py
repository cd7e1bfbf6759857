"""Whether a job may start: the contract's bounds and rules, then volumes, pools and arithmetic.

Asked once, when it asks to start. A refusal names the field, what was found and the fix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from alignment_api.contract.base import field_path
from alignment_api.contract.pod_template import Problem
from alignment_api.contract.roles import ROLES, Stage
from alignment_api.contract.sources import parse_source
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.reward_stage import spec_of_stage
from alignment_api.derived.role_memory import replicas_of
from alignment_api.derived.sizing import shortage, size_of
from alignment_api.derived.stages import stages_of
from alignment_api.rules.check import why_not
from alignment_api.rules.policy import policy_problems, shape_problems
from alignment_operator.places import read_sources
from alignment_operator.plan.layout import model_in, pool_of, spec_in
from alignment_operator.plan.types import Observed
from alignment_operator.plan.volumes import volume_refusals, written_sources


def refusals(observed: Observed) -> tuple[str, ...]:
    """Why nothing of this job may be created; empty when it may start."""
    wrong = why_not(observed.job) + tuple(_told(shape_problems(observed.job.spec)))
    if wrong:
        return wrong  # what else there is to say would speak of values that must change
    return (
        *_policy(observed),
        *_sources(observed),
        *volume_refusals(observed),
        *_devices(observed),
        *_ranks(observed),
    )


def missing_nodes(observed: Observed) -> tuple[str, ...]:
    """Pools that the job needs and that have no node now. They may scale from zero: a warning, never a refusal."""
    spec = observed.job.spec
    used = {pool_of(spec, role) for stage in stages_of(spec) for role in stage.roles if replicas_of(spec, role)}
    return tuple(sorted(pool for pool in used if (observed.nodes or {}).get(pool, 1) == 0))


def misfit(observed: Observed, stage: Stage) -> str | None:
    """Why a role of the stage cannot fit now that `prepare` has counted the parameters; None before that."""
    model = model_in(observed.job, stage)
    if model is None:
        return None
    found = (_role_misfit(observed, stage, role, model) for role in stage.roles if ROLES[role].accelerated)
    return next((problem for problem in found if problem is not None), None)


def _role_misfit(observed: Observed, stage: Stage, role: str, model: Decoder) -> str | None:
    spec = spec_in(observed, stage)
    pool = observed.platform.pools.named(pool_of(spec, role))
    ranks = size_of(spec, role, pool, model).processes * replicas_of(spec, role)
    return shortage(spec, role, pool, model) or _too_many_ranks(observed.job.spec, stage, role, ranks)


def _policy(observed: Observed) -> Iterator[str]:
    """A laptop has neither pods nor a platform team."""
    if not observed.own_files:
        yield from _told(policy_problems(observed.job.spec, observed.platform.policy))


def _told(problems: Iterable[Problem]) -> Iterator[str]:
    return (f"{field_path(path)}: {message}" for path, message in problems)


def _sources(observed: Observed) -> Iterator[str]:
    for field, text in written_sources(observed).items():
        if parse_source(text).scheme == "file" and not observed.own_files:
            yield f"{field}: `{text}` is a folder inside a pod and is lost with it; write pvc://claim/path"
    for field, text in read_sources(observed.job).items():
        if parse_source(text).is_relative:
            yield f"{field}: `{text}` is relative to a manifest, which a cluster does not have; write pvc://claim/path"
    for field, text in (read_sources(observed.job) | written_sources(observed)).items():
        claim = parse_source(text).claim
        if claim is None:
            continue
        if observed.own_files:
            yield f"{field}: `{text}` is a claim of a cluster, which a laptop does not have; write file:///path"
        elif claim not in observed.volumes:
            yield (
                f"{field}: no claim `{claim}` in namespace {observed.job.metadata.namespace}; "
                "create that PersistentVolumeClaim or name one that exists"
            )


def _devices(observed: Observed) -> Iterator[str]:
    for role in _roles(observed):
        if not ROLES[role].accelerated:
            continue
        wanted = getattr(observed.job.spec.roles, role)
        name = pool_of(observed.job.spec, role)
        gpu = observed.platform.pools.named(name).gpu
        if wanted.gpus is not None and gpu is None:
            yield (
                f"spec.roles.{role}.gpus: {wanted.gpus}, but pool {name} has no GPUs; "
                f"write `processes: {wanted.gpus}` for CPU processes, or choose a placement with GPUs"
            )
        if wanted.processes is not None and gpu is not None:
            yield (
                f"spec.roles.{role}.processes: {wanted.processes}, but pool {name} has GPUs ({gpu.product}); "
                f"write `gpus: {wanted.processes}`: one process runs on each"
            )


def _ranks(observed: Observed) -> Iterator[str]:
    """Only what the spec says itself: planned sizes are checked by `misfit`, once the model is known."""
    spec = observed.job.spec
    for stage in stages_of(spec):
        for role in (role for role in stage.roles if ROLES[role].trainable):
            wanted = getattr(spec.roles, role)
            ranks = (wanted.gpus or wanted.processes or 1) * wanted.replicas
            problem = _too_many_ranks(spec, stage, role, ranks)
            if problem is not None:
                yield problem


def _too_many_ranks(spec: AlignmentJobSpec, stage: Stage, role: str, ranks: int) -> str | None:
    training = spec_of_stage(spec, stage.name).training
    if training.sharding == "none" and ranks > 1:
        return (
            f"spec.training.sharding: `none` takes one rank, and role {role} has {ranks} "
            "(replicas x gpus or processes); write sharding: fsdp2, or ask for one rank"
        )
    if ROLES[role].trainable and training.batch_size < ranks:
        return (
            f"{_batch_field(spec, stage)}: {training.batch_size} sequences a step cannot feed {ranks} ranks of {role}; "
            f"write at least {ranks}, or ask for fewer ranks"
        )
    return None


def _batch_field(spec: AlignmentJobSpec, stage: Stage) -> str:
    """Where the batch size of the stage's trainee is written."""
    if stage.name != "reward":
        return "spec.training.batchSize"
    place = next(place for place, reward in enumerate(spec.algorithm.rewards) if reward.train is not None)
    return f"spec.algorithm.{spec.algorithm.name}.rewards[{place}].train.batchSize"


def _roles(observed: Observed) -> tuple[str, ...]:
    """Every role of the job once, in the order of its stages."""
    return tuple(dict.fromkeys(role for stage in stages_of(observed.job.spec) for role in stage.roles))
