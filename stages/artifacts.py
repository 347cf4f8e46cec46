"""The schema of every artifact, atomic writes, and lineage; `tensorfile` knows the bytes of a file.

An artifact is one safetensors file. Its tensors are fixed by its kind (`KINDS`); its metadata say which stage made it,
with which parameters, from which inputs (by fingerprint). Metadata are optional on reading, so that files from other
frameworks enter, and always written.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages import distributed
from stages.errors import BadValues, CannotWrite, Mismatch, MissingFile, UserError, WrongArtifact
from stages.rows import BLOCK_ROWS, Rows
from stages.runtime import threads
from stages.tensorfile import Layout, RowWriter, tensor_bytes, type_names

if TYPE_CHECKING:
    from torch import Tensor, device, dtype

SCHEMA_VERSION = "1"

# What the index of features in shards ends with: val.safetensors.index.json.
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class Column:
    """One tensor of an artifact: "float", "integer" or "boolean", and its shape in named sizes."""

    values: str
    shape: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of artifact: the stage that makes it, its tensors, and those of them that its fingerprint covers."""

    stage: str
    columns: Mapping[str, Column]
    fingerprinted: tuple[str, ...] | None = None


# Sizes: n samples, d features, C classes. `attributes` stand outside the fingerprint: group labels must not reach the
# lineage of any stage but evaluate.
KINDS: Mapping[str, Kind] = {
    "features": Kind(
        "extract",
        {
            "features": Column("float", ("n", "d")),
            "labels": Column("integer", ("n",)),
            "ids": Column("integer", ("n",), optional=True),
            "attributes": Column("integer", ("n",), optional=True),
        },
        fingerprinted=("features", "labels"),
    ),
    "head": Kind("extract", {"weight": Column("float", ("C", "d")), "bias": Column("float", ("C",))}),
    "identify": Kind(
        "identify",
        {
            "centroids": Column("float", ("C", "d")),
            "nearest": Column("integer", ("n",)),
            "minority": Column("boolean", ("n",)),
        },
    ),
    "neutralize": Kind("neutralize", {"centers": Column("float", ("C", "d"))}),
    "eliminate": Kind(
        "eliminate",
        {
            "scale": Column("float", ("d",)),
            "shift": Column("float", ("d",)),
            "loss": Column("float", ("steps",), optional=True),
        },
    ),
    "update": Kind(
        "update",
        {
            "rescued": Column("boolean", ("n",)),
            "conforming": Column("boolean", ("n",)),
            "pseudo_attributes": Column("integer", ("n",), optional=True),
            "weight": Column("float", ("C", "d")),
            "bias": Column("float", ("C",)),
            "folded_weight": Column("float", ("C", "d")),
            "folded_bias": Column("float", ("C",)),
        },
    ),
    "evaluate": Kind(
        "evaluate",
        {
            "base_predictions": Column("integer", ("n",), optional=True),
            "predictions": Column("integer", ("n",)),
        },
    ),
}

SIZE_NAMES = {"n": "samples", "d": "features", "C": "classes"}


@dataclass(frozen=True)
class Metadata:
    """What an artifact says of itself, beside its tensors.

    `inputs` maps an input's name to its fingerprint; `notes` holds what only one kind has to say (strings).
    """

    stage: str | None = None
    kind: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    class_names: Sequence[str] | None = None
    attribute_names: Sequence[str] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_strings(self) -> dict[str, str]:
        """The metadata as safetensors keeps them: a flat map of strings."""
        strings = {"schema_version": SCHEMA_VERSION, **self.notes}
        if self.stage is not None:
            strings["stage"] = self.stage
        if self.kind is not None:
            strings["kind"] = self.kind
        strings["parameters"] = json.dumps(self.parameters, sort_keys=True)
        strings["inputs"] = json.dumps(self.inputs, sort_keys=True)
        if self.class_names is not None:
            strings["class_names"] = json.dumps(list(self.class_names))
        if self.attribute_names is not None:
            strings["attribute_names"] = json.dumps(list(self.attribute_names))
        return strings

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], path: Path) -> "Metadata":
        """Read back `to_strings`; a file that nsf did not write gives empty metadata.

        Raises:
            WrongArtifact: written by a newer nsf, or metadata that are damaged.
        """
        version = strings.get("schema_version")
        if version is None:
            return cls()
        if version != SCHEMA_VERSION:
            raise WrongArtifact(
                f"has schema version {version}, and this nsf reads version {SCHEMA_VERSION}",
                where=path,
                do="install the nsf that wrote it, or make the artifact again",
            )
        known: dict[str, Any] = {}
        for key in ("parameters", "inputs", "class_names", "attribute_names"):
            if key not in strings:
                continue
            try:
                known[key] = json.loads(strings[key])
                right = _is_names(known[key]) if key.endswith("names") else isinstance(known[key], dict)
            except json.JSONDecodeError:
                right = False
            if not right:
                raise WrongArtifact(f"holds damaged metadata ('{key}')", where=path, do="make the artifact again")
        rest = {"schema_version", "stage", "kind", *known}
        notes = {key: value for key, value in strings.items() if key not in rest}
        return cls(stage=strings.get("stage"), kind=strings.get("kind"), notes=notes, **known)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


