"""A path inside a volume stays there, whatever links somebody has put into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.test_ownership import context_of

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.paths import check_paths

SPEC = read_manifest("""
apiVersion: alignment.run/v1alpha1
kind: AlignmentJob
metadata: {name: links}
spec:
  model: {source: pvc://models/base}
  data: {source: pvc://data/pairs.jsonl}
  algorithm: {dpo: {}}
""").spec


def check(root: Path, **fields: Any) -> None:
    sources = {"pvc://models/base": f"{root}/models/base", "pvc://data/pairs.jsonl": f"{root}/data/pairs.jsonl"}
    context = context_of("a", root / "work" / "a", root / "work" / "out", sources=sources, volumes=str(root))
    check_paths(context.model_copy(update=fields), SPEC)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    for claim in ("models", "data", "work"):
        (tmp_path / "volumes" / claim).mkdir(parents=True)
    return tmp_path / "volumes"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("models/base", "spec.model.source"),
        ("data/pairs.jsonl", "spec.data.source"),
        ("work/a", "spec.storage.source"),
        ("work/out", "spec.output.destination"),
    ],
)
def test_a_link_out_of_a_volume_is_refused_by_its_field(path: str, field: str, volumes: Path, tmp_path: Path) -> None:
    (volumes / path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{field}: {volumes}/{path} leads by a symbolic link to {tmp_path}/elsewhere"):
        check(volumes)


def test_a_link_into_another_volume_is_refused_also_on_the_way(volumes: Path) -> None:
    (volumes / "work" / "mine").symlink_to("../data")
    with pytest.raises(UserError, match=r"spec\.output\.destination.*out of its volume"):
        check(volumes, output=f"{volumes}/work/mine/new/folder")


def test_links_that_stay_in_their_volume_are_followed(volumes: Path) -> None:
    (volumes / "models" / "snapshots").mkdir()
    (volumes / "models" / "base").symlink_to("snapshots")
    check(volumes)


def test_a_laptop_has_no_volumes_to_leave(volumes: Path, tmp_path: Path) -> None:
    (volumes / "work" / "a").symlink_to(tmp_path)
    check(volumes, volumes=None)


@pytest.mark.parametrize(
    ("link", "field"),
    [
        ("models/base/model.safetensors", "spec.model.source"),
        ("models/base/extra/tokenizer.json", "spec.model.source"),
        ("data/pairs.jsonl/more/train.jsonl", "spec.data.source"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_link_out_of_a_volume_below_what_is_read_is_refused(
    link: str, field: str, there: bool, volumes: Path, tmp_path: Path
) -> None:
    if there:
        (tmp_path / "token").write_text("secret")
    (volumes / link).parent.mkdir(parents=True)
    (volumes / link).symlink_to(tmp_path / "token")
    with pytest.raises(UserError, match=f"{field}: {volumes}/{link} leads by a symbolic link to {tmp_path}/token"):
        check(volumes)


def test_a_folder_behind_a_link_is_looked_at_too_and_a_circle_has_an_end(volumes: Path, tmp_path: Path) -> None:
    code, base = volumes / "models" / "code", volumes / "models" / "base"
    code.mkdir()
    base.mkdir()
    (base / "judges").symlink_to("../code")
    (code / "again").symlink_to("../base")
    check(volumes)
    (code / "judge.py").symlink_to(tmp_path / "token")
    with pytest.raises(UserError, match=f"{base}/judges/judge.py leads by a symbolic link to {tmp_path}/token"):
        check(volumes)


def test_a_snapshot_of_a_hubs_cache_is_links_to_its_blobs_and_stays(volumes: Path) -> None:
    snapshot, blobs = volumes / "models" / "snapshots" / "1", volumes / "models" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "ab12").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/ab12")
    (volumes / "models" / "base").symlink_to("snapshots/1")
    check(volumes)
