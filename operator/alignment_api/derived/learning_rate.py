"""The learning rate that a job trains with: what the manifest says, else what is usual for its algorithm."""

from __future__ import annotations

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import LearningRateReport


def learning_rate_of(spec: AlignmentJobSpec) -> LearningRateReport:
    """Peak learning rate of the job's own training, and who said so. Operator, alignctl and trainer all ask here."""
    written, usual = spec.training.learning_rate, spec.algorithm.options.usual_learning_rate
    if written is not None:
        return LearningRateReport(value=written, why="spec.training.learningRate says so")
    name = spec.algorithm.name
    if spec.training.lora is not None:
        return LearningRateReport(value=usual.adapters, why=f"the default of {name} with lora")
    return LearningRateReport(value=usual.whole, why=f"the default of {name}")


def with_learning_rate(spec: AlignmentJobSpec, recorded: LearningRateReport | None = None) -> AlignmentJobSpec:
    """The spec as if it named its learning rate. recorded: what the job began with."""
    value = (recorded or learning_rate_of(spec)).value
    return spec.model_copy(update={"training": spec.training.model_copy(update={"learning_rate": value})})
