"""identify: a sample is minority when its nearest class centroid (L2) is another class's (NSF, section 3.1, step 1)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts, distributed
from stages.artifacts import Metadata
from stages.lineage import agree, check_labels, check_model
from stages.outputs import outputs
from stages.passes import best, group_means, group_sums, nearest
from stages.runtime import Progress, begin, reproducible, silent

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features

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
# What "not biased" takes: n_ij * n_ji / (n_ij + n_ji) over all pairs, 5 where ten samples are drawn each way.
LEAST_TO_ACQUIT = 5


@dataclass(frozen=True)
class Identified:
    """centroids (C, d) float32; nearest (n,) int64, the class of the nearest centroid; minority (n,) bool."""

    centroids: "Tensor"
    nearest: "Tensor"
    minority: "Tensor"


def identify(
    features: "Features", labels: "Tensor", *, classes: int | None = None, progress: Progress = silent
) -> Identified:
    """Find the samples that lie nearer to another class's centroid than to their own.

    Args:
        features: (n, d), penultimate features of the validation split.
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
    features: "Features",
    labels: "Tensor",
    found: Identified,
    base: "tuple[Tensor, Tensor] | None" = None,
    *,
    progress: Progress = silent,
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
        features: (n, d).
        labels: (n,) int64.
        found: of the same features.
        base: the base head (C, d), (C,), for its accuracy on the minority; None without a head.
    """
    import torch

    classes = len(found.centroids)
    cells = labels * classes + found.nearest
    counts = distributed.summed(torch.bincount(cells, minlength=classes * classes)).view(classes, classes)
    drawn_away = counts.sum(dim=1) - counts.diagonal()
    # Of a thousand classes most cells are empty: sums are taken of those that a pair needs, and of one for all others.
    both = (torch.minimum(counts, counts.T) >= LEAST_IN_PAIR) & (counts.diagonal() > 0)
    both = (both & (counts.diagonal() > 0).unsqueeze(1)).fill_diagonal_(False)
    needed = both.flatten().nonzero().flatten()
    place = torch.full((classes * classes,), len(needed), device=cells.device)
    place[needed] = torch.arange(len(needed), device=cells.device)
    # The minority's rows alone are read: what is left of the class's sum is its rest.
    spot = torch.where(place[cells] < len(needed), place[cells], len(needed) + labels)
    spot = torch.where(found.minority, spot, -1)
    by_spot = group_sums(features, spot, len(needed) + classes, progress=progress)
    of_drawn = (by_spot[: len(needed)] / counts.flatten()[needed].unsqueeze(1)).cpu()
    of_minority = by_spot[len(needed) :].index_add(0, needed // classes, by_spot[: len(needed)])
    of_class = found.centroids.to(torch.float64) * counts.sum(dim=1, keepdim=True)
    of_rest = ((of_class - of_minority) / counts.diagonal().clamp(min=1).unsqueeze(1)).cpu()
    place, both, counts = place.view(classes, classes).cpu(), both.cpu(), counts.cpu()
    # Sums of products and of norms (along and across) and of weights, for each class and for the whole.
    sums = torch.zeros(classes + 1, 5, dtype=torch.float64)
    for i, j in both.triu(diagonal=1).nonzero().tolist():
        there, back = int(counts[i, j]), int(counts[j, i])
        rest_i, rest_j = of_rest[i], of_rest[j]
        a, b = of_drawn[place[i, j]] - rest_j, of_drawn[place[j, i]] - rest_i
        line = torch.nn.functional.normalize(rest_j - rest_i, dim=0, eps=torch.finfo(torch.float64).tiny)
        across_a, across_b = a - (a @ line) * line, b - (b @ line) * line
        products = [a @ b, a.norm() * b.norm(), across_a @ across_b, across_a.norm() * across_b.norm()]
        measured = torch.tensor([*products, 1.0], dtype=torch.float64)
        for row in (i, j, classes):
            sums[row] += there * back / (there + back) * measured
    distances = torch.cdist(found.centroids.double(), found.centroids.double()).cpu().fill_diagonal_(torch.inf)
    sizes, drawn_away = counts.sum(dim=1), drawn_away.cpu()
    hits = _right_on_minority(features, labels, found.minority, base).cpu() if base is not None else None
    rows = []
    for index in range(classes):
        away, size = int(drawn_away[index]), int(sizes[index])
        elsewhere = counts[index].clone()
        elsewhere[index] = 0
        dispersion = None
        if 0 < away < size and distances[index].min() > 0:
            # The minority's mean less the rest's, from the class's own mean.
            apart = (found.centroids[index].double().cpu() - of_rest[index]) * (size / away)
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
                "verdict": _said(mirror, float(sums[index, -1])),
            }
        )
    mirror = _mirror(sums[classes], int(drawn_away.sum()))
    return Verdict(_said(mirror, float(sums[classes, -1])), mirror, rows)


def _right_on_minority(
    features: "Features", labels: "Tensor", minority: "Tensor", base: "tuple[Tensor, Tensor]"
) -> "Tensor":
    """How many minority samples of each class (C,) the base head gets right; no other row is read."""
    import torch

    [given] = best(features, [base], what="predict", only=minority)
    return distributed.summed(torch.bincount(labels[given == labels], minlength=len(base[1])))


def _mirror(sums: "Tensor", minority: int) -> float | None:
    along, along_norms, across, across_norms, _ = (float(value) for value in sums)
    if minority < LEAST_TO_TELL or along_norms == 0:
        return None
    return round(along / along_norms + ACROSS * (across / across_norms if across_norms else 0.0), 6)


def _said(mirror: float | None, told_by: float) -> str:
    """The verdict; `told_by`: n_ij * n_ji / (n_ij + n_ji), over all pairs.

    Where one of the two means is of a handful of samples, however many the other has, their cosine is near 0 by chance.
    """
    if mirror is None or MIRROR_BIASED < mirror < MIRROR_NOT_BIASED:
        return CANNOT_TELL
    if mirror <= MIRROR_BIASED:
        return BIASED
    return NOT_BIASED if told_by >= LEAST_TO_ACQUIT else CANNOT_TELL


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
    target = begin(device)
    data = artifacts.read("features", features)
    base = artifacts.read("head", head) if head is not None else None
    agree("d", data, base)
    check_model(data, base)
    classes = check_labels(data, base.sizes["C"] if base else None, source=base)
    with outputs(features, head) as files, reproducible(0):
        files.check(out)
        x, labels = data.rows.to(target), data.own("labels").to(target)
        found = identify(x, labels, classes=classes, progress=progress)
        head_on_device = base.head(target) if base is not None else None
        verdict = assess(x, labels, found, head_on_device, progress=progress)
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
        "samples": data.sizes["n"],
        "minority": sum(row["minority"] for row in verdict.classes),
        "verdict": verdict.bias,
        "mirror": verdict.mirror,
        "classes": rows,
    }
