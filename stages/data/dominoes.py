"""Dominoes (Shah et al. 2020; Kirichenko et al. 2023): a handwritten digit above an item of clothing.

The item is the label, the digit the spurious attribute. Made from the idx files of MNIST and Fashion-MNIST, in the folders
that torchvision's downloads have (`MNIST/raw`, `FashionMNIST/raw`), gzipped or not; the repository carries a subset in
`data/dominoes`.
"""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.data import Split
from stages.errors import BadData

if TYPE_CHECKING:
    from PIL.Image import Image

ITEMS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read(
    split: str,
    *,
    root: str,
    items: Sequence[str] = ("coat", "dress"),
    digits: Sequence[int] = (0, 1),
    train_size: int = 6000,
    val_size: int = 2000,
    test_size: int = 2000,
    train_bias: float = 0.99,
    val_bias: float = 0.9,
    test_bias: float | None = None,
    seed: int = 0,
) -> Split:
    """Compose one split, the same one for the same arguments.

    Train and val share no item and no digit: val takes the last images of each class of the training files; test is made
    from the test files.

    Args:
        split: "train", "val" or "test".
        root: the folder that holds `MNIST/raw` and `FashionMNIST/raw`.
        items: the classes, by name (see ITEMS); the i-th digit agrees with the i-th item.
        digits: one digit per item.
        train_size, val_size, test_size: dominoes in each split, the same number of every class.
        train_bias, val_bias, test_bias: the share of each class whose digit agrees with it; the other digits share the
            rest evenly. By default the test split is balanced: 1 / classes.
        seed: of the pairing.

    Raises:
        BadData: files missing or damaged, an unknown item, or more dominoes asked for than there are images.
    """
    folder = Path(root)
    unknown = [item for item in items if item not in ITEMS]
    if unknown:
        raise BadData(f"'{unknown[0]}' is no item of Fashion-MNIST", where="data.items", do=f"use {', '.join(ITEMS)}")
    if len(items) != len(digits) or len(set(items)) < len(items) or len(set(digits)) < len(digits):
        raise BadData(
            f"{len(items)} items and {len(digits)} digits do not pair off",
            where="data.digits",
            do="name one digit per item, each once",
        )
    classes = len(items)
    per_class = {name: size // classes for name, size in zip(("train", "val", "test"),
                 (train_size, val_size, test_size), strict=True)}  # fmt: skip
    bias = {"train": train_bias, "val": val_bias, "test": 1 / classes if test_bias is None else test_bias}[split]
    cut = per_class["train"], per_class["val"]
    item_images, item_rows = by_class(folder, "FashionMNIST", split, [ITEMS.index(item) for item in items], *cut)
    digit_images, digit_rows = by_class(folder, "MNIST", split, digits, *cut)

    # RandomState's stream is frozen for good, unlike a Generator's: the demo stays the same under later numpy versions.
    random = np.random.RandomState([seed, ("train", "val", "test").index(split)])
    size = per_class[split]
    attributes: list[np.ndarray] = []
    for label, rows in enumerate(item_rows):
        if not 0 < size <= len(rows):
            raise BadData(
                f"{size} images of {items[label]} are asked for in the {split} split, and there are {len(rows)}",
                where=folder,
                do=f"set data.{split}_size between {classes} and {classes * len(rows)}",
            )
        agreeing = round(bias * size)
        others = [digit for digit in range(classes) if digit != label]
        attributes.append(np.array([label] * agreeing + [others[i % len(others)] for i in range(size - agreeing)]))
    pairs = paired(item_rows, digit_rows, attributes, random)
    return composed(folder, split, item_images, digit_images, pairs, class_names=items, attributes=digits)


def paired(
    item_rows: Sequence[np.ndarray],
    digit_rows: Sequence[np.ndarray],
    attributes: Sequence[np.ndarray],
    random: np.random.RandomState,
) -> np.ndarray:
    """Which item stands under which digit: (n, 4) int64 of item, digit, class and attribute, class by class.

    Args:
        item_rows: of each class, the rows of its items; the first of them are taken.
        digit_rows: of each attribute, the rows of its digits; each domino draws one.
        attributes: of each class, those of its dominoes, dealt out at random.
    """
    pairs: list[tuple[int, int, int, int]] = []
    for label, (rows, dealt) in enumerate(zip(item_rows, attributes, strict=True)):
        dealt = random.permutation(dealt)
        for item, attribute in zip(rows[: len(dealt)], dealt, strict=True):
            digit = digit_rows[attribute][random.randint(len(digit_rows[attribute]))]
            pairs.append((int(item), int(digit), label, int(attribute)))
    return np.array(pairs, dtype=np.int64)


