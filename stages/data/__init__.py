"""Data sets: one module per format, each with a `read(split, **options) -> Split`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.errors import BadData

if TYPE_CHECKING:
    from PIL.Image import Image

# data.format -> the module that reads it.
READERS = {
    "dominoes": "stages.data.dominoes",
    "folder": "stages.data.folder",
    "csv": "stages.data.table",
}

SPLITS = ("train", "val", "test")

# What people call the three splits, in folder names and in the split column of tables (0, 1, 2: group_DRO's metadata).
SPLIT_NAMES = {
    "train": ("train", "training", "0"),
    "val": ("val", "valid", "validation", "dev", "1"),
    "test": ("test", "testing", "2"),
}


@dataclass(frozen=True)
class Split:
    """One split of a data set. Labels and attributes are known without opening any sample.

    Attributes:
        labels: (n,) int64 in [0, C).
        ids: (n,) int64; what they count is said in `ids_are`.
        load: gives the sample at a position (an RGB image); picklable, so that loader workers can take it along.
        locate: says in words where the sample at a position comes from: its file or row.
        class_names: C names.
        attributes: (n,) int64, -1 where unknown; None where the data has none.
        attribute_names: a name per attribute value.
        ids_are: what an id counts, in words ("row of metadata.csv").
    """

    labels: np.ndarray
    ids: np.ndarray
    load: Callable[[int], "Image"]
    locate: Callable[[int], str]
    class_names: Sequence[str]
    ids_are: str
    attributes: np.ndarray | None = None
    attribute_names: Sequence[str] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple["Image", int, int | None, int]:
        """(sample, label, attribute or None, id)."""
        attribute = None if self.attributes is None else int(self.attributes[position])
        return self.load(position), int(self.labels[position]), attribute, int(self.ids[position])


def open_split(split: str, *, format: str, **options: Any) -> Split:
    """Open one split ("train", "val" or "test") of a data set.

    Args:
        split: which one.
        format: a key of READERS.
        options: the reader's own, as in the `data` section of params.yaml.

    Raises:
        BadData: the files are missing or not laid out as the reader expects, or the split is empty.
    """
    opened: Split = import_module(READERS[format]).read(split, **options)
    if len(opened) == 0:
        raise BadData(f"the {split} split holds no sample", where=options.get("root") or options.get("file"))
    return opened


def number(values: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Number the distinct values of a column: (n,) int64 and a name per number.

    Whole numbers from 0 stand for themselves, so that they fit a head trained elsewhere; other values are sorted. An
    empty value is unknown, -1.
    """
    known = sorted({value for value in values if value != ""})
    if all(value.isdecimal() for value in known):
        highest = max((int(value) for value in known), default=-1)
        numbers = np.array([int(value) if value else -1 for value in values], dtype=np.int64)
        return numbers, [str(index) for index in range(highest + 1)]
    index = {value: position for position, value in enumerate(known)}
    return np.array([index.get(value, -1) for value in values], dtype=np.int64), known


def open_image(path: Path) -> "Image":
    """The image in a file, as RGB.

    Raises:
        BadData: no such file, or no image that Pillow can decode.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise BadData("there is no such image", where=path) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData("cannot be read as an image", where=path, do="replace or remove it") from error
