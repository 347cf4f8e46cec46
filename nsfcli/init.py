"""nsf init."""

import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nsfcli import workfolder
from nsfcli.command import TRAIN, Settings, check_train_features, file_option
from nsfcli.presets import PRESETS
from nsfcli.workfolder import seen_from
from stages.errors import BadParameter, MissingFile

# The names of the presets; the value of --preset is checked against them by Typer.
Preset = StrEnum("Preset", list(PRESETS))  # type: ignore[misc]
Source = StrEnum("Source", ["torchvision", "timm", "transformers", "callable"])

# The options that say of a table, or of a saved data set, what its columns are, and those that name a model.
COLUMNS = ("text_column", "path_column", "label_column", "split_column", "attribute_column")
MODEL = ("source", "architecture", "weights", "name", "function")

# A table's suffix -> data.format.
TABLES = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".csv.gz": "csv", ".jsonl.gz": "jsonl"}

# Where models of images alone come from, and what to give for texts.
IMAGE_SOURCES = ("torchvision", "timm")
TEXT_MODEL = "give --name (a transformers folder or hub id) or --function (module:function)"

# What fine-tuning a transformers encoder usually takes.
FINE_TUNING = {"optimizer": "adamw", "learning_rate": 0.00005, "weight_decay": 0.01, "schedule": "linear", "epochs": 3}

WHAT, MODEL_PANEL = "What to repair it with: one of these", "The model"


def _what(help: str, metavar: str = "FILE") -> Any:
    return file_option(help, metavar, WHAT)


def _beside(help: str) -> Any:
    return file_option(f"With --features: {help}", panel=None)


def _model(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=MODEL_PANEL)


