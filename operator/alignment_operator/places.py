"""Where a job's sources, storage and output are: as the spec would name them, inside a pod, and who mounts them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from alignment_api.contract.base import FieldPath, field_path
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.roles import Stage, StageName
from alignment_api.contract.sources import Source, parse_source
from alignment_api.derived.reward_stage import REWARD_FOLDER
from alignment_api.derived.role_memory import replicas_of
from alignment_api.derived.source_fields import sources_read
from alignment_api.derived.stages import stages_of, trains_reward
from alignment_operator.names import VOLUMES_FOLDER, output_claim, storage_claim

Access = Literal["read", "write"]
SourceKind = Literal["model", "data", "checkpoint", "reward model", "preferences", "reward base", "code"]
KINDS: tuple[tuple[tuple[str, ...], SourceKind], ...] = (
    (("spec", "model", "source"), "model"),
    (("spec", "data", "source"), "data"),
    (("spec", "data", "evaluation", "source"), "data"),
    (("spec", "checkpoint", "resumeFrom"), "checkpoint"),
    (("train", "preferences", "source"), "preferences"),
    (("train", "preferences", "evaluation", "source"), "preferences"),
    (("train", "model", "source"), "reward base"),
    (("rewards", "model", "source"), "reward model"),
    (("function", "python", "path"), "code"),
)
"""How the path of a source's field ends, list indices left out -> what the source is."""


@dataclass(frozen=True)
class Needs:
    """What a role's process reads and writes. It mounts that and nothing else."""

    reads: frozenset[SourceKind] = frozenset()
    storage: Access | None = None
    output: Access | None = None


NEEDS: dict[str, Needs] = {
    "prepare": Needs(frozenset(kind for _, kind in KINDS), storage="write", output="write"),  # it proves both
    "policy": Needs(frozenset({"model", "reward base", "checkpoint"}), storage="write", output="write"),
    "actor": Needs(frozenset({"model", "checkpoint", "reward model", "code"}), storage="write", output="write"),
    "critic": Needs(frozenset({"model", "checkpoint", "reward model"}), storage="write"),
    "reference": Needs(frozenset({"model"})),
    "reward": Needs(frozenset({"model", "reward model"})),
    "rollout": Needs(frozenset({"model"})),
    "evaluator": Needs(frozenset({"model", "code"}), storage="read", output="write"),
}


@dataclass(frozen=True)
class Mount:
    """A claim in a role's pod."""

    claim: str
    read_only: bool
    path: str = ""
    """The folder of the claim that is seen; empty: all of it."""


def mounts(job: AlignmentJob, platform: Platform, role: str, stage: StageName) -> tuple[Mount, ...]:
    """The claims that a role's pod mounts in a stage, in the order of their names."""
    needs = needs_of(job, role)
    found = [Mount(claim, True) for source in _reads(job, needs).values() if (claim := source.claim) is not None]
    storage, output = storage_source(job), output_source(job, platform)
    for source, access in ((storage, needs.storage), (output, needs.output if stage != "reward" else None)):
        if source.claim is not None and access is not None:
            found.append(Mount(source.claim, access == "read"))
    whole = {mount.claim: mount for mount in sorted(found, key=lambda mount: not mount.read_only)}
    if role == "reward" and trains_reward(job.spec) and storage.claim is not None and storage.claim not in whole:
        # Of all that is in storage the server reads the model that stage `reward` has made, and nothing else.
        path = "/".join(part for part in (storage.path, REWARD_FOLDER, "model") if part)
        whole[storage.claim] = Mount(storage.claim, True, path)
    return tuple(whole[claim] for claim in sorted(whole))


def sources_of_role(job: AlignmentJob, role: str) -> dict[str, Source]:
    """Text -> source, for what a role's process reads."""
    return _reads(job, needs_of(job, role))


