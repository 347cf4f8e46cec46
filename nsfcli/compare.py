"""nsf compare."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nsfcli import params
from nsfcli.command import COMPARISON, COMPARISON_TABLE, HEAD, TEST, VAL, FeaturesOption, Settings, file_option
from nsfcli.console import Console, Table


@params.options("compare")
def compare(
    ctx: typer.Context,
    features: FeaturesOption = VAL,
    test: Annotated[Path, file_option("Features of the test split, to score on.")] = TEST,
    head: Annotated[
        Path,
        file_option("The base linear head: safetensors with `weight` (C,d), `bias` (C,)."),
    ] = HEAD,
    train_features: Annotated[
        Path | None,
        file_option("Of method auto: features of the training split, as `nsf update` has them."),
    ] = None,
    out: Annotated[Path, file_option("The comparison as JSON.")] = COMPARISON,
    csv: Annotated[Path, file_option("The same as CSV, a line a row.")] = COMPARISON_TABLE,
    **overrides: str | None,
) -> None:
    """NSF beside the baselines on the same features: worst-group and mean accuracy over several seeds.

    Reads artifacts/features/val.safetensors, artifacts/features/test.safetensors and the base head; writes
    metrics/compare.json and metrics/compare.csv. Each method's hyperparameters are chosen by cross-validation without group
    labels and, in the rows marked so, with those of the val split.
    """
    from stages.compare import run

    settings: Settings = ctx.obj
    sections = params.load("compare", overrides, settings.params)
    section = sections["compare"].model_dump()
    if train_features is not None and "auto" not in section["methods"]:
        settings.console.message("--train-features has no effect without method auto.")
    with settings.console.progress() as progress:
        result = run(
            features=features,
            test=test,
            head=head,
            training=train_features,
            out=out,
            csv_out=csv,
            device=settings.device,
            progress=progress,
            **section,
        )
    show(result, settings.console)


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the comparison: one row a method and a way to choose its hyperparameters, and below, what was chosen."""
    rows = {
        method if selection == "group-free" else f"{method} ({selection})": row
        for method, found in result["methods"].items()
        for selection, row in found.items()
    }
    grouped = any(row["worst_group_accuracy"] is not None for row in rows.values())
    worst = "worst_group_accuracy" if grouped else "worst_class_accuracy"
    accuracies = Table("method", "worst group" if grouped else "worst class", "mean")
    chosen = Table("chosen", "hyperparameters", "seeds")
    for name, row in rows.items():
        accuracies.row(name, _spread(row, worst), _spread(row, "mean_accuracy"))
        counts = Counter(", ".join(f"{key} {value:g}" for key, value in each.items()) for each in row["hyperparameters"])
        for setting, count in counts.most_common():
            if setting:
                chosen.row(name, setting, count)
    console.result(dict(result), *([accuracies, chosen] if chosen.rows else [accuracies]))
    for note in result.get("notes", []):
        console.message(note)
    for method, why in result["left_out"].items():
        console.message(f"Left out: {method} {why}.")
    if not grouped:
        console.message("No test sample has a known attribute: accuracies are by class, and there is no worst group.")


def _spread(row: Mapping[str, Any], measure: str) -> str:
    """0.694 ± 0.012, or the mean alone where there is one seed."""
    deviation = row[f"{measure}_std"]
    return f"{row[measure]:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")
