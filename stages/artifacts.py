"""The schema of every artifact, and how one is read; `outputs` writes them, `tensorfile` knows the bytes of a file.

An artifact is one safetensors file. Its tensors are fixed by its kind (`KINDS`); its metadata say which stage made it,
with which parameters, from which inputs (by fingerprint). Metadata are optional on reading, so that files from other
frameworks enter, and always written.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import distributed
from stages.errors import BadValues, MissingFile, UserError, WrongArtifact, listed
from stages.rows import BLOCK_ROWS, Rows
from stages.runtime import threads
from stages.tensorfile import tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor, device

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
    """A kind of artifact: the stage that makes it, and its tensors."""

    stage: str
    columns: Mapping[str, Column]


# Sizes: n samples, d features, C classes. `attributes` stand outside the fingerprint (`Artifact.fingerprint`): group labels
# must not reach the lineage of any stage but evaluate.
KINDS: Mapping[str, Kind] = {
    "features": Kind(
        "extract",
        {
            "features": Column("float", ("n", "d")),
            "labels": Column("integer", ("n",)),
            "ids": Column("integer", ("n",), optional=True),
            "attributes": Column("integer", ("n",), optional=True),
        },
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
        """Of all tensors; of features and labels alone where there are such, the same in one file and in shards."""
        if self.stored is not None:
            return _fingerprint_of_rows(self.stored, self.tensors["labels"])
        return fingerprint(self.tensors)

    def class_sizes(self, classes: int) -> "Tensor":
        """How many samples each class has, of features: (C,) int64, or longer where a label is beyond."""
        import torch

        return torch.bincount(self["labels"], minlength=classes)

    def class_names(self, classes: int) -> list[str]:
        """The names of the classes, or their numbers where the file names none or another number of them."""
        names = self.metadata.class_names
        return numbers(classes) if names is None or len(names) != classes else list(names)


def numbers(classes: int) -> list[str]:
    """The names of C classes that have none: "0" to "C-1"."""
    return [str(index) for index in range(classes)]


def read(kind: str, path: Path, *, attributes: bool = False, option: str | None = None) -> Artifact:
    """Read one artifact and check it on its own: tensors, types, shapes, values.

    A head of one sigmoid output is given as the head of two classes that it is.

    Args:
        attributes: whether to read the group labels of features, too; without, whatever they are is left alone.
        option: the option that names the file, for the sentence; by default --KIND.

    Raises:
        MissingFile: the file is not there; the sentence names the command that makes it.
        WrongArtifact: it is no safetensors file, another stage's artifact, or lacks a tensor.
        BadValues: no samples, values that are not finite, or labels below zero.
    """
    path, made_by = Path(path), f"`nsf {KINDS[kind].stage}` makes it"
    if KINDS[kind].stage == "extract":
        made_by += f", or name a file of your own ({option or f'--{kind}'})"
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
            held = listed(sorted(_open(kind, missing[0], made_by)[0])) or "nothing"
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
    index = index_of(path)
    if (index != path and exists(path)) or not index.is_file():
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


def index_of(path: Path) -> Path:
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
    return "schema_version" in peek(path)


def peek(path: Path) -> dict[str, str]:
    """The metadata of a file, or of the first of its shards, as they stand there; none where there are none to be had."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str((shards(path) or [path])[0]), framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, UserError):
        return {}


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


def exists(path: Path) -> bool:
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

    if not exists(path):
        raise MissingFile(f"there is no such file (the {kind} artifact)", where=path, do=made_by)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file (a pipe, perhaps)"
        raise WrongArtifact(f"is {found}, and the {kind} artifact is a file", where=path, do=made_by)
    if str(path).encode(errors="ignore") != os.fsencode(path):
        raise WrongArtifact("is no name in UTF-8, and no safetensors file is read by such", where=path, do="rename it")
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
            f"this is the {metadata.kind} artifact of `nsf {metadata.stage}`, where the {kind} artifact is expected",
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
    "features": "remove these rows, or fix the model that made them",
    "weight": "check the model that the head was taken from",
    "bias": "check the model that the head was taken from",
}


def _not_finite(name: str, bad: int, rows: int, first: int, path: Path) -> BadValues:
    return BadValues(
        f"'{name}' holds NaN, infinity or what is beyond float32 in {bad} of {rows} rows, the first of them row {first}",
        where=path,
        do=MEND.get(name, "make the artifact again"),
    )


def _finite(tensor: "Tensor") -> bool:
    """Whether the least and the highest value are finite, and so all: NaN would be both. Ten times faster than isfinite."""
    import torch

    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
