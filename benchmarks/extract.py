"""What extract costs beside the forward pass: images a second of the whole stage against those of the bare network.

    python -m benchmarks.extract

Both in one run, of the same network, batch size and arrangement in memory; the bare one has its batch decoded and in place.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from stages import encoding, extract, models
from stages.artifacts import Metadata
from stages.data import open_split
from stages.outputs import outputs
from stages.runtime import begin, reproducible

# Files that are told apart; the table names them again and again.
JPEGS = 64


def measure(device: str = "auto") -> dict[str, dict[str, float]]:
    """Per case: `bare` and `extract` in images/s, `steady` (extract from batch to batch), and their ratios to `bare`.

    `extract` is the whole of `nsf extract` but the import of torch; `steady` compares medians of a batch's time, which is
    what a long run comes to. `cpu_ratio` compares the CPU seconds an image of the bare network to those of all of
    extract, loader processes included: on a CPU, what a machine that does other things besides can still tell.

    ResNet-50 on JPEG files at 224 pixels, and the demo's ResNet-18 on Dominoes; two minutes on 2 cores that do nothing else.
    """
    on_gpu = begin(device).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
            "resnet50, JPEG at 224": (
                {"architecture": "resnet50", "image_size": 224},
                jpegs(Path(folder), 16384 if on_gpu else 640),
                256 if on_gpu else 32,
            ),
            "resnet18, Dominoes": (
                {"architecture": "resnet18", "image_size": [56, 28]},
                {"format": "dominoes", "root": "data/dominoes", "train_size": 100, "val_size": 7000},
                256,
            ),
        }
        return {name: _case(Path(folder), name, *case, device=device) for name, case in cases.items()}


def jpegs(folder: Path, samples: int) -> dict[str, Any]:
    """A table of `samples` photos of two classes, 500 x 375 pixels, as the `data` section of params.yaml."""
    random = np.random.RandomState(0)
    for index in range(JPEGS):
        noise = Image.fromarray(random.randint(0, 255, (375, 500, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(2)).save(folder / f"{index}.jpg", quality=90)
    rows = [f"{index % JPEGS}.jpg,{index % 2},val" for index in range(samples)]
    (folder / "photos.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return {"format": "csv", "file": str(folder / "photos.csv")}


def _case(
    folder: Path, name: str, spec: Mapping[str, Any], data: Mapping[str, Any], batch_size: int, *, device: str
) -> dict[str, float]:
    target = begin(device)
    split = open_split("val", **data)
    model = folder / name
    with reproducible(seed=0), outputs() as files:
        built = models.build(source="torchvision", classes=2, **spec)
        models.save(files, model, built, split.class_names, Metadata())
    opened = models.open_trained(model, None).classifier
    encode, _, _ = encoding.cut(opened, split, target)
    batch = torch.stack([opened.transform(split.load(position)) for position in range(batch_size)]).to(target)
    dtype = encoding.compute_dtype("auto", target)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(target.type, dtype, enabled=dtype != torch.float32):
            encode(batch)
        if target.type == "cuda":
            torch.cuda.synchronize()

    rounds = max(1, len(split) // batch_size // 2)
    before = _cpu_seconds()
    bare = _seconds(forward, rounds)
    bare_cpu = (_cpu_seconds() - before) / (rounds + 1) / batch_size
    before = _cpu_seconds()
    ticks: list[float] = []
    started = time.perf_counter()
    extract.run(
        data=data, model=model, out=folder / "features", head_out=folder / "head.safetensors", splits=["val"],
        batch_size=batch_size, workers="auto", device=device, progress=lambda *_: ticks.append(time.perf_counter()),
    )  # fmt: skip
    whole = time.perf_counter() - started
    whole_cpu = (_cpu_seconds() - before) / len(split)
    bare += _seconds(forward, rounds)
    # The last batch may be a smaller one.
    steady = [end - begin for begin, end in pairwise(ticks[:-1])]
    found = {
        "bare": batch_size / statistics.mean(bare),
        "extract": len(split) / whole,
        "steady": batch_size / statistics.median(steady),
        "ratio": len(split) / whole * statistics.mean(bare) / batch_size,
        "steady_ratio": statistics.median(bare) / statistics.median(steady),
        "cpu_ratio": bare_cpu / whole_cpu,
    }
    return {key: round(value, 3) for key, value in found.items()}


def _seconds(forward: Callable[[], None], rounds: int) -> list[float]:
    """The seconds of each of some rounds, after one that warms up."""
    forward()
    ticks = [time.perf_counter()]
    for _ in range(rounds):
        forward()
        ticks.append(time.perf_counter())
    return [end - begin for begin, end in pairwise(ticks)]


def _cpu_seconds() -> float:
    """Of this process and of the loader processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    lines = [f"{'':24}{'bare/s':>10}{'extract/s':>11}{'ratio':>8}{'steady/s':>10}{'ratio':>8}{'of CPU':>8}"]
    for name, row in measure().items():
        rates = f"{row['bare']:10.1f}{row['extract']:11.1f}{row['ratio']:8.3f}{row['steady']:10.1f}"
        lines.append(f"{name:24}{rates}{row['steady_ratio']:8.3f}{row['cpu_ratio']:8.3f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
