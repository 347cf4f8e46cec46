"""Data sets: one module per format, each with a `read(split, **options) -> Split`."""

import csv
import gzip
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stages.errors import BadData, listed
from stages.metrics import members

if TYPE_CHECKING:
    from pandas import DataFrame, Series
    from PIL.Image import Image

# data.format -> the module that reads it with `read`, or with the function after a colon.
READERS = {
    "dominoes": "stages.data.dominoes",
    "folder": "stages.data.folder",
    "csv": "stages.data.table:read_csv",
    "parquet": "stages.data.table:read_parquet",
    "jsonl": "stages.data.table:read_jsonl",
    "huggingface": "stages.data.huggingface",
    "waterbirds": "stages.data.waterbirds",
    "celeba": "stages.data.celeba",
    "multinli": "stages.data.multinli",
    "civilcomments": "stages.data.civilcomments",
    "chexpert": "stages.data.chexpert",
}

SPLITS = ("train", "val", "test")

# What people call the three splits, in folder names and in the split column of tables (0, 1, 2: group_DRO's metadata).
SPLIT_NAMES = {
    "train": ("train", "training", "0"),
    "val": ("val", "valid", "validation", "dev", "1"),
    "test": ("test", "testing", "2"),
}

# How many of a split's images are looked for when it is opened: where none is there, the root is wrong; and no wait for
# 200,000 files on a network disk. A single file that is missing is named, or skipped, when it is loaded.
CHECKED = 100

# The highest whole number that stands for itself as a class or attribute: beyond it, a column of ids was taken for one.
HIGHEST = 99_999


