"""Outputs: all files of a command appear together, or none, whatever stops it."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from stages.artifacts import Metadata, read
from stages.errors import BadValues, CannotWrite
from stages.outputs import named_in, outputs
from tests.conftest import leftovers

HEAD = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def test_files_appear_together_at_the_end(tmp_path: Path) -> None:
    first, second = tmp_path / "new/folder/a.safetensors", tmp_path / "b.csv"
    with outputs() as files:
        files.artifact("head", first, HEAD, Metadata())
        files.text(second, "step,loss\nµ\n")
        assert not first.exists() and not second.exists()
        assert len(leftovers(tmp_path)) == 2
    assert read("head", first)["bias"].shape == (2,)
    assert second.read_bytes() == "step,loss\nµ\n".encode()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("failure", [RuntimeError("bug"), CannotWrite("no"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_no_file_appears_when_the_block_raises(failure: BaseException, tmp_path: Path) -> None:
    existing, new = tmp_path / "existing.safetensors", tmp_path / "new.csv"
    existing.write_bytes(b"yesterday's")
    with pytest.raises(type(failure)) as caught, outputs() as files:
        files.artifact("head", existing, HEAD, Metadata())
        files.text(new, "step,loss\n")
        raise failure
    assert caught.value is failure
    assert existing.read_bytes() == b"yesterday's"
    assert list(tmp_path.iterdir()) == [existing]


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotWrite, match=r"a\.csv: .*No space left on device\)\.$"), outputs() as files:
        files.text(tmp_path / "a.csv", "step,loss\n")
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("input")
    with pytest.raises(CannotWrite, match="is an input of this command"), outputs(None, tmp_path / "a") as files:
        files.text(tmp_path / "b", "first")
        files.text(tmp_path / "." / "a", "second")
    assert (tmp_path / "a").read_text() == "input" and not (tmp_path / "b").exists()


@pytest.mark.parametrize("given", ["val.safetensors", "val.safetensors.index.json"])
@pytest.mark.parametrize("output", ["val-2.safetensors", "val.safetensors.index.json"])
def test_a_shard_of_an_input_is_no_output(given: str, output: str, tmp_path: Path) -> None:
    for name in ("val-1.safetensors", "val-2.safetensors"):
        (tmp_path / name).write_text("shard")
    index = {"weight_map": {"a": "val-1.safetensors", "b": "val-2.safetensors"}}
    (tmp_path / "val.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CannotWrite, match="is an input of this command"), outputs(tmp_path / given) as files:
        files.check(tmp_path / output)


def test_a_rename_that_fails_undoes_those_before_it(tmp_path: Path) -> None:
    """A folder that comes up where the second file should, say."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("yesterday's")
    with pytest.raises(CannotWrite), outputs() as files:
        files.text(first, "today's")
        files.text(second, "today's")
        second.mkdir()
    assert first.read_text() == "yesterday's"


@pytest.mark.parametrize("fails", [False, True])
def test_without_hard_links(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems know none: the old file is renamed, and comes back where a later output fails."""

    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    (tmp_path / "first").write_text("old")
    (tmp_path / "second").mkdir()
    with pytest.raises(CannotWrite) if fails else nullcontext(), outputs() as files:
        files.text(tmp_path / "first", "new")
        files.text(tmp_path / "second/file", "new")
        if fails:
            (tmp_path / "second/file").mkdir()
    assert (tmp_path / "first").read_text() == ("old" if fails else "new")
    assert leftovers(tmp_path) == []


def test_stopped_when_all_new_files_are_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal, say: the old ones' second names go, too."""
    unlink = Path.unlink

    def stop(path: Path, **options: bool) -> None:
        if path.name.endswith(".old.tmp") and not options:
            raise SystemExit(143)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", stop)
    for name in "ab":
        (tmp_path / name).write_text("old")
    with pytest.raises(SystemExit), outputs() as files:
        for name in "ab":
            files.text(tmp_path / name, "new")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "new"]
    assert leftovers(tmp_path) == []


def test_two_outputs_of_one_name_are_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="is named for two outputs"), outputs() as files:
        files.check(tmp_path / "a", None, tmp_path / "." / "a")
    assert leftovers(tmp_path) == [] and not (tmp_path / "a").exists()


def test_a_type_that_safetensors_does_not_know(tmp_path: Path) -> None:
    refused = pytest.raises(BadValues, match=r"m: 'w' is of type torch\.complex128, which safetensors does not know")
    with refused, outputs() as files:
        files.tensors(tmp_path / "m", {"w": torch.zeros(2, dtype=torch.complex128)}, Metadata())
    assert leftovers(tmp_path) == []


def test_an_output_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite), outputs() as files:
        files.check(tmp_path / "file/out")
    with outputs() as files:
        files.check(tmp_path / "new/out")
        assert leftovers(tmp_path) == []
        files.text(tmp_path / "new/out", "text")
    assert (tmp_path / "new/out").read_text() == "text"


def test_the_files_that_params_name() -> None:
    """All of them are inputs, which no output may take the place of."""
    data = {"format": "csv", "file": "all.csv", "root": None}
    model = {"source": "callable", "function": "mine:make", "checkpoint": "mine.pt", "weights": "w.pt", "name": "folder"}
    assert set(named_in(data, model)) == {Path("all.csv"), Path("mine.pt"), Path("w.pt"), Path("folder")}
