"""CivilComments (Borkan et al. 2019) in the version of WILDS (Koh et al. 2021): is a comment toxic?

WILDS' file `all_data_with_identities.csv` (columns comment_text, split, toxicity, male, female, LGBTQ, ...). A comment is
toxic when at least half of its annotators say so, and mentions an identity likewise.

The attribute is coarse: does it mention any of WILDS' eight identities? So it is in the field - AFR
(`WildsCivilCommentsCoarse`), Izmailov et al. 2022, LaBonte et al. 2023 -, with train groups (non-toxic/no identity,
non-toxic/identity, toxic/no identity, toxic/identity) of 148186, 90337, 12731 and 17784, 269038 in all. The file's own
column `identity_any` is something else: any of 24 identities, some of which (asian, disability, ...) are none of the eight.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.data import Split, Table, find_folder, read_csv

FILE = "all_data_with_identities.csv"
CLASSES = ("non-toxic", "toxic")
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")


def read(split: str, *, root: str, identities: str | Sequence[str] = "any") -> Split:
    """Open one split. Ids count the file's rows. A comment that is empty stays, for the published sizes.

    Args:
        split: "train", "val" or "test".
        root: the folder with all_data_with_identities.csv, or the one above it, which holds `civilcomments_v1.0`.
        identities: "any" of the eight, or the columns of which any makes the attribute (["black"], ["identity_any"]).

    Raises:
        BadData: the file or a column is missing, or a share is not between 0 and 1.
    """
    path: Path = find_folder(root, FILE, "civilcomments_v1.0") / FILE
    mentioned = IDENTITIES if identities == "any" else tuple([identities] if isinstance(identities, str) else identities)
    names = ("no identity", "identity") if identities == "any" else (f"not {'+'.join(mentioned)}", "+".join(mentioned))
    columns = dict.fromkeys(("comment_text", "split", "toxicity"))
    table = read_csv(path, {**dict.fromkeys(mentioned, "set data.identities"), **columns})
    table.refuse(table.rows["toxicity"] == "", "toxicity", "a share from 0 to 1")
    toxic = _at_least_half(table, "toxicity")
    attributes = np.any([_at_least_half(table, name) for name in mentioned], axis=0)
    rows = np.flatnonzero(table.splits("split") == split)
    return Split(
        labels=toxic[rows].astype(np.int64),
        ids=rows,
        class_names=CLASSES,
        ids_are=f"row of {FILE}, 0 for the first after the header",
        attributes=attributes[rows].astype(np.int64),
        attribute_names=names,
        **table.texts([table.rows["comment_text"]], rows),
    )


def _at_least_half(table: Table, column: str) -> np.ndarray:
    """Where the share is at least one half, (n,) bool; a blank is none, as WILDS takes it."""
    import pandas

    shares = pandas.to_numeric(table.rows[column], errors="coerce").to_numpy(dtype=float)
    blank = (table.rows[column] == "").to_numpy(dtype=bool)
    table.refuse(~(blank | ((shares >= 0) & (shares <= 1))), column, "a share from 0 to 1")
    return shares >= 0.5
