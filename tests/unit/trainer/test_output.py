"""A model in an output is whole or not there, in a folder and in a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from killed_writers import fill, replace_model, writer_that_stands_still

from alignment_trainer.checkpoint.output import BucketOutput, FolderOutput, Output, output_at
from alignment_trainer.object_store.store import ObjectStore

OLD = {"config.json": "old", "model.safetensors": "old weights", "old.json": "goes"}
NEW = {"config.json": "new", "model-1.safetensors": "one", "templates/config.json": "two"}


@pytest.fixture(params=["folder", "bucket"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    if request.param == "folder":
        return output_at(str(tmp_path / "out"))
    return output_at(f"s3://{request.getfixturevalue('bucket')}/out")


def writing(files: dict[str, str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        fill(folder, files)

    return write


def model_in(output: Output) -> dict[str, str]:
    with output.model() as folder:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def files_in(output: Output) -> set[str]:
    if isinstance(output, BucketOutput):
        return set(output.store.list(""))
    assert isinstance(output, FolderOutput)
    return {path.relative_to(output.root).as_posix() for path in output.root.rglob("*") if path.is_file()}


def test_a_model_replaces_the_one_before_and_the_report_stands_beside_it(output: Output) -> None:
    for files in (OLD, NEW):
        output.replace_model(writing(files))
        output.put_report("{}")
        assert model_in(output) == files
    assert files_in(output) == {"evaluation.json", *(f"model/{name}" for name in NEW)}


def test_a_model_that_is_not_there_is_told_by_its_output(output: Output) -> None:
    with pytest.raises(FileNotFoundError, match=r"/out: no exported model; stage `train` has not finished here"):
        model_in(output)


def test_a_write_that_fails_leaves_the_model_before(output: Output) -> None:
    output.replace_model(writing(OLD))

    def write(folder: Path) -> None:
        writing(NEW)(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        output.replace_model(write)
    assert model_in(output) == OLD


@pytest.mark.parametrize("at", ["nothing", *sorted(NEW, key=lambda name: name == "config.json")])
def test_an_export_to_a_bucket_that_is_killed_leaves_no_half_of_a_model(bucket: str, at: str) -> None:
    """The one before as long as nothing was sent; then none, for a loader looks for the config.json that comes last."""
    output = BucketOutput(ObjectStore.of(f"s3://{bucket}/out", "spec.output.destination"))
    output.replace_model(writing(OLD))
    with writer_that_stands_still(replace_model, str(output), NEW, at):
        pass
    if at == "nothing":
        assert model_in(output) == OLD
    else:
        assert not output.store.holds("model/config.json")
        with pytest.raises(FileNotFoundError):
            model_in(output)
    output.replace_model(writing(NEW))  # the next attempt
    assert files_in(output) == {f"model/{name}" for name in NEW}
