"""nsf update."""

import typer

from nsfcli import params
from nsfcli.command import (
    ELIMINATE,
    IDENTIFY,
    NEUTRALIZE,
    UPDATE,
    VAL,
    EliminateOption,
    FeaturesOption,
    HeadOption,
    IdentifyOption,
    NeutralizeOption,
    OutOption,
    Settings,
    base_head,
)


@params.options("update")
def update(
    ctx: typer.Context,
    features: FeaturesOption = VAL,
    identify: IdentifyOption = IDENTIFY,
    neutralize: NeutralizeOption = NEUTRALIZE,
    eliminate: EliminateOption = ELIMINATE,
    head: HeadOption = None,
    out: OutOption = UPDATE,
    **overrides: str | None,
) -> None:
    """Train the new linear head on T(x), half rescued and half conforming samples a step.

    Reads artifacts/features/val.safetensors, the three artifacts before this one and the base head; writes
    artifacts/update.safetensors: `rescued`, `conforming` (n,), `weight`, `bias` on T(x), `folded_weight`, `folded_bias`
    on x.
    """
    from stages.update import run

    settings: Settings = ctx.obj
    sections = params.load("update", overrides, settings.params)
    with settings.console.progress() as progress:
        summary = run(
            features=features,
            identify=identify,
            neutralize=neutralize,
            eliminate=eliminate,
            head=base_head(head, features, VAL),
            out=out,
            device=settings.device,
            progress=progress,
            **sections["update"].model_dump(),
        )
    if summary["base_head_kept"]:
        settings.console.message(
            f"No repair: {summary['rescued']} samples are rescued and {summary['conforming']} conforming, "
            "so there is nothing to learn from; the base head is kept."
        )
    settings.console.result(
        summary,
        line=f"{summary['rescued']} of {summary['minority']} minority samples rescued, "
        f"{summary['conforming']} conforming -> {out}",
    )
