"""CheXpert (Irvin et al. 2019): does a chest X-ray show no finding? Against sex and race together.

The owners' files: `train.csv` and `valid.csv` (Path, Sex, Age, Frontal/Lateral, AP/PA, "No Finding" and the other findings)
and, fetched separately, `CHEXPERT DEMO.xlsx` (PATIENT, PRIMARY_RACE, ...) or the same table saved as `CHEXPERT DEMO.csv`.

Rows, attribute and splits are those of SubpopBench (Yang et al. 2023): the rows of both files, all views, in their order;
without those whose sex is neither Male nor Female, and without those whose patient the table of races does not list. Race is
white, black, or other - by how the entry begins, and other where it is blank. Then 75/10/15 % by images, stratified by the
attribute: two draws of scikit-learn's train_test_split with seed 42, test first.
"""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stages.data import CHECKED, Split, Table, check_columns, find_folder, image_file, load_image, read_csv
from stages.errors import BadData

CLASSES = ("finding", "no finding")
RACES = ("white", "black", "other")
ATTRIBUTES = tuple(f"{race} {sex}" for race in RACES for sex in ("male", "female"))
FINDING, DEMOGRAPHICS = "No Finding", "CHEXPERT DEMO"
VAL, TEST, SEED = 0.1, 0.15, 42


def read(split: str, *, root: str) -> Split:
    """Open one split. Ids count the rows of train.csv and, from there on, of valid.csv, those left out included.

    Args:
        split: "train", "val" or "test".
        root: the folder with train.csv, valid.csv and the table of races; the images' paths may begin with its own name.

    Raises:
        BadData: a file, a column or openpyxl is missing, a value is odd, or an image is not there.
    """
    import pandas

    folder = find_folder(root, "train.csv", "CheXpert-v1.0-small", "CheXpert-v1.0")
    columns = dict.fromkeys(("Path", "Sex", FINDING))
    tables = [read_csv(folder / name, columns, do="fetch it beside train.csv") for name in ("train.csv", "valid.csv")]
    findings = {"": 0, "0.0": 0, "0": 0, "1.0": 1, "1": 1}
    rows = pandas.concat([table.rows.assign(y=table.codes(FINDING, findings), patient=_patients(table, "Path"))
                          for table in tables], ignore_index=True)  # fmt: skip
    race = rows["patient"].map(_races(folder))
    sex = rows["Sex"].str.strip().map({"Male": 0, "Female": 1})
    kept = np.flatnonzero(race.notna() & sex.notna())
    if not len(kept):
        raise BadData(f"no row has a sex and a patient that {DEMOGRAPHICS} lists", where=folder, do="fetch both again")
    attributes = (2 * race + sex).to_numpy()[kept].astype(np.int64)
    chosen = _draw(attributes, folder)[split]
    ids = kept[chosen]
    start, files = _images(folder, rows["Path"].iloc[ids].str.strip().tolist())
    return Split(
        labels=rows["y"].to_numpy(dtype=np.int64)[ids],
        ids=ids,
        load=partial(load_image, str(start), files),
        locate=partial(_locate, str(start), files),
        origin=partial(image_file, str(start), files),
        class_names=CLASSES,
        ids_are="row of train.csv and then of valid.csv, 0 for the first after train.csv's header",
        attributes=attributes[chosen],
        attribute_names=ATTRIBUTES,
    )


def _patients(table: Table, column: str) -> "np.ndarray":
    """The patients' numbers, (n,) int64: 1 for patient00001."""
    numbers = table.rows[column].str.extract(r"patient(\d+)", expand=False)
    table.refuse(numbers.isna(), column, "a patient's, as in patient00001")
    return numbers.to_numpy(dtype=np.int64)


def _races(folder: Path) -> Mapping[int, int]:
    """The number in RACES of each patient that the table of races lists."""
    columns = dict.fromkeys(("PATIENT", "PRIMARY_RACE"))
    text = folder / f"{DEMOGRAPHICS}.csv"
    table = read_csv(text, columns) if text.is_file() else _read_excel(folder / f"{DEMOGRAPHICS}.xlsx", columns)
    names = table.rows["PRIMARY_RACE"].str.strip()
    races = np.select([names.str.startswith("White"), names.str.startswith("Black")], [0, 1], default=2)
    return dict(zip(_patients(table, "PATIENT").tolist(), races.tolist(), strict=True))


def _read_excel(path: Path, columns: dict[str, None]) -> Table:
    import pandas

    csv = path.with_suffix(".csv").name
    if not path.is_file():
        do = f"fetch it from CheXpert's page, or save it as {csv}"
        raise BadData("there is no such file, and it tells the patients' race", where=path, do=do)
    try:
        rows: Any = pandas.read_excel(path, dtype=str, keep_default_na=False)
    except ImportError as error:
        do = f"pip install 'nsf[tables]', or save the table as {csv}"
        raise BadData("needs the package 'openpyxl'", where=path, do=do) from error
    except Exception as error:  # openpyxl and zipfile raise what they like at a damaged file
        raise BadData("cannot be read as an Excel table", where=path, do=f"fetch it again or save it as {csv}") from error
    check_columns(path, [str(name) for name in rows.columns], columns)
    return Table(path, rows[list(columns)].fillna("").astype(str), 2)


def _draw(attributes: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    """The positions in each split, sorted."""
    draw = import_module("sklearn.model_selection").train_test_split
    try:
        rest, test = draw(np.arange(len(attributes)), test_size=TEST, random_state=SEED, stratify=attributes)
        train, val = draw(rest, test_size=VAL / (1 - TEST), random_state=SEED, stratify=attributes[rest])
    except ValueError as error:
        raise BadData(f"{len(attributes)} rows cannot be split with every sex and race in each split", where=folder,
                      do="use the whole of CheXpert") from error  # fmt: skip
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def _images(folder: Path, paths: list[str]) -> tuple[Path, list[str]]:
    """Where the paths start, and the paths from there. "CheXpert-v1.0-small/train/..." starts above the folder, or in it
    where the folder bears another name; "train/..." in it."""
    short = [path.split("/", 1)[-1] for path in paths]
    start, files = next(
        (
            (start, files)
            for start, files in ((folder, paths), (folder.absolute().parent, paths), (folder, short))
            if files and (start / files[0]).is_file()
        ),
        (folder, short),
    )
    if files and not any((start / file).is_file() for file in files[:CHECKED]):
        raise BadData("there is no such image", where=start / files[0], do="set data.root to the folder with train.csv")
    return start, files


def _locate(root: str, names: list[str], position: int) -> str:
    return str(Path(root, names[position]))
