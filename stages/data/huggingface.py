"""A data set of Hugging Face `datasets` on disk: a DatasetDict that `save_to_disk` wrote, of images or of texts.

datasets.load_dataset("imdb").save_to_disk("data/imdb")
"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.data import SPLIT_NAMES, Split, as_rgb, check_columns, joined, load_text, named, number
from stages.data.table import as_text
from stages.errors import BadData, UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def read(
    split: str,
    *,
    root: str,
    image_column: str = "image",
    text_column: str | None = None,
    second_text_column: str | None = None,
    label_column: str = "label",
    attribute_column: str | Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    drop_empty: bool = False,
) -> Split:
    """Open one split. Ids count its rows, 0 for the first.

    Classes and attributes are numbered as their ClassLabel says; columns of other types as in tables (`stages.data.table`),
    over all splits. A ClassLabel of -1 is an attribute unknown, and no class.

    Args:
        split: "train", "val" or "test"; the set's own may have any of the usual spellings ("validation").
        root: the folder that `save_to_disk` wrote.
        image_column: of images, decoded when they are loaded.
        text_column, second_text_column: of texts, where the data is texts or pairs of them.
        label_column: the column's name.
        attribute_column: a column's name or several.
        class_names, attribute_names: names to show instead of those in the data.
        drop_empty: leave out rows with an empty text (white space alone); otherwise they are refused.

    Raises:
        BadData: `datasets`, the folder, the split or a column is missing, or a value cannot be used (with its row).
    """
    if second_text_column is not None and text_column is None:
        raise BadData("is set, and data.text_column is not", where="data.second_text_column", do="set data.text_column")
    content = [name for name in (text_column, second_text_column) if name is not None] or [image_column]
    attributes = [attribute_column] if isinstance(attribute_column, str) else list(attribute_column or [])
    splits = _open(root)
    name = next((name for name in SPLIT_NAMES[split] if name in splits), None)
    if name is None:
        choices = ", ".join(SPLIT_NAMES[split][:-1])
        do = f"name it one of {choices}"
        raise BadData(f"there is no {split} split (it has {', '.join(splits)})", where=root, do=do)
    data = splits.pop(name)
    where = Path(root, name)
    wanted = {content[0]: "set data.image_column" if text_column is None else "set data.text_column"}
    wanted |= dict.fromkeys(content[1:], "set data.second_text_column")
    wanted |= {label_column: "set data.label_column", **dict.fromkeys(attributes, "set data.attribute_column")}
    check_columns(where, data.column_names, wanted)
    others = [each for each in splits.values() if {label_column, *attributes} <= set(each.column_names)]

    labels, classes = _number([data, *others], [label_column], where)
    if (labels < 0).any():
        place = f"row {int((labels < 0).argmax())} (from 0), column '{label_column}'"
        raise BadData(f"{place}: there is no class", where=where)
    numbers, names = _number([data, *others], attributes, where) if attributes else (None, None)
    rows = np.arange(len(labels), dtype=np.int64)
    origin: Any = None
    if text_column is not None:
        texts = [_values(data, column, where) for column in content]
        for column, column_texts in zip(content, texts, strict=True):
            empty = np.array([not text.strip() for text in column_texts], dtype=bool)
            if empty.any() and not drop_empty:
                do = "fill it in, or set data.drop_empty to true to leave such rows out"
                place = f"row {int(empty.argmax())} (from 0), column '{column}'"
                raise BadData(f"{place}: the text is empty", where=where, do=do)
            rows = rows[~empty[rows]]
        load: Any = partial(load_text, tuple([column[row] for row in rows] for column in texts))
    else:
        if type(data.features[image_column]).__name__ != "Image":
            do = "cast the column to datasets.Image, or set data.text_column where the data is texts"
            raise BadData(f"column '{image_column}' holds {data.features[image_column]}, no images", where=where, do=do)
        load = partial(_load_image, data.select_columns([image_column]), image_column, str(where))
        origin = partial(_origin, data._fingerprint)
    return Split(
        labels=labels[rows],
        ids=rows,
        load=load,
        locate=partial(_locate, str(where), rows),
        class_names=named(class_names, classes, "class_names"),
        ids_are=f"row of the split {name}, 0 for the first",
        attributes=None if numbers is None else numbers[rows],
        attribute_names=None if names is None else named(attribute_names, names, "attribute_names"),
        kind="image" if text_column is None else "text",
        origin=origin,
    )


def _open(root: str) -> dict[str, Any]:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        do = "pip install 'nsf[datasets]'"
        raise BadData("data.format huggingface needs the package 'datasets'", where=root, do=do) from error
    try:
        found = datasets.load_from_disk(root)
    except Exception as error:  # its own, pyarrow's, json's: whatever a folder that is none meets first
        do = "set data.root to a folder that DatasetDict.save_to_disk wrote"
        raise BadData(f"cannot be read as a data set ({str(error).splitlines()[0]})", where=root, do=do) from error
    if not isinstance(found, Mapping):
        do = "save a DatasetDict, or name the folder above it"
        raise BadData("is a single Dataset, without splits", where=root, do=do)
    return {name: data.with_format(None) for name, data in found.items()}


def _values(data: Any, column: str, where: Path) -> list[str]:
    """A column as text: a ClassLabel's names, or as in a CSV file."""
    names = getattr(data.features[column], "names", None)
    values = data.select_columns([column])[:][column]
    if names is not None:
        return [names[value] if value is not None and value >= 0 else "" for value in values]
    texts = [as_text(value) for value in values]
    if None in texts:
        row = texts.index(None)
        raise BadData(f"row {row} (from 0), column '{column}': {values[row]!r:.60} is not text or a number", where=where)
    return [text or "" for text in texts]


def _number(splits: Sequence[Any], columns: Sequence[str], where: Path) -> tuple[np.ndarray, list[str]]:
    """The columns' values, joined where they are several: the first split's numbers, and names."""
    names = getattr(splits[0].features[columns[0]], "names", None)
    own = [_values(splits[0], column, where) for column in columns]
    if len(columns) == 1 and names is not None:
        index = {name: position for position, name in enumerate(names)}
        return np.array([index.get(value, -1) for value in own[0]], dtype=np.int64), list(names)
    values: list[str] = []
    for split in splits:
        parts = own if split is splits[0] else [_values(split, column, where) for column in columns]
        values += [value.strip() for value in (parts[0] if len(parts) == 1 else joined(parts, where=where))]
    numbers, found = number(values, where=where)
    return numbers[: len(own[0])], found


def _load_image(data: Any, column: str, where: str, position: int) -> "Image":
    try:
        image: Image = data[position][column]
        return as_rgb(image, f"{where}, row {position}")
    except UserError:
        raise
    except Exception as error:  # a file that is gone, or any of the ways in which Pillow fails
        raise BadData(f"row {position} (from 0) cannot be read as an image", where=where, do="replace it") from error


def _origin(fingerprint: str, position: int) -> str:
    """`datasets` gives every data set that it makes a fingerprint, of its content and of what was done to it."""
    return f"row {position} of {fingerprint}"


def _locate(where: str, rows: np.ndarray, position: int) -> str:
    return f"row {rows[position]} (from 0) of {where}"
