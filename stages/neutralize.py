"""neutralize: a class's bias-invariant center, between its minority and the rest (NSF, section 3.2, step 2)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts, distributed
from stages.artifacts import Metadata
from stages.lineage import agree, check_labels, check_lineage
from stages.outputs import outputs
from stages.passes import group_means
from stages.runtime import Progress, begin, reproducible, silent

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features

# A mean needs more than one sample to mean something; the reference (tests/golden/README.md) falls back below two.
LEAST_MINORITY = 2


def neutralize(
    features: "Features",
    labels: "Tensor",
    minority: "Tensor",
    *,
    classes: int | None = None,
    progress: Progress = silent,
) -> "Tensor":
    """Centers (C, d) float32: 0.5 * (mean of a class's minority + mean of its rest).

    A class with fewer than two minority samples gets the mean of its rest; one that is all minority, the mean of that.

    Args:
        features: (n, d).
        labels: (n,) int64 in [0, C), every class with at least one sample.
        minority: (n,) bool, from `identify`.
        classes: C; by default the highest label plus one.
    """
    import torch

    classes = int(labels.max()) + 1 if classes is None else classes
    groups = 2 * labels + minority.to(torch.int64)
    means = group_means(features, groups, 2 * classes, progress=progress)
    sizes = distributed.summed(torch.bincount(groups, minlength=2 * classes))
    rest, drawn_away = means[0::2], means[1::2]
    no_minority = (sizes[1::2] < LEAST_MINORITY).unsqueeze(1)
    no_rest = (sizes[0::2] == 0).unsqueeze(1)
    centers = torch.where(no_minority, rest, (rest + drawn_away) / 2)
    return torch.where(no_rest, drawn_away, centers)


def run(*, features: Path, identify: Path, out: Path, device: str = "auto", progress: Progress = silent) -> dict[str, Any]:
    """The stage on files: read features and the identify artifact, write `out`.

    Returns:
        A summary: `out`, and per class its minority and what its center is made of.

    Raises:
        UserError: an input is missing, wrong, or does not fit; nothing is written.
    """
    import torch

    target = begin(device)
    data = artifacts.read("features", features)
    found = artifacts.read("identify", identify)
    agree("n", data, found)
    agree("d", data, found)
    check_lineage(found, features=data)
    classes = check_labels(data, found.sizes["C"], source=found)
    names = data.class_names(classes)
    with outputs(features, identify) as files, reproducible(0):
        files.check(out)
        labels, minority = data.own("labels").to(target), found.own("minority").to(target)
        centers = neutralize(data.rows.to(target), labels, minority, classes=classes, progress=progress)
        inputs = {"features": data.fingerprint, "identify": found.fingerprint}
        files.artifact("neutralize", out, {"centers": centers}, Metadata(inputs=inputs, class_names=names))
    labels, minority = data["labels"], found["minority"]
    sizes = torch.bincount(labels, minlength=classes).tolist()
    counts = torch.bincount(labels[minority], minlength=classes).tolist()
    rows = [
        {"class": name, "minority": count, "center": _origin(size, count)}
        for name, size, count in zip(names, sizes, counts, strict=True)
    ]
    return {"out": str(out), "classes": rows}


def _origin(size: int, minority: int) -> str:
    """What the center of a class of `size` samples is made of, in words."""
    if minority == size:
        return "mean of the minority"
    return "midpoint" if minority >= LEAST_MINORITY else "mean of the rest"
