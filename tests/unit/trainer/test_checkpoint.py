import json
from pathlib import Path

import pytest

from alignment_trainer.checkpoint.checkpoint import (
    DamagedCheckpointError,
    checkpoint_folder,
    list_checkpoints,
    newest_verified,
    prune,
    start_checkpoint,
    verify,
    write_checkpoint,
    write_parts,
)
from alignment_trainer.data.drafts import TextDraft


def checkpoint(checkpoints: Path, step: int) -> Path:
    folder = checkpoint_folder(checkpoints, term=1, step=step)
    start_checkpoint(folder)
    drafts = [TextDraft(name, f"{name} of step {step}" * 1000) for name in ("a.safetensors", "b.safetensors")]
    write_checkpoint(folder, 1, step, write_parts(folder, drafts))
    return folder


def test_a_checkpoint_stands_under_its_term_and_step_and_verifies(tmp_path):
    folder = checkpoint(tmp_path, 20)
    assert folder == tmp_path / "0001" / "00000020"
    assert (verify(folder).term, verify(folder).step) == (1, 20)
    assert [part.name for part in verify(folder).parts] == ["a.safetensors", "b.safetensors"]


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path):
    folder = checkpoint(tmp_path, 10)
    start_checkpoint(tmp_path / "0001" / "00000020")
    assert list_checkpoints(tmp_path / "0001") == [folder]


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "b.safetensors").read_bytes())
    data[123] ^= 1
    (folder / "b.safetensors").write_bytes(data)


def truncate(folder: Path) -> None:
    with (folder / "b.safetensors").open("r+b") as file:
        file.truncate(100)


def remove(folder: Path) -> None:
    (folder / "b.safetensors").unlink()


def tear_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def forget_a_field(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["parts"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = [flip_a_bit, truncate, remove, tear_manifest, forget_a_field]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    checkpoint(tmp_path, 10)
    damage(checkpoint(tmp_path, 20))
    found = newest_verified(list_checkpoints(tmp_path / "0001"))
    assert found is not None
    assert found.step == 10
    assert "00000020" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_when_every_checkpoint_is_damaged_nothing_starts_afresh(tmp_path, damage):
    for step in (10, 20):
        damage(checkpoint(tmp_path, step))
    with pytest.raises(DamagedCheckpointError, match="every checkpoint is damaged"):
        newest_verified(list_checkpoints(tmp_path / "0001"))


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path):
    assert newest_verified(list_checkpoints(tmp_path / "0001")) is None


def test_a_missing_part_is_named(tmp_path):
    folder = checkpoint(tmp_path, 10)
    remove(folder)
    with pytest.raises(DamagedCheckpointError, match=r"b\.safetensors is missing"):
        verify(folder)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint(tmp_path, step)
    prune(tmp_path / "0001", keep=2)
    assert [folder.name for folder in list_checkpoints(tmp_path / "0001")] == ["00000040", "00000030"]
    assert sorted(path.name for path in (tmp_path / "0001").iterdir()) == ["00000030", "00000040"]


def test_leftovers_of_an_interrupted_checkpoint_do_not_enter_the_next(tmp_path):
    folder = checkpoint_folder(tmp_path, 1, 10)
    start_checkpoint(folder)
    (folder / "state-00001-of-00002.safetensors").write_bytes(b"half")
    start_checkpoint(folder)
    assert list(folder.iterdir()) == []