def needs_of(job: AlignmentJob, role: str) -> Needs:
    """What the role reads and writes in this very job."""
    needs, unread = NEEDS[role], set[SourceKind]()
    if role == "evaluator" and job.spec.algorithm.online is None:
        unread.add("model")  # what the model said before stands in storage
    if role == "actor" and job.spec.roles.critic.placement != "withActor":
        unread.add("reward model")  # a critic may start from it
    return replace(needs, reads=needs.reads - unread)


def kind_of(path: FieldPath) -> SourceKind:
    """What the source at that field is. Raises LookupError for a field that KINDS does not know."""
    names = tuple(part for part in path if isinstance(part, str))
    for ending, kind in KINDS:
        if names[-len(ending) :] == ending:
            return kind
    raise LookupError(f"{field_path(path)} is a source that no role reads")


def storage_source(job: AlignmentJob) -> Source:
    """The job's storage: what it names, else the volume made for it."""
    if job.spec.storage is not None:
        return parse_source(job.spec.storage.source)
    return Source("pvc", "", storage_claim(job))


def has_storage(job: AlignmentJob, role: str) -> bool:
    """Whether a role's process is told where the storage is. A folder is there for who mounts it alone; a bucket would
    be within reach of every pod that has the credentials."""
    return NEEDS[role].storage is not None or not storage_source(job).is_remote


def output_source(job: AlignmentJob, platform: Platform) -> Source:
    """The job's output: what it names, else its own folder below the platform's, else the volume made for it."""
    if job.spec.output is not None:
        return parse_source(job.spec.output.destination)
    if platform.output is None:
        return Source("pvc", "", output_claim(job))
    base = parse_source(platform.output.destination)
    folder = "/".join(part for part in (base.path.rstrip("/"), job.metadata.namespace, job.metadata.name) if part)
    return Source(base.scheme, folder, base.claim)


def makes_storage(job: AlignmentJob) -> bool:
    """Whether the job names no storage, so that a volume is made for it."""
    return job.spec.storage is None


def makes_output(job: AlignmentJob, platform: Platform) -> bool:
    """Whether neither job nor platform names an output, so that a volume is made for it."""
    return job.spec.output is None and platform.output is None


def read_sources(job: AlignmentJob) -> dict[str, str]:
    """Field (spec.model.source) -> source, for everything that the job reads."""
    return {field_path(path): source for path, source in sources_read(job.spec).items()}


def claims(job: AlignmentJob, platform: Platform) -> tuple[str, ...]:
    """Every claim that some pod of the job mounts."""
    found = {mount.claim for stage, role in _roles(job) for mount in mounts(job, platform, role, stage.name)}
    return tuple(sorted(found))


def neighbours(
    job: AlignmentJob, platform: Platform, stage: Stage, single_node: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Role -> the roles of the stage that must run on its node, itself among them: those that share, over however many
    steps, claims that one node alone can mount. A pod that shares with none is left out."""
    held = {
        role: {mount.claim for mount in mounts(job, platform, role, stage.name)} & set(single_node)
        for role in stage.roles
        if replicas_of(job.spec, role)
    }
    together: dict[str, tuple[str, ...]] = {}
    for role in held:
        group, claims_of_group = {role}, set(held[role])
        while more := {other for other in held if other not in group and held[other] & claims_of_group}:
            group |= more
            claims_of_group |= {claim for other in more for claim in held[other]}
        if held[role] and sum(replicas_of(job.spec, other) for other in group) > 1:
            together[role] = tuple(other for other in stage.roles if other in group)
    return together


def path_in_pod(source: Source) -> str:
    """The path under which a pod sees a pvc:// or file:// source; an s3:// one as it is, for it is asked for there."""
    if source.scheme == "s3":
        return str(source)
    if source.claim is None:
        return source.path
    return "/".join(part for part in (VOLUMES_FOLDER, source.claim, source.path) if part)


def _reads(job: AlignmentJob, needs: Needs) -> dict[str, Source]:
    return {text: parse_source(text) for path, text in sources_read(job.spec).items() if kind_of(path) in needs.reads}


def _roles(job: AlignmentJob) -> Iterator[tuple[Stage, str]]:
    return ((stage, role) for stage in stages_of(job.spec) for role in stage.roles)
