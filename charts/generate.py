"""Writes what the chart takes from the code: the CRD, the schema of its values, the dashboard. Run by `make crd`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignment_api.crd import crd_yaml
from alignment_api.platform import Platform

CHART = Path(__file__).parent / "alignment-operator"
Json = dict[str, Any]

PANELS = (
    ("Held-out accuracy", "percentunit", ("alignment_heldout_accuracy_ratio", "alignment_preference_accuracy_ratio")),
    ("Reward margin", "short", ("alignment_reward_margin", "alignment_heldout_reward_margin")),
    ("Loss", "short", ("alignment_loss",)),
    ("Rewards of chosen and rejected", "short", ("alignment_chosen_reward", "alignment_rejected_reward")),
    ("Log-probs (nats)", "short", ("alignment_chosen_logprob_nats", "alignment_rejected_logprob_nats")),
    ("Tokens a second", "short", ("alignment_tokens_per_second",)),
    ("Step time", "s", ("alignment_step_seconds",)),
    ("Gradient norm", "short", ("alignment_gradient_norm",)),
    ("Learning rate", "sci", ("alignment_learning_rate",)),
    ("Step and last checkpoint", "short", ("alignment_step", "alignment_checkpoint_step")),
    ("Rows done", "short", ("alignment_rows", "alignment_rows_planned")),
    ("Reference servers", "short", ("alignment_reference_servers",)),
    ("Peak memory", "bytes", ("alignment_resident_memory_bytes",)),
)
"""Title, Grafana unit, metrics of the trainer (alignment_trainer/metrics.py)."""
OPERATOR_PANELS = (
    ("Jobs by phase", "short", "sum by (phase) (alignment_operator_jobs)", "{{phase}}"),
    (
        "Pass time, 99th percentile",
        "s",
        "histogram_quantile(0.99, sum by (le) (rate(alignment_operator_reconcile_seconds_bucket[5m])))",
        "p99",
    ),
    (
        "Failed passes a second",
        "short",
        'sum(rate(alignment_operator_reconcile_seconds_count{result="error"}[5m]))',
        "errors",
    ),
)
WIDTH, HEIGHT, COLUMNS = 8, 7, 3


def dashboard() -> Json:
    """Grafana's dashboard of DPO jobs and of the operator."""
    shown = [
        (title, unit, [(f'{metric}{{job_name=~"$job"}}', "{{job_name}} {{role}} " + metric) for metric in metrics])
        for title, unit, metrics in PANELS
    ]
    shown += [(title, unit, [(query, legend)]) for title, unit, query, legend in OPERATOR_PANELS]
    return {
        "uid": "alignment-dpo",
        "title": "Alignment: DPO jobs",
        "tags": ["alignment"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasource(), _jobs()]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(shown)],
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
            replicas={"type": "integer", "minimum": 0},
            resources=free,
            nodeSelector=free,
            tolerations={"type": "array", "items": free},
            affinity=free,
            logLevel={"enum": ["DEBUG", "INFO", "WARNING"]},
            crd=_closed(install={"type": "boolean"}),
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


def _panel(number: int, title: str, unit: str, queries: list[tuple[str, str]]) -> Json:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "gridPos": {
            "x": number % COLUMNS * WIDTH,
            "y": number // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(queries)
        ],
    }


def files() -> dict[Path, str]:
    """Every generated file of the chart, and what it must hold."""
    return {
        CHART / "files" / "alignmentjobs.alignment.run.yaml": crd_yaml(),
        CHART / "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        CHART / "dashboards" / "dpo.json": json.dumps(dashboard(), indent=2) + "\n",
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
