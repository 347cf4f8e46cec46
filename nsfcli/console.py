"""The one place that prints: results to stdout; messages, progress and errors to stderr."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stages.errors import CannotWrite

if TYPE_CHECKING:
    from stages.runtime import Progress

# Work that ends sooner shows no progress bar.
PATIENCE_SECONDS = 1.0
# No table is as wide.
WIDEST = 10_000


class Console:
    """Human tables, one JSON object (`--json`), or nothing but errors (`--quiet`).

    Attributes:
        failed: whether this process has said why it fails.
    """

    failed = False

    def __init__(self, *, as_json: bool = False, quiet: bool = False):
        self.as_json, self.quiet = as_json, quiet

    def result(self, summary: dict[str, Any], *tables: "Table", line: str = "") -> None:
        """What a command found: the summary as JSON, or its one line and its tables for people."""
        try:
            self._show(summary, tables, line)
            # Here, where a failure can still be told, and not when Python ends.
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            forget_stdout()
            raise CannotWrite(
                f"the result cannot be shown ({error.strerror}), and the command itself is done", where="stdout"
            ) from error

    def _show(self, summary: dict[str, Any], tables: "Sequence[Table]", line: str) -> None:
        if self.as_json:
            sys.stdout.write(json.dumps(summary) + "\n")
        elif not self.quiet:
            from rich.console import Console as Rich

            class Piped(Rich):
                def on_broken_pipe(self) -> None:
                    # Rich would end the process by itself, as if it had failed.
                    raise BrokenPipeError

            rich = Piped(highlight=False, soft_wrap=True)
            if line:
                rich.print(line, markup=False)
            for table in tables:
                made = table.rich()
                # Where the window is narrow, lines wrap, and every number is there.
                rich.width = max(rich.width, rich.measure(made, options=rich.options.update(width=WIDEST)).maximum)
                rich.print(made)

    def message(self, text: str) -> None:
        """Something worth knowing beside the result."""
        if not self.quiet:
            sys.stderr.write(text + "\n")

    def error(self, text: str) -> None:
        """Why a command failed, in one sentence; shown whatever was asked for."""
        Console.failed = True
        sys.stderr.write(f"nsf: {text}\n")

    @contextmanager
    def progress(self) -> Iterator["Progress"]:
        """A progress callback for a stage: a bar with rate and remaining time, on a terminal, for what takes a while."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda what, done, total: None
            return
        bars = _Bars()
        try:
            yield bars.advance
        finally:
            bars.stop()


def forget_stdout() -> None:
    """Have nothing more be printed: what a pipe or disk has not taken would fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Bars:
    """One bar for each piece of work, shown once it has taken longer than PATIENCE_SECONDS."""

    def __init__(self) -> None:
        self._display: Any = None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}

    def advance(self, what: str, done: int, total: int) -> None:
        started = self._started.setdefault(what, time.monotonic())
        if what not in self._tasks:
            if time.monotonic() - started < PATIENCE_SECONDS:
                return
            self._tasks[what] = self._show().add_task(what, total=total, rate="")
        elapsed = time.monotonic() - started
        rate = f"{done / elapsed:.1f}/s" if elapsed > 0 else ""
        self._display.update(self._tasks[what], completed=done, total=total, rate=rate)

    def _show(self) -> Any:
        if self._display is None:
            from rich.console import Console as Rich
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._display = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Rich(stderr=True),
            )
            self._display.start()
        return self._display

    def stop(self) -> None:
        if self._display is not None:
            self._display.stop()


class Table:
    """Rows of plain values under headings, for `Console.result`."""

    def __init__(self, *headings: str, title: str | None = None):
        self.headings, self.title = headings, title
        self.rows: list[Sequence[str]] = []

    def row(self, *cells: Any) -> None:
        self.rows.append([_cell(cell) for cell in cells])

    def rich(self) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, box=box.SIMPLE_HEAD, title_justify="left")
        for index, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="left" if index == 0 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*[Text(cell) for cell in row])
        return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
