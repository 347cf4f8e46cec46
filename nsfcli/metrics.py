"""nsf metrics."""

from typing import Any

import typer

from nsfcli.command import METRICS, MetricsOption, Settings
from nsfcli.console import Console, Table
from stages.metrics import read_metrics

# Of more groups than these, the worst are shown.
MOST_ROWS = 50


def metrics(ctx: typer.Context, metrics: MetricsOption = METRICS) -> None:
    """Show the table of metrics/evaluate.json: ERM beside NSF, each group."""
    settings: Settings = ctx.obj
    show(read_metrics(metrics), settings.console)


def show(result: dict[str, Any], console: Console) -> None:
    """Print the metrics that `nsf evaluate` wrote: one row a measure, base and repaired head side by side."""
    base, new = result.get("base"), result["nsf"]
    table = Table("accuracy", "samples", "ERM", "NSF", "change")

    def row(name: str, samples: int | None, before: float | None, after: float | None) -> None:
        change = f"{after - before:+.3f}" if before is not None and after is not None else None
        table.row(name, samples, before, after, change)

    row("worst group", None, base and base["worst_group_accuracy"], new["worst_group_accuracy"])
    row("mean", None, base and base["mean_accuracy"], new["mean_accuracy"])
    if new.get("adjusted_mean_accuracy") is not None:
        # By the training groups' shares: what papers report for Waterbirds.
        row("adjusted mean", None, base and base["adjusted_mean_accuracy"], new["adjusted_mean_accuracy"])
    parts = "groups" if new["groups"] else "classes"
    # As they come, where there are few; otherwise the worst, which are what the table is looked at for.
    shown = list(new[parts]) if len(new[parts]) <= MOST_ROWS else sorted(new[parts], key=new[parts].get)[:MOST_ROWS]
    for name in shown:
        row(name, result["samples"][name], base and base[parts][name], new[parts][name])
    console.result(result, table)
    if len(shown) < len(new[parts]):
        console.message(f"The {len(shown)} worst of {len(new[parts])} {parts}; --json has all of them.")
    for note in result.get("notes", []):
        console.message(note)
    if not new["groups"]:
        console.message("No test sample has a known attribute: accuracies are by class, and there is no worst group.")
