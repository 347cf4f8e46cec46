"""Waterbirds (Sagawa et al. 2020): birds cut out of their photographs and put on land or water.

The folder `waterbird_complete95_forest2water2` as group_DRO (github.com/kohpangwei/group_DRO) distributes it, or WILDS'
`waterbirds_v1.0`: `metadata.csv` (img_id, img_filename, y, split, place, place_filename) and the images in a folder per
species. Published group sizes (landbird/land, landbird/water, waterbird/land, waterbird/water): train 3498, 184, 56, 1057;
val 467, 466, 133, 133; test 2255, 2255, 642, 642.
"""

import numpy as np

from stages.data import Split, find_folder, read_csv

CLASSES = ("landbird", "waterbird")
PLACES = ("land", "water")


def read(split: str, *, root: str) -> Split:
    """Open one split. Ids count the rows of metadata.csv.

    Args:
        split: "train", "val" or "test".
        root: the folder with metadata.csv, or the one above it.

    Raises:
        BadData: the table or a column is missing, a value is not 0 or 1, or an image is not there.
    """
    folder = find_folder(root, "metadata.csv", "waterbird_complete95_forest2water2", "waterbirds_v1.0")
    table = read_csv(folder / "metadata.csv", dict.fromkeys(("img_filename", "y", "split", "place")))
    labels, places = (table.codes(column, {"0": 0, "1": 1}) for column in ("y", "place"))
    rows = np.flatnonzero(table.splits("split") == split)
    return Split(
        labels=labels[rows],
        ids=rows,
        class_names=CLASSES,
        ids_are="row of metadata.csv, 0 for the first after the header",
        attributes=places[rows],
        attribute_names=PLACES,
        **table.images(folder, table.rows["img_filename"].str.strip(), rows, do="unpack the archive again"),
    )
