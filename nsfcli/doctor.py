"""nsf doctor."""

from typing import Any

import typer

from nsfcli import params
from nsfcli.command import MODEL, ModelOption, Settings, trained
from nsfcli.console import Table
from stages.errors import listed


@params.options("extract", "model", "data")
def doctor(ctx: typer.Context, model: ModelOption = MODEL, **overrides: str | None) -> None:
    """Say what nsf understands of data and model: classes, counts per split, feature width, device, estimated time.

    Reads the data and the model of params.yaml, and runs a few samples through it; writes nothing.
    """
    from stages.doctor import run

    settings: Settings = ctx.obj
    sections = params.load("doctor", overrides, settings.params)
    model, own_model = trained(model, sections, overrides)
    extract = sections["extract"].model_dump()
    found = run(
        data=sections["data"].model_dump(),
        model=model,
        # A params.yaml with a section train is one of a pipeline that trains the model first.
        own_model=None if "train" in sections else own_model,
        planned=sections["model"].model_dump(),
        batch_size=min(extract["batch_size"], 64),
        extracted=extract["splits"],
        precision=extract["precision"],
        device=settings.device,
    )
    settings.console.result(
        found,
        *_tables(found),
        line=_lines(found, [name for name in extract["splits"] if "error" not in found["splits"][name]]),
    )


def _tables(found: dict[str, Any]) -> list[Table]:
    counts = {name: counts for name, counts in found["splits"].items() if "error" not in counts}
    tables = []
    for part in ("classes", "groups"):
        names = list(dict.fromkeys(name for split in counts.values() for name in split[part]))
        if names:
            table = Table(part.removesuffix("s") if part == "groups" else "class", *counts)
            for name in names:
                table.row(name, *(split[part].get(name, 0) for split in counts.values()))
            tables.append(table)
    return tables


def _lines(found: dict[str, Any], extracted: list[str]) -> str:
    lines = [f"data: {found['kind']}s of {len(found['class_names'])} classes ({listed(found['class_names'])})"]
    empty = [name for name in found["class_names"] if not found["splits"]["val"]["classes"].get(name)]
    if empty:
        lines.append(
            f"  the val split has no sample of class {listed(empty)}, and `nsf identify` needs every class: "
            "give some, or number the classes 0, 1, 2, ... without gaps"
        )
    lines += [f"  no {name} split: {counts['error']}" for name, counts in found["splits"].items() if "error" in counts]
    model = found["model"]
    if model is None:
        lines.append("model: not trained yet; `nsf train` comes first")
    else:
        lines.append(
            f"model: {model['name']}, head '{model['head']}' on features of width {model['width']}, "
            f"{model['classes']} classes" + (f" ({listed(model['class_names'])})" if model["class_names"] else "")
        )
        if model["classes_matched_by"] == "number":
            lines.append("  the data's classes have other names, and are matched by number, in the order above")
        lines.append(f"right on {model['accuracy']:.0%} of {model['tried']} validation samples")
        if model["unreadable"]:
            lines.append(f"  {model['unreadable']} more cannot be read, the first: {model['first_unreadable']}")
        if model["accuracy"] <= 1 / model["classes"]:
            size = "model.image_size" if found["kind"] == "image" else "model.max_length"
            lines.append(f"  no better than chance: check the order of the classes, the weights and {size}")
        if not model["bias"]:
            lines.append(
                "  its head has no bias, and a repaired head needs one: `nsf export` can write no checkpoint of it; "
                "add a bias of zeros to the model's head"
            )
        lines.append(
            f"extract: about {model['seconds']:.0f} s for {' and '.join(extracted)}, "
            f"{model['samples_per_second']:.1f} samples a second in one process on {found['device']} ({found['precision']})"
        )
    return "\n".join(lines)
