"""Weak scaling: a step of eliminate and of update in 1, 2 and 4 processes, with as many samples for each.

    python -m benchmarks.scaling [--samples 100000] [--width 512] [--processes 1 2 4] [--quick]
    torchrun --nproc-per-node 2 -m benchmarks.scaling --all-reduce BYTES

Beside them, as many processes that share nothing but the machine, each with files of its own: what they lose is the memory
bus's. docs/scale.md's model is that time and one all-reduce, which is measured by itself.

One thread a process. Seconds a step are the difference between a run of many steps and one of few: neither start-up nor the
other work of the stage is in them. Processes beyond the cores wait for one another's turn, and say nothing of scaling.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from benchmarks.outofcore import REPOSITORY, FeatureFiles, calls, command, generate, slope, watch
from benchmarks.table import Row, over, render, say
from stages import distributed

SAMPLES, WIDTH, CLASSES = 100_000, 512, 2
PROCESSES = (1, 2, 4)
REPEATS = 3
# All-reduces that are timed together.
CALLS = 500
# Steps of the shorter and of the longer run: some seconds apart, for start-ups differ by a tenth of one.
FEW, MANY = 10, 210


def sent(stage: str, width: int, classes: int) -> int:
    """Bytes that each process gives to the all-reduce of a step, on paper: float64 sums.

    eliminate: sum u_i and sum u_i * x_i (d each) and the loss. update: the gradient of weight (C, d) and bias (C,), and the
    loss. Neither depends on how many samples there are.
    """
    return 8 * {"eliminate": 2 * width + 1, "update": classes * (width + 1) + 1}[stage]


def measure(
    samples: int = SAMPLES, width: int = WIDTH, processes: Sequence[int] = PROCESSES, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Rows of the table, as JSON; `samples` for each process.

    Reference: the first number of processes or, of the model, what it is a model of. Ratio: the reference's time over
    ours, at best 1.
    """
    repeats = REPEATS
    if quick:
        samples, repeats = min(samples, 20_000), 2
    cores = os.cpu_count() or 1
    times: dict[str, dict[int, float | None]] = {"eliminate": {}, "update": {}}
    alone: dict[str, dict[int, float | None]] = {stage: {} for stage in times}
    with tempfile.TemporaryDirectory() as name:
        for count in processes:
            say(f"{count} x {samples} x {width} ...")
            folder = Path(name) / f"{count}"
            made = generate(folder, count * samples, width)
            _prepare(made)
            for stage, found in times.items():
                found[count] = _step(stage, [made], count, repeats)
            if 1 < count <= cores:
                say(f"{count} of their own ...")
                sets = [generate(folder / f"own-{number}", samples, width) for number in range(count)]
                for one in sets:
                    _prepare(one)
                for stage, found in alone.items():
                    found[count] = _step(stage, sets, 1, repeats)
    rows = []
    for stage, found in times.items():
        for count in processes:
            note = f"weak scaling: {samples} x {width} float16 and one thread for each process"
            if count > cores:
                note = f"weak scaling: {count} processes on {cores} cores take turns (oversubscribed)"
            one, ours = (found[number] and 1e3 * found[number] for number in (processes[0], count))
            name = f"weak scaling, {stage}, {count} process{'es' if count > 1 else ''}"
            rows.append(Row(name, "ms a step", one, ours, over(one, ours), "", note))
            if apart := alone[stage].get(count):
                note = "weak scaling: so many runs of their own at once, with nothing to wait for"
                name = f"weak scaling, {stage}, {count} that share nothing"
                rows.append(Row(name, "ms a step", one, 1e3 * apart, over(one, 1e3 * apart), "", note))
                wait = 1e3 * _all_reduce_seconds(count, sent(stage, width, CLASSES), repeats)
                rows.append(Row(f"weak scaling, {stage}, {count} processes' all-reduce alone", "ms", None, wait))
                note = "weak scaling, the model: a step that shares nothing, and an all-reduce; reference: as measured"
                model = 1e3 * apart + wait
                name = f"weak scaling, {stage}, {count} processes by the model"
                rows.append(Row(name, "ms a step", ours, model, over(ours, model), "", note))
        bytes_ = sent(stage, width, CLASSES)
        rows.append(Row(f"weak scaling, {stage}, all-reduced a step", "KB", None, bytes_ / 1e3, note="on paper"))
    return [row.to_json() for row in rows]


def _all_reduce_seconds(count: int, size: int, repeats: int) -> float:
    """Seconds of an all-reduce of so many bytes among processes that do nothing else: the median of several runs."""
    launch = _torchrun(count, ["-m", "benchmarks.scaling", "--all-reduce", str(size)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    took = []
    for _ in range(repeats):
        done = subprocess.run(launch, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True)
        took.append(float(done.stdout))
    return median(took)


def all_reduce(size: int) -> NoReturn:
    """As one of several processes: print what an all-reduce of so many bytes takes, in seconds."""
    import torch

    distributed.start(torch.device("cpu"))
    values = torch.zeros(size // 8, dtype=torch.float64)
    for _ in range(CALLS // 10):
        distributed.summed(values)
    distributed.wait()
    started = time.perf_counter()
    for _ in range(CALLS):
        distributed.summed(values)
    took = (time.perf_counter() - started) / CALLS
    if not distributed.rank():
        sys.stdout.write(f"{took}\n")
        sys.stdout.flush()
    distributed.wait()
    # As nsf's processes end: connections that Python takes down may abort one that is still at work.
    os._exit(0)


def _prepare(made: FeatureFiles) -> None:
    """What the two stages read, by one process."""
    for name, (stage, arguments) in calls(made, made.features.parent).items():
        if name in ("identify", "neutralize", "eliminate"):
            watch(command(stage, arguments), threads=1)


def _step(stage: str, sets: Sequence[FeatureFiles], count: int, repeats: int) -> float | None:
    """Seconds of a step of a stage in `count` processes; None where start-ups differed by more than the steps took.

    Of several sets, all are worked on at once, each by a run of its own, and the slowest counts.
    """
    launches = [_launch(stage, made, count) for made in sets]
    took: dict[int, list[float]] = {FEW: [], MANY: []}

    def seconds(launch: list[str]) -> float:
        return watch(launch, threads=1).seconds

    with ThreadPoolExecutor(len(sets)) as pool:
        for _ in range(repeats):
            for number in took:
                took[number].append(max(pool.map(seconds, [_with_steps(launch, number) for launch in launches])))
    step, can_be_told = slope(took[MANY], took[FEW], MANY - FEW)
    return step if can_be_told else None


def _launch(stage: str, made: FeatureFiles, count: int) -> list[str]:
    folder = made.features.parent
    name = "update published" if stage == "update" else stage
    arguments = {**calls(made, folder)[name][1], "out": folder / "scaled.safetensors"}
    return _torchrun(count, command(stage, arguments)[1:])


def _torchrun(count: int, words: Sequence[str]) -> list[str]:
    """A command line of Python, without the interpreter, in so many processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *words]


def _with_steps(launch: Sequence[str], steps: int) -> list[str]:
    at = launch.index("--steps") + 1
    return [*launch[:at], str(steps), *launch[at + 1 :]]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each process")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--all-reduce", type=int, metavar="BYTES", help="under torchrun: time this alone")
    given = vars(parser.parse_args(arguments))
    size = given.pop("all_reduce")
    if size is not None:
        all_reduce(size)
    found = measure(**given)
    sys.stdout.write(render([Row.from_json(row) for row in found]))


if __name__ == "__main__":
    main(sys.argv[1:])
