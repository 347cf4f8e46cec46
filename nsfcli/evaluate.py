"""nsf evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from nsfcli import params
from nsfcli.command import (
    EVALUATE,
    METRICS,
    TEST,
    UPDATE,
    FeaturesOption,
    HeadOption,
    MetricsOption,
    OutOption,
    Settings,
    UpdateOption,
    base_head,
    file_option,
)
from nsfcli.metrics import show


@params.options("evaluate")
def evaluate(
    ctx: typer.Context,
    features: FeaturesOption = TEST,
    head: HeadOption = None,
    update: UpdateOption = UPDATE,
    out: OutOption = EVALUATE,
    metrics: MetricsOption = METRICS,
    groups: Annotated[
        Path | None,
        file_option("Each group's accuracy as CSV, for `dvc plots`; the pipeline writes metrics/groups.csv."),
    ] = None,
    **overrides: str | None,
) -> None:
    """Worst-group and mean accuracy of the base and the repaired head on the test split.

    Reads artifacts/features/test.safetensors, the base head and artifacts/update.safetensors; writes
    artifacts/evaluate.safetensors (`base_predictions`, `predictions`) and metrics/evaluate.json. The only stage of the
    pipeline that reads group labels.
    """
    from stages.evaluate import run

    settings: Settings = ctx.obj
    params.load("evaluate", overrides, settings.params)
    with settings.console.progress() as progress:
        result = run(
            features=features,
            head=base_head(head, features, TEST),
            update=update,
            out=out,
            metrics_out=metrics,
            groups_out=groups,
            device=settings.device,
            progress=progress,
        )
    show(result, settings.console)
