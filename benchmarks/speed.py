"""How fast nsf is, and how little memory it takes: one table of ratios, each measured in one run.

    python -m benchmarks.speed [--threads 2] [--samples 19867] [--width 2048] [--only NAME ...] [--quick]

CelebA's validation size by default. Reference: benchmarks/reference.py, the straightforward way. Both take turns in one
process where they are timed, and have a fresh process each where memory is measured. Results go to
benchmarks/results/speed.json, a section for each NAME, and into docs/scale.md; `--only` replaces these sections and leaves
the others. `--quick` takes few steps and small sets, extrapolates, says so, and keeps its results only where `--out` names
a file.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.reference import ELIMINATE_STEPS, UPDATE_STEPS, Planted, interleaved, planted, read_pass
from benchmarks.table import Row, machine, markdown, over, peak_memory, render, say, settle_memory, write
from stages.eliminate import eliminate
from stages.identify import assess, identify
from stages.neutralize import neutralize
from stages.passes import best
from stages.rows import Rows
from stages.update import select, update

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks/results/speed.json"
PAGE = REPOSITORY / "docs/scale.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"

# Rows that a stage runs on before its memory is looked at: enough for it to load whatever it works with, such as the
# compiled loops or PyTorch's optimisers, which are no cost of the features.
WARM_VALUES = 1 << 23
MEGA = 1e6


@dataclass(frozen=True)
class Options:
    """Of one run; every process of it has the same."""

    threads: int = 2
    samples: int = 19_867
    width: int = 2_048
    quick: bool = False

    def words(self) -> list[str]:
        words = [f"--threads={self.threads}", f"--samples={self.samples}", f"--width={self.width}"]
        return [*words, "--quick"] if self.quick else words


# ---- the cases: each runs in a process of its own, and what it returns is printed as JSON


def case_eliminate(options: Options) -> dict[str, Any]:
    """Seconds of a step of either and of a read pass, and how far apart they are after the same number of steps."""
    data = _data(options)
    centers = neutralize(data.features, data.labels, identify(data.features, data.labels).minority)
    inputs = (data.features, data.labels, centers)
    plain = reference.Eliminate(*inputs)
    steps, repeats = (4, 3) if options.quick else (20, 7)
    theirs, ours, reads = interleaved(
        [plain.step, lambda: eliminate(*inputs, steps=steps), lambda: _times(5, read_pass, data.features)], repeats
    )
    taken = repeats + 1
    learned = eliminate(*inputs, steps=taken)
    apart = max(_apart(plain.scale, learned.scale), _apart(plain.shift, learned.shift))
    return {
        "reference": median(theirs), "ours": median(ours) / steps, "read": median(reads) / 5,
        "apart": apart, "steps": taken,
    }  # fmt: skip


def case_passes(options: Options) -> dict[str, Any]:
    """Seconds of identify (without and with its verdict), neutralize and evaluate of either, and of a read pass."""
    data = _data(options)
    x, labels = data.features, data.labels
    found = identify(x, labels)
    other = (data.head[0].flip(0) + 0.01, data.head[1].flip(0))

    def with_verdict() -> None:
        assess(x, labels, identify(x, labels), data.head)

    works: dict[str, Callable[[], object]] = {
        "read": lambda: _times(5, read_pass, x),
        "identify": lambda: identify(x, labels),
        "identify with its verdict": with_verdict,
        "neutralize": lambda: neutralize(x, labels, found.minority),
        "evaluate": lambda: best(x, [data.head, other], what="predict"),
        "reference identify": lambda: reference.identify(x, labels),
        "reference neutralize": lambda: reference.neutralize(x, labels, found.minority),
        "reference evaluate": lambda: [reference.predict(x, *head) for head in (data.head, other)],
    }
    times = interleaved(works.values(), 3 if options.quick else 9)
    medians = {name: median(seconds) for name, seconds in zip(works, times, strict=True)}
    made = {name: _reads(works[name], options.samples) for name in ("identify", "neutralize", "evaluate")}
    same = torch.equal(found.minority, reference.identify(x, labels)[1])
    return {**medians, "read": medians["read"] / 5, "made": made, "same_flags": same}


def case_update(options: Options) -> dict[str, Any]:
    """Seconds of a step of either; T is what 50 steps make of it, for any will do here."""
    data = _data(options)
    x, labels = data.features, data.labels
    minority = identify(x, labels).minority
    centers = neutralize(x, labels, minority)
    learned = eliminate(x, labels, centers, steps=50)
    kinds = select(x, labels, minority, centers, learned.scale, learned.shift)
    plain = reference.Update(reference.transform(x, learned.scale, learned.shift), labels, *kinds)
    steps, repeats = (5, 3) if options.quick else (UPDATE_STEPS, 7)
    theirs, ours = interleaved(
        [
            lambda: _times(steps, plain.step),
            lambda: update(x, labels, *kinds, learned.scale, learned.shift, classes=2, steps=steps),
        ],
        repeats,
    )
    one = update(x, labels, *kinds, learned.scale, learned.shift, classes=2, steps=5)
    again = reference.Update(reference.transform(x, learned.scale, learned.shift), labels, *kinds)
    _times(5, again.step)
    return {
        "reference": median(theirs) / steps, "ours": median(ours) / steps, "batch": 2 * min(int(k.sum()) for k in kinds),
        "apart": _apart(one.weight, again.weight),
    }  # fmt: skip


def case_memory(options: Options, stage: str, who: str) -> dict[str, Any]:
    """The most bytes that a stage of either takes beyond the features and what it has loaded."""
    data = _data(options)
    minority = identify(data.features, data.labels).minority
    centers = neutralize(data.features, data.labels, minority)
    few = min(options.samples, max(256, WARM_VALUES // options.width))

    def work(x: Tensor, labels: Tensor, minority: Tensor) -> object:
        theirs = who == "reference"
        if stage == "identify":
            return (reference.identify if theirs else identify)(x, labels)
        if stage == "neutralize":
            return (reference.neutralize if theirs else neutralize)(x, labels, minority)
        if theirs:
            return _times(2, reference.Eliminate(x, labels, centers).step)
        return eliminate(x, labels, centers, steps=2)

    work(data.features[:few], data.labels[:few], minority[:few])
    before = settle_memory()
    work(data.features, data.labels, minority)
    return {"bytes": peak_memory() - before, "features": data.features.numel() * 4}


def case_fit(options: Options, who: str) -> dict[str, Any]:
    """The whole of identify to update in a process that has done nothing else: seconds and peak memory.

    What the first optimiser of a process imports is taken out of the reference's time, what nsf loads is left in its own.
    """
    if who == "reference":
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    libraries = settle_memory()
    data = _data(options)
    x, labels = data.features, data.labels
    few = options.quick and who == "reference"
    steps = (4, 4) if few else (ELIMINATE_STEPS, UPDATE_STEPS)
    laps, before = {}, settle_memory()
    last = started = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        laps[stage], last = now - last, now

    if who == "reference":
        fitted = reference.fit(x, labels, eliminate_steps=steps[0], update_steps=steps[1], lap=lap)
        rescued = fitted.rescued
    else:
        found = identify(x, labels)
        lap("identify")
        centers = neutralize(x, labels, found.minority)
        lap("neutralize")
        learned = eliminate(x, labels, centers, steps=steps[0])
        lap("eliminate")
        kinds = select(x, labels, found.minority, centers, learned.scale, learned.shift)
        lap("select")
        update(x, labels, *kinds, learned.scale, learned.shift, classes=2, steps=steps[1])
        lap("update")
        rescued = kinds[0]
    whole, peak = time.perf_counter() - started, peak_memory()
    if few:
        laps["eliminate"] *= ELIMINATE_STEPS / steps[0]
        laps["update"] *= UPDATE_STEPS / steps[1]
        whole = sum(laps.values())
    return {
        "seconds": whole, "laps": laps, "peak": peak, "work": peak - libraries, "beyond": peak - before, "extrapolated": few,
        "rescued": int(rescued.sum()),
    }  # fmt: skip


def _data(options: Options) -> Planted:
    return planted(options.samples, options.width)


def _reads(work: Callable[[], object], samples: int) -> float:
    """How many times a piece of work reads the rows: counted where all passes take them from, not deduced from its time."""
    plain, seen = Rows.spans, 0

    def spans(self: Rows, *arguments: Any, **named: Any) -> Iterator[tuple[int, Tensor]]:
        nonlocal seen
        for first, values in plain(self, *arguments, **named):
            seen += len(values)
            yield first, values

    with patch.object(Rows, "spans", spans):
        work()
    return seen / samples


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.detach() - other.detach()).abs().max())


def _times(count: int, work: Callable[..., object], *arguments: object) -> None:
    for _ in range(count):
        work(*arguments)


# ---- the sections of the table


def section_eliminate(options: Options) -> list[Row]:
    found = _child(options, "eliminate")
    theirs, ours, read = (found[name] for name in ("reference", "ours", "read"))
    memory = {who: _child(options, "memory", "eliminate", who) for who in ("reference", "ours")}
    share = {who: 100 * one["bytes"] / one["features"] for who, one in memory.items()}
    size = options.samples * options.width * 4
    return [
        Row("one read pass over the features", "ms", None, 1e3 * read, note=f"a read pass is {size / read / 1e9:.3g} GB/s"),
        Row("eliminate, a step", "ms", 1e3 * theirs, 1e3 * ours, theirs / ours, "ratio >= 40"),
        Row("eliminate, a step", "read passes", theirs / read, ours / read, theirs / ours, "ours <= 3"),
        Row("eliminate, memory beyond the features", "% of them", share["reference"], share["ours"],
            over(share["reference"], share["ours"]), "ours <= 10"),
        Row(f"eliminate, T's difference after {found['steps']} steps", "", None, found["apart"], None, "ours <= 1e-4"),
    ]  # fmt: skip


def section_passes(options: Options) -> list[Row]:
    found = _child(options, "passes")
    rows = []
    for name in ("identify", "identify with its verdict", "neutralize", "evaluate"):
        theirs = found.get(f"reference {name}", found["reference identify"] if "verdict" in name else None)
        values = (theirs / found["read"], found[name] / found["read"], theirs / found[name])
        rows.append(Row(name, "read passes", *values, "" if name == "evaluate" else "ours <= 3"))
    for name, made in found["made"].items():
        # A pass that is not seen is a harness that no longer fits: neither yes nor no.
        bound = "ours <= 1" if name == "evaluate" else "ours <= 3"
        rows.append(Row(f"{name}, times that the rows are read", "", None, made or None, None, bound))
    rows.append(Row("identify, flags that differ", "", None, float(not found["same_flags"]), None, "ours <= 0"))
    for stage in ("identify", "neutralize"):
        theirs, ours = (_child(options, "memory", stage, who)["bytes"] / MEGA for who in ("reference", "ours"))
        rows.append(Row(f"{stage}, memory beyond the features", "MB", theirs, ours, over(theirs, ours)))
    return rows


def section_update(options: Options) -> list[Row]:
    found = _child(options, "update")
    theirs, ours = found["reference"], found["ours"]
    name = f"update published, batches of {found['batch']}"
    return [
        Row(name, "steps/s", 1 / theirs, 1 / ours, theirs / ours, "ratio >= 20"),
        Row("update published, head's difference after 5 steps", "", None, found["apart"]),
    ]


def section_fit(options: Options) -> list[Row]:
    # Ours before and after the reference, which takes minutes: both meet the same machine.
    first, theirs, last = (_child(options, "fit", who) for who in ("ours", "reference", "ours"))
    ours = (first["seconds"] + last["seconds"]) / 2
    note = "reference: extrapolated from 4 steps of each" if theirs["extrapolated"] else ""
    whole = f"whole fit, published {ELIMINATE_STEPS}/{UPDATE_STEPS}"
    rows = [Row(whole, "s", theirs["seconds"], ours, theirs["seconds"] / ours, "ratio >= 25", note)]
    # Importing PyTorch alone takes half a GB (most of it shared pages of its libraries), whoever works with it then.
    for name, key, asked in (
        ("whole fit, peak resident memory, PyTorch's libraries with it", "peak", "ratio >= 3"),
        ("whole fit, peak resident memory without them", "work", "ratio >= 3"),
        ("whole fit, peak resident memory without features either", "beyond", ""),
    ):
        most = max(first[key], last[key]) / MEGA
        rows.append(Row(name, "MB", theirs[key] / MEGA, most, over(theirs[key] / MEGA, most), asked))
    for stage, seconds in last["laps"].items():
        theirs_here = theirs["laps"][stage]
        rows.append(Row(f"whole fit, {stage}", "s", theirs_here, seconds, over(theirs_here, seconds), note=note))
    return rows


def section_auto(options: Options) -> list[Row]:
    """benchmarks/cost.py has a size of its own, CelebA's."""
    if options.quick:
        return [Row("update auto", "s", None, None, note="left out of a quick run")]
    found = json.loads(_run([sys.executable, "-m", "benchmarks.cost", f"--threads={options.threads}"], options))
    return [
        Row("update auto", "s", None, found["seconds"], None, "ours <= 60"),
        Row("update auto", "read passes", None, float(found["in_read_passes"])),
        Row("update auto, memory with the features", "x them", None, found["memory_over_features"], None, "ours <= 2.5"),
    ]


