"""nsf identify."""

import typer

from nsfcli import params
from nsfcli.command import IDENTIFY, VAL, FeaturesOption, HeadOption, OutOption, Settings, base_head
from nsfcli.console import Table


@params.options("identify")
def identify(
    ctx: typer.Context,
    features: FeaturesOption = VAL,
    head: HeadOption = None,
    out: OutOption = IDENTIFY,
    **overrides: str | None,
) -> None:
    """Find the minority: the samples whose nearest class centroid is another class's.

    Reads artifacts/features/val.safetensors (and the base head, to report its accuracy on the minority); writes
    artifacts/identify.safetensors: `centroids` (C,d), `nearest` (n,), `minority` (n,).
    """
    from stages.identify import run

    settings: Settings = ctx.obj
    params.load("identify", overrides, settings.params)
    with settings.console.progress() as progress:
        summary = run(
            features=features, head=base_head(head, features, VAL), out=out, device=settings.device, progress=progress
        )
    table = Table("class", "samples", "minority", "share", "drawn to", "base head right on it")
    for row in summary["classes"]:
        table.row(
            row["class"],
            row["samples"],
            row["minority"],
            row["minority"] / row["samples"],
            row["drawn_to"],
            row["base_accuracy_on_minority"],
        )
    line = f"{summary['minority']} of {summary['samples']} samples are minority -> {out}"
    settings.console.result(summary, table, line=line)
