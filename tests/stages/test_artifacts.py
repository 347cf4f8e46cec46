"""Artifacts: what is written is read back, the same bytes each time, and all files of a command appear or none."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages import artifacts
from stages.artifacts import KINDS, Metadata, read
from stages.errors import CannotWrite, Mismatch, WrongArtifact
from stages.lineage import check_lineage
from stages.outputs import outputs
from tests.conftest import planted, run_process

SIZES = {"n": 5, "d": 3, "C": 2, "steps": 4}
METADATA = Metadata(
    parameters={"steps": 350, "learning_rate": 1e-3, "solver": "published", "splits": ["val"]},
    inputs={"features": "sha256:0", "head": "sha256:1"},
    class_names=["Kühe", "cows / bulls"],
    attribute_names=["Gras", "sand"],
    notes={"base_head_kept": "false"},
)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool, torch.uint16, torch.complex64]  # fmt: skip


def example(kind: str) -> dict[str, torch.Tensor]:
    """Tensors that fit a kind of artifact."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, column in KINDS[kind].columns.items():
        values = torch.rand([SIZES[size] for size in column.shape], generator=generator)
        kinds = {"float": values, "integer": (2 * values).long(), "boolean": values > 0.5}
        tensors[name] = kinds[column.values]
    return tensors


def write(kind: str, path: Path, tensors: dict[str, torch.Tensor], metadata: Metadata = METADATA) -> Path:
    with outputs() as files:
        files.artifact(kind, path, tensors, metadata)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


# --------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind: str, tmp_path: Path) -> None:
    tensors = example(kind)
    path = write(kind, tmp_path / "a.safetensors", tensors)
    artifact = read(kind, path, attributes=True)
    assert artifact.names == tensors.keys()
    for name, tensor in tensors.items():
        assert artifact[name].dtype == tensor.dtype and torch.equal(artifact[name], tensor)
    assert artifact.sizes == {size: SIZES[size] for column in KINDS[kind].columns.values() for size in column.shape}
    metadata = artifact.metadata
    assert (metadata.kind, metadata.stage) == (kind, KINDS[kind].stage)
    for part in ("parameters", "inputs", "class_names", "attribute_names", "notes"):
        assert getattr(metadata, part) == getattr(METADATA, part)


@pytest.mark.parametrize("kind", KINDS)
def test_optional_tensors_may_be_left_out(kind: str, tmp_path: Path) -> None:
    optional = {name for name, column in KINDS[kind].columns.items() if column.optional}
    tensors = {name: None if name in optional else tensor for name, tensor in example(kind).items()}
    artifact = read(kind, write(kind, tmp_path / "a.safetensors", tensors))
    assert artifact.names == tensors.keys() - optional
    assert all(artifact.get(name) is None for name in optional)


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_reads_what_is_written(kind: str, tmp_path: Path) -> None:
    tensors = example(kind)
    path = write(kind, tmp_path / "a.safetensors", tensors)
    read_by_library = load_file(path)
    assert read_by_library.keys() == tensors.keys()
    assert all(torch.equal(read_by_library[name], tensor) for name, tensor in tensors.items())


def test_metadata_fields(tmp_path: Path) -> None:
    said = metadata_of(write("update", tmp_path / "a.safetensors", example("update")))
    assert (said["schema_version"], said["kind"], said["stage"]) == ("1", "update", "update")
    assert json.loads(said["parameters"]) == METADATA.parameters
    assert json.loads(said["inputs"]) == METADATA.inputs
    assert json.loads(said["class_names"]) == METADATA.class_names
    bare = metadata_of(write("head", tmp_path / "b.safetensors", example("head"), Metadata()))
    assert bare == {"schema_version": "1", "kind": "head", "stage": "extract", "parameters": "{}", "inputs": "{}"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_and_shape_of_a_state_dict(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    tensors = {
        "whole": values,
        "scalar": values[1, 1, 1],
        "empty": values[:, :0],
        "transposed": values.transpose(0, 2),
        "a.b/ü": values[0],
    }
    with outputs() as files:
        files.tensors(tmp_path / "model.safetensors", tensors, Metadata(kind="model"))
    for held in (load_file(tmp_path / "model.safetensors"), artifacts.read_model(tmp_path / "model.safetensors")[0]):
        assert held.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert held[name].dtype == dtype and torch.equal(held[name], tensor)


def test_types_are_mixed_without_gaps(tmp_path: Path) -> None:
    """Odd numbers of bytes do not move what comes after them, and the header is padded to eight bytes."""
    tensors = {str(dtype): torch.arange(3).to(dtype) for dtype in DTYPES}
    with outputs() as files:
        files.tensors(tmp_path / "m.safetensors", tensors, Metadata())
    held = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())
    content = (tmp_path / "m.safetensors").read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    assert header % 8 == 0 and len(content) == 8 + header + sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("floats", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("integers", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_features_of_other_programs(floats: torch.dtype, integers: torch.dtype, own_features: Callable[..., Path]) -> None:
    tensors = planted(samples=20)
    features, labels = tensors["features"].to(floats), tensors["labels"].to(integers)
    artifact = read("features", own_features(features=features, labels=labels, attributes=None))
    assert artifact["features"].dtype == torch.float32 and torch.equal(artifact["features"], features.float())
    assert artifact["labels"].dtype == torch.int64 and torch.equal(artifact["labels"], tensors["labels"])
    assert artifact.metadata == Metadata() and artifact.class_names(2) == ["0", "1"]


def test_tensors_that_no_stage_knows_are_left_alone(own_features: Callable[..., Path]) -> None:
    path = own_features(logits=torch.full((3,), torch.nan))
    assert "logits" not in read("features", path).names


def test_class_names(tmp_path: Path) -> None:
    head = read("head", write("head", tmp_path / "a.safetensors", example("head")))
    assert head.class_names(2) == ["Kühe", "cows / bulls"]
    assert head.class_names(3) == ["0", "1", "2"], "too few names are none"


# ------------------------------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("kind", KINDS)
def test_two_writes_are_byte_identical(kind: str, tmp_path: Path) -> None:
    tensors = example(kind)
    backwards = dict(reversed(tensors.items()))
    first, second = write(kind, tmp_path / "a", tensors), write(kind, tmp_path / "b", backwards)
    assert first.read_bytes() == second.read_bytes()


def test_two_processes_write_the_same_bytes(own_features: Callable[..., Path], tmp_path: Path) -> None:
    own_features("val")
    for seed in ("1", "2"):
        command = ("nsf", "identify", "--features", "val.safetensors", "--out", f"{seed}.safetensors")
        run_process(*command, cwd=tmp_path, check=True, PYTHONHASHSEED=seed)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 0, 4)])
