"""extract: the penultimate features of a trained classifier, and its linear head."""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts, models
from stages.artifacts import Metadata
from stages.data import Split, open_split
from stages.distributed import gathered, rank
from stages.errors import BadValues, Mismatch, UserError
from stages.lineage import comparable
from stages.loading import Samples, batches, check_kind, collate, move, unreadable
from stages.models import Classifier, Opened
from stages.outputs import Outputs, named_in, outputs
from stages.parts import Parts, code, described
from stages.runtime import Progress, begin, keep_freed_memory, reproducible, silent, threads

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

# Samples of the first batch, on which the head is found and the cut is checked.
PROBE_SAMPLES = 8

# Where models come from whose forward pass leaves nothing in the network, so that several threads may run it at once; a
# user's own may.
STATELESS = ("torchvision", "timm")

# Samples between two points where a run that is killed can go on: a minute or two of a large model, seconds of a small one.
SEGMENT = {"cpu": 1024, "cuda": 16384}

# The edge in pixels from which convolutions on CPUs gain by channels last.
CHANNELS_LAST_EDGE = 192


def compute_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """The type that the encoder computes in: "float32", "bfloat16", "float16", or "auto".

    auto is float32 on CPU and bfloat16 on GPUs with tensor cores for it (float16 on older ones), where the forward pass
    gains from it; what features are stored as is another matter.
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
    stored: "torch.dtype | None" = None,
    order: "torch.Tensor | None" = None,
    skipped: list[UserError] | None = None,
    progress: Progress = silent,
) -> "Generator[tuple[torch.Tensor, torch.Tensor], None, None]":
    """The encoder's features of every sample, or of those in `order`: batches (b, d) with their positions (b,).

    Whoever may not come to the end closes it: threads are limited until then (`_lanes`).

    Args:
        encode: a batch -> features (b, d), of a network in evaluation mode on `device`; see `cut`.
        model: prepares and collates the samples.
        dtype: what the forward pass computes in; see `compute_dtype`.
        what: names the work in `progress`.
        stored: what the features are given in; None is float32.
        skipped: where given, samples that cannot be loaded are left out and their errors added here.

    Raises:
        BadValues: a sample's features are not finite.
        UserError: a sample could not be loaded, and `skipped` is None.
    """
    import torch

    done = 0
    loaded = batches(split, model, batch_size=batch_size, workers=workers, device=device, order=order, skipped=skipped)
    count = threads()
    if device.type == "cpu":
        keep_freed_memory()
    lanes = _lanes(model, device, count)

    def forward(inputs: Any) -> "tuple[torch.Tensor, torch.Tensor]":
        # The modes are the thread's own, and end before a yield: they would hold for whoever asks for the batches as well.
        with torch.no_grad(), torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            features = encode(inputs).float().to(stored or torch.float32)
            return features, torch.isfinite(features).all(dim=1)

    def begun(inputs: Any) -> "Callable[[], tuple[torch.Tensor, torch.Tensor]]":
        """Begin a forward pass; what is returned waits for the features (b, d) and whether they are finite (b,)."""
        if lanes is not None:
            parts = [lanes.submit(forward, part) for part in inputs.split(-(-len(inputs) // count))]

            def joined() -> "tuple[torch.Tensor, torch.Tensor]":
                features, finite = zip(*(part.result() for part in parts), strict=True)
                return torch.cat(features), torch.cat(finite)

            return joined
        features, finite = forward(inputs)
        if device.type != "cuda":
            return lambda: (features, finite)
        said, known = finite.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
        known.record()

        def synchronized() -> "tuple[torch.Tensor, torch.Tensor]":
            known.synchronize()
            return features, said

        return synchronized

    late: deque[tuple[Callable[[], tuple[torch.Tensor, torch.Tensor]], torch.Tensor]] = deque()

    def oldest() -> "tuple[torch.Tensor, torch.Tensor]":
        """Features and positions of the batch that was begun first, once they are there and looked at."""
        nonlocal done
        wait, positions = late.popleft()
        features, finite = wait()
        if not bool(finite.all()):
            position = int(positions[(~finite).nonzero()[0, 0]])
            beyond = ", or values beyond float16," if stored == torch.float16 else ""
            raise BadValues(
                f"the model gives NaN or infinity{beyond} for this sample",
                where=split.locate(position),
                do=f"check the model's weights, or set extract.precision{' and extract.dtype' if beyond else ''}: float32",
            )
        done += len(positions)
        progress(what, done, len(split))
        return features, positions

    # A GPU, or the lanes, have the next batch to work on while the last one is looked at and written.
    ahead = 1 if lanes is not None or device.type == "cuda" else 0
    failed: UserError | None = None
    try:
        while True:
            try:
                inputs, positions = next(loaded)
            except StopIteration:
                break
            except UserError as error:
                # What is under way comes first: it may end a part that the next run need not make again.
                failed = error
                break
            late.append((begun(inputs), positions))
            if len(late) > ahead:
                yield oldest()
        while late:
            yield oldest()
        if failed is not None:
            raise failed
    finally:
        if lanes is not None:
            lanes.shutdown(cancel_futures=True)
            torch.set_num_threads(count)


def _lanes(model: Classifier, device: "torch.device", count: int) -> ThreadPoolExecutor | None:
    """Threads that each run the network on a part of a batch; None where one forward pass is to use all of them.

    Threads that share an operator wait for the slowest of them after each, all the more where a loader process takes one
    of the cores now and then.
    """
    import torch

    if device.type != "cpu" or count == 1 or model.spec.get("source") not in STATELESS:
        return None
    # Also here, until the lanes are closed: threads that share what little there is to do would spin beside the lanes.
    torch.set_num_threads(1)
    return ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(1,))


def head_tensors(head: "nn.Linear") -> "tuple[torch.Tensor, torch.Tensor]":
    """The head's weight (C, d) and bias (C,), of two classes where it has one sigmoid output."""
    import torch

    weight = head.weight.detach()
    bias = head.bias.detach() if head.bias is not None else torch.zeros(len(weight), device=weight.device)
    return artifacts.two_classes(weight, bias) if len(weight) == 1 else (weight, bias)


