"""An image folder tree, `root/split/class/image`: what torchvision's ImageFolder reads, one folder per split."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.data import SPLIT_NAMES, Split, open_image
from stages.errors import BadData

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def read(split: str, *, root: str) -> Split:
    """Open one split. Classes are the folder names of all splits together, sorted; ids count the split's files, sorted.

    Images may lie deeper inside a class's folder; hidden files and files of other types are passed over.

    Raises:
        BadData: no folder for the split, no class folders or one that is a link to nowhere, no images.
    """
    base = _find(Path(root), split)
    found = {path.name for other in SPLIT_NAMES for path in _classes(_find(Path(root), other, required=False))}
    names = sorted(found)
    if not names:
        raise BadData("holds no class folders", where=base, do="lay the images out as root/split/class/image")
    files: list[Path] = []
    labels: list[int] = []
    for folder in _classes(base):
        images = sorted(
            path
            for path in folder.rglob("*")
            # A link that leads nowhere is an image that is missing, and told of when it is loaded.
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and (path.is_file() or _is_dead(path))
        )
        files += images
        labels += [names.index(folder.name)] * len(images)
    if not files:
        raise BadData("holds no images", where=base, do=f"lay them out as root/split/class/image ({', '.join(SUFFIXES)})")
    return Split(
        labels=np.array(labels, dtype=np.int64),
        ids=np.arange(len(files), dtype=np.int64),
        load=partial(_load, files),
        locate=partial(_locate, files),
        origin=files.__getitem__,
        class_names=names,
        ids_are=f"image of {base.name}/, from 0, in sorted order of class/image",
    )


def _find(root: Path, split: str, *, required: bool = True) -> Path:
    for name in SPLIT_NAMES[split]:
        if (root / name).is_dir():
            return root / name
    if required:
        choices = ", ".join(SPLIT_NAMES[split][:-1])
        raise BadData(f"there is no folder for the {split} split", where=root, do=f"name it one of {choices}")
    return root / split


def _classes(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in there:
        if _is_dead(path):
            raise BadData("is a link that leads nowhere", where=path, do="bring its data here, or remove it")
    return [path for path in there if path.is_dir()]


def _is_dead(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _load(files: list[Path], position: int) -> "Image":
    return open_image(files[position])


def _locate(files: list[Path], position: int) -> str:
    return str(files[position])