def test_streamed_rows_equal_the_direct_write(sizes: tuple[int, ...], tmp_path: Path) -> None:
    tensors = example("features")
    columns = {name: tensor for name, tensor in tensors.items() if name != "features"}
    with outputs() as files:
        writer = files.features(tmp_path / "streamed", SIZES["n"], SIZES["d"], list(columns), METADATA)
        for rows in tensors["features"].split(list(sizes)):
            writer.rows(rows)
        writer.finish(columns)
    assert (tmp_path / "streamed").read_bytes() == write("features", tmp_path / "direct", tensors).read_bytes()


@pytest.mark.parametrize("rows", [0, 4, 6])
def test_rows_that_are_too_few_or_too_many(rows: int, tmp_path: Path) -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=f"{rows} of 5 rows"), outputs() as files:
        writer = files.features(tmp_path / "a.safetensors", 5, 3, ["labels"], METADATA)
        writer.rows(torch.zeros(rows, 3))
        writer.finish({"labels": labels})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("note", ["", "x" * 500])
@pytest.mark.parametrize("rows", [5, 3])
def test_features_move_where_the_header_turns_out_another(
    note: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Toward the front where samples were skipped, toward the back where notes came; a few bytes at a time."""
    monkeypatch.setattr("stages.tensorfile.COPY_BYTES", 7)
    tensors = {name: tensor[:rows] for name, tensor in example("features").items()}
    columns = {name: tensor for name, tensor in tensors.items() if name != "features"}
    with outputs() as files:
        writer = files.features(tmp_path / "moved", 5, SIZES["d"], list(columns), METADATA)
        writer.rows(tensors["features"])
        writer.finish(columns, {"skipped": note})
    direct = write("features", tmp_path / "direct", tensors, replace(METADATA, notes={**METADATA.notes, "skipped": note}))
    assert (tmp_path / "moved").read_bytes() == direct.read_bytes()


@pytest.mark.parametrize("by_kernel", [True, False])
def test_rows_copied_from_a_file_that_is_cut_short(by_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is copied in pieces; what is not is told, where it would otherwise be waited for for ever."""
    monkeypatch.setattr("stages.tensorfile.COPY_BYTES", 10)
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    values = torch.arange(12.0).view(4, 3)
    (tmp_path / "part").write_bytes(b"head" + values.numpy().tobytes())
    with outputs() as files, (tmp_path / "part").open("rb") as part:
        writer = files.features(tmp_path / "whole.safetensors", 4, 3, ["labels"], METADATA)
        writer.copy(part, 4, 4)
        writer.finish({"labels": torch.zeros(4, dtype=torch.int64)})
    assert torch.equal(load_file(tmp_path / "whole.safetensors")["features"], values)
    words = r"part: the outputs cannot be written \(is cut short\)"
    with pytest.raises(CannotWrite, match=words), outputs() as files, (tmp_path / "part").open("rb") as part:
        files.features(tmp_path / "more.safetensors", 5, 3, ["labels"], METADATA).copy(part, 4, 5)
    assert not (tmp_path / "more.safetensors").exists()


# --------------------------------------------------------------------------------------------------- fingerprints


def features_fingerprint(path: Path, **tensors: torch.Tensor) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return read("features", path).fingerprint


def test_a_fingerprint_covers_features_and_labels_alone(tmp_path: Path) -> None:
    """Group labels must not reach the lineage of any stage."""
    tensors, path = planted(samples=20), tmp_path / "a.safetensors"
    features, labels, attributes = tensors["features"], tensors["labels"], tensors["attributes"]
    bare = features_fingerprint(path, features=features, labels=labels)
    assert bare.startswith("sha256:") and len(bare) == len("sha256:") + 64
    assert features_fingerprint(path, **tensors) == bare
    assert features_fingerprint(path, **{**tensors, "attributes": 1 - attributes, "ids": torch.arange(20)}) == bare
    assert features_fingerprint(path, features=features.double(), labels=labels.int()) == bare, "the same numbers"
    assert read("features", write("features", path, tensors)).fingerprint == bare, "metadata are not covered"


def test_a_fingerprint_covers_names_types_and_shapes() -> None:
    """The same bytes each time."""
    bits = torch.arange(6, dtype=torch.int32)
    variants = [{"a": bits}, {"b": bits}, {"a": bits.view(2, 3)}, {"a": bits.view(torch.float32)}]
    assert len({artifacts.fingerprint(tensors) for tensors in variants}) == len(variants)
    assert artifacts.fingerprint({"a": bits, "b": bits}) == artifacts.fingerprint({"b": bits, "a": bits})


def test_a_fingerprint_changes_with_any_value(tmp_path: Path) -> None:
    tensors, path = planted(samples=20), tmp_path / "a.safetensors"
    features, labels = tensors["features"], tensors["labels"]
    seen = {features_fingerprint(path, features=features, labels=labels)}
    for row, column in ((0, 0), (7, 3), (19, 7)):
        other = features.clone()
        other[row, column] = torch.nextafter(other[row, column], torch.tensor(9.0))
        seen.add(features_fingerprint(path, features=other, labels=labels))
    for row in (0, 19):
        other = labels.clone()
        other[row] = 1 - other[row]
        seen.add(features_fingerprint(path, features=features, labels=other))
    seen.add(features_fingerprint(path, features=features.reshape(40, 4)[:20].contiguous(), labels=labels))
    seen.add(features_fingerprint(path, features=features.flip(0), labels=labels))
    assert len(seen) == 8


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "features"])
def test_every_tensor_of_another_artifact_counts(kind: str, tmp_path: Path) -> None:
    tensors, path = example(kind), tmp_path / "a.safetensors"
    before = read(kind, write(kind, path, tensors)).fingerprint
    for name, tensor in tensors.items():
        flipped = ~tensor if tensor.dtype == torch.bool else 1 - tensor
        assert read(kind, write(kind, path, {**tensors, name: flipped})).fingerprint != before, name


