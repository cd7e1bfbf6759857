"""Writes what the chart takes from the code: the CRD, the schema of its values, the dashboards. Run by `make crd`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_api.contract.platform import Platform
from alignment_api.crd import crd_yaml

CHART = Path(__file__).parent / "alignment-operator"
Json = dict[str, Any]
_NAMESPACE: Json = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}


@dataclass(frozen=True)
class Panel:
    """A graph. unit: Grafana's. queries: each in PromQL with its legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def of_job(title: str, unit: str, *metrics: str, by: str = "") -> Panel:
    """Metrics of the trainer (alignment_trainer/metrics.py) of the chosen jobs, role by role; `by`: one more label."""
    label = f" {{{{{by}}}}}" if by else ""
    legends = ("{{job_name}} {{role}}" + (label or f" {metric}") for metric in metrics)
    return Panel(
        title,
        unit,
        tuple((f'{metric}{{job_name=~"$job"}}', legend) for metric, legend in zip(metrics, legends, strict=True)),
    )


PREFERENCES = (
    of_job(
        "Held-out accuracy", "percentunit", "alignment_heldout_accuracy_ratio", "alignment_preference_accuracy_ratio"
    ),
    of_job("Reward margin", "short", "alignment_reward_margin", "alignment_heldout_reward_margin"),
    of_job("Loss", "short", "alignment_loss"),
    of_job("Rewards of chosen and rejected", "short", "alignment_chosen_reward", "alignment_rejected_reward"),
    of_job("Log-probs (nats)", "short", "alignment_chosen_logprob_nats", "alignment_rejected_logprob_nats"),
    of_job("NLL of the chosen (nats per token)", "short", "alignment_chosen_nll_nats"),
    of_job("Reference servers", "short", "alignment_reference_servers"),
    of_job("Rows done", "short", "alignment_rows", "alignment_rows_planned"),
)
"""Of jobs that learn from pairs; a reward model has no log-probs, and not all have a reference."""
ROWS = (
    of_job("Loss", "short", "alignment_loss"),
    of_job("Held-out NLL (nats per token)", "short", "alignment_heldout_nll_nats"),
    of_job("Held-out perplexity", "short", "alignment_heldout_perplexity"),
    of_job(
        "Rewards that have the sign of their label",
        "percentunit",
        "alignment_preference_accuracy_ratio",
        "alignment_heldout_accuracy_ratio",
    ),
    of_job("Held-out margin of the desirable", "short", "alignment_heldout_reward_margin"),
    of_job("Reference point (nats)", "short", "alignment_reference_point_nats"),
)
"""Of jobs that learn from demonstrations (the first three) and from feedback (the first and the last three)."""
ONLINE = (
    of_job("Reward", "short", "alignment_reward_mean", "alignment_heldout_reward_mean"),
    of_job("Reward by component", "short", "alignment_reward_component", by="component"),
    of_job("Spread of rewards and advantages", "short", "alignment_reward_std", "alignment_advantage_std"),
    of_job("KL towards the reference (nats per token)", "short", "alignment_kl_nats", "alignment_kl_coef"),
    of_job("KL of an update (nats per token)", "short", "alignment_update_kl_nats"),
    of_job("Entropy (nats per token)", "short", "alignment_entropy_nats"),
    of_job("Clipped tokens", "percentunit", "alignment_clip_ratio", "alignment_value_clip_ratio"),
    of_job("Losses", "short", "alignment_loss", "alignment_value_loss"),
    of_job("Variance that the critic explains", "percentunit", "alignment_explained_variance"),
    of_job("Running deviation of the scores", "short", "alignment_reward_scale"),
    of_job("Completion length (tokens)", "short", "alignment_completion_length_tokens"),
    of_job("Completions that end by themselves", "percentunit", "alignment_finished_ratio"),
    of_job("vLLM against the trainer (nats)", "short", "alignment_rollout_mismatch_nats"),
    of_job("Importance weight", "short", "alignment_importance_weight"),
    of_job("Age of the weights that sampled (steps)", "short", "alignment_rollout_staleness_steps"),
    of_job("Weight version", "short", "alignment_weight_version"),
    of_job("Delivery of weights", "s", "alignment_delivery_seconds"),
    of_job(
        "Servers",
        "short",
        "alignment_rollout_servers",
        "alignment_reward_servers",
        "alignment_reference_servers",
    ),
    of_job("Prompts trained on", "short", "alignment_prompts_trained"),
    of_job(
        "Lost and dropped",
        "short",
        "alignment_reissued_requests",
        "alignment_dropped_prompts",
        "alignment_reward_function_timeouts",
        "alignment_reward_function_skips",
    ),
    of_job("Groups of equal scores", "percentunit", "alignment_equal_groups_ratio"),
    of_job("Steps that taught nothing", "short", "alignment_silent_steps"),
    of_job("Seconds by phase", "s", "alignment_phase_seconds", by="phase"),
    of_job("Idle time", "s", "alignment_idle_seconds"),
    of_job("Gradient norm of the critic", "short", "alignment_value_gradient_norm"),
    of_job("Reward model: held-out accuracy", "percentunit", "alignment_heldout_accuracy_ratio"),
)
"""Of jobs that learn from what they sample: PPO; GRPO, which has no critic."""
EVERY_JOB = (
    of_job("Tokens a second", "short", "alignment_tokens_per_second"),
    of_job("Step time", "s", "alignment_step_seconds", "alignment_checkpoint_pause_seconds"),
    of_job("Gradient norm", "short", "alignment_gradient_norm"),
    of_job("Steps not applied: something was not finite", "short", "alignment_skipped_steps"),
    of_job("Learning rate", "sci", "alignment_learning_rate"),
    of_job("Step and last checkpoint", "short", "alignment_step", "alignment_checkpoint_step"),
    of_job("Peak memory", "bytes", "alignment_resident_memory_bytes"),
)
OPERATOR = (
    Panel("Jobs by phase", "short", (("sum by (phase) (alignment_operator_jobs)", "{{phase}}"),)),
    Panel(
        "Pass time, 99th percentile",
        "s",
        (
            (
                "histogram_quantile(0.99, sum by (le) (rate(alignment_operator_reconcile_seconds_bucket[5m])))",
                "p99",
            ),
        ),
    ),
    Panel(
        "Passes a second by result",
        "short",
        (("sum by (result) (rate(alignment_operator_reconcile_seconds_count[5m]))", "{{result}}"),),
    ),
)
DASHBOARDS = {
    "dpo": ("Alignment: learning from pairs", (*PREFERENCES, *EVERY_JOB, *OPERATOR)),
    "sft-kto": ("Alignment: demonstrations and feedback", (*ROWS, *EVERY_JOB)),
    "online": ("Alignment: PPO and GRPO", (*ONLINE, *EVERY_JOB)),
}
"""File in charts/alignment-operator/dashboards -> title and panels. The first one shows the operator too."""
WIDTH, HEIGHT, COLUMNS = 8, 7, 3