def cut(model: Classifier, split: Split, device: "torch.device") -> "tuple[Callable[[Any], torch.Tensor], nn.Linear, str]":
    """`models.split` on `device`, checked on the split's first samples: (encoder, head, the head's module name)."""
    model.network.to(device)
    batch = _first_batch(model, split, device)
    encode, head, name = models.split(model, batch)
    return _channels_last(model.network, encode, batch), head, name


def _channels_last(
    network: "nn.Module", encode: "Callable[[Any], torch.Tensor]", batch: Any
) -> "Callable[[Any], torch.Tensor]":
    """The encoder with the images' channels last in memory, where convolutions are faster that way.

    On CPUs the large images alone gain (ResNet-50 on 2 cores: 1.5 times as fast at 224 pixels, 1.05 at 112, 0.8 at 56 x 28).
    """
    import torch
    from torch import nn

    images = isinstance(batch, torch.Tensor) and batch.dim() == 4
    if not images or (batch.device.type == "cpu" and min(batch.shape[2:]) < CHANNELS_LAST_EDGE):
        return encode
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return encode

    def arranged(inputs: Any) -> "torch.Tensor":
        return encode(inputs.contiguous(memory_format=torch.channels_last))

    network.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            arranged(batch[:1])
    except RuntimeError:
        # The network views its activations as they lie in memory, and wants them in the usual order.
        network.to(memory_format=torch.contiguous_format)
        return encode
    return arranged


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
    _check_numbering(opened, readers)
    skip = data.get("on_error") == "skip"
    paths = {name: Path(out) / f"{name}.safetensors" for name in splits}
    parts: dict[str, Parts] = {}
    resumed: dict[str, int] = {}
    kept: set[Path] = set()
    read = named_in(data, own_model or {})
    with outputs(model, *read) as files, reproducible(seed=0):
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
    if rank() == 0:
        for name in splits:
            for path in _forms(paths[name]) - kept:
                path.unlink()
            parts[name].remove()
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


def _check_numbering(opened: Opened, splits: Mapping[str, Split]) -> None:
    """Raise Mismatch where splits number their classes differently and do not go by the names that the model knows."""
    (first, names), *others = ((name, list(split.class_names)) for name, split in splits.items())
    for name, found in others:
        if found != names and not (opened.class_names and same_names(opened, splits[name])):
            raise Mismatch(
                f"the classes are {', '.join(names)} in the {first} split and {', '.join(found)} in the {name} split",
                where="data",
                do="number the same classes alike in every split",
            )


def check_classes(classifier: Classifier, classes: int, split: Split) -> None:
    """Raise Mismatch where the model tells another number of classes apart than the data has."""
    if len(split.class_names) != classes:
        raise Mismatch(
            f"has {classes} classes, and the data {len(split.class_names)} ({', '.join(split.class_names[:10])}; "
            "numbers as classes start at 0)",
            where=classifier.name,
            do="run `nsf train` on this data, or give the data that the model is for",
        )


def number_as(opened: Opened, split: Split, name: str) -> "np.ndarray":
    """The split's labels, (n,) int64, numbered as the model numbers its classes.

    Classes go by their names where model and data have the same ones, whatever their order and capitals; otherwise by
    their numbers.

    Raises:
        Mismatch: `nsf train` made the model on classes of other names, or some names agree and contradict the numbers.
    """
    import numpy as np

    ours, theirs = comparable(split.class_names, opened.class_names or ())
    same = set(ours) == set(theirs)
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


def same_names(opened: Opened, split: Split) -> bool:
    """Whether the model's class names, where it has any, are the data's."""
    ours, theirs = comparable(split.class_names, opened.class_names or ())
    return not theirs or set(ours) == set(theirs)


def _train_groups(data: Mapping[str, Any], opened: Opened, test: Split, names: Sequence[str]) -> dict[str, int] | None:
    """The training split's group sizes, for evaluate's adjusted mean, classes named as in the features files.

    None where they cannot be known.
    """
    try:
        split = open_split("train", **data)
        _check_numbering(opened, {"test": test, "train": split})
        numbered = replace(split, labels=number_as(opened, split, "train"), class_names=names)
    except UserError:
        return None
    return dict(numbered.counts()["groups"]) or None
