"""nsf metrics."""

import json
from typing import Any

import typer

from nsfcli.command import METRICS, MetricsOption, Settings
from nsfcli.console import Console, Table
from stages.errors import MissingFile, WrongArtifact


def metrics(ctx: typer.Context, metrics: MetricsOption = METRICS) -> None:
    """Show the table of metrics/evaluate.json: ERM beside NSF, each group."""
    settings: Settings = ctx.obj
    try:
        result = json.loads(metrics.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFile("there is no such file", where=metrics, do="`nsf evaluate` makes it") from error
    except (OSError, ValueError) as error:
        raise WrongArtifact("cannot be read as JSON", where=metrics, do="`nsf evaluate` makes it") from error
    if not _written_by_evaluate(result):
        raise WrongArtifact("holds no metrics of `nsf evaluate`", where=metrics, do="`nsf evaluate` makes it")
    show(result, settings.console)


def _written_by_evaluate(result: Any) -> bool:
    if not isinstance(result, dict) or not isinstance(result.get("samples"), dict):
        return False
    reports = [result.get("nsf"), *([result["base"]] if result.get("base") is not None else [])]
    keys = {"worst_group_accuracy", "mean_accuracy", "classes", "groups"}
    return all(isinstance(report, dict) and keys <= report.keys() for report in reports)


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
    for name, accuracy in new[parts].items():
        row(name, result["samples"][name], base and base[parts][name], accuracy)
    console.result(result, table)
    if not new["groups"]:
        console.message("The test split has no attributes: accuracies are by class, and there is no worst group.")
