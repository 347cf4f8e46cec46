"""extract: the penultimate features of a trained classifier, and its linear head."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts, models
from stages.artifacts import Metadata, RowWriter
from stages.data import Split, open_split
from stages.errors import BadValues, Mismatch, UserError
from stages.loading import Samples, batches, check_kind, collate, move, unreadable
from stages.models import Classifier, Opened
from stages.runtime import Progress, reproducible, resolve_device, silent

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

# Samples of the first batch, on which the head is found and the cut is checked.
PROBE_SAMPLES = 8


def compute_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """The type that the encoder computes in: "float32", "bfloat16", "float16", or "auto".

    auto is float32 on CPU and bfloat16 on GPUs with tensor cores for it (float16 on older ones), where the forward pass
    gains from it; features are written as float32 either way.
    """
    import torch

    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def encoded(
    encode: "Callable[[Any], torch.Tensor]",
    model: Classifier,
    split: Split,
    *,
    batch_size: int,
    workers: int | str,
    device: "torch.device",
    dtype: "torch.dtype",
    what: str,
    order: "torch.Tensor | None" = None,
    skipped: list[UserError] | None = None,
    progress: Progress = silent,
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """The encoder's features of every sample, or of those in `order`: batches (b, d) float32 with their positions (b,).

    Args:
        encode: a batch -> features (b, d), of a network in evaluation mode on `device`; see `models.split`.
        model: prepares and collates the samples.
        dtype: what the forward pass computes in; see `compute_dtype`.
        what: names the work in `progress`.
        skipped: where given, samples that cannot be loaded are left out and their errors added here.

    Raises:
        BadValues: a sample's features are not finite.
        UserError: a sample could not be loaded, and `skipped` is None.
    """
    import torch

    done = 0
    loaded = batches(split, model, batch_size=batch_size, workers=workers, device=device, order=order, skipped=skipped)
    for inputs, positions in loaded:
        # The modes end before the yield: they would hold for whoever asks for the batches as well.
        with torch.no_grad(), torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            features = encode(inputs).float()
        finite = torch.isfinite(features).all(dim=1).cpu()
        if not bool(finite.all()):
            position = int(positions[(~finite).nonzero()[0, 0]])
            raise BadValues(
                "the model gives NaN or infinity for this sample",
                where=split.locate(position),
                do="check the model's weights, or set extract.precision: float32",
            )
        done += len(positions)
        progress(what, done, len(split))
        yield features, positions


def extract(writer: RowWriter, batches: "Iterable[tuple[torch.Tensor, torch.Tensor]]") -> "torch.Tensor":
    """Write features as they come from `encoded`; returns the positions of the rows written, (rows,) int64."""
    import torch

    written: list[torch.Tensor] = []
    for features, positions in batches:
        writer.rows(features)
        written.append(positions)
    return torch.cat(written) if written else torch.empty(0, dtype=torch.int64)


def head_tensors(head: "nn.Linear") -> "tuple[torch.Tensor, torch.Tensor]":
    """The head's weight (C, d) and bias (C,), of two classes where it has one sigmoid output."""
    import torch

    weight = head.weight.detach()
    bias = head.bias.detach() if head.bias is not None else torch.zeros(len(weight), device=weight.device)
    return models.two_classes(weight, bias) if len(weight) == 1 else (weight, bias)


def cut(model: Classifier, split: Split, device: "torch.device") -> "tuple[Callable[[Any], torch.Tensor], nn.Linear, str]":
    """`models.split` on `device`, checked on the split's first samples: (encoder, head, the head's module name)."""
    model.network.to(device)
    return models.split(model, _first_batch(model, split, device))


def _first_batch(model: Classifier, split: Split, device: "torch.device") -> Any:
    """The first samples that can be loaded, PROBE_SAMPLES at most, as the network takes them.

    Raises:
        BadData: none of the split's samples can be loaded.
        UserError: the first sample cannot, and the model or the data says so.
    """
    check_kind(split, model)
    samples: list[Any] = []
    errors: list[UserError] = []
    prepared = Samples(split, model.transform)
    for position in range(len(split)):
        sample = prepared[position]
        if isinstance(sample, UserError):
            errors.append(sample)
        else:
            samples.append(sample)
        if len(samples) == PROBE_SAMPLES:
            break
    if not samples:
        raise unreadable("first", len(split), errors) if len(errors) > 1 else errors[0]
    batch, _, failed = collate(model.collate, samples)
    if failed:
        raise failed[0]
    return move(batch, device)


