"""nsf neutralize."""

import typer

from nsfcli import params
from nsfcli.command import IDENTIFY, NEUTRALIZE, VAL, FeaturesOption, IdentifyOption, OutOption, Settings
from nsfcli.console import Table


@params.options("neutralize")
def neutralize(
    ctx: typer.Context,
    features: FeaturesOption = VAL,
    identify: IdentifyOption = IDENTIFY,
    out: OutOption = NEUTRALIZE,
    **overrides: str | None,
) -> None:
    """Set each class's bias-invariant center, midway between its minority and the rest.

    Reads artifacts/features/val.safetensors and artifacts/identify.safetensors; writes artifacts/neutralize.safetensors:
    `centers` (C,d).
    """
    from stages.neutralize import run

    settings: Settings = ctx.obj
    params.load("neutralize", overrides, settings.params)
    with settings.console.progress() as progress:
        summary = run(features=features, identify=identify, out=out, device=settings.device, progress=progress)
    table = Table("class", "minority", "center")
    for row in summary["classes"]:
        table.row(row["class"], row["minority"], row["center"])
    settings.console.result(summary, table, line=f"{len(summary['classes'])} centers -> {out}")
