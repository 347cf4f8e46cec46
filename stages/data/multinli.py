"""MultiNLI (Williams et al. 2018) with negation as the spurious attribute, in the splits of Sagawa et al. 2020.

group_DRO's `metadata_random.csv` (an index, gold_label, split, sentence2_has_negation; github.com/kohpangwei/group_DRO,
dataset_metadata/multinli) names neither sentence. Its script concatenates MultiNLI's train, dev_matched and dev_mismatched
files in this order, leaves out the examples without a gold label ("-"), and writes a row for each of the others: so row i
belongs to the i-th example that has one, in the owners' files as in GLUE's, which hold no others. The labels are compared
row by row. Published train groups (no negation, negation): contradiction 57498, 11158; entailment 67376, 1521; neutral
66630, 1992.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.data import Split, Table, find_folder, place_of, read_csv
from stages.data.table import read_rows_jsonl
from stages.errors import BadData

if TYPE_CHECKING:
    from pandas import Series

METADATA = "metadata_random.csv"
CLASSES = ("contradiction", "entailment", "neutral")
ATTRIBUTES = ("no negation", "negation")
PARTS = ("train", "dev_matched", "dev_mismatched")

# Where people keep the texts: beside the metadata, or as group_DRO, the owners' archive and GLUE's have them.
FOLDERS = ("", "data", "multinli_1.0", "MNLI", "glue_data/MNLI")
# File names, and how each is read: the owners' two formats, then GLUE's.
LAYOUTS: tuple[tuple[str, Callable[..., Table]], ...] = (
    ("multinli_1.0_{}.jsonl", read_rows_jsonl),
    ("multinli_1.0_{}.txt", partial(read_csv, quoted=False)),
    ("{}.tsv", partial(read_csv, quoted=False)),
)


def read(split: str, *, root: str) -> Split:
    """Open one split of sentence pairs. Ids count the rows of metadata_random.csv.

    Args:
        split: "train", "val" or "test".
        root: the folder with metadata_random.csv, or the one above its `data`; the texts are looked for in FOLDERS.

    Raises:
        BadData: a file or a column is missing, or metadata and texts do not fit each other.
    """
    folder = find_folder(root, METADATA, "data")
    columns = ("gold_label", "split", "sentence2_has_negation")
    table = read_csv(folder / METADATA, dict.fromkeys(columns))
    labels = table.codes("gold_label", {"0": 0, "1": 1, "2": 2})
    negations = table.codes("sentence2_has_negation", {"0": 0, "1": 1})
    rows = np.flatnonzero(table.splits("split") == split)
    first, second = _texts(Path(root), table, labels)
    return Split(
        labels=labels[rows],
        ids=rows,
        class_names=CLASSES,
        ids_are=f"row of {METADATA}, 0 for the first after the header",
        attributes=negations[rows],
        attribute_names=ATTRIBUTES,
        **table.texts([first, second], rows),
    )


def _texts(root: Path, metadata: Table, labels: np.ndarray) -> "tuple[Series, Series]":
    """The first and the second sentence of each row of the metadata."""
    import pandas

    parts = []
    for path, reader in _files(root):
        part = reader(path, dict.fromkeys(("gold_label", "sentence1", "sentence2")))
        rows = part.rows.assign(gold_label=part.rows["gold_label"].str.strip())
        parts.append((part, rows[rows["gold_label"] != "-"]))
    kept = pandas.concat([rows for _, rows in parts])
    if len(kept) != len(labels):
        files = ", ".join(part.path.name for part, _ in parts)
        raise BadData(f"has {len(labels)} rows, and {files} have {len(kept)} examples with a gold label",
                      where=metadata.path, do="fetch the four files again")  # fmt: skip
    wrong = np.flatnonzero(kept["gold_label"].to_numpy() != np.array(CLASSES, dtype=object)[labels])
    if len(wrong):
        row = int(wrong[0])
        sizes = np.cumsum([len(rows) for _, rows in parts])
        part, _ = parts[int(np.searchsorted(sizes, row, side="right"))]
        told = f"{place_of(metadata.path, metadata.lines, row)} says {CLASSES[labels[row]]}"
        there = f"{place_of(part.path, part.lines, int(kept.index[row]))} of {part.path} {kept['gold_label'].iloc[row]}"
        raise BadData(f"{told}, and {there}", where=metadata.path, do="fetch both files again")
    return kept["sentence1"], kept["sentence2"]


def _files(root: Path) -> list[tuple[Path, Callable[..., Table]]]:
    """The first three files that belong together, and their reader."""
    for folder in FOLDERS:
        for pattern, reader in LAYOUTS:
            paths = [root / folder / pattern.format(part) for part in PARTS]
            if all(path.is_file() for path in paths):
                return [(path, reader) for path in paths]
    names = ", ".join(LAYOUTS[0][0].format(part) for part in PARTS)
    do = "put them there, or GLUE's train.tsv, dev_matched.tsv and dev_mismatched.tsv"
    raise BadData(f"there are not all of {names}, in it or in {', '.join(FOLDERS[1:])}", where=root, do=do)
