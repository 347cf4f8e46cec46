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
    """Find the minority, the samples whose nearest class centroid is another class's, and tell whether the model is biased.

    Reads artifacts/features/val.safetensors (and the base head, to report its accuracy on the minority); writes
    artifacts/identify.safetensors: `centroids` (C,d), `nearest` (n,), `minority` (n,). The verdict is biased, not biased
    or cannot tell; docs/method.md has its rule, and how often it errs.
    """
    from stages.identify import run

    settings: Settings = ctx.obj
    params.load("identify", overrides, settings.params)
    with settings.console.progress() as progress:
        summary = run(
            features=features, head=base_head(head, features, VAL), out=out, device=settings.device, progress=progress
        )
    # Within 80 columns: the class that the minority is drawn to, and the base head's accuracy on the minority.
    table = Table("class", "samples", "minority", "share", "toward", "dispersion", "ERM on it", "verdict")
    for row in summary["classes"]:
        table.row(
            row["class"],
            row["samples"],
            row["minority"],
            row["share"],
            row["drawn_to"],
            row["dispersion"],
            row["base_accuracy_on_minority"],
            row["verdict"],
        )
    mirror = "" if summary["mirror"] is None else f" (mirror {summary['mirror']:+.2f})"
    line = f"{summary['minority']} of {summary['samples']} samples are minority; {summary['verdict']}{mirror} -> {out}"
    settings.console.result(summary, table, line=line)
