"""The Context of a role's process on this machine: the local runtime's answer to "where is everything?"."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field

from alignment_api.contract.context import Context
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.sources import Source, parse_source
from alignment_api.derived.precision import training_gpu
from alignment_api.derived.role_memory import replicas_of
from alignment_operator.local.folder import RunFolder
from alignment_operator.local.machine import available_memory
from alignment_operator.places import has_storage, read_sources
from alignment_operator.plan.types import Instance

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Below those that Linux gives to whoever asks for any (from 32768 on): a role that starts late finds its port free."""


class Ports:
    """A free port for every server of a run. A role's next life takes over its port: peers know it already."""

    def __init__(self) -> None:
        self._ports: dict[tuple[str, int], int] = {}

    def of(self, server: str, index: int = 0) -> int:
        """The port of the server with that index."""
        if (server, index) not in self._ports:
            self._ports[server, index] = _free_port(set(self._ports.values()))
        return self._ports[server, index]


@dataclass(frozen=True)
class Places:
    """Where a run's things are on this machine."""

    folder: RunFolder
    platform: Platform
    ports: Ports = field(default_factory=Ports)

    def storage(self, job: AlignmentJob) -> str:
        """Checkpoints and prepared data: the run's folder unless the spec says otherwise."""
        return _here(parse_source(job.spec.storage.source)) if job.spec.storage else str(self.folder.path)

    def output(self, job: AlignmentJob) -> str:
        """The model and its report: the run's folder unless the spec says otherwise."""
        return _here(parse_source(job.spec.output.destination)) if job.spec.output else str(self.folder.path)


def build_context(job: AlignmentJob, instance: Instance, places: Places) -> Context:
    """What a role's process on this machine is told."""
    folder, ports = places.folder, places.ports
    return Context(
        job=job.metadata.name,
        uid=job.metadata.uid,
        stage=instance.stage,
        role=instance.role,
        index=instance.index,
        life=instance.life,
        replicas=instance.replicas,
        processes=instance.processes,
        gpus=instance.gpus,
        training_gpu=training_gpu(job.spec, places.platform),
        free_memory=available_memory() if instance.role == "prepare" else None,
        job_file=str(folder.spec_file(instance.attempt)),
        storage=places.storage(job) if has_storage(job, instance.role) else None,
        output=places.output(job),
        sources={s: parse_source(s).path for s in read_sources(job).values() if parse_source(s).scheme == "file"},
        peers={role: _servers(job, role, ports) for role in instance.peers},
        host=HOST,
        port=ports.of(instance.role, instance.index),
        token_file=str(folder.token_file),
        outcome_file=str(folder.outcome_file(instance.name)),
        rendezvous=f"{HOST}:{ports.of(f'{instance.role}-gang')}",
        notice_seconds=places.platform.pools.named(instance.pool).notice_seconds,
        scratch=str(folder.scratch(instance.name)),
    )


def _here(source: Source) -> str:
    return str(source) if source.is_remote else source.path


def _servers(job: AlignmentJob, role: str, ports: Ports) -> tuple[str, ...]:
    return tuple(f"http://{HOST}:{ports.of(role, index)}" for index in range(replicas_of(job.spec, role)))


def _free_port(taken: set[int]) -> int:
    """At random, so that two runs that start at once hardly meet."""
    candidates = [port for port in PORTS if port not in taken]
    return next(port for port in random.sample(candidates, len(candidates)) if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