@dataclass(frozen=True)
class Artifact:
    """An artifact as read: tensors checked against its kind, floats as float32, integers as int64.

    `stored`: the features (n, d) of a features artifact as they lie in its files, all of them.
    """

    kind: str
    path: Path
    tensors: Mapping[str, "Tensor"]
    metadata: Metadata
    sizes: Mapping[str, int]
    stored: Rows | None = None

    def __getitem__(self, name: str) -> "Tensor":
        """A tensor, whole; large features are better read as `rows`."""
        if name == "features" and self.stored is not None:
            return self.stored.tensor()
        return self.tensors[name]

    def get(self, name: str) -> "Tensor | None":
        return self[name] if name in self.names else None

    @property
    def names(self) -> set[str]:
        """The tensors that it holds."""
        return {*self.tensors, *(["features"] if self.stored is not None else [])}

    @property
    def rows(self) -> Rows:
        """The features that this process works on: all of them, or its share where there are several processes."""
        assert self.stored is not None
        return self.stored.share()

    def head(self, device: "device") -> "tuple[Tensor, Tensor]":
        """Of a head artifact: weight (C, d) and bias (C,) on a device."""
        return self["weight"].to(device), self["bias"].to(device)

    def own(self, name: str) -> "Tensor":
        """The values of an (n,) tensor that belong to this process's samples; n of any artifact of these samples."""
        start, stop = distributed.share(len(self.tensors[name]), BLOCK_ROWS)
        return self.tensors[name][start:stop]

    @cached_property
    def fingerprint(self) -> str:
        """Of the tensors that the kind's lineage is made of; the same for features in one file and in shards."""
        if self.stored is not None:
            return _fingerprint_of_rows(self.stored, self.tensors["labels"])
        names = KINDS[self.kind].fingerprinted or tuple(self.tensors)
        return fingerprint({name: self.tensors[name] for name in names})

    def class_names(self, classes: int) -> list[str]:
        """The names of the classes, or their numbers where the file names none or another number of them."""
        names = self.metadata.class_names
        return _numbers(classes) if names is None or len(names) != classes else list(names)


def _numbers(classes: int) -> list[str]:
    return [str(index) for index in range(classes)]


def read(kind: str, path: Path, *, attributes: bool = False) -> Artifact:
    """Read one artifact and check it on its own: tensors, types, shapes, values.

    A head of one sigmoid output is given as the head of two classes that it is.

    Args:
        attributes: whether to read the group labels of features, too; without, whatever they are is left alone.

    Raises:
        MissingFile: the file is not there; the sentence names the command that makes it.
        WrongArtifact: it is no safetensors file, another stage's artifact, or lacks a tensor.
        BadValues: no samples, values that are not finite, or labels below zero.
    """
    path, made_by = Path(path), f"`nsf {KINDS[kind].stage}` makes it"
    if KINDS[kind].stage == "extract":
        made_by += f", or name a file of your own (--{kind})"
    files = shards(path) if kind == "features" else None
    opened = [_open(kind, file, made_by) for file in files or [path]]
    metadata = opened[0][1]
    if files is not None:
        _check_alike(files, [own for _, own in opened])
    sizes: dict[str, int] = {}
    checked: dict[str, Tensor] = {}
    stored: Rows | None = None
    for name, column in KINDS[kind].columns.items():
        if name == "attributes" and not attributes:
            continue
        missing = [file for file, (tensors, _) in zip(files or [path], opened, strict=True) if name not in tensors]
        if missing:
            if column.optional and len(missing) == len(opened):
                continue
            held = ", ".join(sorted(_open(kind, missing[0], made_by)[0])[:10]) or "nothing"
            raise WrongArtifact(
                f"holds no tensor '{name}' (it holds {held})", where=missing[0],
                do=f"give the {kind} artifact: {made_by}",
            )  # fmt: skip
        pieces = [tensors[name] for tensors, _ in opened]
        if kind == "features" and name == "features":
            stored = _rows(files or [path], pieces, column, sizes)
        else:
            if files is not None and stored is not None:
                _check_shards(name, files, pieces, stored)
            checked[name] = _checked(name, column, _joined(name, files or [path], pieces), sizes, path)
    if kind == "head" and sizes["C"] == 1:
        checked["weight"], checked["bias"] = two_classes(checked["weight"], checked["bias"])
        sizes["C"] = 2
    return Artifact(kind, path, checked, metadata, sizes, stored)


