"""nsf eliminate."""

from pathlib import Path
from typing import Annotated

import typer

from nsfcli import params
from nsfcli.command import ELIMINATE, NEUTRALIZE, VAL, FeaturesOption, NeutralizeOption, OutOption, Settings, file_option


@params.options("eliminate")
def eliminate(
    ctx: typer.Context,
    features: FeaturesOption = VAL,
    neutralize: NeutralizeOption = NEUTRALIZE,
    out: OutOption = ELIMINATE,
    curve: Annotated[Path | None, file_option("The loss of each step as CSV, for plots.")] = None,
    **overrides: str | None,
) -> None:
    """Learn one affine map T(x) = (x + shift) * scale - shift that pulls every sample to its class's center.

    Reads artifacts/features/val.safetensors and artifacts/neutralize.safetensors; writes artifacts/eliminate.safetensors:
    `scale`, `shift` (d,), `loss` (steps,).
    """
    from stages.eliminate import run

    settings: Settings = ctx.obj
    sections = params.load("eliminate", overrides, settings.params)
    with settings.console.progress() as progress:
        summary = run(
            features=features,
            neutralize=neutralize,
            out=out,
            curve=curve,
            device=settings.device,
            progress=progress,
            **sections["eliminate"].model_dump(),
        )
    if summary["last_loss"] > summary["first_loss"]:
        settings.console.message("The loss has risen: lower eliminate.learning_rate.")
    settings.console.result(
        summary,
        line=f"{summary['steps']} steps, loss {summary['first_loss']:.4f} -> {summary['last_loss']:.4f}, "
        f"scale {summary['scale_min']:.4f} to {summary['scale_max']:.4f} -> {out}",
    )