def dashboard(name: str) -> Json:
    """Grafana's dashboard of that name in DASHBOARDS."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"alignment-{name}",
        "title": title,
        "tags": ["alignment"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasource(), _jobs()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def values_schema() -> Json:
    """The schema of values.yaml: the chart's own settings, and the Platform type for `platform`."""
    platform = Platform.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = platform.pop("$defs")
    free = {"type": "object"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": definitions,
        **_closed(
            image=_closed(
                repository={"type": "string", "minLength": 1},
                tag={"type": "string"},
                pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            ),
            imagePullSecrets={"type": "array", "items": free},
            watchNamespaces={"type": "array", "items": _NAMESPACE, "uniqueItems": True},
            leaseNamespace=_NAMESPACE,
            replicas={"type": "integer", "minimum": 0},
            resources=free,
            nodeSelector=free,
            tolerations={"type": "array", "items": free},
            affinity=free,
            logLevel={"enum": ["DEBUG", "INFO", "WARNING"]},
            crd=_closed(install={"type": "boolean"}),
            userRoles=_closed(install={"type": "boolean"}),
            admissionPolicy=_closed(install={"type": "boolean"}),
            dashboard=_closed(enabled={"type": "boolean"}, labels=free),
            platform=platform,
            **{"global": free},  # Helm's own
        ),
    }


def _closed(**properties: Json) -> Json:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _datasource() -> Json:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _jobs() -> Json:
    query = "label_values(alignment_step, job_name)"
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "query": {"query": query, "refId": "jobs"},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
    }


def _panel(number: int, panel: Panel) -> Json:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "gridPos": {
            "x": number % COLUMNS * WIDTH,
            "y": number // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }


def files() -> dict[Path, str]:
    """Every generated file of the chart, and what it must hold."""
    return {
        CHART / "files" / "alignmentjobs.alignment.run.yaml": crd_yaml(),
        CHART / "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        **{CHART / "dashboards" / f"{name}.json": json.dumps(dashboard(name), indent=2) + "\n" for name in DASHBOARDS},
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
