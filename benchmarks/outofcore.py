"""Features larger than what nsf may hold: private memory and time a sample of every stage, as a user calls it.

    python -m benchmarks.outofcore [--samples 4000000] [--width 512] [--shards 16] [--folder DIR] [--cold] [--quick]

float16 features are generated shard by shard, each stage runs as a process of its own, and its private (anonymous) memory
is looked at all the while. Time a sample is held against 100,000 samples of the same kind in one file. The pages of the
files may stay in the system's cache between stages, as they do for a user with memory to spare; `--cold` drops them before
each stage, so that the disk is measured too. Beside it: what storing the demo's features in fewer bits does to worst-group
accuracy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.reference import DRAWN_ROWS, planted, seconds
from benchmarks.table import Row, render, say

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES, WIDTH, SHARDS = 4_000_000, 512, 16
# What times are held against, and what start-up is measured on: just large enough for the compiled loops to be loaded.
COMPARED, TINY = 100_000, 12_288
STEPS = 20
POLL_SECONDS = 0.01
# Whose passes depend on the features, so that its time a sample is not judged.
SEARCHING = "update auto"


@dataclass(frozen=True)
class FeatureFiles:
    """Generated features, the base head beside them, and how many samples there are."""

    features: Path
    head: Path
    samples: int

    @property
    def files(self) -> list[Path]:
        """Those that hold the features."""
        return sorted(self.features.parent.glob("val*.safetensors"))


@dataclass(frozen=True)
class Watched:
    """How one process went: wall time, and the most private memory of it and its children, in bytes."""

    seconds: float
    private: int


def generate(folder: Path, samples: int, width: int, shards: int = 1) -> FeatureFiles:
    """Write planted features in float16, one shard in memory at a time; what is there already is kept.

    Args:
        folder: takes val.safetensors, or val-00001-of-00016.safetensors ... and their index, and head.safetensors.
        samples, width: n and d.
        shards: how many files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blocks = -(-samples // DRAWN_ROWS)
    bounds = [min(samples, blocks * shard // shards * DRAWN_ROWS) for shard in range(shards + 1)]
    names = [f"val-{shard:05}-of-{shards:05}.safetensors" for shard in range(1, shards + 1)]
    names = ["val.safetensors"] if shards == 1 else names
    features = folder / ("val.safetensors" if shards == 1 else "val.safetensors.index.json")
    made = FeatureFiles(features, folder / "head.safetensors", samples)
    recipe = f"{samples} x {width} float16 in {shards}"
    marker = folder / "recipe.txt"
    if marker.exists() and marker.read_text() == recipe:
        return made
    total = 0
    for name, start, stop in zip(names, bounds[:-1], bounds[1:], strict=True):
        rows = planted(stop - start, width, dtype=torch.float16, first=start)
        save_file({"features": rows.features, "labels": rows.labels, "attributes": rows.attributes}, folder / name)
        total += sum(tensor.nbytes for tensor in (rows.features, rows.labels, rows.attributes))
        save_file({"weight": rows.head[0], "bias": rows.head[1]}, made.head)
    if shards > 1:
        weight_map = {f"features.{number:05}": name for number, name in enumerate(names, start=1)}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        features.write_text(json.dumps(index, indent=2) + "\n")
    # Last, so that a generation that was cut short is made again.
    marker.write_text(recipe)
    return made


def calls(made: FeatureFiles, out: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every stage on these files: name -> (module of stages, arguments of its `run`), in pipeline order.

    evaluate takes the same features as test split: it is the reading that is measured.
    """
    features = {"features": made.features}
    identify, neutralize, eliminate, update = (
        {name: out / f"{name}.safetensors"} for name in ("identify", "neutralize", "eliminate", "update")
    )
    before_update = {**features, **identify, **neutralize, **eliminate, "head": made.head}
    scored = {"out": out / "evaluate.safetensors", "metrics_out": out / "metrics.json"}
    return {
        "identify": ("identify", {**features, "head": made.head, "out": identify["identify"]}),
        "neutralize": ("neutralize", {**features, **identify, "out": neutralize["neutralize"]}),
        "eliminate": ("eliminate", {**features, **neutralize, "steps": STEPS, "out": eliminate["eliminate"]}),
        "update published": (
            "update", {**before_update, "solver": "published", "steps": STEPS, "out": update["update"]},
        ),
        SEARCHING: ("update", {**before_update, "solver": "auto", "out": out / "auto.safetensors"}),
        "evaluate": ("evaluate", {**features, **update, "head": made.head, **scored}),
    }  # fmt: skip


def command(stage: str, arguments: dict[str, Any]) -> list[str]:
    """The command line that gives a stage's `run` these arguments."""
    words = [sys.executable, "-m", "nsfcli", "--quiet", stage]
    for name, value in arguments.items():
        words += ["--" + name.removesuffix("_out").replace("_", "-"), str(value)]
    return words


def watch(words: Sequence[str], threads: int) -> Watched:
    """Run a process and look at its private memory until it ends.

    Raises:
        CalledProcessError: it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NSF_THREADS": str(threads)}
    most, started = 0, time.perf_counter()
    process = subprocess.Popen(list(words), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, sum(_private(one) for one in _tree(process.pid)))
        time.sleep(POLL_SECONDS)
    took = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(words))
    return Watched(took, most)


def _tree(root: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield root
    with suppress(OSError):
        for task in Path(f"/proc/{root}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _private(process: int) -> int:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024
    return 0


def within(
    sets: dict[str, FeatureFiles], out: Path, repeats: int, *, cold: bool = False
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each stage's `run` on each set of files, all within this process: stage -> set -> times after a first.

    One way of measuring for all sizes, in turns: what this process does otherwise than a user's does is on both sides of a
    ratio. The stage that searches is left out. The largest set takes every third turn.
    """
    largest = max(sets, key=lambda name: sets[name].samples)
    found: dict[str, dict[str, list[float]]] = {}
    for stage in [name for name in calls(sets[largest], out) if name != SEARCHING]:
        times: dict[str, list[float]] = {name: [] for name in sets}
        for turn in range(-1, repeats):
            for name, made in sets.items():
                if turn > 0 and name == largest and turn % 3:
                    continue
                module, arguments = calls(made, out / name)[stage]
                run = import_module(f"stages.{module}").run
                if cold:
                    _drop(made)
                took = seconds(lambda run=run, given=arguments: run(**given))
                if turn >= 0:
                    times[name].append(took)
        found[stage] = times
    return found


def slope(many: Sequence[float], few: Sequence[float], samples: int) -> tuple[float, bool]:
    """Seconds a sample, from runs with `samples` more than other runs; and whether that can be told.

    Whatever a run costs however many samples there are is in both, and in the difference no more. A difference within the
    spread of the runs that it is made of says nothing, and nothing may be judged by it.
    """
    apart = median(many) - median(few)
    return apart / samples, apart > max(max(runs) - min(runs) for runs in (many, few))


def measure(
    samples: int = SAMPLES,
    width: int = WIDTH,
    shards: int = SHARDS,
    *,
    threads: int = 2,
    folder: Path | None = None,
    cold: bool = False,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Rows of the table, as JSON: private memory and time a sample of every stage, and the effect of storage types."""
    compared, repeats = COMPARED, 7
    if quick:
        samples, compared, repeats = min(samples, 200_000), 50_000, 3
    with _folder(folder) as place:
        say(f"generating {samples} x {width} float16 under {place} ...")
        large = _sets(place, samples, width, shards, compared)["large"]
        say("timing all sizes in turns ...")
        words = [sys.executable, "-m", "benchmarks.outofcore", "--within", str(compared), str(repeats), f"--folder={place}"]
        words += [f"--samples={samples}", f"--width={width}", f"--shards={shards}", f"--threads={threads}"]
        words += ["--cold"] if cold else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NSF_THREADS": str(threads)}
        told = subprocess.run(words, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        inside = json.loads(told)
        rows: list[Row] = []
        label = f"{samples / 1e6:.3g} M x {width} float16"
        failed = 0
        for name, (stage, arguments) in calls(large, place / "out").items():
            if cold:
                _drop(large)
            try:
                went = watch(command(stage, arguments), threads)
            except subprocess.CalledProcessError as error:
                failed += 1
                rows.append(Row(f"out of core, {name}", "", None, None, note=f"{name} ended with {error.returncode}"))
                continue
            say(f"{name}: {went.seconds:.1f} s, {went.private / 2**30:.2f} GiB private")
            rows += [
                Row(f"out of core, {name}, private memory", "GiB", None, went.private / 2**30, None, "ours <= 1.5"),
                Row(f"out of core, {name}, {label}", "s", None, went.seconds),
            ]
            if name == SEARCHING:
                # How many passes it makes depends on the features: its seconds are told, and not judged.
                continue
            times = inside[name]
            of_few, few_tell = slope(times["small"], times["tiny"], compared - TINY)
            of_many, many_tell = slope(times["large"], times["tiny"], samples - TINY)
            ratio = of_many / of_few if few_tell and many_tell else None
            note = f"out of core, time: {samples} samples against {compared}, each less a run of {TINY}; ratio of the two"
            note += ", disk included (cold cache)" if cold else ", files in the system's cache"
            if ratio is None:
                note = "not judged: runs of one size differed by more than runs of two sizes did"
            name = f"out of core, {name}, time"
            rows.append(Row(name, "ns a sample", 1e9 * of_few, 1e9 * of_many, ratio, "ratio <= 1.3", note))
        rows.append(Row("out of core, stages that failed", "", None, float(failed), None, "ours <= 0"))
    return [row.to_json() for row in [*rows, *storage_rows()]]


def _sets(place: Path, samples: int, width: int, shards: int, compared: int) -> dict[str, FeatureFiles]:
    """The three sizes, generated where they are not there yet."""
    return {
        "tiny": generate(place / f"{TINY}", TINY, width),
        "small": generate(place / f"{compared}", compared, width),
        "large": generate(place / f"{samples}", samples, width, shards),
    }


def _drop(made: FeatureFiles) -> None:
    """Have the system forget what it holds of the files."""
    for path in made.files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    with nullcontext(given) if given is not None else tempfile.TemporaryDirectory() as place:
        yield Path(place).resolve()


def storage_rows(root: Path = REPOSITORY / "artifacts") -> list[Row]:
    """Worst-group accuracy of the demo's repair with features stored as float32, float16 and bfloat16; none without a demo.

    Reference: float32.
    """
    splits = {name: root / f"features/{name}.safetensors" for name in ("val", "test")}
    head = root / "head.safetensors"
    if not all(path.is_file() for path in (*splits.values(), head)):
        return [Row("worst-group accuracy by storage type", "", None, None, note="the demo has not been run: `make demo`")]
    scores: dict[str, dict[torch.dtype, float]] = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for split, path in splits.items():
                _stored_as(dtype, path, folder / f"{split}.safetensors")
            for solver, score in _repaired(folder, head).items():
                scores.setdefault(solver, {})[dtype] = score
    rows = []
    for solver, found in scores.items():
        for dtype in (torch.float16, torch.bfloat16):
            name = f"demo's worst-group accuracy, {solver}, {str(dtype).removeprefix('torch.')}"
            rows.append(Row(name, "", found[torch.float32], found[dtype], note="reference: stored as float32"))
    return rows


def _stored_as(dtype: torch.dtype, source: Path, target: Path) -> None:
    """A copy of a features file with another storage type."""
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file({**tensors, "features": tensors["features"].to(dtype)}, target, metadata=file.metadata())


def _repaired(folder: Path, head: Path) -> dict[str, float]:
    """Worst-group accuracy of the heads that both solvers make of the features in a folder, and of the base head."""
    val = FeatureFiles(folder / "val.safetensors", head, 0)
    found = {}
    for name, (stage, arguments) in calls(val, folder).items():
        given = dict(arguments)
        if stage == "eliminate":
            given["steps"] = 350
        if name == "update published":
            given["steps"] = 110
        if stage != "evaluate":
            import_module(f"stages.{stage}").run(**given)
            continue
        for solver, update in (("published", "update"), ("auto", "auto")):
            given |= {"features": folder / "test.safetensors", "update": folder / f"{update}.safetensors"}
            scored = import_module("stages.evaluate").run(**given)
            found[solver] = scored["nsf"]["worst_group_accuracy"]
            found["base head"] = scored["base"]["worst_group_accuracy"]
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the features here; default: a temporary folder")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--within", type=int, nargs=2, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    if (inside := given.pop("within")) is None:
        sys.stdout.write(render([Row.from_json(row) for row in measure(**given)]))
        return
    compared, repeats = inside
    sets = _sets(given["folder"], given["samples"], given["width"], given["shards"], compared)
    sys.stdout.write(json.dumps(within(sets, given["folder"] / "within", repeats, cold=given["cold"])))


if __name__ == "__main__":
    main(sys.argv[1:])