def run(
    *,
    data: Mapping[str, Any],
    model: Path,
    out: Path,
    head_out: Path,
    own_model: Mapping[str, Any] | None = None,
    splits: Sequence[str] = ("val", "test"),
    batch_size: int = 256,
    workers: int | str = 0,
    precision: str = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The stage on files: read the data and a trained model, write `out`/<split>.safetensors and the head.

    Args:
        data: the `data` section of params.yaml: `format` and its reader's options.
        model: what `nsf train` wrote.
        out: the folder for the features files.
        head_out: the file for the linear head, (C, d) and (C,).
        own_model: the `model` section of params.yaml: the trained classifier to use where there is no `model`.
        splits: which splits to extract.
        batch_size, workers: samples a forward pass, and loader processes (or "auto").
        precision: see `compute_dtype`.

    Returns:
        A summary: `out`, `head`, `model` (what was taken), `kind`, `width` (d), `classes`, `classes_matched_by` ("number"
        where the model's own names are others than the data's, "name" otherwise), and per split its number of samples and
        how many of them were skipped; `first_skipped`: what the first one met, or None.

    Raises:
        UserError: data or model cannot be used; nothing is written.
    """
    import torch

    target = resolve_device(device)
    dtype = compute_dtype(precision, target)
    opened = models.open_trained(model, own_model)
    classifier = opened.classifier
    readers = {name: open_split(name, **data) for name in splits}
    labels = {name: number_as(opened, split, name) for name, split in readers.items()}
    skip = data.get("on_error") == "skip"
    skipped: dict[str, list[UserError]] = {name: [] for name in splits}
    written: dict[str, int] = {}
    with artifacts.outputs() as files, reproducible(seed=0):
        first = next(iter(readers.values()))
        encode, head, head_name = cut(classifier, first, target)
        parameters = {"data": dict(data), "precision": str(dtype).removeprefix("torch."), "batch_size": batch_size}
        weight, bias = head_tensors(head)
        names = opened.class_names or list(first.class_names)
        if len(first.class_names) != len(weight):
            raise Mismatch(
                f"has {len(weight)} classes, and the data {len(first.class_names)} ({', '.join(first.class_names[:10])}; "
                "numbers as classes start at 0)",
                where=classifier.name,
                do="run `nsf train` on this data, or give the data that the model is for",
            )
        # Group labels: they go to the test features alone, which nothing but evaluate reads.
        train_groups = _train_groups(data, opened, names) if "test" in readers else None
        for name, split in readers.items():
            notes = {"ids": split.ids_are, "skipped": "0"}
            if name == "test" and train_groups:
                notes["train_groups"] = json.dumps(train_groups)
            columns = ["labels", "ids", *(["attributes"] if split.attributes is not None else [])]
            metadata = Metadata(
                parameters={**parameters, "split": name},
                inputs={"model": opened.fingerprint},
                class_names=names,
                attribute_names=split.attribute_names,
                notes=notes,
            )
            writer = files.features(Path(out) / f"{name}.safetensors", len(split), head.in_features, columns, metadata)
            features = encoded(
                encode, classifier, split,
                batch_size=batch_size, workers=workers, device=target, dtype=dtype,
                what=f"extract {name}", skipped=skipped[name] if skip else None, progress=progress,
            )  # fmt: skip
            rows = extract(writer, features)
            if len(rows) == 0:
                raise unreadable(name, len(split), skipped[name])
            held = {"labels": torch.from_numpy(labels[name])[rows], "ids": torch.from_numpy(split.ids)[rows]}
            if split.attributes is not None:
                held["attributes"] = torch.from_numpy(split.attributes)[rows]
            writer.finish(held, {"skipped": str(len(skipped[name]))})
            written[name] = len(rows)
        notes = {"model": classifier.name, "head": head_name, "single_output": str(head.out_features == 1).lower()}
        metadata = Metadata(inputs={"model": opened.fingerprint}, class_names=names, notes=notes)
        files.artifact("head", head_out, {"weight": weight, "bias": bias}, metadata)
    met = [error for errors in skipped.values() for error in errors]
    return {
        "out": str(out),
        "head": str(head_out),
        "model": str(model) if opened.by_nsf else classifier.name,
        "kind": first.kind,
        "width": head.in_features,
        "classes": names,
        "classes_matched_by": "name" if _same_names(opened, first) or not opened.class_names else "number",
        "samples": written,
        "skipped": {name: len(errors) for name, errors in skipped.items()},
        "first_skipped": str(met[0]) if met else None,
    }


def number_as(opened: Opened, split: Split, name: str) -> "np.ndarray":
    """The split's labels, (n,) int64, numbered as the model numbers its classes.

    Classes go by their names where model and data have the same ones, whatever their order and capitals; otherwise by
    their numbers.

    Raises:
        Mismatch: `nsf train` made the model on classes of other names, or some names agree and contradict the numbers.
    """
    import numpy as np

    same = _same_names(opened, split)
    ours, theirs = _folded(split.class_names), _folded(opened.class_names)
    elsewhere = [name for index, name in enumerate(ours) if name in theirs and theirs.index(name) != index]
    if elsewhere and not same:
        raise Mismatch(
            f"the {name} split has the classes {', '.join(split.class_names)}, and the model "
            f"{', '.join(opened.class_names)}: '{elsewhere[0]}' has another number in each",
            where=opened.classifier.name,
            do="give the data the model's class names, all of them",
        )
    if theirs and same:
        order = np.array([theirs.index(value) for value in ours], dtype=np.int64)
        numbered: np.ndarray = order[split.labels]
        return numbered
    if opened.by_nsf and theirs:
        raise Mismatch(
            f"the {name} split has the classes {', '.join(split.class_names)}, and the model was trained on "
            f"{', '.join(opened.class_names)}",
            where=opened.classifier.name,
            do="run `nsf train` on this data",
        )
    return split.labels


def _same_names(opened: Opened, split: Split) -> bool:
    return set(_folded(split.class_names)) == set(_folded(opened.class_names))


def _folded(names: Sequence[str]) -> list[str]:
    return [str(name).casefold() for name in names]


def _train_groups(data: Mapping[str, Any], opened: Opened, names: Sequence[str]) -> dict[str, int] | None:
    """The training split's group sizes, for evaluate's adjusted mean, classes named as in the features files.

    None where they cannot be known.
    """
    try:
        split = open_split("train", **data)
        numbered = replace(split, labels=number_as(opened, split, "train"), class_names=names)
    except UserError:
        return None
    return dict(numbered.counts()["groups"]) or None
