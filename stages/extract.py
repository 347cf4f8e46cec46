"""extract: the penultimate features of a trained classifier, and its linear head."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts, models
from stages.artifacts import Metadata
from stages.data import Split, open_split
from stages.distributed import gathered, rank
from stages.encoding import compute_dtype, cut, encoded, head_tensors
from stages.errors import UserError
from stages.loading import attended, batches, unreadable
from stages.models import Opened
from stages.numbering import check_classes, check_numbering, number_as, same_names
from stages.outputs import Outputs, named_in, outputs
from stages.parts import Parts, code, described, reserved
from stages.runtime import Progress, begin, reproducible, silent, threads

if TYPE_CHECKING:
    import torch

# Samples between two points where a run that is killed can go on: a minute or two of a large model, seconds of a small one.
SEGMENT = {"cpu": 1024, "cuda": 16384}


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
    dtype: str = "float32",
    shard_samples: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The stage on files: read the data and a trained model, write `out`/<split>.safetensors and the head.

    Finished parts of the features are kept in `out` while it runs, and used by the next run where this one is cut off
    (see `stages.parts`). Where torchrun starts several processes, they share the samples; process 0 writes the outputs.

    Args:
        data: the `data` section of params.yaml: `format` and its reader's options.
        model: what `nsf train` wrote.
        out: the folder for the features files.
        head_out: the file for the linear head, (C, d) and (C,).
        own_model: the `model` section of params.yaml: the trained classifier to use where there is no `model`.
        splits: which splits to extract.
        batch_size, workers: samples a forward pass, and loader processes (or "auto").
        precision: see `compute_dtype`.
        dtype: what the features are stored as, "float32", "float16" or "bfloat16".
        shard_samples: rows a file; then `out` holds <split>-00001-of-00002.safetensors and so on, each with its own rows,
            and <split>.safetensors.index.json. None writes one file.

    Returns:
        A summary: `out`, `head`, `model` (what was taken), `kind`, `width` (d), `classes`, `classes_matched_by` ("number"
        where the model's own names are others than the data's, "name" otherwise), and per split its number of samples, how
        many of them were skipped and how many were `resumed` from a run that was cut off; `first_skipped`: what the first
        one skipped met, or None.

    Raises:
        UserError: data or model cannot be used; no output is written.
    """
    import torch

    target = begin(device)
    computed, stored = compute_dtype(precision, target), getattr(torch, dtype)
    opened = models.open_trained(model, own_model)
    classifier = opened.classifier
    readers = {name: open_split(name, **data) for name in splits}
    labels = {name: number_as(opened, split, name) for name, split in readers.items()}
    check_numbering(opened, readers)
    skip = data.get("on_error") == "skip"
    paths = {name: Path(out) / f"{name}.safetensors" for name in splits}
    parts: dict[str, Parts] = {}
    resumed: dict[str, int] = {}
    kept: set[Path] = set()
    read = named_in(data, own_model or {})
    with _reserved(paths, parts, kept), outputs(model, *read) as files, reproducible(seed=0), attended():
        # The outputs come last; what is wrong with them is told first.
        files.check(*paths.values(), Path(head_out))
        first = next(iter(readers.values()))
        encode, head, head_name = cut(classifier, first, target)
        precision = str(computed).removeprefix("torch.")
        weight, bias = head_tensors(head)
        names = opened.class_names or list(first.class_names)
        check_classes(classifier, len(weight), first)
        # Group labels: they go to the test features alone, which evaluate and compare read.
        train_groups = _train_groups(data, opened, readers["test"], names) if "test" in readers else None
        for name, split in readers.items():
            made_from = _made_from(opened, head_name, split, target, batch_size, precision, dtype)
            segment = -(-SEGMENT[target.type] // batch_size) * batch_size
            own = parts[name] = Parts(paths[name], split, segment, head.in_features, stored, made_from, skip=skip)
            left, total = len(own.order()), sum(len(own.span(k)) for k in own.marks)
            resumed[name] = total - left
            if left:
                errors: list[UserError] = []
                features = encoded(
                    encode, classifier, split,
                    batch_size=batch_size, workers=workers, device=target, dtype=computed, stored=stored,
                    order=own.order(), what=f"extract {name}", skipped=errors if skip else None,
                    progress=partial(_counted, progress, total - left, total),
                )  # fmt: skip
                with closing(features):
                    own.make(features, errors)
        for name, split in readers.items():
            own = parts[name]
            own.collect()
            resumed[name] = sum(gathered(resumed[name]))
            if own.rows == 0:
                raise unreadable(name, len(split), [own.ordered[0].error])
            if rank() == 0:
                extra = {"ids": split.ids_are, "skipped": str(len(split) - own.rows)}
                if name == "test" and train_groups:
                    extra["train_groups"] = json.dumps(train_groups)
                metadata = Metadata(
                    parameters={"data": dict(data), "precision": precision, "batch_size": batch_size, "split": name},
                    inputs={"model": opened.fingerprint},
                    class_names=names,
                    attribute_names=split.attribute_names,
                    notes=extra,
                )
                kept |= _assemble(files, paths[name], own, replace(split, labels=labels[name]), metadata, shard_samples)
        notes = {"model": classifier.name, "head": head_name, "single_output": str(head.out_features == 1).lower()}
        metadata = Metadata(inputs={"model": opened.fingerprint}, class_names=names, notes=notes)
        files.artifact("head", head_out, {"weight": weight, "bias": bias}, metadata)
    met = [part.error for own in parts.values() for part in own.ordered if part.skipped]
    return {
        "out": str(out),
        "head": str(head_out),
        "model": str(model) if opened.by_nsf else classifier.name,
        "kind": first.kind,
        "width": head.in_features,
        "classes": names,
        "classes_matched_by": "name" if same_names(opened, first) else "number",
        "samples": {name: own.rows for name, own in parts.items()},
        "skipped": {name: own.samples - own.rows for name, own in parts.items()},
        "resumed": resumed,
        "first_skipped": str(met[0]) if met else None,
    }


@contextmanager
def _reserved(paths: Mapping[str, Path], parts: Mapping[str, Parts], kept: set[Path]) -> Iterator[None]:
    """`parts.reserved`, at whose end, where all went well, other forms of the features go, and their parts."""
    with reserved(paths.values()):
        yield
        for name, path in paths.items() if rank() == 0 else ():
            for other in _forms(path) - kept:
                other.unlink()
            parts[name].remove()


def _made_from(
    opened: Opened, head: str, split: Split, device: "torch.device", batch_size: int, precision: str, dtype: str
) -> dict[str, Any]:
    """All that decides on the features, beside the samples: a part made from anything else is made again."""
    import torch

    classifier = opened.classifier
    # How many threads share a sum decides on its last bit.
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {threads()} threads"
    assets = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(classifier.assets.items())}
    types = {type(module) for module in classifier.network.modules()}
    return {
        "model": opened.fingerprint,
        "spec": described(dict(classifier.spec)),
        "head": head,
        "assets": assets,
        "transform": described(classifier.transform),
        "collate": described(classifier.collate),
        "code": code(encoded, batches, models.split, classifier.transform, classifier.collate, split.load, *types),
        "batch_size": batch_size,
        "precision": precision,
        "dtype": dtype,
        "device": where,
        "torch": torch.__version__,
    }


