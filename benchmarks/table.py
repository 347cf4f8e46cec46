"""What the benchmarks of speed share: rows of one table, the machine they were measured on, memory of a process.

Seconds differ between machines and between hours: a row holds both sides of one run, and it is the ratio that is asked for.
"""

import ctypes
import json
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COMPARE = {">=": lambda value, bound: value >= bound, "<=": lambda value, bound: value <= bound}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is measured.
        unit: of `reference` and `ours`.
        reference, ours: the straightforward way (or what else ours is measured against), and nsf.
        ratio: how many times better ours is (or ours over the reference, where `name` says so).
        asked: "ratio >= 40", "ours <= 3", or empty where nothing is asked.
        note: what a reader must know of this line.
    """

    name: str
    unit: str
    reference: float | None
    ours: float | None
    ratio: float | None = None
    asked: str = ""
    note: str = ""

    @property
    def met(self) -> str:
        """ "yes", "no", or empty where nothing is asked or nothing was measured."""
        if not self.asked:
            return ""
        of, relation, bound = self.asked.split()
        value = {"ratio": self.ratio, "ours": self.ours}[of]
        return "" if value is None else "yes" if COMPARE[relation](value, float(bound)) else "no"

    def to_json(self) -> dict[str, Any]:
        """Figures of four digits: more would differ in every run and say nothing."""
        values = {name: _short(value) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**values, "met": self.met}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Row":
        return cls(**{name: value for name, value in values.items() if name != "met"})


def over(one: float | None, other: float | None) -> float | None:
    """one / other, where both are known."""
    return one / other if one is not None and other else None


def render(rows: Sequence[Row]) -> str:
    """The table as text for a terminal."""
    heads = ("", "unit", "reference", "ours", "ratio", "asked", "met")
    lines = [heads] + [
        (row.name + (" *" if row.note else ""), row.unit, *(_text(v) for v in (row.reference, row.ours, row.ratio)),
         row.asked, row.met)
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = []
    for line in lines:
        cells = [cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        text.append("  ".join(cells).rstrip())
    text[1:1] = ["-" * (sum(widths) + 2 * len(widths) - 2)]
    # The same note once, with the rows that it belongs to named in the table alone.
    return "\n".join(text + [f"* {note}" for note in dict.fromkeys(row.note for row in rows if row.note)]) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, for docs/scale.md."""
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    lines = ["| | unit | reference | ours | ratio | asked | met |", "| --- | --- | ---: | ---: | ---: | --- | --- |"]
    for row in rows:
        mark = f" ({notes.index(row.note) + 1})" if row.note else ""
        cells = [row.name + mark, row.unit, *(_text(v) for v in (row.reference, row.ours, row.ratio)), row.asked, row.met]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"({number}) {note}.  " for number, note in enumerate(notes, start=1))]).rstrip() + "\n"


def machine(threads: int) -> dict[str, Any]:
    """What a reader needs to compare with other machines."""
    import torch

    model = platform.processor()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    found = {"cpu": model, "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}
    with suppress(PackageNotFoundError):
        found["numba"] = version("numba")
    return found


def write(path: Path, sections: Mapping[str, Any]) -> None:
    """JSON that is the same for the same figures, one figure a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sections, indent=2, sort_keys=True) + "\n")


def say(text: str) -> None:
    """To whoever waits, on stderr: the table alone goes to stdout."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def settle_memory() -> int:
    """Give back what is freed, and begin to look for the peak anew; the resident bytes of this process now.

    Without it memory that the making of the data has freed would be used again, unseen.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """The most resident bytes of this process since `settle_memory`, or since it began where the kernel keeps only that."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024
    return 0


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _text(value: float | None) -> str:
    if value is None:
        return ""
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