def section_extract(options: Options) -> list[Row]:
    rows = []
    for name, found in _child(options, "measure", "extract").items():
        bare, whole, steady = (found[key] for key in ("bare", "extract", "steady"))
        rows.append(Row(f"extract, {name}: ours / bare", "images/s", bare, whole, whole / bare, "ratio >= 0.9"))
        rows.append(Row(f"extract, {name}, start and end apart", "images/s", bare, steady, steady / bare))
    return rows


def section_startup(options: Options) -> list[Row]:
    most = import_module("benchmarks.startup").MOST
    rows = []
    for what, seconds in _child(options, "measure", "startup").items():
        bound = next((bound for prefix, bound in most.items() if what.startswith(prefix)), None)
        rows.append(Row(f"start-up, {what}", "s of CPU", None, seconds, None, f"ours <= {bound:g}" if bound else ""))
    return rows


def section_outofcore(options: Options) -> list[Row]:
    return [Row.from_json(values) for values in _child(options, "measure", "outofcore")]


def section_scaling(options: Options) -> list[Row]:
    return [Row.from_json(values) for values in _child(options, "measure", "scaling")]


SECTIONS: dict[str, Callable[[Options], list[Row]]] = {
    "eliminate": section_eliminate, "passes": section_passes, "update": section_update, "fit": section_fit,
    "auto": section_auto, "extract": section_extract, "startup": section_startup, "outofcore": section_outofcore,
    "scaling": section_scaling,
}  # fmt: skip


