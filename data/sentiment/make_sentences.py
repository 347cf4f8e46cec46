"""Make sentences.csv from the sentiment files of vaderSentiment 3.3.2 (its source distribution, `additional_resources`).

    python make_sentences.py FOLDER

Sentences with a clear mean rating (at least 0.5 from zero) from movie reviews and newspaper editorials; the source agrees
with the label (movie: positive, editorial: negative) in 95 % of train, 85 % of val, half of test. The same file every time.
"""

import csv
import sys
from pathlib import Path

import numpy as np

SOURCES = {"movie": "movieReviewSnippets", "editorial": "nytEditorialSnippets"}
AGREES = {"positive": "movie", "negative": "editorial"}
PER_CLASS = {"train": 1100, "val": 500, "test": 500}
BIAS = {"train": 0.95, "val": 0.85, "test": 0.5}
CLEAR = 0.5


def main(folder: Path) -> None:
    """Write sentences.csv beside this file."""
    random = np.random.RandomState(0)
    pools: dict[tuple[str, str], list[str]] = {}
    for source, name in SOURCES.items():
        for line in (folder / f"{name}_GroundTruth.txt").read_text(encoding="latin-1").splitlines():
            _, rating, text = line.split("\t")
            if abs(float(rating)) >= CLEAR and text.strip():
                pools.setdefault(("positive" if float(rating) > 0 else "negative", source), []).append(text.strip())
    for sentences in pools.values():
        random.shuffle(sentences)
    rows: list[tuple[str, str, str, str]] = []
    for split, size in PER_CLASS.items():
        for label, own in AGREES.items():
            agreeing = round(size * BIAS[split])
            for source in SOURCES:
                for _ in range(agreeing if source == own else size - agreeing):
                    rows.append((pools[label, source].pop(), label, source, split))
    with (Path(__file__).parent / "sentences.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label", "source", "split"])
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
