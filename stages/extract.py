"""extract: the penultimate features of a trained classifier, and its linear head."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts, models
from stages.artifacts import Metadata, RowWriter
from stages.data import Split, open_split
from stages.errors import BadValues, Mismatch
from stages.loading import batches
from stages.runtime import Progress, reproducible, resolve_device, silent

if TYPE_CHECKING:
    import torch
    from torch import nn


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


def extract(
    encoder: "nn.Module",
    transform: Any,
    split: Split,
    writer: RowWriter,
    *,
    batch_size: int,
    workers: int | str,
    device: "torch.device",
    dtype: "torch.dtype",
    what: str,
    progress: Progress = silent,
) -> None:
    """Write the encoder's features of every sample, in the split's order, as they come.

    Args:
        encoder: images (b, 3, h, w) -> features (b, d), in evaluation mode on `device`.
        transform: sample -> (3, h, w) float32.
        writer: takes the rows.
        what: names the work in `progress`.

    Raises:
        BadValues: a sample's features are not finite.
    """
    import torch

    mixed = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    done = 0
    with torch.no_grad(), mixed:
        for images, positions in batches(split, transform, batch_size=batch_size, workers=workers, device=device):
            features = models.logits(encoder(images)).float()
            finite = torch.isfinite(features).all(dim=1).cpu()
            if not bool(finite.all()):
                position = int(positions[(~finite).nonzero()[0, 0]])
                raise BadValues(
                    "the model gives NaN or infinity for this sample",
                    where=split.locate(position),
                    do="check the model's weights, or set extract.precision: float32",
                )
            writer.rows(features)
            done += len(positions)
            progress(what, done, len(split))


def run(
    *,
    data: Mapping[str, Any],
    model: Path,
    out: Path,
    head_out: Path,
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
        splits: which splits to extract.
        batch_size, workers: samples a forward pass, and loader processes (or "auto").
        precision: see `compute_dtype`.

    Returns:
        A summary: `out`, `head`, `width` (d), and per split its number of samples.

    Raises:
        UserError: data or model cannot be used; nothing is written.
    """
    import torch

    target = resolve_device(device)
    dtype = compute_dtype(precision, target)
    classifier, class_names, fingerprint = models.load(model)
    classifier.network.to(target).eval()
    opened = {name: open_split(name, **data) for name in splits}
    for name, split in opened.items():
        if class_names and list(split.class_names) != class_names:
            raise Mismatch(
                f"the {name} split has the classes {', '.join(split.class_names)}, and the model was trained on "
                f"{', '.join(class_names)}",
                where=model,
                do="run `nsf train` on this data",
            )
    with artifacts.outputs() as files, reproducible(seed=0):
        first = next(iter(opened.values()))
        probe, _ = next(batches(first, classifier.transform, batch_size=min(8, len(first)), workers=0, device=target))
        encoder, head = models.split(classifier, probe)
        parameters = {"data": dict(data), "precision": str(dtype).removeprefix("torch."), "batch_size": batch_size}
        for name, split in opened.items():
            columns = {"labels": torch.from_numpy(split.labels), "ids": torch.from_numpy(split.ids)}
            if split.attributes is not None:
                columns["attributes"] = torch.from_numpy(split.attributes)
            metadata = Metadata(
                parameters={**parameters, "split": name},
                inputs={"model": fingerprint},
                class_names=split.class_names,
                attribute_names=split.attribute_names,
                notes={"ids": split.ids_are},
            )
            path = Path(out) / f"{name}.safetensors"
            writer = files.features(path, len(split), head.in_features, list(columns), metadata)
            extract(
                encoder, classifier.transform, split, writer,
                batch_size=batch_size, workers=workers, device=target, dtype=dtype,
                what=f"extract {name}", progress=progress,
            )  # fmt: skip
            writer.finish(columns)
        bias = head.bias if head.bias is not None else torch.zeros(head.out_features)
        metadata = Metadata(inputs={"model": fingerprint}, class_names=class_names or None)
        files.artifact("head", head_out, {"weight": head.weight, "bias": bias}, metadata)
    return {
        "out": str(out),
        "head": str(head_out),
        "width": head.in_features,
        "samples": {name: len(split) for name, split in opened.items()},
    }
