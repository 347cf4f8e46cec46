"""The bytes of a safetensors file: where each tensor lies, rows written as they come, what a header says.

Own code because the library writes metadata in random order, which makes no two files alike (byte-identical artifacts are
what DVC's cache lives on), and can neither write a tensor row by row nor put another in its place.
"""

import errno
import json
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages.errors import WrongArtifact

if TYPE_CHECKING:
    from torch import Tensor, dtype

# What is moved at once within a file.
COPY_BYTES = 1 << 24


def tensor_bytes(tensor: "Tensor") -> memoryview:
    """A contiguous CPU tensor's memory, of any type (bfloat16, which numpy has not, included)."""
    import torch

    array: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def type_names() -> dict[Any, str]:
    """What safetensors calls torch's types."""
    import torch

    return {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
        torch.uint8: "U8", torch.bool: "BOOL", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
        torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    }  # fmt: skip


class Layout:
    """Where each tensor lies in a safetensors file, and the header that says so.

    Tensors lie in the library's order: wider types first, then by name.
    """

    def __init__(self, tensors: Mapping[str, tuple[Any, tuple[int, ...]]], metadata: Mapping[str, str]):
        names = type_names()
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        self.offsets: dict[str, int] = {}
        end = 0
        for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
            start, end = end, end + dtype.itemsize * _product(shape)
            header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
            self.offsets[name] = start
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.header = struct.pack("<Q", len(text)) + text
        self.size = len(self.header) + end

    def position(self, name: str) -> int:
        """The tensor's first byte, from the beginning of the file."""
        return len(self.header) + self.offsets[name]


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


class RowWriter:
    """A file of feature rows written as they come; the (n,) int64 tensors beside them are kept until the end.

    Args:
        file: opened for reading and writing; it is written from its first byte on.
        samples, width: rows at most, and d.
        columns: the names of the other tensors.
        dtype: what the rows are stored as; None is float32.
    """

    def __init__(
        self,
        file: IO[bytes],
        samples: int,
        width: int,
        columns: Sequence[str],
        metadata: Mapping[str, str],
        dtype: "dtype | None" = None,
    ):
        import torch

        self._file, self._samples, self._width, self._columns, self._metadata = file, samples, width, columns, metadata
        self._dtype, self._written = dtype or torch.float32, 0
        self._layout = self._planned(samples, metadata)
        file.seek(self._layout.position("features"))

    def _planned(self, rows: int, metadata: Mapping[str, str]) -> Layout:
        import torch

        shapes: dict[str, tuple[Any, tuple[int, ...]]] = dict.fromkeys(self._columns, (torch.int64, (rows,)))
        shapes["features"] = (self._dtype, (rows, self._width))
        return Layout(shapes, metadata)

    def rows(self, features: "Tensor") -> None:
        """Append rows of `features`, (b, d) on any device."""
        self._file.write(tensor_bytes(features.to(self._dtype).cpu()))
        self._written += features.shape[0]

    def copy(self, source: IO[bytes], start: int, rows: int) -> None:
        """Append rows that lie in another file, stored as they are here, from its byte `start` on."""
        self._file.flush()
        left, target = rows * self._width * self._dtype.itemsize, self._file.tell()
        while left:
            count = _copied(source, self._file, min(left, COPY_BYTES), start, target)
            left, start, target = left - count, start + count, target + count
        self._file.seek(target)
        self._written += rows

    def finish(self, columns: Mapping[str, "Tensor"], notes: Mapping[str, str] | None = None) -> None:
        """Write the header and the other tensors, (rows written,) int64 each; `notes` join the metadata."""
        if self._written > self._samples or any(len(tensor) != self._written for tensor in columns.values()):
            raise RuntimeError(f"{self._written} of {self._samples} rows were written, and not as many labels")
        layout = self._planned(self._written, {**self._metadata, **(notes or {})})
        self._move(self._layout.position("features"), layout.position("features"), layout.size)
        self._file.seek(0)
        self._file.write(layout.header)
        for name, tensor in columns.items():
            self._file.seek(layout.position(name))
            self._file.write(tensor_bytes(tensor))

    def _move(self, source: int, target: int, size: int) -> None:
        """Shift the features within the file: samples that were skipped, or notes, change what stands before them."""
        if source == target:
            return
        length = size - target
        steps = list(range(0, length, COPY_BYTES))
        # Towards the front from the first byte on, towards the back from the last: no byte is overwritten unread.
        for start in steps if target < source else reversed(steps):
            count = min(COPY_BYTES, length - start)
            self._file.seek(source + start)
            content = self._file.read(count)
            self._file.seek(target + start)
            self._file.write(content)
        self._file.truncate(size)


def _copied(source: IO[bytes], target: IO[bytes], count: int, start: int, position: int) -> int:
    """Copy at most `count` bytes from `start` of one file to `position` of another; returns how many, at least one.

    Within the kernel where it can (a file system may then share the blocks), and through memory where it cannot.
    """
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):
            copied = os.copy_file_range(source.fileno(), target.fileno(), count, start, position)
            if copied:
                return copied
    content = os.pread(source.fileno(), count, start)
    if not content:
        raise OSError(errno.EIO, "is cut short", source.name)
    return os.pwrite(target.fileno(), content, position)


@dataclass(frozen=True)
class Place:
    """A tensor in a file: its type as safetensors calls it, its first byte, and its shape."""

    dtype: str
    start: int
    shape: tuple[int, ...]


def header(path: Path) -> tuple[dict[str, str], dict[str, Place]]:
    """A safetensors file's metadata, and where each of its tensors lies.

    Raises:
        WrongArtifact: it is cut short or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = os.fstat(file.fileno()).st_size
            content = json.loads(file.read(length)) if length <= size else {}
        metadata = content.pop("__metadata__", {})
        first = 8 + length
        if max(first + int(entry["data_offsets"][1]) for entry in content.values()) != size:
            raise ValueError(size)
        return metadata, {
            name: Place(entry["dtype"], first + int(entry["data_offsets"][0]), tuple(entry["shape"]))
            for name, entry in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise WrongArtifact("cannot be read as a safetensors file", where=path) from error
