import json
from pathlib import Path

import pytest

from alignment_trainer.checkpoint.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_name,
    list_checkpoints,
    newest_verified,
    prune,
    verify,
    write_checkpoint,
    write_parts,
)
from alignment_trainer.data.drafts import TextDraft
from alignment_trainer.data.storage import Folder


def checkpoint(checkpoints: Path, step: int) -> Path:
    place = Folder(checkpoints).within(checkpoint_name(term=1, step=step))
    drafts = [TextDraft(name, f"{name} of step {step}" * 1000) for name in ("a.safetensors", "b.safetensors")]
    return write_checkpoint(place, 1, step, write_parts(place, drafts)).here()


def test_a_checkpoint_stands_under_its_term_and_step_and_verifies(tmp_path):
    folder = checkpoint(tmp_path, 20)
    assert folder == tmp_path / "0001" / "00000020"
    assert (verify(Folder(folder)).term, verify(Folder(folder)).step) == (1, 20)
    assert [part.name for part in verify(Folder(folder)).parts] == ["a.safetensors", "b.safetensors"]


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path):
    checkpoint(tmp_path, 10)
    write_parts(Folder(tmp_path / "0001" / "00000020"), [TextDraft("a.safetensors", "a")])
    assert list_checkpoints(Folder(tmp_path / "0001")) == ["00000010"]


def newest(checkpoints: Path) -> Checkpoint | None:
    term = Folder(checkpoints / "0001")
    return newest_verified(map(term.within, list_checkpoints(term)))


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
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert "00000020" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_when_every_checkpoint_is_damaged_nothing_starts_afresh(tmp_path, damage):
    for step in (10, 20):
        damage(checkpoint(tmp_path, step))
    with pytest.raises(DamagedCheckpointError, match="every checkpoint is damaged"):
        newest(tmp_path)


def test_whichever_bit_of_a_manifest_flips_it_is_refused_by_name(tmp_path):
    """Also one of the step or the term, which no checksum covers."""
    folder = checkpoint(tmp_path, 20)
    sealed = (folder / "manifest.json").read_bytes()
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / "manifest.json").write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError, match="0001/00000020"):
            verify(Folder(folder))


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path):
    assert newest(tmp_path) is None


def test_a_missing_part_is_named(tmp_path):
    folder = checkpoint(tmp_path, 10)
    remove(folder)
    with pytest.raises(DamagedCheckpointError, match=r"b\.safetensors is missing"):
        verify(Folder(folder))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint(tmp_path, step)
    prune(Folder(tmp_path / "0001"), keep=2)
    assert list_checkpoints(Folder(tmp_path / "0001")) == ["00000040", "00000030"]
    assert sorted(path.name for path in (tmp_path / "0001").iterdir()) == ["00000030", "00000040"]
