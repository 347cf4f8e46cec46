"""Weak scaling: a step of eliminate and of update in 1, 2 and 4 processes, with as many samples for each.

    python -m benchmarks.scaling [--samples 100000] [--width 512] [--processes 1 2 4] [--quick]

One thread a process. Seconds a step are the difference between a run of many steps and one of few: neither start-up nor the
other work of the stage is in them. Processes beyond the cores wait for one another's turn, and say nothing of scaling.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.outofcore import FeatureFiles, calls, command, generate, slope, watch
from benchmarks.table import Row, over, render, say

SAMPLES, WIDTH, CLASSES = 100_000, 512, 2
PROCESSES = (1, 2, 4)
REPEATS = 3
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

    Reference: the first number of processes. Ratio: its time over the others', at best 1.
    """
    repeats = REPEATS
    if quick:
        samples, repeats = min(samples, 20_000), 2
    cores = os.cpu_count() or 1
    times: dict[str, dict[int, float | None]] = {"eliminate": {}, "update": {}}
    with tempfile.TemporaryDirectory() as name:
        for count in processes:
            say(f"{count} x {samples} x {width} ...")
            folder = Path(name) / f"{count}"
            made = generate(folder, count * samples, width)
            _prepare(made, folder)
            for stage, found in times.items():
                found[count] = _step(stage, made, folder, count, repeats)
    rows = []
    for stage, found in times.items():
        for count in processes:
            note = f"weak scaling: {samples} x {width} float16 and one thread for each process"
            if count > cores:
                note = f"weak scaling: {count} processes on {cores} cores take turns (oversubscribed)"
            one, ours = (found[number] and 1e3 * found[number] for number in (processes[0], count))
            name = f"weak scaling, {stage}, {count} process{'es' if count > 1 else ''}"
            rows.append(Row(name, "ms a step", one, ours, over(one, ours), "", note))
        bytes_ = sent(stage, width, CLASSES)
        rows.append(Row(f"weak scaling, {stage}, all-reduced a step", "KB", None, bytes_ / 1e3, note="on paper"))
    return [row.to_json() for row in rows]


def _prepare(made: FeatureFiles, folder: Path) -> None:
    """What the two stages read, by one process."""
    for name, (stage, arguments) in calls(made, folder).items():
        if name in ("identify", "neutralize", "eliminate"):
            watch(command(stage, arguments), threads=1)


def _step(stage: str, made: FeatureFiles, folder: Path, count: int, repeats: int) -> float | None:
    """Seconds of a step of a stage in `count` processes; None where start-ups differed by more than the steps took."""
    name = "update published" if stage == "update" else stage
    arguments = {**calls(made, folder)[name][1], "out": folder / "scaled.safetensors"}
    python, *words = command(stage, arguments)
    launch = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *words]
    took: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(repeats):
        for number in took:
            at = launch.index("--steps") + 1
            took[number].append(watch([*launch[:at], str(number), *launch[at + 1 :]], threads=1).seconds)
    step, can_be_told = slope(took[MANY], took[FEW], MANY - FEW)
    return step if can_be_told else None


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each process")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--quick", action="store_true")
    found = measure(**vars(parser.parse_args(arguments)))
    sys.stdout.write(render([Row.from_json(row) for row in found]))


if __name__ == "__main__":
    main(sys.argv[1:])
