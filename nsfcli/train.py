"""nsf train."""

from pathlib import Path
from typing import Annotated

import typer

from nsfcli import params
from nsfcli.command import MODEL, Settings, file_option
from stages.errors import listed


@params.options("train", "model", "data")
def train(
    ctx: typer.Context,
    out: Annotated[Path, file_option("The folder for the model (model.safetensors).", "DIR")] = MODEL,
    **overrides: str | None,
) -> None:
    """Train an ERM classifier on the train split: the one to repair.

    Reads the data; writes artifacts/model/model.safetensors, the state dict and what rebuilds the network; for a model of
    transformers, its configuration and tokenizer beside it.
    """
    from stages.train import run

    settings: Settings = ctx.obj
    sections = params.load("train", overrides, settings.params)
    if overrides["train__momentum"] is not None and sections["train"].model_dump()["optimizer"] != "sgd":
        settings.console.message("--momentum has no effect with --optimizer adamw.")
    with settings.console.progress() as progress:
        summary = run(
            data=sections["data"].model_dump(),
            model=sections["model"].model_dump(),
            out=out,
            device=settings.device,
            progress=progress,
            **sections["train"].model_dump(),
        )
    if summary["empty_classes"]:
        names = listed(summary["empty_classes"])
        settings.console.message(
            f"The train split has no sample of class {names}: number the classes 0, 1, 2, ... without gaps."
        )
    if summary["skipped"]:
        settings.console.message(f"Skipped {summary['skipped']} samples that cannot be read.")
    settings.console.result(
        summary,
        line=f"trained on {summary['samples']} samples of {len(summary['classes'])} classes, "
        f"training accuracy {summary['train_accuracy']:.3f} -> {summary['out']}",
    )
