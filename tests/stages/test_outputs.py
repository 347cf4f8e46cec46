"""Outputs: all files of a command appear together, or none, whatever stops it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import distributed
from stages.artifacts import Metadata, read
from stages.errors import BadValues, CannotWrite
from stages.outputs import Outputs, named_in, outputs
from tests.conftest import REPOSITORY, leftovers

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


def test_what_a_process_has_open_is_no_output(tmp_path: Path) -> None:
    """Were a link such as /dev/stdout replaced, it would be gone for every process."""
    script = (
        "import sys; from pathlib import Path; from stages.outputs import outputs\n"
        "with outputs() as files: files.check(Path(sys.argv[1]))"
    )
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    for path in (tmp_path / "link", "/proc/self/fd/1"):
        with (tmp_path / "printed").open("wb") as printed:
            command = [sys.executable, "-c", script, str(path)]
            done = subprocess.run(command, stdout=printed, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
        assert "is a device or a pipe, and a file is to be written there; name a file" in done.stderr
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "old").write_text("old")
    (tmp_path / "cached").symlink_to("old")
    with outputs() as files:
        files.text(tmp_path / "cached", "new")
    assert not (tmp_path / "cached").is_symlink() and (tmp_path / "old").read_text() == "old"


def test_names_that_are_no_utf8_in_a_file(tmp_path: Path) -> None:
    with outputs() as files:
        files.table(tmp_path / "t.csv", [["caf\udce9.png", "cat"]])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "caf\\udce9.png,cat\n"


def test_an_output_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite), outputs() as files:
        files.check(tmp_path / "file/out")
    with pytest.raises(CannotWrite, match="File name too long"), outputs() as files:
        files.check(tmp_path / ("a" * 250))
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


# ------------------------------------------------------------------------------------------- what stops a commit, and when


def test_a_rename_that_fails_leaves_no_file_that_was_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the new ones before it, and no second name of the old ones."""
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == "third" and not path.name.endswith(".old.tmp"):
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    for name in ("first", "third"):
        (tmp_path / name).write_text("yesterday's")
    with pytest.raises(CannotWrite, match="Input/output error"), outputs() as files:
        for name in ("first", "second", "third"):
            files.text(tmp_path / name, "today's")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(["first", "third"], "yesterday's")


# What one commit does to files, in order: each of these may be the moment of a signal.
CALLS = [(Path, "open"), (Path, "unlink"), (Path, "replace"), (Path, "mkdir"), (os, "link"), (os, "fsync")]


@pytest.mark.parametrize("sent", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=str)
@pytest.mark.parametrize("existing", [False, True])
def test_signals_at_any_moment(existing: bool, sent: list[signal.Signals], tmp_path: Path) -> None:
    """All new or all old, no temporary file, and what an interruption says of it is true."""

    def terminated(number: int, frame: object) -> None:
        raise SystemExit(143)

    def at(moment: int, folder: Path) -> bool:
        """Run a command with signals before and after calls of that number and later; whether there was such a call."""
        left, counted = list(sent), 0

        def watched(call: Callable[..., Any]) -> Callable[..., Any]:
            def stop(when: int) -> None:
                if left and when >= moment:
                    signal.raise_signal(left.pop())

            def wrapper(*given: Any, **options: Any) -> Any:
                nonlocal counted
                counted += 2
                now = counted
                stop(now - 1)
                made = call(*given, **options)
                stop(now)
                return made

            return wrapper

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in CALLS:
                patch.setattr(owner, name, watched(getattr(owner, name)))
            with suppress(KeyboardInterrupt, SystemExit), outputs() as files:
                files.check(folder / "new/b")
                files.text(folder / "a", "new")
                files.text(folder / "new/b", "new")
        return len(left) < len(sent)

    # Where the tests themselves run in a shell's background, an interruption is ignored.
    handlers = {signal.SIGTERM: terminated, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        for moment in range(1, 100):
            folder = tmp_path / str(moment)
            (folder / "new" if existing else folder).mkdir(parents=True)
            old = {folder / "a": "old", folder / "new/b": "old"} if existing else {}
            for path, text in old.items():
                path.write_text(text)
            met = at(moment, folder)
            found = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
            assert found == (dict.fromkeys([folder / "a", folder / "new/b"], "new") if Outputs.written else old), moment
            assert (folder / "new").exists() == (existing or Outputs.written)
            assert signal.getsignal(signal.SIGTERM) is terminated
            if not met:
                break
        assert moment > 20 and Outputs.written
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signals_that_are_ignored_stay_so(tmp_path: Path) -> None:
    """As in the background of a shell, or under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with outputs() as files, distributed.unstopped():
            files.text(tmp_path / "a", "new")
            signal.raise_signal(signal.SIGINT)
        assert (tmp_path / "a").read_text() == "new" and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """Temporary files for the same outputs, of processes that are not there any more; on a shared folder they may yet be."""
    with subprocess.Popen(["true"]) as ended:
        pass
    dead, alive = ended.pid, os.getppid()
    stays = [f".a.{alive}.tmp", f".a.{alive}.old.tmp", f".ab.{dead}.tmp", f"a.{dead}.tmp", ".a.x.tmp", f".a.{dead}.tmp.txt"]
    for name in (f".a.{dead}.tmp", f".a.{dead}.old.tmp", ".a.999999999.tmp", *stays):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    stays.append(".a.999999998.tmp")
    (tmp_path / stays[-1]).write_text("half")
    with outputs() as files:
        files.text(tmp_path / "a", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"a", *stays}
