"""A CSV file with one row per image: columns for path, label, split and, if there is one, attribute.

Waterbirds' `metadata.csv` (img_filename, y, split, place; group_DRO, Sagawa et al. 2020) is such a table.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.data import SPLIT_NAMES, Split, number, open_image
from stages.errors import BadData

if TYPE_CHECKING:
    from PIL.Image import Image

# Row 0 of the data stands in line 2 of the file: people count the header and start at 1.
FIRST_LINE = 2


def read(
    split: str,
    *,
    file: str,
    root: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    attribute_column: str | None = None,
    class_names: list[str] | None = None,
    attribute_names: list[str] | None = None,
) -> Split:
    """Open one split of the table.

    Labels and attributes that are whole numbers stand for themselves; other values are numbered in sorted order. Splits
    are train/val/test, in the usual spellings, or 0/1/2. An empty attribute is unknown. Ids count the table's rows, 0
    for the first after the header, whatever its split.

    Args:
        split: "train", "val" or "test".
        file: the CSV file (UTF-8).
        root: the folder that the paths start from; by default the CSV file's.
        path_column, label_column, split_column, attribute_column: the columns' names.
        class_names, attribute_names: names to show for the numbers 0, 1, ...

    Raises:
        BadData: the file or a column is missing, a value cannot be used (with its line), or an image is not there.
    """
    import pandas

    path = Path(file)
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError as error:
        raise BadData("there is no such file", where=path, do="check data.file") from error
    except (OSError, ValueError) as error:
        raise BadData(f"cannot be read as CSV ({str(error).splitlines()[0]})", where=path) from error
    columns = {"path": path_column, "label": label_column, "split": split_column}
    if attribute_column is not None:
        columns["attribute"] = attribute_column
    for role, column in columns.items():
        if column not in table.columns:
            raise BadData(
                f"there is no column '{column}' (it has {', '.join(map(str, table.columns))})",
                where=path,
                do=f"set data.{role}_column",
            )
    table = table[list(columns.values())].apply(lambda values: values.str.strip())

    spelled = {name: key for key, names in SPLIT_NAMES.items() for name in names}
    splits = table[split_column].str.lower().map(spelled)
    _refuse(path, splits.isna(), table[split_column], split_column, "train, val or test (0, 1 or 2)")
    _refuse(path, table[label_column] == "", table[label_column], label_column, "a class")
    labels, classes = number(table[label_column].tolist())
    chosen = (splits == split).to_numpy()
    rows = np.flatnonzero(chosen)
    start = path.parent if root is None else Path(root)
    images = [start / name for name in table[path_column][chosen]]
    for row, image in zip(rows, images, strict=True):
        if not image.is_file():
            raise BadData(
                f"line {row + FIRST_LINE} names the image {image}, which is not there",
                where=path,
                do="check data.root" if root is not None else "set data.root to the images' folder",
            )
    attributes, attribute_values = None, None
    if attribute_column is not None:
        numbers, attribute_values = number(table[attribute_column].tolist())
        attributes = numbers[chosen]
    return Split(
        labels=labels[chosen],
        ids=rows,
        load=partial(_load, images),
        locate=partial(_locate, str(path), images, rows),
        class_names=_named(class_names, classes, "class_names"),
        ids_are=f"row of {path.name}, 0 for the first after the header",
        attributes=attributes,
        attribute_names=None if attribute_values is None else _named(attribute_names, attribute_values, "attribute_names"),
    )


def _refuse(path: Path, wrong: "np.ndarray", values: "np.ndarray", column: str, allowed: str) -> None:
    lines = np.flatnonzero(wrong)
    if len(lines):
        raise BadData(f"line {lines[0] + FIRST_LINE}, column '{column}': '{values[lines[0]]}' is not {allowed}", where=path)


def _named(given: list[str] | None, found: list[str], key: str) -> list[str]:
    if given is None:
        return found
    if len(given) < len(found):
        raise BadData(
            f"names {len(given)} values, and the table has {len(found)} ({', '.join(found[:10])})",
            where=f"data.{key}",
            do="give one name per value",
        )
    return given


def _load(images: list[Path], position: int) -> "Image":
    return open_image(images[position])


def _locate(path: str, images: list[Path], rows: np.ndarray, position: int) -> str:
    return f"{images[position]} (line {rows[position] + FIRST_LINE} of {path})"