def case_measure(options: Options, module: str) -> Any:
    """`measure()` of another benchmark, which may have a quick form."""
    found = import_module(f"benchmarks.{module}").measure
    takes = found.__code__.co_varnames[: found.__code__.co_argcount + found.__code__.co_kwonlyargcount]
    given = {name: value for name, value in vars(options).items() if name in ("quick", "threads") and name in takes}
    return found(**given)


# ---- processes


def _child(options: Options, case: str, *arguments: str) -> Any:
    """A case in a fresh process; what it returned."""
    command = [sys.executable, "-m", "benchmarks.speed", *options.words(), "--case", case, *arguments]
    return json.loads(_run(command, options).strip().splitlines()[-1])


def _run(command: Sequence[str], options: Options) -> str:
    threads = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "NSF_THREADS": threads}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def measured(options: Options, names: Sequence[str]) -> dict[str, Any]:
    """The sections of these names, each with its rows, its machine and its size."""
    sections: dict[str, Any] = {}
    for name in names:
        module = {"auto": "cost"}.get(name, name)
        if name in ("extract", "startup", "outofcore", "scaling", "auto") and find_spec(f"benchmarks.{module}") is None:
            say(f"{name}: there is no benchmarks/{module}.py, so it is left out")
            continue
        say(f"{name} ...")
        started = time.perf_counter()
        try:
            rows = SECTIONS[name](options)
        except (subprocess.CalledProcessError, json.JSONDecodeError, KeyError) as error:
            # Others' cases may fail; what was measured before is not thrown away.
            say(f"{name} failed: {error!r}")
            rows = [Row(name, "", None, None, note=f"{name} failed in this run")]
        sections[name] = {
            "machine": machine(options.threads), "quick": options.quick, "rows": [row.to_json() for row in rows],
            "samples": options.samples, "width": options.width,
        }  # fmt: skip
        say(f"{name}: {time.perf_counter() - started:.0f} s")
    return sections


