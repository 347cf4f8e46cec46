"""Cut the embedded demo data out of the full MNIST and Fashion-MNIST idx files.

    python data/dominoes/make_subset.py FULL_DATA_ROOT

FULL_DATA_ROOT holds `MNIST/raw` and `FashionMNIST/raw` as torchvision's `download=True` lays them out, gzipped. The
subset keeps that layout, the original pixels and the original order, so the Dominoes reader reads either one.
"""

import gzip
import sys
from pathlib import Path

import numpy as np

from stages.data.dominoes import read_idx

# Which classes, and how many of the first of each: enough for 6,000 training, 2,000 validation and 2,000 test dominoes.
KEEP = {
    ("MNIST", "train"): ((0, 1), 3000),
    ("MNIST", "t10k"): ((0, 1), 980),
    ("FashionMNIST", "train"): ((3, 4), 4000),
    ("FashionMNIST", "t10k"): ((3, 4), 1000),
}


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array of any rank as a gzipped idx file; no time stamp, so the bytes depend on the array alone."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as file:
        file.write(header + array.tobytes())


def main(source: Path) -> None:
    for (name, part), (classes, count) in KEEP.items():
        images = read_idx(source / name / "raw" / f"{part}-images-idx3-ubyte")
        labels = read_idx(source / name / "raw" / f"{part}-labels-idx1-ubyte")
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in classes]))
        target = Path(__file__).parent / name / "raw"
        write_idx(target / f"{part}-images-idx3-ubyte.gz", images[chosen])
        write_idx(target / f"{part}-labels-idx1-ubyte.gz", labels[chosen])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
