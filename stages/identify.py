"""identify: a sample is minority when its nearest class centroid (L2) is another class's (NSF, section 3.1, step 1)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts
from stages.artifacts import Metadata
from stages.passes import group_means, nearest, predict
from stages.runtime import Progress, reproducible, resolve_device, silent

if TYPE_CHECKING:
    from torch import Tensor


# The verdicts.
BIASED, NOT_BIASED, CANNOT_TELL = "biased", "not biased", "cannot tell"
# Of `assess`: how much of the mirror its part across the line between two centroids is, and the values up to which a
# mirror means bias, and from which on it means none; docs/method.md has the rates of false alarms and misses.
ACROSS = 0.3
MIRROR_BIASED = -0.29
MIRROR_NOT_BIASED = -0.2
# Minority samples below which nothing is said, and those that a pair of classes needs in each direction to count.
LEAST_TO_TELL = 10
LEAST_IN_PAIR = 2


@dataclass(frozen=True)
class Identified:
    """centroids (C, d) float32; nearest (n,) int64, the class of the nearest centroid; minority (n,) bool."""

    centroids: "Tensor"
    nearest: "Tensor"
    minority: "Tensor"


def identify(features: "Tensor", labels: "Tensor", *, classes: int | None = None, progress: Progress = silent) -> Identified:
    """Find the samples that lie nearer to another class's centroid than to their own.

    Args:
        features: (n, d) float32, penultimate features of the validation split.
        labels: (n,) int64 in [0, C).
        classes: C; by default the highest label plus one. Every class has at least one sample.
    """
    classes = int(labels.max()) + 1 if classes is None else classes
    centroids = group_means(features, labels, classes, progress=progress)
    closest = nearest(features, centroids, progress=progress)
    return Identified(centroids, closest, closest != labels)


@dataclass(frozen=True)
class Verdict:
    """Whether the model relies on a spurious attribute, and what says so.

    Attributes:
        bias: BIASED, NOT_BIASED or CANNOT_TELL.
        mirror: of all pairs of classes together; None where there are too few minority samples.
        classes: per class `samples`, `minority`, `share`, `drawn_to` (the class to which most of its minority is),
            `dispersion`, `base_accuracy_on_minority`, `mirror` and `verdict`; None where it cannot be known.
    """

    bias: str
    mirror: float | None
    classes: list[dict[str, Any]]


def assess(
    features: "Tensor", labels: "Tensor", found: Identified, right: "Tensor | None" = None, *, progress: Progress = silent
) -> Verdict:
    """Tell a spurious attribute from hard samples and flipped labels, by where the minority lies.

    Let a be the mean of class i's samples drawn to j, less the mean of j's own rest, and b the same with i and j swapped.
    A sample that a spurious attribute draws away keeps its own class's features: a points from j to i and b from i to j,
    mirror images. Samples that are merely hard lie near the boundary, away from both means in the same direction across
    it; flipped labels lie on j's mean, and a is noise. mirror = cos(a, b) + 0.3 * cos(a', b'), a' and b' without their
    part along the line between the two means; over several pairs, products and norms are summed before they are divided,
    each pair weighing n_ij * n_ji / (n_ij + n_ji).

    dispersion: distance of the minority's mean from the rest's, in distances between the class's centroid and the nearest
    other one.

    Own measure (not in the paper, which reads bias off a plot); docs/method.md has what it was chosen and tested on.

    Args:
        features: (n, d) float32.
        labels: (n,) int64.
        found: of the same features.
        right: (n,) bool, whether the base head gives the sample's class; None without a head.
    """
    import torch

    classes = len(found.centroids)
    cells = labels * classes + found.nearest
    counts = torch.bincount(cells, minlength=classes * classes).view(classes, classes)
    # Of a thousand classes most cells are empty: means are taken of those that a pair needs, and of one for all others.
    both = (
        (torch.minimum(counts, counts.T) >= LEAST_IN_PAIR) & (counts.diagonal() > 0) & (counts.diagonal() > 0).unsqueeze(1)
    )
    needed = both.fill_diagonal_(True).flatten().nonzero().flatten()
    place = torch.full((classes * classes,), len(needed), device=cells.device)
    place[needed] = torch.arange(len(needed), device=cells.device)
    of_cells = group_means(features, place[cells], len(needed) + 1, progress=progress).to(torch.float64).cpu()
    place, both, counts = place.view(classes, classes).cpu(), both.cpu(), counts.cpu()
    # Sums of products and of norms (along and across), for each class and for the whole.
    sums = torch.zeros(classes + 1, 4, dtype=torch.float64)
    for i, j in both.triu(diagonal=1).nonzero().tolist():
        there, back = int(counts[i, j]), int(counts[j, i])
        rest_i, rest_j = of_cells[place[i, i]], of_cells[place[j, j]]
        a, b = of_cells[place[i, j]] - rest_j, of_cells[place[j, i]] - rest_i
        line = torch.nn.functional.normalize(rest_j - rest_i, dim=0)
        across_a, across_b = a - (a @ line) * line, b - (b @ line) * line
        measured = torch.stack([a @ b, a.norm() * b.norm(), across_a @ across_b, across_a.norm() * across_b.norm()])
        for row in (i, j, classes):
            sums[row] += there * back / (there + back) * measured
    distances = torch.cdist(found.centroids.double(), found.centroids.double()).cpu().fill_diagonal_(torch.inf)
    minority = found.minority
    sizes = counts.sum(dim=1)
    drawn_away = sizes - counts.diagonal()
    hits = torch.bincount(labels[minority & right], minlength=classes).cpu() if right is not None else None
    rows = []
    for index in range(classes):
        away, size = int(drawn_away[index]), int(sizes[index])
        elsewhere = counts[index].clone()
        elsewhere[index] = 0
        dispersion = None
        if 0 < away < size:
            # The minority's mean less the rest's, from the class's own mean.
            apart = (found.centroids[index].double().cpu() - of_cells[place[index, index]]) * (size / away)
            dispersion = round(float(apart.norm() / distances[index].min()), 6)
        mirror = _mirror(sums[index], away)
        rows.append(
            {
                "samples": size,
                "minority": away,
                "share": round(away / size, 6) if size else None,
                "drawn_to": int(elsewhere.argmax()) if away else None,
                "dispersion": dispersion,
                "base_accuracy_on_minority": round(int(hits[index]) / away, 6) if hits is not None and away else None,
                "mirror": mirror,
                "verdict": _said(mirror),
            }
        )
    mirror = _mirror(sums[classes], int(drawn_away.sum()))
    return Verdict(_said(mirror), mirror, rows)


def _mirror(sums: "Tensor", minority: int) -> float | None:
    along, along_norms, across, across_norms = (float(value) for value in sums)
    if minority < LEAST_TO_TELL or along_norms == 0:
        return None
    return round(along / along_norms + ACROSS * (across / across_norms if across_norms else 0.0), 6)


def _said(mirror: float | None) -> str:
    if mirror is None or MIRROR_BIASED < mirror < MIRROR_NOT_BIASED:
        return CANNOT_TELL
    return BIASED if mirror <= MIRROR_BIASED else NOT_BIASED


def run(
    *,
    features: Path,
    out: Path,
    head: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The stage on files: read features (and the base head, to report its accuracy on the minority), write `out`.

    Returns:
        A summary: `out`, `samples`, `minority`, `verdict`, `mirror`, and `classes`, as in `Verdict`, with their names.

    Raises:
        UserError: an input is missing, wrong, or does not fit; nothing is written.
    """
    target = resolve_device(device)
    data = artifacts.read("features", features)
    base = artifacts.read("head", head) if head is not None else None
    artifacts.agree("d", data, base)
    classes = artifacts.check_labels(data, base.sizes["C"] if base else None, source=base)
    with artifacts.outputs(features, head) as files, reproducible(0):
        x, labels = data["features"].to(target), data["labels"].to(target)
        found = identify(x, labels, classes=classes, progress=progress)
        right = None
        if base is not None:
            weight, bias = base["weight"].to(target), base["bias"].to(target)
            right = predict(x, weight, bias, progress=progress) == labels
        verdict = assess(x, labels, found, right, progress=progress)
        names = data.class_names(classes)
        notes = {"verdict": verdict.bias, "mirror": json.dumps(verdict.mirror)}
        metadata = Metadata(inputs={"features": data.fingerprint}, class_names=names, notes=notes)
        files.artifact("identify", out, vars(found), metadata)
    rows = [
        {"class": name, **row, "drawn_to": None if row["drawn_to"] is None else names[row["drawn_to"]]}
        for name, row in zip(names, verdict.classes, strict=True)
    ]
    return {
        "out": str(out),
        "samples": len(labels),
        "minority": int(found.minority.sum()),
        "verdict": verdict.bias,
        "mirror": verdict.mirror,
        "classes": rows,
    }
