"""A table with one row per sample - CSV, Parquet or JSON lines -, of images by their paths or of texts.

Columns for the path or the text, the label, the split and, if there are any, attributes. Waterbirds' `metadata.csv`
(img_filename, y, split, place; group_DRO, Sagawa et al. 2020) is such a table.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stages.data import (
    SPLIT_NAMES,
    UNREADABLE,
    Split,
    Table,
    check_columns,
    is_utf8,
    joined,
    named,
    number,
    open_text,
    place_of,
    unreadable_file,
)
from stages.data import read_csv as _read_csv
from stages.errors import BadData

# A reader of some columns of a file: path, columns with what mends their absence, what mends the file's -> table.
Reader = Callable[..., Table]


def read(
    split: str,
    reader: Reader,
    *,
    file: str,
    root: str | None = None,
    path_column: str = "path",
    text_column: str | None = None,
    second_text_column: str | None = None,
    label_column: str = "label",
    split_column: str = "split",
    attribute_column: str | Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    drop_empty: bool = False,
) -> Split:
    """Open one split of the table.

    Labels and attributes that are whole numbers stand for themselves; other values are numbered in sorted order. Splits
    are train/val/test, in the usual spellings, or 0/1/2. An empty attribute is unknown. Several attributes make one,
    "male+young", unknown where any of them is. Numbers, true, false and null in Parquet and JSON are the text that CSV has
    for them. Ids count the table's rows, 0 for the first, whatever its split.

    Args:
        split: "train", "val" or "test".
        reader: of the file's format.
        file: the table (UTF-8; CSV and JSON lines as .gz, too). With `{split}` in its name it is one file per split, in the
            usual spellings; classes and attributes are numbered over all the files there are, and ids count the rows of the
            split's own.
        root: the folder that the images' paths start from; by default the table's.
        path_column: of images.
        text_column, second_text_column: of texts, where the data is texts or pairs of them; then no path is read.
        label_column, split_column: the columns' names; the split's is not needed with `{split}`.
        attribute_column: a column's name or several.
        class_names, attribute_names: names to show for the numbers 0, 1, ...
        drop_empty: leave out rows with an empty text (white space alone); otherwise they are refused.

    Raises:
        BadData: the file or a column is missing, a value cannot be used (with its line), or an image is not there.
    """
    if second_text_column is not None and text_column is None:
        raise BadData("is set, and data.text_column is not", where="data.second_text_column", do="set data.text_column")
    attributes = [attribute_column] if isinstance(attribute_column, str) else list(attribute_column or [])
    numbered = {label_column: "set data.label_column", **dict.fromkeys(attributes, "set data.attribute_column")}
    if text_column is None:
        content = [path_column]
        wanted = {path_column: "set data.path_column, or data.text_column where the data is texts", **numbered}
    else:
        content = [text_column, *([] if second_text_column is None else [second_text_column])]
        wanted = {**dict.fromkeys(content, "set data.second_text_column"), text_column: "set data.text_column", **numbered}

    others: list[Table] = []
    if "{split}" in file:
        files = _files(file, split)
        table = reader(files.pop(split), wanted)
        others = [reader(path, numbered) for path in files.values()]
        chosen = np.ones(len(table.rows), dtype=bool)
    else:
        table = reader(Path(file), {**wanted, split_column: "set data.split_column"}, do="check data.file")
        chosen = table.splits(split_column) == split

    for each in (table, *others):
        each.refuse(each.rows[label_column].str.strip() == "", label_column, "a class")
    labels, classes = _number([table, *others], [label_column])
    if text_column is not None:
        for name in content:
            empty = table.rows[name].str.strip() == ""
            if drop_empty:
                chosen &= ~empty.to_numpy(dtype=bool)
            else:
                table.refuse(empty, name, "a text", do="fill it in, or set data.drop_empty to true to leave such rows out")
    rows = np.flatnonzero(chosen)
    if text_column is not None:
        source = table.texts([table.rows[name] for name in content], rows)
    else:
        start = table.path.parent if root is None else Path(root)
        do = "check data.root" if root is not None else "set data.root to the images' folder"
        paths = table.rows[path_column].str.strip()
        table.refuse((paths == "") & chosen, path_column, "a path")
        source = table.images(start, paths, rows, do=do)
    values, value_names = _number([table, *others], attributes) if attributes else (None, None)
    return Split(
        labels=labels[rows],
        ids=rows,
        class_names=named(class_names, classes, "class_names"),
        ids_are=f"row of {table.path.name}, 0 for the first" + (" after the header" if reader is _read_csv else ""),
        attributes=None if values is None else values[rows],
        attribute_names=None if value_names is None else named(attribute_names, value_names, "attribute_names"),
        **source,
    )


def _files(pattern: str, split: str) -> dict[str, Path]:
    """The splits' files that there are, the one asked for among them."""
    found: dict[str, Path] = {}
    for name, spellings in SPLIT_NAMES.items():
        paths = [Path(pattern.replace("{split}", spelling)) for spelling in spellings]
        there = [path for path in paths if path.is_file()]
        if there:
            found[name] = there[0]
    if split not in found:
        choices = ", ".join(SPLIT_NAMES[split][:-1])
        raise BadData(f"there is no file for the {split} split", where=pattern, do=f"put one of {choices} for {{split}}")
    return found