# --------------------------------------------------------------------------------------------- metadata as read


def with_metadata(path: Path, **said: str) -> Path:
    save_file(example("head"), path, metadata=said)
    return path


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "a.safetensors", schema_version="2")
    with pytest.raises(WrongArtifact) as caught:
        read("head", path)
    assert str(caught.value) == (
        f"{path}: has schema version 2, and this nsf reads version 1; "
        "install the nsf that wrote it, or make the artifact again."
    )


def test_metadata_of_another_program_are_no_lineage(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "a.safetensors", format="pt", inputs="three", class_names="cows, bulls", kind="identify")
    assert read("head", path).metadata == Metadata()
    assert not artifacts.written_by_nsf(path)
    assert artifacts.written_by_nsf(write("head", path, example("head")))
    path.write_text("text")
    assert not artifacts.written_by_nsf(path) and not artifacts.written_by_nsf(tmp_path / "missing")


@pytest.mark.parametrize("part", ["parameters", "inputs", "class_names", "attribute_names"])
@pytest.mark.parametrize(
    "text",
    ["{", "", "3"],
)
def test_damaged_metadata(part: str, text: str, tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "a.safetensors", schema_version="1", **{part: text})
    with pytest.raises(WrongArtifact, match=rf"damaged metadata \('{part}'\); make the artifact again"):
        read("head", path)


def test_lineage_is_checked_where_it_is_recorded(tmp_path: Path) -> None:
    head = read("head", write("head", tmp_path / "head", example("head")))

    def made_from(**inputs: str) -> artifacts.Artifact:
        return read("update", write("update", tmp_path / "update", example("update"), Metadata(inputs=inputs)))

    check_lineage(made_from(head=head.fingerprint), head=head)
    check_lineage(made_from(), head=head)
    check_lineage(made_from(head="sha256:0"), head=None)
    with pytest.raises(Mismatch, match=r"was made from other head than .*head holds; run `nsf update` again"):
        check_lineage(made_from(head="sha256:0"), head=head)


def test_a_model_is_told_from_other_files(tmp_path: Path) -> None:
    for path in (with_metadata(tmp_path / "a"), write("head", tmp_path / "b", example("head"))):
        with pytest.raises(WrongArtifact, match="`nsf train` makes it"):
            artifacts.read_model(path)
