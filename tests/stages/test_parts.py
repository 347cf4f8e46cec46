"""extract in parts: killed at any moment it goes on where it was and ends with the same bytes; shards; processes."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from stages import artifacts, encoding, extract, models, parts
from stages.artifacts import Metadata
from stages.data import open_split
from stages.errors import BadData, BadValues, CannotWrite
from stages.outputs import outputs
from stages.rows import Rows
from stages.runtime import reproducible
from stages.tensorfile import RowWriter
from tests.conftest import REPOSITORY, Done, leftovers, photos, run_process

SPEC = {"source": "torchvision", "architecture": "resnet18", "weights": None, "image_size": [24, 24]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("trained"), seed=0)


def save_model(folder: Path, seed: int) -> Path:
    with reproducible(seed), outputs() as files:
        models.save(files, folder, models.build(**SPEC, classes=2), ["cold", "warm"], Metadata())
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """18 photos, in segments of 4: batches of two."""
    return photos(tmp_path / "photos", {"train": 1, "val": 9, "test": 3}, size=24)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extract.SEGMENT, "cpu", 4)


def run(folder: Path, images: Path, model: Path, **options: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"splits": ["val"], "batch_size": 2, "device": "cpu", **options}
    data = chosen.pop("data", {"format": "folder", "root": str(images)})
    paths = {"out": folder / "features", "head_out": folder / "head.safetensors"}
    return extract.run(data=data, model=model, **paths, **chosen)


class Killed(BaseException):
    """What ends a run in the middle, and is caught nowhere."""


@pytest.fixture
def interrupted(trained: Path, images: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder in which a run ended after so many samples."""

    def make(name: str = "out", after: int = 10, **options: Any) -> Path:
        def stop(what: str, done: int, total: int) -> None:
            if done > after:
                raise Killed

        with pytest.raises(Killed):
            run(tmp_path / name, images, trained, progress=stop, **options)
        return tmp_path / name

    return make


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of each batch that is computed, from here on."""
    counted: list[int] = []
    encoded = extract.encoded

    def count(*args: Any, **options: Any) -> Any:
        for features, positions in encoded(*args, **options):
            counted.append(len(positions))
            yield features, positions

    monkeypatch.setattr(extract, "encoded", count)
    return counted


def finished(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "features/.val.parts").glob("*.safetensors"))


def visible(folder: Path) -> list[str]:
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_goes_on_where_it_was(
    workers: int, interrupted: Callable[..., Path], images: Path, trained: Path, tmp_path: Path, forwards: list[int]
) -> None:
    run(tmp_path / "whole", images, trained)
    out = interrupted(workers=workers)
    assert visible(out) == [] and finished(out) == ["00000.safetensors", "00001.safetensors"]
    assert leftovers(out) == [] and not (out / "features/.val.parts/.lock").exists()
    manifest = json.loads((out / "features/.val.parts/manifest.json").read_text())
    assert (manifest["finished"], manifest["segments"], manifest["segment_samples"]) == (2, 5, 4)
    assert manifest["made_from"]["batch_size"] == 2 and manifest["made_from"]["model"].startswith("sha256:")

    forwards.clear()
    seen: list[tuple[str, int, int]] = []
    summary = run(out, images, trained, workers=workers, progress=lambda *args: seen.append(args))
    assert sum(forwards) == 10 and summary["resumed"] == {"val": 8} and summary["samples"] == {"val": 18}
    assert seen[0] == ("extract val", 10, 18) and seen[-1] == ("extract val", 18, 18)
    assert {path.name for path in (out / "features").iterdir()} == {"val.safetensors"}
    for name in ("features/val.safetensors", "head.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


CHANGES = {
    "nothing": 10,
    "batch_size": 18,
    "dtype": 18,
    "precision": 18,
    "model": 18,
    "a file": 14,
    "a file of equal size": 14,
    "the order": 14,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_part_was_made_from(
    change: str, interrupted: Callable[..., Path], images: Path, trained: Path, tmp_path: Path, forwards: list[int]
) -> None:
    """Two segments are finished: those whose samples, model or parameters have changed since are made again."""
    rows = [f"val/{name}/{i:02}.png,{name},val" for name in ("cold", "warm") for i in range(9)]
    table = tmp_path / "all.csv"
    table.write_text("\n".join(["path,label,split", *rows]) + "\n")
    data = {"format": "csv", "file": str(table), "root": str(images)}
    out = interrupted(data=data)
    options: dict[str, Any] = {}
    if change == "batch_size":
        options["batch_size"] = 4
    elif change == "dtype":
        options["dtype"] = "bfloat16"
    elif change == "precision":
        options["precision"] = "bfloat16"
    elif change == "model":
        trained = save_model(tmp_path / "other", seed=1)
    elif change == "a file":
        Image.new("RGB", (24, 24), "red").save(images / "val/cold/01.png")
    elif change == "a file of equal size":
        path = images / "val/cold/01.png"
        size = path.stat().st_size
        Image.new("RGB", (24, 24), "red").save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        assert path.stat().st_size == size
    elif change == "the order":
        rows[4], rows[5] = rows[5], rows[4]
        table.write_text("\n".join(["path,label,split", *rows]) + "\n")
    forwards.clear()
    run(out, images, trained, data=data, **options)
    assert sum(forwards) == CHANGES[change]
    run(tmp_path / "whole", images, trained, data=data, **options)
    name = "features/val.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_labels_are_the_datas_and_never_the_parts(
    interrupted: Callable[..., Path], images: Path, trained: Path, tmp_path: Path, forwards: list[int]
) -> None:
    rows = [f"val/{name}/{i:02}.png,{name},val" for name in ("cold", "warm") for i in range(9)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    data = {"format": "csv", "file": str(tmp_path / "all.csv"), "root": str(images)}
    out = interrupted(data=data)
    rows[0] = rows[0].replace("cold,val", "warm,val")
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    forwards.clear()
    run(out, images, trained, data=data)
    assert sum(forwards) == 10
    assert artifacts.read("features", out / "features/val.safetensors")["labels"].tolist() == [1, *[0] * 8, *[1] * 9]


def test_a_sample_without_a_file_is_known_by_its_content() -> None:
    data = {"format": "dominoes", "root": str(REPOSITORY / "data/dominoes"), "train_size": 20, "val_size": 20}
    split, other = open_split("val", **data), open_split("val", **data, seed=1)
    assert parts._origin(split, 0) == parts._origin(split, 0) != parts._origin(split, 1)
    assert any(parts._origin(split, position) != parts._origin(other, position) for position in range(20))


@pytest.mark.parametrize("damage", ["cut short", "too long", "not ours", "empty"])
def test_a_damaged_part_is_made_again(
    damage: str, interrupted: Callable[..., Path], images: Path, trained: Path, forwards: list[int]
) -> None:
    out = interrupted()
    part = out / "features/.val.parts/00001.safetensors"
    content = part.read_bytes()
    part.write_bytes(
        {"cut short": content[:-8], "too long": content + b"more", "not ours": b"x" * 100, "empty": b""}[damage]
    )
    forwards.clear()
    assert run(out, images, trained)["resumed"] == {"val": 4} and sum(forwards) == 14


def test_skipped_samples_across_a_resumption(
    interrupted: Callable[..., Path], images: Path, trained: Path, tmp_path: Path
) -> None:
    """One is missing in a finished segment, a whole segment in the middle, one at the end."""
    paths = sorted((images / "val").rglob("*.png"))
    gone = (2, 8, 9, 10, 11, 17)
    for position in gone:
        paths[position].write_bytes(f"not an image, {position}".encode())
    data = {"format": "folder", "root": str(images), "on_error": "skip"}
    whole = run(tmp_path / "whole", images, trained, data=data)
    out = interrupted(after=7, data=data)
    assert "00000.safetensors" in finished(out)
    summary = run(out, images, trained, data=data)
    assert summary["skipped"] == whole["skipped"] == {"val": 6} and summary["samples"] == {"val": 12}
    assert summary["first_skipped"] == whole["first_skipped"] and str(paths[2]) in whole["first_skipped"]
    name = "features/val.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    held = artifacts.read("features", out / name)
    assert held["ids"].tolist() == [position for position in range(18) if position not in gone]
    assert held.metadata.notes["skipped"] == "6"


def test_what_one_run_skipped_another_need_not(interrupted: Callable[..., Path], images: Path, trained: Path) -> None:
    """A run that is to stop at a sample that cannot be read does not take a part that lacks one."""
    (images / "val/cold/01.png").write_bytes(b"not an image")
    data = {"format": "folder", "root": str(images)}
    out = interrupted(data={**data, "on_error": "skip"})
    assert "00000.safetensors" in finished(out)
    with pytest.raises(BadData, match=r"01\.png: cannot be read as an image"):
        run(out, images, trained, data=data)


class Plain:
    """An object that repr tells nothing of."""

    def __init__(self, held: Any):
        self.held = held


def test_settings_within_settings_are_told_apart() -> None:
    def closure(value: Any) -> Callable[[], Any]:
        return lambda: value

    different = [
        Plain(Plain(1)), Plain(Plain(2)), Plain([Plain(1)]), Plain({"a": Plain(1)}), Plain({"b": Plain(1)}), Plain((1, 2)),
        closure(1), closure(2), closure(Plain(1)), closure(Plain(2)), partial(closure, Plain(1)), partial(closure, Plain(2)),
        Plain(torch.arange(3000)), Plain(torch.arange(3000).index_fill(0, torch.tensor(1500), 0)), closure(1).__call__,
        Plain({"x", "y"}), Plain({"x", "z"}),
    ]  # fmt: skip
    said = [parts.described(thing) for thing in different]
    assert len(set(said)) == len(said)
    assert parts.described(Plain(Plain(1))) == said[0] and "0x" not in "".join(said)
    around = Plain(None)
    around.held = around
    assert parts.described(around)
    assert parts.code(Plain(Plain(1))) == parts.code(Plain(1)) != parts.code(Plain(Rows([torch.ones(1, 1)])))


def test_code_goes_on_into_the_modules_that_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transform's helpers lie in other files of the user's; what is installed is told by its version."""
    monkeypatch.syspath_prepend(tmp_path)
    texts = {
        "nsf_test_mine": "import json\nfrom nsf_test_steps.first import scaled\ndef transform(x): return scaled(x)\n",
        "nsf_test_steps/__init__": "",
        "nsf_test_steps/first": "from . import second\ndef scaled(image): return second.FACTOR * image\n",
        # Nobody has imported what a function imports, before it runs.
        "nsf_test_steps/second": "FACTOR = 1\ndef late():\n    import nsf_test_late.deep, numpy, nsf_test_gone\n",
        "nsf_test_late/__init__": "",
        "nsf_test_late/deep": "def later():\n    from ...beyond import top\n    from . import deeper\n",
        "nsf_test_late/deeper": "this is no Python, and its bytes count all the same",
        "nsf_test_other": "",
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    mine, _ = import_module("nsf_test_mine"), import_module("nsf_test_other")
    whole = parts.code(Plain(mine.transform))
    for name in texts:
        path = tmp_path / f"{name}.py"
        path.write_text(f"{texts[name]}# another version\n")
        assert (parts.code(Plain(mine.transform)) == whole) == (name == "nsf_test_other"), name
        path.write_text(texts[name])
    assert parts.code(Plain(mine.transform)) == whole


def test_a_mistake_leaves_finished_parts_and_no_half_artifact(images: Path, trained: Path, tmp_path: Path) -> None:
    broken = images / "val/warm/05.png"
    content = broken.read_bytes()
    broken.write_bytes(b"not an image")
    with pytest.raises(BadData, match=r"warm/05\.png: cannot be read as an image"):
        run(tmp_path / "out", images, trained)
    assert visible(tmp_path / "out") == [] and leftovers(tmp_path) == [] and len(finished(tmp_path / "out")) == 3
    broken.write_bytes(content)
    assert run(tmp_path / "out", images, trained)["resumed"] == {"val": 12}


def test_a_wrong_output_is_told_before_the_work(images: Path, trained: Path, tmp_path: Path, forwards: list[int]) -> None:
    (tmp_path / "file").write_text("no folder")
    paths = {"out": tmp_path / "out/features", "head_out": tmp_path / "file/head.safetensors"}
    data = {"format": "folder", "root": str(images)}
    with pytest.raises(CannotWrite, match="cannot be written"):
        extract.run(data=data, model=trained, splits=["val"], batch_size=2, device="cpu", **paths)
    assert forwards == [] and not (tmp_path / "out").exists()


def test_a_full_disk_makes_no_segment_look_whole(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, written = RowWriter.rows, []

    def fill(self: RowWriter, features: torch.Tensor) -> None:
        written.append(len(features))
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        rows(self, features)

    monkeypatch.setattr(RowWriter, "rows", fill)
    with pytest.raises(CannotWrite, match=r"out/features/\.val\.parts: .*No space left on device"):
        run(tmp_path / "out", images, trained)
    assert finished(tmp_path / "out") == ["00000.safetensors"] and leftovers(tmp_path) == []


def test_a_segment_is_on_the_disk_before_it_has_its_name(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, flushed, named = os.fsync, Path.replace, set(), []

    def flush(file: int) -> None:
        fsync(file)
        flushed.add((os.fstat(file).st_ino, os.fstat(file).st_size))

    def name(path: Path, target: Path) -> Path:
        if target.parent.name == ".val.parts" and target.suffix == ".safetensors":
            named.append((path.stat().st_ino, path.stat().st_size) in flushed)
        return replace(path, target)

    monkeypatch.setattr("os.fsync", flush)
    monkeypatch.setattr(Path, "replace", name)
    run(tmp_path / "out", images, trained)
    assert named == [True] * 5


# ------------------------------------------------------------------------------------------------- two runs into one folder


@pytest.fixture
def other(tmp_path: Path) -> Iterator[int]:
    """Another run into the same folder, with a process of its own that loads for it."""

    def hold(pipe: int) -> None:
        with parts.reserved([tmp_path / "out/features/val.safetensors"]):
            loader = os.fork()
            if loader:
                os.write(pipe, str(loader).encode())
            time.sleep(60)

    pids, pipe = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(pipe,))
    process.start()
    loading = int(os.read(pids, 20))
    yield process.pid
    for each in (process.pid, loading):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.join()
    os.close(pids)
    os.close(pipe)


def test_another_run_into_the_same_folder(
    other: int, images: Path, trained: Path, tmp_path: Path, forwards: list[int]
) -> None:
    """They would mix their rows. One that is killed is in nobody's way, though its loader processes live on for a while."""
    out = tmp_path / "out"
    refused = pytest.raises(CannotWrite, match=r"\.val\.parts: another `nsf extract` is writing here; wait for its end, or")
    with refused:
        run(out, images, trained)
    assert forwards == [] and [path.name for path in out.rglob("*")] == ["features", ".val.parts", ".lock"]
    assert run(tmp_path / "elsewhere", images, trained)["samples"] == {"val": 18}
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    assert run(out, images, trained)["samples"] == {"val": 18}
    assert {path.name for path in (out / "features").iterdir()} == {"val.safetensors"}


def test_a_run_that_ends_just_now(images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its lock's file away with its parts: a lock on that is none."""
    monkeypatch.setattr(fcntl, "lockf", lambda *_: shutil.rmtree(tmp_path / "out/features/.val.parts"))
    with pytest.raises(CannotWrite, match="is writing here"):
        run(tmp_path / "out", images, trained)
    assert not (tmp_path / "out").exists()


def test_a_file_system_without_locks(images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    assert run(tmp_path / "out", images, trained)["samples"] == {"val": 18}
    assert {path.name for path in (tmp_path / "out/features").iterdir()} == {"val.safetensors"}


@pytest.mark.slow
def test_killed_by_the_system(trained: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a real process; the same command then ends with the bytes of an undisturbed one."""
    # So many beyond the first part that the kill comes long before the second is done.
    photos(tmp_path / "photos", {"train": 1, "val": 1000}, size=24)
    command = ["nsf", "extract", "--data-format", "folder", "--data-root", "photos", "--splits", "[val]", "--model", trained,
               "--workers", 0, "--batch-size", 16, "--device", "cpu"]  # fmt: skip
    run_process(*command, "--out", "whole", "--head-out", "whole/head.safetensors", cwd=tmp_path, check=True)
    folder = tmp_path / "artifacts/features/.val.parts"
    binary = Path(sys.executable).parent / "nsf"
    process = subprocess.Popen([str(binary), *map(str, command[1:])], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (folder / "00000.safetensors").exists():
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "artifacts/features/val.safetensors").exists()
    done = run_process(*command, "--json", cwd=tmp_path, check=True)
    assert done.json["resumed"]["val"] == 1024
    written = tmp_path / "artifacts/features/val.safetensors"
    assert written.read_bytes() == (tmp_path / "whole/val.safetensors").read_bytes()
    assert not folder.exists() and leftovers(tmp_path) == []


@pytest.mark.slow
def test_processes_share_the_samples(trained: Path, tmp_path: Path) -> None:
    """The same bytes from one process and from two, of which one meets an image that cannot be read."""
    photos(tmp_path / "photos", {"train": 1, "val": 1100, "test": 20}, size=24)
    (tmp_path / "photos/val/warm/500.png").write_bytes(b"not an image")
    options = ["extract", "--data-format", "folder", "--data-root", "photos", "--data-on-error", "skip", "--model", trained,
               "--workers", 0, "--batch-size", 64, "--device", "cpu"]  # fmt: skip
    for processes in (1, 2):
        name = str(processes)
        run_process(
            "torchrun", "--standalone", "--nproc-per-node", processes, "-m", "nsfcli", *options,
            "--out", name, "--head-out", f"{name}/head.safetensors", cwd=tmp_path, check=True, NSF_THREADS="1",
        )  # fmt: skip
    for file in ("val.safetensors", "test.safetensors", "head.safetensors"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == [
        "head.safetensors", "test.safetensors", "val.safetensors"
    ]  # fmt: skip


def test_shards_are_features_files_of_their_own(images: Path, trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", images, trained)
    run(tmp_path / "many", images, trained, shard_samples=7)
    names = [f"val-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    folder = tmp_path / "many/features"
    assert sorted(path.name for path in folder.iterdir()) == [*names, "val.safetensors.index.json"]
    whole = artifacts.read("features", tmp_path / "one/features/val.safetensors")
    shards = [artifacts.read("features", folder / name) for name in names]
    assert [len(shard["labels"]) for shard in shards] == [7, 7, 4]
    for name in ("features", "labels", "ids"):
        assert torch.equal(torch.cat([shard[name] for shard in shards]), whole[name])
    assert all(shard.metadata == whole.metadata for shard in shards)
    index = json.loads((folder / "val.safetensors.index.json").read_text())
    assert index["weight_map"] == {f"features.0000{number}": name for number, name in enumerate(names, start=1)}
    total = index["metadata"].pop("total_size")
    assert total == 18 * (512 * 4 + 8 + 8) and index["metadata"] == whole.metadata.to_strings()
    together = artifacts.read("features", folder / "val.safetensors.index.json")
    assert torch.equal(together["features"], whole["features"]) and together.fingerprint == whole.fingerprint


def test_the_other_form_of_a_split_goes_when_a_new_one_comes(images: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out/features"
    index = "val.safetensors.index.json"
    folder.mkdir(parents=True)
    other = folder / "validation-00001-of-00001.safetensors"
    other.write_bytes(b"somebody else's")
    for shard_samples, expected in (
        (None, ["val.safetensors"]),
        (9, ["val-00001-of-00002.safetensors", "val-00002-of-00002.safetensors", index]),
        (100, ["val-00001-of-00001.safetensors", index]),
        (None, ["val.safetensors"]),
    ):
        run(tmp_path / "out", images, trained, shard_samples=shard_samples)
        assert sorted(path.name for path in folder.iterdir() if path != other) == expected
        assert other.read_bytes() == b"somebody else's"


@pytest.mark.parametrize(("dtype", "code"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_features_are_stored_as_asked(dtype: str, code: str, images: Path, trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "exact", images, trained)
    run(tmp_path / dtype, images, trained, dtype=dtype)
    with safe_open(tmp_path / dtype / "features/val.safetensors", framework="pt") as file:
        assert file.get_slice("features").get_dtype() == code
        held = file.get_tensor("features")
    exact = artifacts.read("features", tmp_path / "exact/features/val.safetensors")["features"]
    assert torch.equal(held, exact.to(held.dtype))


def test_values_beyond_float16(images: Path, tmp_path: Path) -> None:
    model = models.build(**SPEC, classes=2)
    with torch.no_grad():
        model.network.layer4[1].bn2.bias += 1e6
    with outputs() as files:
        models.save(files, tmp_path / "model", model, ["cold", "warm"], Metadata())
    assert run(tmp_path / "out", images, tmp_path / "model")["samples"] == {"val": 18}
    with pytest.raises(BadValues, match=r"values beyond float16, for this sample; .*extract\.dtype: float32"):
        run(tmp_path / "out", images, tmp_path / "model", dtype="float16")


def test_on_the_command_line(images: Path, trained: Path, nsf: Callable[..., Done], tmp_path: Path) -> None:
    options = ["extract", "--data-format", "folder", "--data-root", images, "--model", trained, "--splits", "[val]"]
    done = nsf(*options, "--shard-samples", 10, "--dtype", "float16", "--workers", 0, "--json")
    assert done.code == 0, done.stderr
    assert len(list((tmp_path / "artifacts/features").glob("val-*-of-00002.safetensors"))) == 2


def test_going_on_is_said(
    interrupted: Callable[..., Path], images: Path, trained: Path, nsf: Callable[..., Done], tmp_path: Path
) -> None:
    interrupted("artifacts")
    done = nsf("extract", "--data-format", "folder", "--data-root", images, "--model", trained, "--splits", "[val]",
               "--workers", 0, "--batch-size", 2, "--device", "cpu")  # fmt: skip
    assert done.code == 0 and "8 of 18 samples were done by a run that was cut off" in done.stderr


def test_large_images_are_arranged_as_convolutions_like_them(tmp_path: Path) -> None:
    """Channels last changes where numbers lie and not which; a network that cannot take it is left as it is."""
    from torch import nn

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 7, 150), nn.Linear(4 * 2 * 2, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            made = self.convolution(images)
            return self.head(made.view(len(images), 4 * 2 * 2))

    batch = torch.randn(3, 3, 200, 200)
    for network, last in ((models.build(**SPEC, classes=2).network, True), (Viewing(), False)):
        classifier = models.Classifier(network, shutil.copy, {"name": "x"})
        encode, _, _ = models.split(classifier, batch)
        with torch.no_grad():
            expected = encode(batch)
            arranged = encoding._channels_last(network, encode, batch)
            assert (arranged is not encode) == last
            torch.testing.assert_close(arranged(batch), expected, rtol=1e-4, atol=1e-5)
            assert encoding._channels_last(network, encode, batch[:, :, :100]) is encode, "on CPUs small images do not gain"