def init(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder to set up.", metavar="[FOLDER]", readable=False)] = Path(),
    preset: Annotated[
        Preset | None, typer.Option(help="A published experiment.", rich_help_panel=WHAT, show_choices=True)
    ] = None,
    images: Annotated[
        Path | None,
        _what("A tree of images, DIR/split/class/..., or what Hugging Face DatasetDict.save_to_disk wrote.", "DIR"),
    ] = None,
    csv: Annotated[Path | None, _what("A .csv, .parquet or .jsonl file with a row per image or text.")] = None,
    features: Annotated[Path | None, _what("Validation features: safetensors with `features` and `labels`.")] = None,
    root: Annotated[
        str | None, typer.Option(help="Of a preset, or of a table's images: the folder with the data.", metavar="DIR")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Of texts in a table or DatasetDict: their column.")] = None,
    path_column: Annotated[str | None, typer.Option(help="Of a table of images: the column with the path.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of a table or DatasetDict: the column with the class.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Of a table: the column with the split.")] = None,
    attribute_column: Annotated[
        str | None, typer.Option(help="Of a table or DatasetDict: the column with the attribute, for scoring alone.")
    ] = None,
    test_features: Annotated[Path | None, _beside("the test split's, to evaluate on.")] = None,
    train_features: Annotated[Path | None, _beside("the training split's, for `nsf update --train-features`.")] = None,
    head: Annotated[Path | None, _beside("the base linear head.")] = None,
    extract_train: Annotated[
        bool | None,
        typer.Option(
            "--extract-train", help="Extract the training split, too, for `nsf update --train-features`.", show_default=False
        ),
    ] = None,
    source: Annotated[Source | None, _model("Where the model comes from.")] = None,
    architecture: Annotated[str | None, _model("torchvision's or timm's name of it.")] = None,
    weights: Annotated[str | None, _model("Its trained state dict; without one, `nsf train` trains it.")] = None,
    name: Annotated[str | None, _model("A transformers folder or hub id of a trained classifier.")] = None,
    function: Annotated[str | None, _model("module:function returning (encoder, head, transform).")] = None,
    train: Annotated[
        bool | None, typer.Option("--train/--no-train", help="Whether the pipeline trains a head first.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite params.yaml and dvc.yaml.")] = False,
) -> None:
    """Set up a working folder: params.yaml, dvc.yaml, .gitignore and .dvc; then `dvc repro` runs everything.

    Without options it asks for data and model. `nsf doctor` says what it understands of them.
    """
    settings: Settings = ctx.obj
    chosen = [option for option, value in
              {"--preset": preset, "--images": images, "--csv": csv, "--features": features}.items() if value]  # fmt: skip
    if len(chosen) > 1:
        raise BadParameter(f"{' and '.join(chosen)} exclude each other", where="init", do="give one of them")
    if not chosen:
        if not _is_terminal():
            do = f"give --preset ({', '.join(PRESETS)}), --images DIR, --csv FILE or --features FILE"
            raise BadParameter("no data is named", where="init", do=do)
        images, csv, features = _ask_for_data()
        if (csv is not None or _is_saved(folder, images)) and text_column is None:
            text_column = _asked("Its column with the text (empty: images)", default="", show_default=False)
    saved = _is_saved(folder, images)
    _check_fits(ctx, preset=preset is not None, table=csv is not None, saved=saved, features=features is not None)
    check_train_features(train_features, head)
    sections: dict[str, dict[str, Any]] = {}
    if preset is not None:
        sections = {section: dict(values) for section, values in PRESETS[preset].items()}
        sections["data"].update({"root": root} if root else {})
    elif features is None:
        columns = {"text_column": text_column, "path_column": path_column, "label_column": label_column,
                   "split_column": split_column, "attribute_column": attribute_column, "root": root}  # fmt: skip
        sections["data"] = _data(folder, images, csv, {key: value for key, value in columns.items() if value})
        model = {"source": source and str(source), "architecture": architecture, "weights": weights, "name": name,
                 "function": function}  # fmt: skip
        given = {key: value for key, value in model.items() if value}
        if not given and _is_terminal():
            given = _ask_for_model(texts=bool(text_column))
        if not given and text_column:
            raise BadParameter("no model of texts is named", where="init", do=TEXT_MODEL)
        sections["model"] = _complete(folder, given)
        if text_column and sections["model"]["source"] in IMAGE_SOURCES:
            raise BadParameter(
                f"{sections['model']['source']} has models of images, and --text-column names texts",
                where="init",
                do=TEXT_MODEL,
            )
    if extract_train:
        sections.setdefault("extract", {})["splits"] = ["train", "val", "test"]
        train_features = TRAIN
    trains = train if train is not None else preset is not None or _is_untrained(folder, sections.get("model", {}))
    if trains and sections.get("model", {}).get("source") == "transformers":
        sections.setdefault("train", FINE_TUNING)
    text = workfolder.params_yaml(sections, trains)
    watched, unwatched = workfolder.watched(folder, sections["data"]) if features is None else ([], "")
    code = workfolder.code(folder, sections.get("model", {}))
    pipeline = workfolder.dvc_yaml(
        folder, sections, watched=watched, code=code, trains=trains,
        features=features, test_features=test_features, train_features=train_features, head=head,
    )  # fmt: skip
    written = workfolder.set_up(folder, {"params.yaml": text, "dvc.yaml": pipeline}, force=force)
    if sections.get("model", {}).get("source") == "callable":
        function = sections["model"]["function"]
        unsaid = (
            f"dvc.yaml watches {code[0]}; add what else {function} reads, such as other modules and its weights,"
            if code
            else f"dvc.yaml does not watch the code of {function}, which is not in this folder; add its files"
        )
        settings.console.message(f"{unsaid} to the deps of the stages that use the model.")
    if unwatched:
        settings.console.message(f"{unwatched}extract{' and train' if trains else ''}.")
    then = f"cd {shlex.quote(str(folder))} && " if folder != Path() else ""
    check = "" if features is not None else f"`{then}nsf doctor` checks data and model; "
    settings.console.result(
        {"folder": str(folder), "written": written, "trains": trains},
        line=f"wrote {', '.join(written)}\n{check}`{then}dvc repro` runs everything",
    )


def _check_fits(ctx: typer.Context, *, preset: bool, table: bool, saved: bool, features: bool) -> None:
    """Refuse options that say nothing about what is set up."""
    idle = [] if features else ["test_features", "train_features", "head"]
    idle += [] if table else [column for column in COLUMNS if not saved or column in ("path_column", "split_column")]
    idle += [] if table or preset else ["root"]
    idle += [*MODEL, "train", "extract_train"] if features else list(MODEL) if preset else []
    for option in idle:
        if ctx.params.get(option) is not None:
            what = "--features" if features else "--preset" if preset else "--csv" if table else "--images"
            name = "--train/--no-train" if option == "train" else f"--{option.replace('_', '-')}"
            do = "leave it out, or edit params.yaml" if preset else "leave it out"
            raise BadParameter(f"says nothing with {what}", where=f"option {name}", do=do)


def _is_terminal() -> bool:
    """Whether somebody is there to ask."""
    return sys.stdin.isatty()


def _asked(question: str, **options: Any) -> Any:
    """An answer from the terminal; questions go to stderr, for stdout is the result's.

    Raises:
        KeyboardInterrupt: none is to be had.
    """
    try:
        return typer.prompt(question, err=True, **options)
    except typer.Abort as error:
        raise KeyboardInterrupt from error


def _ask_for_data() -> tuple[Path | None, Path | None, Path | None]:
    """(images, table, features): one of them."""
    path = Path(_asked("Data: a folder of images, a .csv/.parquet/.jsonl table, or a features .safetensors file"))
    if path.suffix == ".safetensors":
        return None, None, path
    return (None, path, None) if _format(path) else (path, None, None)


def _ask_for_model(*, texts: bool) -> dict[str, Any]:
    what, usual = "a transformers folder or hub id, or module:function", None if texts else "resnet50"
    answer = _asked(f"Model: {what}" if texts else f"Model: a torchvision name, {what}", default=usual)
    if ":" in answer:
        return {"function": answer}
    if texts or "/" in answer or Path(answer).is_dir():
        return {"name": answer}
    weights = _asked("Its trained state dict (empty: train one)", default="", show_default=False)
    return {"architecture": answer, **({"weights": weights} if weights else {})}


def _data(folder: Path, images: Path | None, table: Path | None, columns: Mapping[str, str]) -> dict[str, Any]:
    """The data section of params.yaml."""
    path = images or table
    assert path is not None
    pattern = str(seen_from(folder, path)).replace("{split}", "*")
    if not any(Path("/").glob(pattern[1:])):
        raise MissingFile("is not there", where=folder / path, do="name it as seen from the folder to set up")
    if images is not None:
        return {"format": "huggingface" if _is_saved(folder, images) else "folder", "root": str(images), **columns}
    if not _format(path):
        raise BadParameter(f"'{path}' ends in none of {', '.join(TABLES)}", where="option --csv")
    return {"format": _format(path), "file": str(path), **columns}


def _format(table: Path) -> str | None:
    """data.format of a table, by how its name ends; None where it is no table."""
    return next((format for suffix, format in TABLES.items() if table.name.endswith(suffix)), None)


def _is_saved(folder: Path, images: Path | None) -> bool:
    """Whether this is a DatasetDict of Hugging Face `datasets`, as `save_to_disk` writes it."""
    return images is not None and (seen_from(folder, images) / "dataset_dict.json").is_file()


def _complete(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """The model section, its source told from what is given."""
    if "source" not in model:
        model["source"] = "transformers" if "name" in model else "callable" if "function" in model else "torchvision"
    weights = str(model.get("weights", ""))
    if weights and not _is_name(weights) and not seen_from(folder, weights).is_file():
        raise MissingFile("is not there", where=folder / weights, do="name it as seen from the folder to set up")
    if model["source"] in IMAGE_SOURCES:
        model.setdefault("architecture", "resnet50")
        # An ERM model to be trained starts from ImageNet.
        model.setdefault("weights", "DEFAULT")
    return model


def _is_name(weights: str) -> bool:
    """Whether these are weights of a library's own: their names, such as IMAGENET1K_V1, are in capitals."""
    return weights.isupper()


def _is_untrained(folder: Path, model: Mapping[str, Any]) -> bool:
    """Whether the model of this section is one that `nsf train` trains first."""
    weights = str(model.get("weights") or "DEFAULT")
    return model.get("source") in IMAGE_SOURCES and _is_name(weights) and not seen_from(folder, weights).is_file()
