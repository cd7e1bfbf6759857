"""Which nodes can mount what the pods of a stage need, all at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from alignment_api.contract.roles import ROLES, Stage
from alignment_api.contract.sources import parse_source
from alignment_api.derived.role_memory import replicas_of
from alignment_api.derived.stages import stages_of
from alignment_operator.names import output_claim, storage_claim
from alignment_operator.places import makes_output, makes_storage, mounts, neighbours, read_sources
from alignment_operator.plan.layout import pool_of
from alignment_operator.plan.types import Observed

MANY = "ReadWriteMany"
MANY_READERS = "ReadOnlyMany"
ONE_POD = "ReadWriteOncePod"


@dataclass(frozen=True)
class _Claim:
    """A claim as the pods of one stage use it."""

    name: str
    where: str
    """The field that names it, and what it is."""
    modes: tuple[str, ...]
    readers: tuple[str, ...]
    """Roles that only read it."""
    writers: tuple[str, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        return self.readers + self.writers

    @property
    def is_of_one_node(self) -> bool:
        """Whether one node alone can mount it while these pods use it."""
        return MANY not in self.modes and (bool(self.writers) or MANY_READERS not in self.modes)


def written_sources(observed: Observed) -> dict[str, str]:
    """Field -> source, for the storage and the output that are named."""
    spec, platform = observed.job.spec, observed.platform
    written = {}
    if spec.storage is not None:
        written["spec.storage.source"] = spec.storage.source
    if spec.output is not None:
        written["spec.output.destination"] = spec.output.destination
    elif platform.output is not None:
        written["platform output.destination"] = platform.output.destination
    return written


def single_node_claims(observed: Observed) -> tuple[str, ...]:
    """The claims that one node alone can mount in some stage of the job."""
    return tuple(sorted({claim.name for _, claim in _claims(observed) if claim.is_of_one_node}))


def volume_refusals(observed: Observed) -> Iterator[str]:
    """Claims that cannot be mounted by all who need them at the same time; each is told once."""
    single, told = single_node_claims(observed), set[str]()
    for stage, claim in _claims(observed):
        problem = None if claim.name in told else _problem(observed, stage, claim, single)
        if problem is not None:
            told.add(claim.name)
            yield problem


def _problem(observed: Observed, stage: Stage, claim: _Claim, single: Iterable[str]) -> str | None:
    if claim.writers and set(claim.modes) == {MANY_READERS}:
        return f"{claim.where}, and role {claim.writers[0]} writes there; name a claim with ReadWriteOnce or {MANY}"
    if not claim.is_of_one_node:
        return None
    spec = observed.job.spec
    pods = sum(replicas_of(spec, role) for role in claim.roles)
    wish = f"access mode {MANY if claim.writers else f'{MANY_READERS} or {MANY}'}"
    if set(claim.modes) == {ONE_POD} and pods > 1:
        return (
            f"{claim.where}, which one pod alone can mount, and {pods} pods of stage {stage.name} need it; "
            f"name a claim with {wish}"
        )
    gang = next((role for role in claim.roles if ROLES[role].trainable and replicas_of(spec, role) > 1), None)
    if gang is not None:
        return (
            f"{claim.where}, which one node alone can mount, and spec.roles.{gang}.replicas is "
            f"{replicas_of(spec, gang)}; name a claim with {wish}, or write replicas: 1 and more gpus"
        )
    together = neighbours(observed.job, observed.platform, stage, tuple(single)).get(claim.roles[0], ())
    apart = _apart(observed, together)
    if apart is None:
        return None
    one, other = apart
    return (
        f"{claim.where}, which one node alone can mount, and stage {stage.name} needs it in role {one} on pool "
        f"{pool_of(spec, one)} and in role {other} on pool {pool_of(spec, other)}, which share no node; "
        f"name a claim with {wish}, or put both roles on one pool by their placement"
    )


def _apart(observed: Observed, roles: tuple[str, ...]) -> tuple[str, str] | None:
    """Two of the roles whose pools have no node in common, by their selectors."""
    pools = observed.platform.pools
    selectors = {role: pools.named(pool_of(observed.job.spec, role)).node_selector for role in roles}
    pairs = ((one, other) for place, one in enumerate(roles) for other in roles[place + 1 :])
    return next((pair for pair in pairs if _conflict(selectors[pair[0]], selectors[pair[1]])), None)


def _conflict(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return any(one[key] != other[key] for key in one.keys() & other.keys())


def _claims(observed: Observed) -> Iterator[tuple[Stage, _Claim]]:
    """Every claim of every stage that exists or will be made; a laptop has none."""
    if observed.own_files:
        return
    known = _known(observed)
    for stage in stages_of(observed.job.spec):
        used: dict[str, tuple[list[str], list[str]]] = {}
        for role in stage.roles:
            for mount in mounts(observed.job, observed.platform, role, stage.name):
                readers, writers = used.setdefault(mount.claim, ([], []))
                (readers if mount.read_only else writers).append(role)
        for name, (readers, writers) in used.items():
            if name in known:
                where, modes = known[name]
                yield stage, _Claim(name, where, modes, tuple(readers), tuple(writers))


def _known(observed: Observed) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Claim -> the first field that names it with what it is, and its access modes."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for field, text in (read_sources(observed.job) | written_sources(observed)).items():
        claim = parse_source(text).claim
        if claim is not None and claim in observed.volumes:
            modes = observed.volumes[claim].access_modes
            found[claim] = (f"{field}: claim `{claim}` is {', '.join(modes)}", modes)
    mode = observed.platform.storage.access_mode
    made = {
        storage_claim(observed.job): makes_storage(observed.job),
        output_claim(observed.job): makes_output(observed.job, observed.platform),
    }
    return found | {
        claim: (f"platform storage.accessMode is {mode}", (mode,)) for claim, is_made in made.items() if is_made
    }
