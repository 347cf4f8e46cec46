"""nsf export."""

from pathlib import Path
from typing import Annotated

import typer

from nsfcli import params
from nsfcli.command import EXPORT, HEAD, METRICS, MODEL, UPDATE, ModelOption, Settings, UpdateOption, file_option, trained


@params.options("model")
def export(
    ctx: typer.Context,
    model: ModelOption = MODEL,
    head: Annotated[Path, file_option("The head that `nsf extract` wrote.")] = HEAD,
    update: UpdateOption = UPDATE,
    metrics: Annotated[
        Path | None,
        file_option("Accuracies for the model card; default: metrics/evaluate.json where it is there."),
    ] = None,
    out: Annotated[Path, file_option("The folder to write.", "DIR")] = EXPORT,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too (pip install 'nsf\\[onnx]').")] = False,
    **overrides: str | None,
) -> None:
    """Write the repaired model in the format that came in, with a model card.

    Reads artifacts/head.safetensors, artifacts/update.safetensors and the model that they belong to; writes a copy of its
    checkpoint to artifacts/export with only the last layer's weight and bias changed, and MODEL_CARD.md.
    """
    from stages.export import run

    settings: Settings = ctx.obj
    sections = params.load("export", overrides, settings.params)
    model, own_model = trained(model, sections, overrides)
    summary = run(
        model=model,
        own_model=own_model,
        head=head,
        update=update,
        out=out,
        metrics=metrics or (METRICS if METRICS.exists() else None),
        onnx=onnx,
    )
    if summary["other_files"]:
        settings.console.message(
            f"{out} also holds {', '.join(summary['other_files'])}, which this export has not written: "
            "of another model, perhaps."
        )
    if summary["kept_because"]:
        what = f"with the base head unchanged, for update kept it ({summary['kept_because']})"
    else:
        what = f"with another {' and '.join(summary['changed'])}"
    settings.console.result(summary, line=f"{summary['format']}, {what} -> {summary['out']}")
