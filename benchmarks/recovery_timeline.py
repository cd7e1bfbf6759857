"""What happened to a job, and when, as seen from outside: pods by a watch, steps by asking them, its storage."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.e2e.jobs import Life, PodHistory

TRAINEE = "policy"
ANSWER_SECONDS = 0.5


@dataclass(frozen=True)
class Claim:
    """A term of storage: who took it, when, and the step it started from."""

    term: int
    attempt: int
    at: float
    step: int


@dataclass
class Timeline(PodHistory):
    """Every pod by UID, with moments in seconds since 1970. The API tells them to the second."""

    storage: Path = Path()
    created: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    """When the trainer's container ended, of those pods whose node could still tell."""
    seen: dict[str, float] = field(default_factory=dict)
    """When the pod was last there."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the pod as a whole ended, where its node said so."""
    steps: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """A trainee's own words: when it was asked, and the steps it had done. Some three times a second."""
    sealed: dict[tuple[int, int], float] = field(default_factory=dict)
    """When the manifest of a checkpoint, by term and step, was written. One that was removed stays here."""

    def look(self, pods: list[dict[str, Any]]) -> None:
        """Ask the trainees among these pods how far they are, and see what is in the storage."""
        for pod in pods:
            status = pod["status"]
            if status.get("podIP") and pod["metadata"]["labels"]["alignment.run/role"] == TRAINEE:
                self._ask(pod["metadata"]["uid"], status["podIP"])
        for manifest in self.storage.glob("checkpoints/*/*/manifest.json"):
            term, step = (int(folder.name) for folder in (manifest.parent.parent, manifest.parent))
            try:
                self.sealed.setdefault((term, step), manifest.stat().st_mtime)
            except FileNotFoundError:
                continue  # pruned meanwhile

    def record(self, pod: dict[str, Any]) -> None:
        super().record(pod)
        uid, status = pod["metadata"]["uid"], pod["status"]
        self.seen[uid] = time.time()
        self.created[uid] = _seconds(pod["metadata"]["creationTimestamp"])
        for condition in status.get("conditions", ()):
            if (condition["type"], condition["status"]) == ("Ready", "True"):
                self.ready.setdefault(uid, _seconds(condition["lastTransitionTime"]))
        for container in status.get("containerStatuses", ()):
            if container["name"] == "trainer" and "terminated" in container["state"]:
                self.ended.setdefault(uid, _seconds(container["state"]["terminated"]["finishedAt"]))
        if status.get("reason"):
            self.reasons[uid] = status["reason"]

    def trainee(self) -> Life | None:
        """Its newest life."""
        lives = self.of(TRAINEE)
        return lives[-1] if lives else None

    def step(self, life: Life) -> int:
        """The last that it told."""
        return max((step for _, step in self.steps.get(life.uid, ())), default=0)

    def last_step_before(self, moment: float) -> int:
        """The furthest that any attempt had told until then."""
        return max((step for told in self.steps.values() for at, step in told if at < moment), default=0)

    def successor(self, life: Life) -> Life:
        """The first later life of its slot that got ready."""
        return next(
            later
            for later in self.of(life.role)
            if later.index == life.index and later.life > life.life and later.uid in self.ready
        )

    def claim_of(self, attempt: int) -> Claim:
        """The claim by which an attempt took the storage."""
        return next(claim for claim in self.claims() if claim.attempt == attempt)

    def claims(self) -> list[Claim]:
        """Every one, in order of term."""
        found = []
        for file in sorted((self.storage / "claims").glob("*.json")):
            told = json.loads(file.read_text())
            step = told["start"]["step"] if told["start"] else 0
            found.append(Claim(told["term"], told["attempt"], _seconds(told["claimedAt"]), step))
        return found

    def restarted(self) -> dict[str, int]:
        """Pods beyond the first of each slot, by role; a role without any is left out."""
        roles = sorted({life.role for life in self.lives.values()})
        lives = {role: self.of(role) for role in roles}
        counted = {role: len(of) - len({life.index for life in of}) for role, of in lives.items()}
        return {role: count for role, count in counted.items() if count}

    def sealed_late(self) -> list[tuple[int, int]]:
        """Checkpoints (term, step) that were written after a newer claim."""
        claims = self.claims()
        return sorted(
            checkpoint
            for checkpoint, at in self.sealed.items()
            if any(claim.term > checkpoint[0] and at > claim.at for claim in claims)
        )

    def _ask(self, uid: str, address: str) -> None:
        asked = time.time()
        try:
            with urllib.request.urlopen(f"http://{address}:8000/status", timeout=ANSWER_SECONDS) as answer:
                progress = json.loads(answer.read()).get("progress")
        except (OSError, urllib.error.URLError, ValueError):
            return  # not up yet, gone, or out of reach
        if progress is not None:
            self.steps.setdefault(uid, []).append((asked, progress["step"]))


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