def _number(tables: Sequence[Table], columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The columns' values, joined where they are several, numbered over all tables: the first one's numbers, and names."""
    values: list[str] = []
    for table in tables:
        parts = [table.rows[column].str.strip().tolist() for column in columns]
        values += parts[0] if len(parts) == 1 else joined(parts, where=table.path)
    numbers, names = number(values, where=tables[0].path)
    return numbers[: len(tables[0].rows)], names


# ------------------------------------------------------------------------------------------------------------- formats


def read_rows_jsonl(path: Path, columns: Mapping[str, str | None], *, do: str | None = None) -> Table:
    """Some columns of a JSON lines file: one object per line; what an object lacks is empty.

    Raises:
        BadData: the file is missing, a line is no JSON object, no object has a column, or a value is a list or an object.
    """
    header: dict[str, None] = {}
    found: dict[str, list[Any]] = {column: [] for column in columns}
    lines: list[int] = []
    try:
        with open_text(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise BadData(f"line {line} is not valid JSON ({error})", where=path, do="mend the line") from error
                if not isinstance(row, dict):
                    raise BadData(f"line {line} is no JSON object", where=path, do='write {"column": value, ...}')
                lines.append(line)
                header.update(dict.fromkeys(row))
                for column, values in found.items():
                    values.append(row.get(column))
    except FileNotFoundError as error:
        raise BadData("there is no such file", where=path, do=do) from error
    except UNREADABLE as error:
        raise unreadable_file(path, "JSON lines", error) from error
    check_columns(path, list(header), columns)
    # The lines are kept as they are counted; most often they are the rows themselves.
    known = 1 if lines == list(range(1, len(lines) + 1)) else partial(_known_lines, np.array(lines, dtype=np.int64))
    return _as_text(path, found, known)


def _known_lines(lines: np.ndarray, path: Path) -> np.ndarray:
    return lines


def read_rows_parquet(path: Path, columns: Mapping[str, str | None], *, do: str | None = None) -> Table:
    """Some columns of a Parquet file.

    Raises:
        BadData: pyarrow, the file or a column is missing, it is no Parquet, or a value is a list, a struct or bytes.
    """
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        do = "pip install 'nsf[tables]'"
        raise BadData("Parquet needs the package 'pyarrow'", where=path, do=do) from error
    if not path.is_file():
        raise BadData("there is no such file", where=path, do=do)
    try:
        check_columns(path, parquet.read_schema(path).names, columns)
        table = parquet.read_table(path, columns=list(columns))
    except (OSError, ValueError) as error:
        raise BadData(f"cannot be read as Parquet ({str(error).splitlines()[0]})", where=path) from error
    return _as_text(path, {column: table.column(column).to_pylist() for column in columns}, None)


def _as_text(path: Path, columns: Mapping[str, Sequence[Any]], lines: Any) -> Table:
    import pandas

    texts = {column: [as_text(value) for value in values] for column, values in columns.items()}
    for column, values in texts.items():
        if None in values:
            row = values.index(None)
            place, shown = place_of(path, lines, row), repr(columns[column][row])[:60]
            raise BadData(f"{place}, column '{column}': {shown} is not text, a number, true, false or null", where=path)
    return Table(path, pandas.DataFrame(texts, dtype=object), lines)


def as_text(value: Any) -> str | None:
    """A value as CSV has it: "1" for 1 and 1.0, "true", "false", nothing for null and NaN; None where CSV has no such."""
    if isinstance(value, str):
        # JSON may hold half of a surrogate pair, which is no text, and no tokenizer takes it.
        return value if is_utf8(value) else None
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return str(int(value)) if float(value).is_integer() else str(value)
    return None


# data.format -> what reads some columns of such a file.
ROWS: Mapping[str, Reader] = {"csv": _read_csv, "jsonl": read_rows_jsonl, "parquet": read_rows_parquet}

read_csv = partial(read, reader=ROWS["csv"])
read_jsonl = partial(read, reader=ROWS["jsonl"])
read_parquet = partial(read, reader=ROWS["parquet"])
