"""nsf extract."""

from pathlib import Path
from typing import Annotated

import typer

from nsfcli import params
from nsfcli.command import FEATURES, HEAD, MODEL, ModelOption, Settings, file_option, trained
from stages.errors import listed


@params.options("extract", "model", "data")
def extract(
    ctx: typer.Context,
    model: ModelOption = MODEL,
    out: Annotated[
        Path,
        file_option("The folder for the features, SPLIT.safetensors each.", "DIR"),
    ] = FEATURES,
    head_out: Annotated[Path, file_option("The linear head to write.")] = HEAD,
    **overrides: str | None,
) -> None:
    """Write the penultimate features of each split, and the linear head.

    Reads the data and artifacts/model or, where `nsf train` made none, the trained classifier of section model; writes
    artifacts/features/SPLIT.safetensors (`features` (n,d), `labels`, `ids` and,
    where the data has them, `attributes` (n,)) and artifacts/head.safetensors (`weight` (C,d), `bias` (C,)).
    A run that was cut off goes on where it was: finished parts lie in a hidden folder beside the features.
    """
    from stages.extract import run

    settings: Settings = ctx.obj
    sections = params.load("extract", overrides, settings.params)
    model, own_model = trained(model, sections, overrides)
    with settings.console.progress() as progress:
        summary = run(
            data=sections["data"].model_dump(),
            model=model,
            own_model=own_model,
            out=out,
            head_out=head_out,
            device=settings.device,
            progress=progress,
            **sections["extract"].model_dump(),
        )
    if own_model is not None and model.exists() and summary["model"] != str(model):
        settings.console.message(f"{model} was trained with another section 'model', and is left aside.")
    counts = ", ".join(f"{name} {count}" for name, count in summary["samples"].items())
    if summary["classes_matched_by"] == "number":
        settings.console.message(
            f"The model's classes have other names than the data's; they are matched by number, and called "
            f"{listed(summary['classes'])} as the model does."
        )
    resumed, samples = sum(summary["resumed"].values()), sum(summary["samples"].values()) + sum(summary["skipped"].values())
    if resumed:
        settings.console.message(f"{resumed} of {samples} samples were done by a run that was cut off.")
    skipped = sum(summary["skipped"].values())
    if skipped:
        settings.console.message(f"Skipped {skipped} samples that cannot be read, the first: {summary['first_skipped']}")
    settings.console.result(
        summary,
        line=f"{summary['model']}: features of width {summary['width']} for {counts} {summary['kind']}s -> {out}, "
        f"head -> {head_out}",
    )