def _counted(progress: Progress, before: int, total: int, what: str, done: int, _: int) -> None:
    progress(what, before + done, total)


def _assemble(
    files: Outputs, path: Path, parts: Parts, split: Split, metadata: Metadata, shard_samples: int | None
) -> set[Path]:
    """Put the parts together as one features file, or as shards and their index; returns what is to stay of it."""
    import torch

    positions = parts.positions()
    columns = {"labels": torch.from_numpy(split.labels)[positions], "ids": torch.from_numpy(split.ids)[positions]}
    if split.attributes is not None:
        columns["attributes"] = torch.from_numpy(split.attributes)[positions]
    rows = shard_samples or parts.rows
    starts = range(0, parts.rows, rows)
    shards: dict[Path, int] = {}
    for number, start in enumerate(starts, start=1):
        shard = path.with_name(f"{path.stem}-{number:05}-of-{len(starts):05}.safetensors") if shard_samples else path
        stop = min(start + rows, parts.rows)
        writer = files.features(shard, stop - start, parts.width, list(columns), metadata, parts.dtype)
        parts.copy(writer, start, stop)
        writer.finish({name: tensor[start:stop] for name, tensor in columns.items()})
        shards[shard] = (stop - start) * (parts.width * parts.dtype.itemsize + 8 * len(columns))
    if shard_samples:
        index = path.with_name(path.name + artifacts.INDEX_SUFFIX)
        files.index(index, {shard.name: size for shard, size in shards.items()}, metadata)
        return {index, *shards}
    return {path}


def _forms(path: Path) -> set[Path]:
    """The files there are of a split's features: the one file, and shards of any number with their index."""
    shard = re.compile(re.escape(path.stem) + r"-\d{5,}-of-\d{5,}\.safetensors")
    return {each for each in path.parent.iterdir()
            if each.name in (path.name, path.name + artifacts.INDEX_SUFFIX) or shard.fullmatch(each.name)}  # fmt: skip


def _train_groups(data: Mapping[str, Any], opened: Opened, test: Split, names: Sequence[str]) -> dict[str, int] | None:
    """The training split's group sizes, for evaluate's adjusted mean, classes named as in the features files.

    None where they cannot be known.
    """
    try:
        split = open_split("train", **data)
        check_numbering(opened, {"test": test, "train": split})
        numbered = replace(split, labels=number_as(opened, split, "train"), class_names=names)
    except UserError:
        return None
    return dict(numbered.counts()["groups"]) or None
