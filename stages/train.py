"""train: an ERM classifier (plain empirical risk minimisation: cross-entropy on every training sample alike)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages import models
from stages.artifacts import Metadata
from stages.data import Split, open_split
from stages.errors import BadData, BadValues, UserError
from stages.loading import attended, batches, unreadable
from stages.models import Classifier
from stages.numbering import check_two_classes
from stages.outputs import check_computed, named_in, outputs
from stages.runtime import Progress, begin, keep_freed_memory, reproducible, silent


def train(
    model: Classifier,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: str = "cosine",
    workers: int | str = 0,
    device: str = "auto",
    skipped: list[UserError] | None = None,
    progress: Progress = silent,
) -> float:
    """Train the network in place; returns the accuracy on the training samples during the last epoch.

    Draws from torch's global generator: wrap it in `runtime.reproducible`.

    Args:
        model: the classifier to train.
        split: the training samples.
        epochs, batch_size: passes over the samples, and samples a step; a last batch of one sample is left out, for
            batch norm has no variance there.
        optimizer: "sgd" (with momentum) or "adamw".
        schedule: of the learning rate: "cosine" or "linear" (down to zero over all steps), or "constant".
        workers: loader processes, or "auto"; 0 loads in this one.
        skipped: where given, samples that cannot be loaded are left out and their errors added here.

    Raises:
        BadData: there is a single sample.
        UserError: a sample could not be loaded, and `skipped` is None.
    """
    import torch
    from torch.nn.functional import cross_entropy

    if len(split) < 2:
        raise BadData("holds a single sample, and batch norm needs two", where="train split", do="give it more samples")
    target = begin(device)
    if target.type == "cpu":
        keep_freed_memory()
    network = model.network.to(target).train()
    labels = torch.from_numpy(split.labels).to(target)
    rates: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    updates: torch.optim.Optimizer = (
        torch.optim.SGD(network.parameters(), momentum=momentum, **rates)
        if optimizer == "sgd"
        else torch.optim.AdamW(network.parameters(), **rates)
    )
    total = epochs * -(-len(split) // batch_size)
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    if schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(updates, total)
    elif schedule == "linear":
        scheduler = torch.optim.lr_scheduler.LinearLR(updates, start_factor=1.0, end_factor=0.0, total_iters=total)
    step = correct = seen = 0
    for _ in range(epochs):
        correct = seen = 0
        order = torch.randperm(len(split))
        for inputs, positions in batches(
            split, model, batch_size=batch_size, workers=workers, device=target, order=order, skipped=skipped
        ):
            step += 1
            if len(positions) > 1:
                targets = labels[positions.to(target)]
                output = models.logits(models.call(network, inputs))
                loss = cross_entropy(output, targets)
                updates.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                updates.step()
                correct += int((output.detach().argmax(dim=1) == targets).sum())
                seen += len(positions)
            if scheduler is not None:
                scheduler.step()
            progress("train", step, total)
    if skipped and not seen:
        raise unreadable("train", len(split), skipped)
    return correct / max(seen, 1)


def run(
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    out: Path,
    seed: int = 0,
    workers: int | str = 0,
    device: str = "auto",
    progress: Progress = silent,
    **parameters: Any,
) -> dict[str, Any]:
    """The stage on files: read the data's train split, write the trained classifier to the folder `out`.

    Args:
        data: the `data` section of params.yaml: `format` and its reader's options.
        model: the `model` section: `source` and its builder's options.
        out: a folder for model.safetensors.
        seed: of initialisation and sample order.
        workers: loader processes; they change nothing in the result, and so stay out of the artifact.
        parameters: `train`'s own.

    Returns:
        A summary: `out`, `samples`, `classes`, `empty_classes` (those without a sample), `train_accuracy`, `skipped`.

    Raises:
        UserError: data or model cannot be used; nothing is written.
    """
    begin(device)
    split = open_split("train", **data)
    check_two_classes(split)
    skipped: list[UserError] | None = [] if data.get("on_error") == "skip" else None
    with outputs(*named_in(data, model)) as files, reproducible(seed, strict=False), attended():
        files.check(out / models.FILE_NAME)
        classifier = models.build(**model, classes=len(split.class_names))
        accuracy = train(classifier, split, workers=workers, device=device, skipped=skipped, progress=progress, **parameters)
        metadata = Metadata(parameters={"data": dict(data), "model": dict(model), "train": {**parameters, "seed": seed}})
        weights = {name: t for name, t in classifier.network.state_dict().items() if t.is_floating_point()}
        try:
            check_computed(out, weights, do="lower train.learning_rate")
        except BadValues as error:
            raise BadValues("the training diverged", where=out, do="lower train.learning_rate") from error
        models.save(files, out, classifier, split.class_names, metadata)
    sizes = np.bincount(split.labels, minlength=len(split.class_names))
    # An image that cannot be read is met again in every epoch.
    left_out = len({str(error) for error in skipped or ()})
    return {
        "out": str(out),
        "samples": len(split) - left_out,
        "classes": list(split.class_names),
        "empty_classes": [name for name, size in zip(split.class_names, sizes, strict=True) if not size],
        "train_accuracy": round(accuracy, 6),
        "skipped": left_out,
    }
