"""The role `prepare`: pins and checks the model, reads, checks and tokenizes the data, then drives the reference."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from alignment_api.context import Outcome
from alignment_api.spec import AlignmentJobSpec
from alignment_api.status import ModelReport, Progress
from alignment_trainer.data.packing import pair_group
from alignment_trainer.data.preferences import find_data, prepare_rows
from alignment_trainer.data.reference import Float32, ReferenceCache, Shard, plan_shards, policy_ranks, reference_cache
from alignment_trainer.data.store import Manifest, PreparedData, digest, open_prepared, read_manifest, write_prepared
from alignment_trainer.instance import Instance
from alignment_trainer.peers import resolved
from alignment_trainer.pinned_model import check_model, load_tokenizer
from alignment_trainer.reference_client import shard_task
from alignment_trainer.server_pool import PoolOptions, ServerPool
from alignment_trainer.servers.wire import LogprobsRequest
from alignment_trainer.sources import Resolved, resolve_model
from alignment_trainer.storage import check_room, check_writable, needed_bytes

log = logging.getLogger(__name__)


def run(instance: Instance) -> Outcome:
    """Ready once the data is good; ends once the reference's log-probs are complete, at once where they are."""
    board, spec = instance.board, instance.spec
    board.update(state="checking storage")
    check_writable(instance.storage)
    resolved, model = _pin_model(instance)
    board.update(model=model, state="checking room")
    check_room(instance.storage, instance.output, needed_bytes(model.parameters, spec))
    prepared = _prepare_data(instance, resolved, model)
    data = prepared.manifest.data
    board.update(data=data, ready=True, state="data ready")
    if spec.roles.reference.placement != "withPolicy" and not _fill_reference(instance, prepared):
        return Outcome(result="interrupted", data=data, model=model)
    return Outcome(result="succeeded", data=data, model=model)


def _pin_model(instance: Instance) -> tuple[Resolved, ModelReport]:
    """The model at the commit that an earlier life pinned, if any."""
    instance.board.update(state="checking the model")
    former, model = _former(instance, "model"), instance.spec.model
    with instance.metrics.phase("check_model"):
        resolved = resolve_model(model, instance.context.sources, former.model.revision if former else None)
        return resolved, check_model(model.source, resolved)


def _prepare_data(instance: Instance, resolved: Resolved, model: ModelReport) -> PreparedData:
    """What stands in storage if it was made for this very request, else made anew."""
    spec, board = instance.spec, instance.board
    board.update(state="reading data")
    former = _former(instance, "data")
    sources = find_data(spec, instance.context.sources, former.data.revision if former else None)
    request = digest({"data": sources.identity, "model": model.fingerprint, "rows": _row_options(spec)})
    if former is not None and former.request == request:
        log.info("the data is prepared already", extra={"fingerprint": former.data.fingerprint})
        return open_prepared(instance.storage)
    board.update(state="tokenizing data")
    with instance.metrics.phase("tokenize"):
        tokenizer = load_tokenizer(spec.model.source, resolved.path)
        rows = prepare_rows(spec, sources, tokenizer, instance.metrics)
    manifest = Manifest(request=request, origins=_origins(spec), data=rows.report, model=model, parts={})
    return write_prepared(instance.storage, manifest, rows.arrays, rows.invalid)


def _former(instance: Instance, origin: str) -> Manifest | None:
    """What an earlier life left, if it was of the same `model` or `data`."""
    manifest = read_manifest(instance.storage)
    return manifest if manifest and manifest.origins.get(origin) == _origins(instance.spec)[origin] else None


def _origins(spec: AlignmentJobSpec) -> dict[str, str]:
    return {
        "model": f"{spec.model.source}@{spec.model.revision}",
        "data": f"{spec.data.source}@{spec.data.revision}",
    }


def _row_options(spec: AlignmentJobSpec) -> dict[str, object]:
    """What of the spec decides the rows, sources apart."""
    data = spec.data.model_dump(mode="json", include={"format", "on_invalid", "evaluation"})
    data["evaluation"].pop("every_steps", None)
    return {"data": data, "max_length": spec.training.max_length, "seed": spec.training.seed}


def _fill_reference(instance: Instance, prepared: PreparedData) -> bool:
    """Drives the reference servers until the cache is complete. False where this process was asked to go."""
    spec, metrics, board = instance.spec, instance.metrics, instance.board
    cache, shards = reference_cache(prepared, spec.training), plan_shards(prepared, spec.training)
    missing = [shard for shard in shards if not cache.holds(shard)]
    keeper = _ShardKeeper(instance, cache, shards, missing)

    def count_servers(count: int) -> None:
        metrics.set("servers", count)
        board.update(state=f"computing the reference on {count} servers" if count else "waiting for reference servers")

    if missing:
        count_servers(0)
        pool = ServerPool(
            task=shard_task(lambda shard: _request(prepared, shard, spec), keeper.accept),
            peers=resolved(instance.context.peers.get("reference", ())),
            token=instance.token,
            servers=count_servers,
            options=PoolOptions(leave_within=max(1.0, instance.context.notice_seconds - 5)),
        )
        with metrics.phase("reference"):
            if not pool.run(missing, instance.stop):
                return False
    cache.commit(shards)
    board.update(state="reference complete")
    return True


def _request(prepared: PreparedData, shard: Shard, spec: AlignmentJobSpec) -> LogprobsRequest:
    rows = prepared.split(shard.split)
    batches = tuple(tuple(pair_group(rows[index]) for index in batch) for batch in shard.batches)
    return LogprobsRequest(prepared.manifest.model.fingerprint, policy_ranks(spec), batches)


class _ShardKeeper:
    """Writes finished shards and tells how far the work is."""

    def __init__(
        self, instance: Instance, cache: ReferenceCache, shards: Sequence[Shard], missing: Sequence[Shard]
    ) -> None:
        self._instance, self._cache = instance, cache
        self._total = sum(len(shard.indices) for shard in shards)
        self._done = self._found = self._total - sum(len(shard.indices) for shard in missing)
        self._began = time.monotonic()
        self._tell()

    def accept(self, shard: Shard, logprobs: Float32) -> None:
        self._cache.write(shard, logprobs)
        self._done += len(shard.indices)
        self._tell()

    def _tell(self) -> None:
        fresh, seconds = self._done - self._found, time.monotonic() - self._began
        eta = round((self._total - self._done) * seconds / fresh) if fresh else None
        self._instance.metrics.set("rows", self._done)
        self._instance.metrics.set("rows_planned", self._total)
        self._instance.board.update(progress=Progress(step=self._done, total_steps=self._total, eta_seconds=eta))
