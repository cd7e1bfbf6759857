"""The job's model as the roles that serve it find it: at the commit that `prepare` pinned, and unchanged since."""

from __future__ import annotations

from pathlib import Path

from alignment_trainer.data.pins import pins_of
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.model.inspect import model_fingerprint
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance


def find_served_model(instance: Instance) -> tuple[Path, str]:
    """Its folder and its fingerprint; those of the spec's model where nothing is pinned yet.

    Raises UserError where it is another model than the one that was pinned.
    """
    pins = pins_of(instance)
    folder = resolve_model(instance.spec.model, instance.context.sources, pins.model.revision if pins else None).path
    fingerprint = model_fingerprint(folder)
    if pins and pins.model.fingerprint != fingerprint:
        raise UserError(
            "ModelChanged", f"spec.model.source: {folder} is not the model that `prepare` pinned; restore it"
        )
    return folder, fingerprint