@dataclass(frozen=True)
class Split:
    """One split of a data set. Labels and attributes are known without opening any sample.

    Attributes:
        labels: (n,) int64 in [0, C).
        ids: (n,) int64; what they count is said in `ids_are`.
        load: gives the sample at a position (see `kind`); picklable, so that loader workers can take it along.
        locate: says in words where the sample at a position comes from: its file or row.
        class_names: C names.
        attributes: (n,) int64, -1 where unknown; None where the data has none.
        attribute_names: a name per attribute value.
        ids_are: what an id counts, in words ("row of metadata.csv").
        kind: what a sample is: "image", an RGB image; "text", a str or a tuple of two (premise and hypothesis, say).
        origin: what tells whether the sample at a position has changed: the file that it lies in, or words that change
            with it; None where the sample itself is the cheapest such thing.
    """

    labels: np.ndarray
    ids: np.ndarray
    load: Callable[[int], "Image | str | tuple[str, str]"]
    locate: Callable[[int], str]
    class_names: Sequence[str]
    ids_are: str
    attributes: np.ndarray | None = None
    attribute_names: Sequence[str] | None = field(default=None)
    kind: str = "image"
    origin: Callable[[int], Path | str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple["Image | str | tuple[str, str]", int, int | None, int]:
        """(sample, label, attribute or None, id)."""
        attribute = None if self.attributes is None else int(self.attributes[position])
        return self.load(position), int(self.labels[position]), attribute, int(self.ids[position])

    def counts(self) -> dict[str, Any]:
        """How many samples there are: `samples`, `classes` and `groups`, the latter two by name, as in the metrics.

        Classes and groups without a sample are left out, and from the groups samples whose attribute is unknown.
        """
        # `members` asks of its arrays only what NumPy's have, too.
        labels, attributes = (values if values is None else np.asarray(values) for values in (self.labels, self.attributes))
        parts: Any = members(labels, attributes, self.class_names, self.attribute_names)  # type: ignore[arg-type]
        classes, groups = ({name: int(chosen.sum()) for name, chosen in part.items()} for part in parts)
        return {"samples": len(self), "classes": classes, "groups": groups}


def open_split(split: str, *, format: str, on_error: str = "stop", **options: Any) -> Split:
    """Open one split ("train", "val" or "test") of a data set.

    Args:
        split: which one.
        format: a key of READERS.
        on_error: what the loader does with a sample that cannot be read; no matter here, where none is.
        options: the reader's own, as in the `data` section of params.yaml.

    Raises:
        BadData: the files are missing or not laid out as the reader expects, or the split is empty.
    """
    module, _, function = READERS[format].partition(":")
    opened: Split = getattr(import_module(module), function or "read")(split, **options)
    if len(opened) == 0:
        raise BadData(f"the {split} split holds no sample", where=options.get("root") or options.get("file"))
    return opened


# A whole number from 0, perhaps written as a fraction.
WHOLE = re.compile(r"[0-9]+(\.0*)?")


def number(values: Sequence[str], *, where: str | Path | None = None) -> tuple[np.ndarray, list[str]]:
    """Number the distinct values of a column: (n,) int64 and a name per number.

    Whole numbers from 0 stand for themselves, so that they fit a head trained elsewhere (as 2.0, too, which pandas makes of
    a column with gaps); other values, those with leading zeros among them, are sorted. An empty value is unknown, -1.

    Raises:
        BadData: a whole number above HIGHEST, told of the file `where`.
    """
    known = sorted({value for value in values if value != ""})
    if any("." in value for value in known) and all(WHOLE.fullmatch(value) for value in known):
        return number([value.partition(".")[0] for value in values], where=where)
    if all(value.isdecimal() and value == str(int(value)) for value in known):
        highest = max((int(value) for value in known), default=-1)
        if highest > HIGHEST:
            raise BadData(f"a class or attribute is {highest}, and numbers are allowed up to {HIGHEST}", where=where,
                          do="name a column of classes, or number them from 0")  # fmt: skip
        numbers = np.array([int(value) if value else -1 for value in values], dtype=np.int64)
        return numbers, [str(index) for index in range(highest + 1)]
    index = {value: position for position, value in enumerate(known)}
    return np.array([index.get(value, -1) for value in values], dtype=np.int64), known


def open_image(path: Path) -> "Image":
    """The image in a file, as RGB.

    Raises:
        BadData: no such file, no image that Pillow can decode, or one of more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return as_rgb(image, path)
    except FileNotFoundError as error:
        raise BadData("there is no such image", where=path) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData("cannot be read as an image", where=path, do="replace or remove it") from error


def as_rgb(image: "Image", where: Path | str) -> "Image":
    """An image of any mode as RGB.

    Raises:
        BadData: it has more than 8 bits a channel.
    """
    if image.mode[0] in "IF":
        # Pillow would cut all values at 255: the whole image turns white.
        raise BadData(
            f"an image has more than 8 bits a channel (Pillow's mode {image.mode})",
            where=where,
            do="convert it to 8 bits, as the model's training images were",
        )
    return image.convert("RGB")


def named(given: Sequence[str] | None, found: Sequence[str], key: str) -> Sequence[str]:
    """The names to show for the numbers 0, 1, ...: those given as `data.<key>`, or else those found.

    Raises:
        BadData: fewer names are given than there are values, or one twice.
    """
    if given is None:
        return found
    if len(given) < len(found):
        raise BadData(
            f"names {len(given)} values, and the table has {len(found)} ({listed(found)})",
            where=f"data.{key}",
            do="give one name per value",
        )
    if twice := [name for index, name in enumerate(given) if name in given[:index]]:
        raise BadData(f"names two values '{twice[0]}'", where=f"data.{key}", do="give every value a name of its own")
    return given


def joined(columns: Sequence[Sequence[str]], *, where: str | Path) -> list[str]:
    """Several attributes as one, "male+young"; unknown (empty) where any of them is.

    Raises:
        BadData: values that are not the same come out as the same text, for one of them holds a "+".
    """
    texts, meant = [], dict[str, tuple[str, ...]]()
    for values in zip(*columns, strict=True):
        text = "+".join(values) if all(values) else ""
        if text and meant.setdefault(text, values) != values:
            raise BadData(
                f"the attributes {meant[text]} and {values} would both be '{text}'", where=where, do="rename their values"
            )
        texts.append(text)
    return texts


def find_folder(root: str | Path, file: str | Sequence[str], *below: str) -> Path:
    """The folder that holds `file`, or one of several: the root, or one of those below it.

    Raises:
        BadData: none of them does.
    """
    files = [file] if isinstance(file, str) else file
    for folder in (Path(root), *(Path(root, name) for name in below)):
        if any((folder / name).is_file() for name in files):
            return folder
    also = f", in it or in {' or '.join(below)}" if below else ""
    wanted = " or ".join(files)
    raise BadData(f"there is no {wanted}{also}", where=root, do=f"set data.root to the folder with {wanted}")


# -------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """The rows of a file, all of them text.

    Attributes:
        path: the file.
        rows: a str per row and column.
        lines: the line of the first row, where each row has one line; a function from the file to every row's line, where
            one cannot tell without reading it; None where the format has no lines.
    """

    path: Path
    rows: "DataFrame"
    lines: "int | Callable[[Path], np.ndarray] | None"

    def refuse(self, wrong: Any, column: str, allowed: str, *, do: str | None = None) -> None:
        """Refuse the first row for which `wrong`, (n,) bool, holds: its value is not what is `allowed`."""
        rows = np.flatnonzero(wrong)
        if len(rows):
            value, place = self.rows[column].iloc[rows[0]], place_of(self.path, self.lines, rows[0])
            shown = value if len(value) <= 60 else f"{value[:60]}..."
            raise BadData(f"{place}, column '{column}': '{shown}' is not {allowed}", where=self.path, do=do)

    def codes(self, column: str, values: Mapping[str, int]) -> np.ndarray:
        """A column of known values as (n,) int64; any other value is refused with its row."""
        found = self.rows[column].str.strip().map(values)
        self.refuse(found.isna(), column, " or ".join(filter(None, values)) + (" or blank" if "" in values else ""))
        return found.to_numpy(dtype=np.int64)

    def splits(self, column: str) -> np.ndarray:
        """A column's splits, (n,) "train", "val" or "test", in whatever spelling; any other value is refused."""
        spelled = {name: key for key, names in SPLIT_NAMES.items() for name in names}
        found = self.rows[column].str.strip().str.lower().map(spelled)
        self.refuse(found.isna(), column, "train, val or test (0, 1 or 2)")
        return found.to_numpy(dtype=object)

    def images(self, root: Path, names: "Series", chosen: np.ndarray, *, do: str) -> dict[str, Any]:
        """`load`, `locate` and `origin` of a Split for the images that these rows, `chosen`, name.

        One of the first of them must be there.

        Args:
            root: the folder that the names start from.
            names: a path for every row of the table.
            chosen: (m,) the split's rows.
            do: what would mend a root that is wrong.
        """
        files = names.iloc[chosen].tolist()
        if files and not any((root / name).is_file() for name in files[:CHECKED]):
            place = place_of(self.path, self.lines, chosen[0])
            raise BadData(f"{place} names the image {root / files[0]}, which is not there", where=self.path, do=do)
        locate = partial(_locate_image, str(root), files, self.path, self.lines, chosen)
        origin = partial(image_file, str(root), files)
        return {"load": partial(load_image, str(root), files), "locate": locate, "origin": origin}

    def texts(self, columns: "Sequence[Series]", chosen: np.ndarray) -> dict[str, Any]:
        """`kind`, `load` and `locate` of a Split for the texts in one column or two of these rows, `chosen`."""
        load = partial(load_text, tuple(column.iloc[chosen].tolist() for column in columns))
        return {"kind": "text", "load": load, "locate": partial(_locate_row, self.path, self.lines, chosen)}


# How many rows of a CSV file are parsed at a time.
PART = 10_000

# What a text file that is none, or that gzip cannot unpack, raises when it is read.
UNREADABLE = (OSError, ValueError, EOFError, zlib.error)


def open_text(path: Path, *, encoding: str = "utf-8", errors: str = "strict", newline: str | None = None) -> IO[str]:
    """A file to read text from, unpacked where its name ends in .gz."""
    packed = path.suffix == ".gz"
    return (
        gzip.open(path, "rt", encoding=encoding, errors=errors, newline=newline)
        if packed
        else path.open(encoding=encoding, errors=errors, newline=newline)
    )


def unreadable_file(path: Path, form: str, error: Exception) -> BadData:
    """That a file, of this form by its name, cannot be read; where it is no UTF-8, in which line that shows."""
    if not isinstance(error, UnicodeDecodeError):
        return BadData(f"cannot be read as {form} ({str(error).splitlines()[0]})", where=path)
    with open_text(path, errors="surrogateescape", newline="\n") as file:
        line = next((number for number, text in enumerate(file, start=1) if not is_utf8(text)), 1)
    return BadData(f"line {line} is no text in UTF-8", where=path, do="save the file as UTF-8")


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text: it has no half of a surrogate pair, nor stands one for a byte that is no UTF-8."""
    return text.isascii() or text == text.encode(errors="ignore").decode()


def read_csv(path: Path, columns: Mapping[str, str | None], *, do: str | None = None, quoted: bool = True) -> Table:
    """Some columns of a CSV file, or with `quoted=False` of a file with tabs and no quoting (GLUE's .tsv).

    Args:
        path: the file, UTF-8; packed by gzip where its name ends in .gz.
        columns: the columns' names, each with what would mend its absence.
        do: what would mend the file's absence.

    Raises:
        BadData: the file or a column is missing, or it cannot be read as CSV.
    """
    import pandas

    layout: dict[str, Any] = {} if quoted else {"sep": "\t", "quoting": csv.QUOTE_NONE, "lineterminator": "\n"}
    layout |= {"dtype": str, "keep_default_na": False, "encoding": "utf-8", "index_col": False}
    layout["compression"] = "gzip" if path.suffix == ".gz" else None
    try:
        with warnings.catch_warnings():
            # A row longer than the header would lose its end, and with `usecols` without a word.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            # As a row, for pandas numbers columns of one name.
            first = pandas.read_csv(path, nrows=1, header=None, **layout)
            header = [str(name).strip() for name in first.iloc[0]]
            if len(header) == 1 and header[0] not in columns and (marks := {";", "\t"} & set(header[0])):
                told = "tabs" if "\t" in marks else "';'"
                raise BadData(f"its first line has {told} and no comma", where=path, do="separate the columns by commas")
            check_columns(path, header, columns)
            # In parts, and of each the columns that are wanted: the others are held for no more than a part.
            with pandas.read_csv(path, chunksize=PART, **layout) as parts:
                rows = pandas.concat([part.rename(columns=str.strip)[list(columns)] for part in parts])
    except FileNotFoundError as error:
        raise BadData("there is no such file", where=path, do=do) from error
    except pandas.errors.ParserWarning as error:
        raise BadData("the first row has more fields than the header", where=path,
                      do='put texts with commas in "quotes"' if quoted else None) from error  # fmt: skip
    except UNREADABLE as error:
        raise unreadable_file(path, "CSV", error) from error
    return Table(path, rows, csv_lines if quoted else 2)


def check_columns(path: Path, header: Sequence[str], columns: Mapping[str, str | None]) -> None:
    """Refuse a table that lacks one of the columns, each given with what would mend it, or has it twice."""
    for column, do in columns.items():
        if header.count(column) > 1:
            raise BadData(f"has {header.count(column)} columns '{column}'", where=path, do="rename or remove all but one")
        if column not in header:
            known = ", ".join(header[:20]) + (", ..." if len(header) > 20 else "")
            raise BadData(f"there is no column '{column}' (it has {known or 'none'})", where=path, do=do)


def csv_lines(path: Path) -> np.ndarray:
    """The line in which each row of a CSV file begins, (n,): fields may hold newlines, and blank lines are no rows."""
    try:
        return _csv_lines(path, path.stat().st_mtime_ns)
    except OSError:  # gone since it was read: an error is being told, and need not meet another
        return np.empty(0, dtype=np.int64)


@lru_cache(maxsize=4)
def _csv_lines(path: Path, changed: int) -> np.ndarray:
    lines, end = [], 0
    limit = csv.field_size_limit(sys.maxsize)
    # What this module refuses and pandas does not, leaves the lines from there on to `place_of`.
    with open_text(path, newline="") as file, suppress(csv.Error):
        reader = csv.reader(file)
        for record in reader:
            if len(record) > 1 or "".join(record).strip():
                lines.append(end + 1)
            end = reader.line_num
    csv.field_size_limit(limit)
    return np.array(lines[1:], dtype=np.int64)


def place_of(path: Path, lines: "int | Callable[[Path], np.ndarray] | None", row: int) -> str:
    """What people call a row: the line it stands in, or where there are no lines its number."""
    if lines is None:
        return f"row {row} (from 0)"
    if isinstance(lines, int):
        return f"line {row + lines}"
    known = lines(path)
    return f"line {known[row] if row < len(known) else row + 2}"


# ----------------------------------------------------------------------- what a Split loads; picklable as partials of these


def load_image(root: str, names: list[str], position: int) -> "Image":
    return open_image(Path(root, names[position]))


def image_file(root: str, names: list[str], position: int) -> Path:
    return Path(root, names[position])


def load_text(columns: tuple[list[str], ...], position: int) -> str | tuple[str, ...]:
    """The text at a position, or where there are two columns both."""
    return columns[0][position] if len(columns) == 1 else tuple(column[position] for column in columns)


def _locate_image(root: str, names: list[str], path: Path, lines: Any, rows: np.ndarray, position: int) -> str:
    return f"{Path(root, names[position])} ({_locate_row(path, lines, rows, position)})"


def _locate_row(path: Path, lines: Any, rows: np.ndarray, position: int) -> str:
    return f"{place_of(path, lines, rows[position])} of {path}"