def two_classes(weight: "Tensor", bias: "Tensor") -> "tuple[Tensor, Tensor]":
    """The head (2, d), (2,) of two classes that gives by softmax what one sigmoid output (1, d), (1,) gives."""
    import torch

    return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])


def one_output(weight: "Tensor", bias: "Tensor") -> "tuple[Tensor, Tensor]":
    """`two_classes` undone: the sigmoid output (1, d), (1,) that equals a head of two classes by softmax."""
    return weight[1:] - weight[:1], bias[1:] - bias[:1]


def shards(path: Path) -> list[Path] | None:
    """The files of features in shards, in order, where `path` is their index or only their index is there.

    The index is Hugging Face's: `weight_map` names the files, each of which is a features file of its own rows.

    Raises:
        WrongArtifact: the index is damaged or names no file.
        MissingFile: a shard is not there.
    """
    index = _index(path)
    if (index != path and _exists(path)) or not index.is_file():
        return None
    try:
        names = list(dict.fromkeys(str(name) for name in json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WrongArtifact("is no index of features in shards", where=index, do="run `nsf extract` again") from error
    if not names or any(Path(name).name != name for name in names):
        raise WrongArtifact("names no shards beside it", where=index, do="run `nsf extract` again")
    for name in names:
        if not (index.parent / name).exists():
            raise MissingFile(
                f"there is no such file, and {index.name} names it", where=index.parent / name, do="run `nsf extract` again"
            )
    return [index.parent / name for name in names]


def _index(path: Path) -> Path:
    """Where the index of features in shards lies: `path` itself, or beside it."""
    # A path without a name is a folder.
    return path if path.name.endswith(INDEX_SUFFIX) or not path.name else path.with_name(path.name + INDEX_SUFFIX)


def _rows(files: Sequence[Path], pieces: "Sequence[Tensor]", column: Column, sizes: dict[str, int]) -> Rows:
    """Features as they lie in their files, checked; the sizes n and d are set.

    Raises:
        WrongArtifact, BadValues: as `read`, of all processes the same.
    """
    import torch

    kept = (torch.float32, torch.float16, torch.bfloat16)
    parts = []
    for file, piece in zip(files, pieces, strict=True):
        own: dict[str, int] = {}
        _check_shape("features", column, piece, own, file)
        if own["d"] != sizes.setdefault("d", own["d"]):
            raise WrongArtifact(f"'features' has {own['d']} features, where {files[0]} has {sizes['d']}", where=file)
        if piece.dtype != pieces[0].dtype:
            raise WrongArtifact(f"'features' are stored as {piece.dtype}, in {files[0]} as {pieces[0].dtype}", where=file)
        held = piece if piece.dtype in kept else piece.to(torch.float32)
        parts.append(held)
    rows = Rows(parts)
    sizes["n"] = len(rows)
    _check_finite_rows(rows, files)
    return rows


def _joined(name: str, files: Sequence[Path], pieces: "Sequence[Tensor]") -> "Tensor":
    """A tensor of all shards, in one piece."""
    import torch

    if len(pieces) == 1:
        return pieces[0]
    for file, piece in zip(files, pieces, strict=True):
        if piece.shape[1:] != pieces[0].shape[1:] or piece.dtype != pieces[0].dtype or piece.dim() == 0:
            raise WrongArtifact(f"'{name}' is not like that of {files[0]}", where=file)
    return torch.cat(list(pieces))


def _check_shards(name: str, files: Sequence[Path], pieces: "Sequence[Tensor]", rows: Rows) -> None:
    """Refuse shards of which one has more features than labels and another fewer: all together would look right."""
    for file, piece, part in zip(files, pieces, rows.parts, strict=True):
        if piece.dim() and len(piece) != len(part):
            raise WrongArtifact(f"'{name}' has {len(piece)} values, and 'features' {len(part)} rows", where=file)


def _check_alike(files: Sequence[Path], metadata: Sequence[Metadata]) -> None:
    """Refuse shards of several features: of another model, or that name other classes or attributes."""
    first = metadata[0]
    for file, own in zip(files, metadata, strict=True):
        for what in ("inputs", "class_names", "attribute_names"):
            if getattr(own, what) != getattr(first, what):
                said = what.replace("_", " ")
                raise WrongArtifact(
                    f"is of other {said} than {files[0]}", where=file, do="put shards of one run of `nsf extract` together"
                )


def _check_finite_rows(rows: Rows, files: Sequence[Path]) -> None:
    """Refuse features that are not finite: one pass over each process's share."""
    import torch

    share = rows.share()
    bad, first = 0, None
    for start, values in share.spans():
        if not _finite(values):
            wrong = (~torch.isfinite(values)).any(dim=1).nonzero().flatten()
            bad, first = bad + len(wrong), share.start + start + int(wrong[0]) if first is None else first
    found = distributed.gathered((bad, first))
    if any(count for count, _ in found):
        row = next(row for _, row in found if row is not None)
        at, before = 0, 0
        while row >= before + len(rows.parts[at]):
            at, before = at + 1, before + len(rows.parts[at])
        raise _not_finite("features", sum(count for count, _ in found), len(rows), row - before, files[at])


def written_by_nsf(path: Path) -> bool:
    """Whether the file, or the first of its shards, is there and says that nsf wrote it; its tensors are left alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str((shards(path) or [path])[0]), framework="numpy") as file:
            return "schema_version" in (file.metadata() or {})
    except (SafetensorError, OSError, UserError):
        return False


def read_model(path: Path) -> tuple[dict[str, "Tensor"], Metadata, str]:
    """The state dict that `nsf train` wrote, its metadata and its fingerprint.

    Raises:
        MissingFile, WrongArtifact: as `read`.
    """
    made_by = "`nsf train` makes it"
    tensors, metadata = _open("model", path, made_by)
    if metadata.kind != "model":
        raise WrongArtifact("is not a model that nsf trained", where=path, do=made_by)
    return tensors, metadata, fingerprint(tensors)


def fingerprint(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 of the names, types, shapes and bytes of some tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensor_bytes(tensors[name]))
    return f"sha256:{digest.hexdigest()}"


def _fingerprint_of_rows(rows: Rows, labels: "Tensor") -> str:
    """SHA-256 of the SHA-256 of each block of rows, and of the labels: blocks are hashed by threads and processes."""
    share = rows.share()

    def digest(start: int) -> bytes:
        block = hashlib.sha256()
        for _, values in share.spans(start, min(start + BLOCK_ROWS, len(share))):
            block.update(tensor_bytes(values))
        return block.digest()

    with ThreadPoolExecutor(threads()) as pool:
        digests = b"".join(pool.map(digest, range(0, len(share), BLOCK_ROWS)))
    whole = hashlib.sha256(f"features {rows.dtype} {rows.shape}\n".encode())
    for part in distributed.gathered(digests):
        whole.update(part)
    whole.update(b"labels\n")
    whole.update(tensor_bytes(labels))
    return f"sha256:{whole.hexdigest()}"


def _exists(path: Path) -> bool:
    """Whether there is such a file, or a folder on the way to it may not be looked into.

    Raises:
        WrongArtifact: the latter.
    """
    try:
        return path.exists()
    except OSError as error:
        raise WrongArtifact(f"cannot be read ({error.strerror})", where=path, do="check who may read it") from error


def _open(kind: str, path: Path, made_by: str) -> tuple[dict[str, "Tensor"], Metadata]:
    """All tensors of a safetensors file (mapped, not copied) and its metadata."""
    from safetensors import SafetensorError, safe_open

    if not _exists(path):
        raise MissingFile(f"there is no such file, and it is read as the {kind} artifact", where=path, do=made_by)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file (a pipe, perhaps)"
        raise WrongArtifact(f"is {found}, and the {kind} artifact is a file", where=path, do=made_by)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = Metadata.from_strings(file.metadata() or {}, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WrongArtifact(
            "cannot be read as a safetensors file", where=path, do=f"give the {kind} artifact: {made_by}"
        ) from error
    if metadata.kind is not None and metadata.kind != kind:
        raise WrongArtifact(
            f"is the {metadata.kind} artifact that `nsf {metadata.stage}` wrote, and the {kind} artifact belongs there",
            where=path,
            do=made_by,
        )
    return tensors, metadata


def _checked(name: str, column: Column, tensor: "Tensor", sizes: dict[str, int], path: Path) -> "Tensor":
    """The tensor in its working type, after checking it against its column; new sizes are added to `sizes`."""
    import torch

    _check_shape(name, column, tensor, sizes, path)
    if column.values == "float":
        tensor = tensor.to(torch.float32)
        _check_finite(name, tensor, path)
    elif column.values == "integer":
        tensor = tensor.to(torch.int64)
        if name == "labels" and int(tensor.min()) < 0:
            row = int((tensor < 0).nonzero()[0])
            raise BadValues(
                f"'labels' holds {int(tensor[row])} in row {row}, and classes are numbered from 0",
                where=path,
                do="number the classes 0, 1, 2, ...",
            )
        if name == "attributes" and int(tensor.min()) < -1:
            raise BadValues(
                f"'attributes' holds {int(tensor.min())}, and they are numbered from 0, with -1 for unknown", where=path
            )
    return tensor


def _check_shape(name: str, column: Column, tensor: "Tensor", sizes: dict[str, int], path: Path) -> None:
    """Check type and shape of a tensor against its column; new sizes are added to `sizes`."""
    import torch

    if tensor.dtype == torch.bool:
        found = "boolean"
    elif tensor.dtype.is_floating_point:
        found = "float"
    elif tensor.dtype.is_complex:
        found = "complex"
    else:
        found = "integer"
    if found != column.values:
        raise WrongArtifact(f"'{name}' holds {found} values, where {column.values} values belong", where=path)
    wanted = f"({', '.join(column.shape)})"
    if tensor.dim() != len(column.shape):
        raise WrongArtifact(f"'{name}' has shape {tuple(tensor.shape)}, where {wanted} belongs", where=path)
    for size_name, size in zip(column.shape, tensor.shape, strict=True):
        if size == 0:
            raise BadValues(f"'{name}' is empty: it has no {SIZE_NAMES.get(size_name, size_name)}", where=path)
        if sizes.setdefault(size_name, size) != size:
            raise WrongArtifact(
                f"'{name}' has {size} {SIZE_NAMES.get(size_name, size_name)}, where its other tensors have "
                f"{sizes[size_name]}",
                where=path,
            )


def _check_finite(name: str, tensor: "Tensor", path: Path) -> None:
    import torch

    if _finite(tensor):
        return
    rows = (~torch.isfinite(tensor)).reshape(tensor.shape[0], -1).any(dim=1).nonzero().flatten()
    raise _not_finite(name, len(rows), tensor.shape[0], int(rows[0]), path)


# What to do about values that are not finite, by the tensor; otherwise the stage that made them is asked again.
MEND = {
    "features": "remove these rows or mend the model that made them",
    "weight": "check the model that the head was taken from",
    "bias": "check the model that the head was taken from",
}


def _not_finite(name: str, bad: int, rows: int, first: int, path: Path) -> BadValues:
    return BadValues(
        f"'{name}' holds NaN or infinity in {bad} of {rows} rows, the first of them row {first}",
        where=path,
        do=MEND.get(name, "make the artifact again"),
    )


def _finite(tensor: "Tensor") -> bool:
    """Whether the least and the highest value are finite, and so all: NaN would be both. Ten times faster than isfinite."""
    import torch

    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def agree(size: str, *artifacts: Artifact | None) -> int:
    """The size ("n", "d" or "C") that all these artifacts share; None stands for an artifact that was not given.

    Raises:
        Mismatch: two of them differ.
    """
    first, *others = [artifact for artifact in artifacts if artifact is not None]
    for other in others:
        if other.sizes[size] != first.sizes[size]:
            raise Mismatch(
                f"has {other.sizes[size]} {SIZE_NAMES[size]}, where {first.path} has {first.sizes[size]}",
                where=other.path,
                do="give artifacts that were made from one another",
            )
    return first.sizes[size]


def check_lineage(artifact: Artifact, **inputs: Artifact | None) -> None:
    """Hold an artifact's recorded inputs against the files given now.

    Raises:
        Mismatch: the artifact was made from another version of an input.
    """
    for name, given in inputs.items():
        recorded = artifact.metadata.inputs.get(name)
        if given is not None and recorded is not None and recorded != given.fingerprint:
            raise Mismatch(
                f"was made from other {name} than {given.path} holds",
                where=artifact.path,
                do=f"run `nsf {KINDS[artifact.kind].stage}` again",
            )


def check_model(features: Artifact, head: Artifact | None) -> None:
    """Refuse a head that nsf took from another model than the one that the features were extracted with.

    Raises:
        Mismatch: both files say which model they are of, and it is not the same.
    """
    ours, theirs = (each.metadata.inputs.get("model") if each is not None else None for each in (features, head))
    if head is not None and ours is not None and theirs is not None and ours != theirs:
        raise Mismatch(
            f"is the head of another model than the one that {features.path} was extracted with",
            where=head.path,
            do="give features and head of one run of `nsf extract`",
        )


def check_names(features: Artifact, classes: int, source: Artifact | None) -> None:
    """Refuse features that number other classes than `source`, the artifact that `classes` comes from, by their names.

    Raises:
        Mismatch: the features name another number of classes, or `source` has other names, or others at these numbers.
    """
    ours = features.metadata.class_names
    if ours is None:
        return
    if len(ours) != classes:
        held = f"{source.path} has {classes}" if source is not None else f"its labels are 0 to {classes - 1}"
        raise Mismatch(
            f"names {len(ours)} classes, and {held}",
            where=features.path,
            do="give samples of every class, and the head of the model that these features come from",
        )
    theirs = source.metadata.class_names if source is not None else None
    # Where a file names no classes, later ones carry their numbers.
    named = [names for names in (ours, theirs) if names is not None and list(names) != _numbers(classes)]
    if source is not None and len(named) == 2 and (number := _first_other(*named)) is not None:
        raise Mismatch(
            f"calls class {number} '{named[0][number]}', and {source.path} calls it '{named[1][number]}'",
            where=features.path,
            do="give features that number the same classes in the same order",
        )


def _first_other(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first number at which the names differ (see `comparable`); None where there is none."""
    for number, (our, their) in enumerate(zip(*comparable(ours, theirs), strict=False)):
        if our != their:
            return number
    return None


def comparable(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of classes as they are to be compared: whatever their capitals, unless these tell classes apart ("a", "A")."""
    folded = [name.casefold() for name in ours], [name.casefold() for name in theirs]
    if any(len(set(names)) < len(names) for names in folded):
        return list(ours), list(theirs)
    return folded


def check_known(features: Artifact, classes: int, source: Artifact | None, *, do: str) -> None:
    """Refuse labels beyond the classes of `source`, the artifact that `classes` comes from.

    Raises:
        Mismatch: a label is beyond the classes, or the features name others (`check_names`).
    """
    highest = int(features["labels"].max())
    if highest >= classes:
        raise Mismatch(
            f"holds label {highest}, where {source.path if source else 'the head'} has {classes} classes "
            f"(0 to {classes - 1})",
            where=features.path,
            do=do,
        )
    check_names(features, classes, source)


def check_labels(features: Artifact, classes: int | None = None, *, source: Artifact | None = None) -> int:
    """The number of classes C, after checking that every class has a sample.

    Args:
        features: a features artifact that a stage is fitted on.
        classes: C where it is known from elsewhere; otherwise the highest label says it.
        source: the artifact that `classes` comes from, for the sentence.

    Raises:
        Mismatch: a label is beyond the classes, or the features name others (`check_names`).
        BadValues: fewer than two classes, or a class with no sample.
    """
    import torch

    if classes is not None:
        check_known(features, classes, source, do="give the head of the model that these features come from")
    highest = int(features["labels"].max())
    if highest >= features.sizes["n"]:
        # More classes than samples: told here, for a count of so many classes may not even fit into memory.
        raise BadValues(
            f"holds label {highest} among {features.sizes['n']} samples, so that a class has no sample",
            where=features.path,
            do="number the classes 0, 1, 2, ... without gaps",
        )
    counts = torch.bincount(features["labels"], minlength=classes or 0)
    if classes is None:
        check_names(features, len(counts), source)
    if len(counts) < 2:
        raise BadValues("holds one class only", where=features.path, do="give samples of at least two classes")
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        names = features.class_names(len(counts))
        beside = f", and {source.path} has {len(counts)} classes" if source is not None else ""
        raise BadValues(
            f"there is no sample of class {', '.join(names[index] for index in empty)}{beside}",
            where=features.path,
            do="give at least one sample of every class, or number the classes without gaps",
        )
    return len(counts)


def check_computed(out: Path, tensors: Mapping[str, "Tensor"], *, do: str) -> None:
    """Refuse to write results that are not finite: a learning rate too high, say.

    Raises:
        BadValues: a tensor holds NaN or infinity.
    """
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadValues(f"'{name}' came out as NaN or infinity and is not written", where=out, do=do)


# ----------------------------------------------------------------------------------------------------------- writing


class Outputs:
    """The files one command writes: all of them appear when it succeeds, none when it fails. Made by `outputs`."""

    def __init__(self, protected: Sequence[Path]):
        self._protected: set[Path] = set()
        self.inputs(*protected)
        self._folders: list[Path] = []
        self._pending: list[tuple[Path, Path]] = []
        self._open: list[IO[bytes]] = []
        self._old: list[Path] = []

    def file(self, path: Path) -> IO[bytes]:
        """A temporary file beside `path`, which becomes `path` when the command succeeds.

        Raises:
            CannotWrite: the folder cannot be made or written, `path` is a folder, or an input of the same command.
        """
        path = Path(path)
        if path.resolve() in self._protected:
            raise CannotWrite("is an input of this command and would be overwritten", where=path, do="name another file")
        if path.resolve() in {other.resolve() for _, other in self._pending}:
            raise CannotWrite("is named for two outputs of this command", where=path, do="name two files")
        if path.is_dir():
            raise CannotWrite("is a folder, and a file is to be written there", where=path, do="name a file")
        if path.exists() and not path.is_file():
            # A new file would take the place of the device itself.
            raise CannotWrite("is a device or a pipe, and a file is to be written there", where=path, do="name a file")
        temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
        try:
            missing = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders += missing
            handle = temporary.open("w+b")
        except OSError as error:
            raise CannotWrite(
                f"cannot be written ({error.strerror})", where=path, do="name a folder you may write to"
            ) from error
        self._pending.append((temporary, path))
        self._open.append(handle)
        return handle

    def inputs(self, *paths: Path) -> None:
        """Name more files that the command reads, folders or indices of them: none of them may be an output."""
        for path in paths:
            with suppress(UserError):
                if parts := shards(path):
                    self._protected |= {file.resolve() for file in (_index(path), *parts)}
            # A folder that cannot be listed is told of by whoever reads it.
            with suppress(OSError):
                self._protected |= {file.resolve() for file in (path.iterdir() if path.is_dir() else (path,))}

    def check(self, *paths: Path | None) -> None:
        """Raise what `file` would, in the process that writes, before the work that ends in these outputs."""
        if distributed.rank():
            return
        before = len(self._open)
        for path in paths:
            if path is not None:
                self.file(path)
        while len(self._open) > before:
            temporary, _ = self._pending.pop()
            self._open.pop().close()
            temporary.unlink(missing_ok=True)

    def text(self, path: Path, text: str) -> None:
        if not distributed.rank():
            self.file(path).write(text.encode())

    def table(self, path: Path, rows: Iterable[Sequence[Any]]) -> None:
        """A CSV file, its heading the first row."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        self.text(path, lines.getvalue())

    def artifact(self, kind: str, path: Path, tensors: Mapping[str, "Tensor | None"], metadata: Metadata) -> None:
        """One artifact of a fixed kind; a tensor that is None is left out.

        Where several processes work together, each has its own samples' part of the (n,) tensors, and process 0 writes.
        """
        columns = KINDS[kind].columns
        tensors = {
            name: distributed.rows_of_all(tensor) if tensor is not None and columns[name].shape == ("n",) else tensor
            for name, tensor in tensors.items()
        }
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        self.tensors(path, present, _signed(kind, metadata))

    def tensors(self, path: Path, tensors: Mapping[str, "Tensor"], metadata: Metadata) -> None:
        """Any tensors, such as a model's state dict.

        Raises:
            BadValues: a tensor is of a type that safetensors does not know.
        """
        for name, tensor in tensors.items():
            if tensor.dtype not in type_names():
                raise BadValues(f"'{name}' is of type {tensor.dtype}, which safetensors does not know", where=path)
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        layout = Layout({name: (t.dtype, tuple(t.shape)) for name, t in on_cpu.items()}, metadata.to_strings())
        if distributed.rank():
            return
        file = self.file(path)
        file.write(layout.header)
        for name in layout.offsets:
            file.write(tensor_bytes(on_cpu[name]))

    def features(
        self, path: Path, samples: int, width: int, columns: Sequence[str], metadata: Metadata, dtype: "dtype | None" = None
    ) -> RowWriter:
        """A features artifact of at most `samples` rows, to be written one by one; `columns`: its (n,) int64 tensors.

        The features are stored as `dtype`, float32 by default.
        """
        return RowWriter(self.file(path), samples, width, columns, _signed("features", metadata).to_strings(), dtype)

    def index(self, path: Path, shards: Mapping[str, int], metadata: Metadata) -> None:
        """The index of a features artifact in shards, as Hugging Face's: file name -> bytes of its tensors, in order."""
        content = {
            "metadata": {"total_size": sum(shards.values()), **_signed("features", metadata).to_strings()},
            "weight_map": {f"features.{number:05}": name for number, name in enumerate(shards, start=1)},
        }
        self.text(path, json.dumps(content, indent=2) + "\n")

    def _commit(self) -> None:
        for handle in self._open:
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
        # Each old file is kept under a second name until all new ones are in place: all of them change, or none.
        kept: list[tuple[Path, Path | None]] = []
        try:
            for temporary, path in self._pending:
                old = temporary.with_name(f"{temporary.name[:-4]}.old.tmp") if path.exists() else None
                # Noted first: whatever stops this in between finds what there is to put back.
                kept.append((path, old))
                if old is not None:
                    _second_name(path, old)
                temporary.replace(path)
        except BaseException:
            for path, old in reversed(kept):
                if old is not None and old.exists():
                    old.replace(path)
                elif old is None and path.is_file():
                    path.unlink()
            raise
        # `_discard` takes them away where this is stopped on the way.
        self._old = [old for _, old in kept if old is not None]
        for old in self._old:
            old.unlink()

    def _discard(self) -> None:
        for handle in self._open:
            # A full disk makes the last flush fail too; the file goes away in the next lines all the same.
            with suppress(OSError):
                handle.close()
        for temporary in (*(temporary for temporary, _ in self._pending), *self._old):
            temporary.unlink(missing_ok=True)
        for folder in self._folders:
            # Deepest first, and only those that this command made and nobody has used since.
            with suppress(OSError):
                folder.rmdir()


def _second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:
        if path.is_dir():
            raise
        # Some file systems know no hard links; there the file is gone from its place until the new one comes.
        path.rename(name)


def _signed(kind: str, metadata: Metadata) -> Metadata:
    return replace(metadata, kind=kind, stage=KINDS[kind].stage)


def named_in(*sections: Mapping[str, Any]) -> list[Path]:
    """The files and folders that sections `data` and `model` of params.yaml name, for `outputs`."""
    keys = ("file", "weights", "name", "checkpoint")
    return [Path(str(section[key])) for section in sections for key in keys if section.get(key)]


@contextmanager
def outputs(*inputs: Path | None) -> Iterator[Outputs]:
    """All outputs of one command, written atomically: temporary files, fsync, then renamed together.

    Args:
        inputs: the files that the command reads, or folders of them; none of them may be an output.

    Raises:
        CannotWrite: an output cannot be written; nothing is left behind.
    """
    pending = Outputs([Path(path) for path in inputs if path is not None])
    try:
        yield pending
        # Nothing appears before every process is done.
        distributed.wait()
        pending._commit()
    except UserError:
        pending._discard()
        raise
    except OSError as error:
        pending._discard()
        # A full disk's error names no file.
        where = error.filename or next((path for _, path in reversed(pending._pending)), None)
        raise CannotWrite(f"the outputs cannot be written ({error.strerror or error})", where=where) from error
    except BaseException:
        pending._discard()
        raise
