"""CelebA (Liu et al. 2015): faces with 40 attributes, two of which are the class and the spurious attribute.

The owners' files, as torchvision unpacks them: `list_attr_celeba.txt` (the number of rows, the attributes' names, and a row
`000001.jpg -1 1 ...` per image), `list_eval_partition.txt` (`000001.jpg 0`) and the images in `img_align_celeba/`. Or, as
Kaggle, group_DRO and WILDS have them, both lists as .csv: columns image_id and an attribute each, image_id and partition.
With hair colour against gender (Sagawa et al. 2020), the published group sizes (non-blond/female, non-blond/male,
blond/female, blond/male) are: train 71629, 66874, 22880, 1387; val 8535, 8276, 2874, 182; test 9767, 7535, 2480, 180.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.data import Split, Table, find_folder, read_csv
from stages.errors import BadData

# Each list in the owners' format or as CSV.
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION = ("list_eval_partition.txt", "list_eval_partition.csv")
IMAGES = "img_align_celeba"

# Where people keep them below the root: as torchvision, WILDS and group_DRO have them.
FOLDERS = ("celeba", "celebA_v1.0", "data")

# What the field calls the two values of the attributes that it uses; of any other, say Young: "not Young", "Young".
NAMES = {"Blond_Hair": ("non-blond", "blond"), "Male": ("female", "male")}


def read(split: str, *, root: str, target: str = "Blond_Hair", attribute: str = "Male") -> Split:
    """Open one split. Ids count the images, 0 for 000001.jpg.

    Args:
        split: "train", "val" or "test".
        root: the folder with the two lists and `img_align_celeba`, or the one above it; see FOLDERS.
        target: the attribute that is the class.
        attribute: the attribute that is the spurious one.

    Raises:
        BadData: a list is missing or damaged, an attribute is none of CelebA's, or an image is not there.
    """
    folder = find_folder(root, ATTRIBUTES, *FOLDERS)
    table = _attributes(_there(folder, ATTRIBUTES), {"target": target, "attribute": attribute})
    signs = {"-1": 0, "1": 1}
    labels, attributes = table.codes(target, signs), table.codes(attribute, signs)
    rows = np.flatnonzero(_partition(_there(folder, PARTITION), table) == split)
    # Kaggle's archive has the folder in one of its name.
    nested = folder / IMAGES / IMAGES
    images = table.images(
        nested if nested.is_dir() else nested.parent, table.rows["image_id"], rows, do=f"unpack {IMAGES}.zip beside it"
    )
    return Split(
        labels=labels[rows],
        ids=rows,
        class_names=NAMES.get(target, (f"not {target}", target)),
        ids_are=f"row of {table.path.name}, 0 for the first image",
        attributes=attributes[rows],
        attribute_names=NAMES.get(attribute, (f"not {attribute}", attribute)),
        **images,
    )


def _there(folder: Path, files: Sequence[str]) -> Path:
    """The first of these files that is there.

    Raises:
        BadData: none is.
    """
    for name in files:
        if (folder / name).is_file():
            return folder / name
    raise BadData(f"there is no {' or '.join(files)}", where=folder, do="fetch it from CelebA's page")


def _attributes(path: Path, wanted: dict[str, str]) -> Table:
    """The column `image_id` and the attributes that are wanted, by option."""
    if path.suffix == ".csv":
        return read_csv(path, {"image_id": None, **{name: f"set data.{option}" for option, name in wanted.items()}})
    with path.open(encoding="utf-8", errors="replace") as file:
        count, header = file.readline().strip(), file.readline().split()
    for option, name in wanted.items():
        if name not in header:
            raise BadData(f"there is no attribute '{name}' (it has {', '.join(header) or 'none'})", where=path,
                          do=f"set data.{option}")  # fmt: skip
    table = _read_list(path, {"image_id": 0, **{name: 1 + header.index(name) for name in wanted.values()}}, skiprows=2)
    if count != str(len(table.rows)):
        raise BadData(f"line 1 says {count!r} images, and {len(table.rows)} follow", where=path, do="fetch the file again")
    return table


def _partition(path: Path, table: Table) -> np.ndarray:
    """The split of each of the table's images, (n,) "train", "val" or "test"."""
    columns = {"image_id": 0, "partition": 1}
    listed = read_csv(path, dict.fromkeys(columns)) if path.suffix == ".csv" else _read_list(path, columns)
    splits = dict(zip(listed.rows["image_id"], listed.splits("partition"), strict=True))
    found = table.rows["image_id"].map(splits)
    table.refuse(found.isna(), "image_id", f"in {path.name}")
    return found.to_numpy(dtype=object)


def _read_list(path: Path, columns: dict[str, int], *, skiprows: int = 0) -> Table:
    """Some columns, by name and place, of a file with white space between them."""
    import pandas

    layout: dict[str, Any] = {"sep": r"\s+", "header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    try:
        rows = pandas.read_csv(path, skiprows=skiprows, **layout)
    except (OSError, ValueError) as error:
        raise BadData(f"cannot be read as a list ({str(error).splitlines()[0]})", where=path) from error
    if max(columns.values()) >= rows.shape[1]:
        raise BadData(f"line {1 + skiprows} has {rows.shape[1]} columns", where=path, do="fetch the file again")
    # A row that ends early has no value; it is told where the value is looked at.
    return Table(path, pandas.DataFrame({name: rows[place].fillna("") for name, place in columns.items()}), 1 + skiprows)
