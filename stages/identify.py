"""identify: a sample is minority when its nearest class centroid (L2) is another class's (NSF, section 3.1, step 1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts
from stages.artifacts import Metadata
from stages.passes import group_means, nearest, predict
from stages.runtime import Progress, resolve_device, silent

if TYPE_CHECKING:
    from torch import Tensor


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
        A summary: `out`, `samples`, `minority`, and per class its samples, its minority, where most of it is drawn to
        and the base head's accuracy on it (null without a head or a minority).

    Raises:
        UserError: an input is missing, wrong, or does not fit; nothing is written.
    """
    import torch

    target = resolve_device(device)
    data = artifacts.read("features", features)
    base = artifacts.read("head", head) if head is not None else None
    artifacts.agree("d", data, base)
    classes = artifacts.check_labels(data, base.sizes["C"] if base else None, source=base)
    with artifacts.outputs(features, head) as files:
        x, labels = data["features"].to(target), data["labels"].to(target)
        found = identify(x, labels, classes=classes, progress=progress)
        names = data.class_names(classes)
        files.artifact("identify", out, vars(found), Metadata(inputs={"features": data.fingerprint}, class_names=names))
    right = None
    if base is not None:
        weight, bias = base["weight"].to(target), base["bias"].to(target)
        right = predict(x, weight, bias, progress=progress) == labels
    rows = []
    for index, name in enumerate(names):
        minority = (labels == index) & found.minority
        drawn = torch.bincount(found.nearest[minority], minlength=classes)
        count = int(minority.sum())
        rows.append(
            {
                "class": name,
                "samples": int((labels == index).sum()),
                "minority": count,
                "drawn_to": names[int(drawn.argmax())] if count else None,
                "base_accuracy_on_minority": (
                    round(float(right[minority].double().mean()), 6) if right is not None and count else None
                ),
            }
        )
    return {"out": str(out), "samples": len(labels), "minority": int(found.minority.sum()), "classes": rows}