def composed(
    folder: Path,
    split: str,
    items: np.ndarray,
    digits: np.ndarray,
    pairs: np.ndarray,
    *,
    class_names: Sequence[str],
    attributes: Sequence[int],
) -> Split:
    """The split of these dominoes.

    Args:
        folder: where the images are from.
        split: "train", "val" or "test".
        items, digits: all images (n, 28, 28) uint8 of the split's files, see `by_class`.
        pairs: see `paired`.
        class_names: of the classes.
        attributes: the digit of each attribute.
    """
    part = _part(split)
    item_index, digit_index, labels, values = pairs.T
    halves = digits[digit_index], items[item_index]
    return Split(
        labels=labels,
        # A domino is told by its item: each item stands in one domino only.
        ids=item_index,
        load=partial(_compose, *halves),
        locate=partial(_locate, str(folder), part, item_index, digit_index),
        class_names=list(class_names),
        ids_are=f"image of FashionMNIST/raw/{part}-images-idx3-ubyte, from 0",
        attributes=values,
        attribute_names=[DIGITS[digit] for digit in attributes],
        origin=partial(_origin, *halves),
    )


def _part(split: str) -> str:
    """Which of the data sets' files a split is made from."""
    return "t10k" if split == "test" else "train"


def _train_or_val(rows: list[np.ndarray], split: str, train: int, val: int) -> list[np.ndarray]:
    """Cut each class's rows in two in the proportion of the two splits: train from the front, val from the back."""
    cuts = [max(1, min(len(members) - 1, len(members) * train // max(train + val, 1))) for members in rows]
    return [members[:cut] if split == "train" else members[cut:] for members, cut in zip(rows, cuts, strict=True)]


def by_class(
    folder: Path, name: str, split: str, classes: Sequence[int], train: int, val: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """All images (n, 28, 28) uint8 of the idx file of a split, and the rows of each class in it that are the split's.

    Args:
        name: "MNIST" or "FashionMNIST".
        train, val: how large the two splits are, by which they share the training files.
    """
    part = _part(split)
    images = read_idx(folder / name / "raw" / f"{part}-images-idx3-ubyte")
    labels = read_idx(folder / name / "raw" / f"{part}-labels-idx1-ubyte")
    rows = [np.flatnonzero(labels == label) for label in classes]
    for label, members in zip(classes, rows, strict=True):
        if len(members) == 0:
            raise BadData(
                f"holds no image of class {label} in {part}",
                where=folder / name / "raw",
                do="choose a class it holds, or give the full data set as data.root",
            )
    return images, rows if split == "test" else _train_or_val(rows, split, train, val)


def _compose(digits: np.ndarray, items: np.ndarray, position: int) -> "Image":
    from PIL import Image

    return Image.fromarray(np.concatenate([digits[position], items[position]])).convert("RGB")


def _origin(digits: np.ndarray, items: np.ndarray, position: int) -> str:
    return hashlib.blake2b(digits[position].tobytes() + items[position].tobytes(), digest_size=16).hexdigest()


def _locate(folder: str, part: str, items: np.ndarray, digits: np.ndarray, position: int) -> str:
    return f"image {items[position]} of {folder}/FashionMNIST/raw/{part} under image {digits[position]} of MNIST/raw/{part}"


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array from an idx file (LeCun's format), `path` itself or `path`.gz.

    Raises:
        BadData: neither is there, or it is no idx file of bytes, or cut short.
    """
    zipped = path.with_name(path.name + ".gz")
    if not path.exists() and not zipped.exists():
        raise BadData("there is no such file, gzipped or not", where=path, do="check data.root")
    where = path if path.exists() else zipped
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(zipped.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise BadData("cannot be read or unzipped", where=where, do="fetch the file again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise BadData("is no idx file of unsigned bytes", where=where, do="fetch the file again")
    rank = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    start = 4 + 4 * rank
    if len(content) - start != int(np.prod(shape)):
        raise BadData(f"is cut short: shape {shape} does not match its length", where=where, do="fetch the file again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
