"""doctor: read the first samples of data and model, and say what nsf understood."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from stages import models
from stages.data import SPLITS, open_split
from stages.encoding import compute_dtype, cut, encoded, head_tensors
from stages.errors import UserError
from stages.loading import check_kind, unreadable
from stages.numbering import check_classes, check_two_classes, number_as, same_names
from stages.passes import predict
from stages.runtime import begin, reproducible

# Samples that are tried: spread over the split, so that every class is among them.
TRIED = 64
# Where architectures come from that can be built without weights, and so without the internet.
BUILT_AT_ONCE = ("torchvision", "timm")


def run(
    *,
    data: Mapping[str, Any],
    model: Path,
    own_model: Mapping[str, Any] | None,
    planned: Mapping[str, Any] | None = None,
    batch_size: int,
    extracted: Sequence[str] = ("val", "test"),
    precision: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Open every split, then run the model on some of the validation samples. Nothing is written.

    Args:
        data, model, own_model, precision, device: as for `extract`; without `own_model` only what `nsf train` made counts.
        planned: the `model` section, whose architecture is built (with no weights) where nothing is trained yet.
        batch_size: samples a forward pass.
        extracted: the splits that `extract` is to read.

    Returns:
        `splits`: for each split its `counts()`, or `error` in words; `kind`, `class_names`; `device`, `precision`;
        `model`: None where there is no trained one yet, otherwise `name`, `head`, `width` (d), `classes`, `class_names`,
        `classes_matched_by` (as `extract`'s), `bias` (whether the head has one), `accuracy` on the samples tried, `tried`,
        `unreadable` and `first_unreadable` (of those picked, in words),
        `samples_per_second` and `seconds`, the estimate for the splits `extracted`.

    Raises:
        UserError: the validation split or the model cannot be used.
    """
    import torch

    target = begin(device)
    dtype = compute_dtype(precision, target)
    val = open_split("val", **data)
    check_two_classes(val)
    splits: dict[str, Any] = {}
    for name in SPLITS:
        try:
            splits[name] = (val if name == "val" else open_split(name, **data)).counts()
        except UserError as error:
            splits[name] = {"error": str(error)}
    found: dict[str, Any] = {
        "splits": splits,
        "kind": val.kind,
        "class_names": list(val.class_names),
        "device": str(target),
        "precision": str(dtype).removeprefix("torch."),
        "model": None,
    }
    if own_model is None and not Path(model).exists():
        if planned is not None and planned["source"] in BUILT_AT_ONCE:
            check_kind(val, models.build(**{**planned, "weights": None}, classes=len(val.class_names)))
        return found
    opened = models.open_trained(model, own_model)
    classifier = opened.classifier
    with reproducible(seed=0):
        encode, head, head_name = cut(classifier, val, target)
        weight, bias = head_tensors(head)
        check_classes(classifier, len(weight), val)
        chosen = np.unique(np.linspace(0, len(val) - 1, min(TRIED, len(val))).astype(np.int64))
        labels = number_as(opened, val, "val")
        started = time.monotonic()
        right = seen = 0
        unread: list[UserError] = []
        order = torch.from_numpy(chosen)
        batches = encoded(
            encode, classifier, val,
            batch_size=batch_size, workers=0, device=target, dtype=dtype, what="doctor", order=order, skipped=unread,
        )  # fmt: skip
        with closing(batches):
            for features, positions in batches:
                predicted = predict(features, weight, bias).cpu().numpy()
                right += int((predicted == labels[positions.numpy()]).sum())
                seen += len(positions)
        if not seen:
            raise unreadable("val", len(chosen), unread)
        rate = seen / max(time.monotonic() - started, 1e-9)
    samples = sum(splits[name].get("samples", 0) for name in extracted)
    found["model"] = {
        "name": str(model) if opened.by_nsf else classifier.name,
        "head": head_name,
        "width": head.in_features,
        "classes": len(weight),
        "class_names": opened.class_names or None,
        "classes_matched_by": "name" if same_names(opened, val) else "number",
        "bias": head.bias is not None,
        "tried": seen,
        "unreadable": len(unread),
        "first_unreadable": str(unread[0]) if unread else None,
        "accuracy": round(right / max(seen, 1), 6),
        "samples_per_second": round(rate, 1),
        "seconds": round(samples / rate, 1),
    }
    return found