def table(sections: dict[str, Any]) -> str:
    """All sections as one table, in the order of SECTIONS, with the machines that they were measured on."""
    return "\n".join([render(rows_of(sections)), *(f"measured on: {one}" for one in machines_of(sections))]) + "\n"


def rows_of(sections: dict[str, Any]) -> list[Row]:
    return [Row.from_json(values) for name in SECTIONS if name in sections for values in sections[name]["rows"]]


def machines_of(sections: dict[str, Any]) -> list[str]:
    found = (json.dumps(sections[name]["machine"], sort_keys=True) for name in SECTIONS if name in sections)
    return list(dict.fromkeys(found))


def documented(page: str, sections: dict[str, Any]) -> str:
    """docs/scale.md with the table of these sections between its marks."""
    before, rest = page.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    on = "\n".join(f"Measured on {one}.  " for one in machines_of(sections))
    return f"{before}{BEGIN}\n{markdown(rows_of(sections))}\n{on}\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=Options.threads)
    parser.add_argument("--samples", type=int, default=Options.samples)
    parser.add_argument("--width", type=int, default=Options.width)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/speed.json, unless --quick")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    options = Options(given.threads, given.samples, given.width, given.quick)
    if given.case:
        torch.set_num_threads(options.threads)
        case, *rest = given.case
        sys.stdout.write(json.dumps(globals()[f"case_{case}"](options, *rest)) + "\n")
        return
    sections = measured(options, given.only or list(SECTIONS))
    sys.stdout.write(table(sections))
    out = given.out or (None if options.quick else RESULTS)
    if out is not None:
        kept: dict[str, Any] = {}
        with suppress(OSError, json.JSONDecodeError):
            kept = json.loads(out.read_text())
        write(out, {**kept, **sections})
    if out == RESULTS:
        PAGE.write_text(documented(PAGE.read_text(), {**kept, **sections}))


if __name__ == "__main__":
    main(sys.argv[1:])
