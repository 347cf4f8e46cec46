"""nsf predict."""

from pathlib import Path
from typing import Annotated

import typer

from nsfcli import params
from nsfcli.command import MODEL, UPDATE, ModelOption, Settings, UpdateOption, file_option, trained
from nsfcli.console import Table

# Rows shown on the terminal; --out and --json have them all.
SHOWN = 20


@params.options("model")
def predict(
    ctx: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images or folders of them; for texts: .txt (a text a line), .csv, .jsonl or .parquet.",
            metavar="FILE...",
            readable=False,
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to predict; may be given several times.")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column with the text, of a table; default: the data's, or text.")
    ] = None,
    second_text_column: Annotated[
        str | None, typer.Option(help="Column with the second text, for pairs; default: the data's.")
    ] = None,
    model: ModelOption = MODEL,
    update: UpdateOption = UPDATE,
    out: Annotated[Path | None, file_option("All probabilities as CSV.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples a forward pass.", min=1)] = 64,
    **overrides: str | None,
) -> None:
    """Classes and probabilities of new samples, by the base and the repaired head side by side.

    Reads the samples, the model and artifacts/update.safetensors.
    """
    from stages.predict import run, table_reader

    settings: Settings = ctx.obj
    sections = params.load("predict", overrides, settings.params)
    model, own_model = trained(model, sections, overrides)
    # New samples are laid out as those that the model was made for, unless it is said otherwise.
    data = sections.get("data")
    with settings.console.progress() as progress:
        result = run(
            paths=paths or [],
            texts=text or [],
            model=model,
            own_model=own_model,
            update=update,
            out=out,
            text_column=text_column or getattr(data, "text_column", None) or "text",
            second_text_column=second_text_column or getattr(data, "second_text_column", None),
            batch_size=batch_size,
            device=settings.device,
            progress=progress,
        )
    samples = result["samples"]
    if result["empty_lines"]:
        settings.console.message(f"Empty lines are left out ({result['empty_lines']}).")
    if text_column is not None and not any(map(table_reader, paths or [])):
        settings.console.message("--text-column has no effect: no table is named.")
    table = Table("sample", "ERM", "probability", "NSF", "probability")
    for row in samples[:SHOWN]:
        name = row["sample"] if len(row["sample"]) <= 40 else f"{row['sample'][:37]}..."
        table.row(name, row["base"], row["base_probability"], row["nsf"], row["nsf_probability"])
    changed = sum(row["base"] != row["nsf"] for row in samples)
    where = f" -> {out}" if out else ""
    settings.console.result(result, table, line=f"{changed} of {len(samples)} predictions changed{where}")
    if len(samples) > SHOWN and out is None:
        settings.console.message(f"The first {SHOWN} of {len(samples)} are shown; --out FILE.csv writes all.")
