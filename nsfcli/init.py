"""nsf init."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nsfcli import params
from nsfcli.command import HEAD, TEST, TRAIN, VAL, Settings, check_train_features
from nsfcli.presets import PRESETS
from nsfcli.sections import SECTIONS
from stages.errors import BadParameter, CannotWrite, MissingFile, UserError

# The names of the presets; the value of --preset is checked against them by Typer.
Preset = StrEnum("Preset", list(PRESETS))  # type: ignore[misc]
Source = StrEnum("Source", ["torchvision", "timm", "transformers", "callable"])

# A table's suffix -> data.format.
TABLES = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".csv.gz": "csv", ".jsonl.gz": "jsonl"}

# Where models of images alone come from, and what to give for texts.
IMAGE_SOURCES = ("torchvision", "timm")
TEXT_MODEL = "give --name (a transformers folder or hub id) or --function (module:function)"

# Where the comments of params.yaml begin.
COMMENT_COLUMN = 34

# What fine-tuning a transformers encoder usually takes.
FINE_TUNING = {"optimizer": "adamw", "learning_rate": 0.00005, "weight_decay": 0.01, "schedule": "linear", "epochs": 3}

WHAT, MODEL_PANEL = "What to repair it with: one of these", "The model"


def _what(help: str, metavar: str = "FILE") -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel=WHAT)


def _model(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=MODEL_PANEL)


def init(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder to set up.", metavar="[FOLDER]")] = Path(),
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
    test_features: Annotated[
        Path | None, typer.Option(help="With --features: the test split's, to evaluate on.", metavar="FILE")
    ] = None,
    train_features: Annotated[
        Path | None,
        typer.Option(help="With --features: the training split's, for `nsf update --train-features`.", metavar="FILE"),
    ] = None,
    head: Annotated[Path | None, typer.Option(help="With --features: the base linear head.", metavar="FILE")] = None,
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
    text = _params(sections, trains)
    watched, unwatched = _watched(folder, sections["data"]) if features is None else ([], "")
    pipeline = _pipeline(folder, sections, watched, trains, features, test_features, train_features, head)
    texts = {"params.yaml": text, "dvc.yaml": pipeline}
    for name in texts:
        if (folder / name).exists() and not force:
            raise CannotWrite("is there already", where=folder / name, do="use --force to overwrite it, or another folder")
    for text in texts.values():
        # A path in it that is no UTF-8 could not be found again: told by nsfcli.app, before anything is made.
        text.encode()
    made = _version_control(folder)
    written = [*_write(folder, texts), *made]
    if sections.get("model", {}).get("source") == "callable":
        function = sections["model"]["function"]
        code = ", ".join(_code(folder, sections["model"]))
        unsaid = (
            f"dvc.yaml watches {code}; add what else {function} reads, such as other modules and its weights,"
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


# --------------------------------------------------------------------------------------------------- data and model

COLUMNS = ("text_column", "path_column", "label_column", "split_column", "attribute_column")
MODEL = ("source", "architecture", "weights", "name", "function")


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


def _from(folder: Path, path: Path | str) -> Path:
    """A path as seen from a folder that may not be there yet, absolute."""
    return Path(os.path.normpath((folder / path).absolute()))


def _data(folder: Path, images: Path | None, table: Path | None, columns: Mapping[str, str]) -> dict[str, Any]:
    """The data section of params.yaml."""
    path = images or table
    assert path is not None
    pattern = str(_from(folder, path)).replace("{split}", "*")
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
    return images is not None and (_from(folder, images) / "dataset_dict.json").is_file()


def _complete(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """The model section, its source told from what is given."""
    if "source" not in model:
        model["source"] = "transformers" if "name" in model else "callable" if "function" in model else "torchvision"
    weights = str(model.get("weights", ""))
    if weights and not _is_name(weights) and not _from(folder, weights).is_file():
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
    return model.get("source") in IMAGE_SOURCES and _is_name(weights) and not _from(folder, weights).is_file()


# ------------------------------------------------------------------------------------------------------------- files


def _params(sections: Mapping[str, Mapping[str, Any]], trains: bool) -> str:
    """params.yaml: every parameter with its value, and in a comment what it is."""
    from io import StringIO

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    checked = params.check(sections, where="init")
    used = [name for name in SECTIONS if name in sections or name not in ("data", "model", "train", "extract")]
    if "data" in sections:
        used = [name for name in SECTIONS if name != "train" or trains]
    document = CommentedMap()
    for name in used:
        section = checked[name]
        document[name] = CommentedMap()
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            if isinstance(value, list):
                value = CommentedSeq(value)
                value.fa.set_flow_style()
            document[name][key] = value
            document[name].yaml_add_eol_comment(field.description or "", key, column=COMMENT_COLUMN)
        document.yaml_set_comment_before_after_key(name, before=f"\n{(type(section).__doc__ or '').strip()}")
    yaml, text = YAML(), StringIO()
    yaml.width = 10_000
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.dump(document, text)
    return f"# Written by `nsf init`; in a git repository, `dvc params diff` shows what you change.\n{text.getvalue()}"


def _pipeline(
    folder: Path,
    sections: Mapping[str, Mapping[str, Any]],
    watched: Sequence[str],
    trains: bool,
    features: Path | None,
    test_features: Path | None,
    train_features: Path | None,
    head: Path | None,
) -> str:
    """dvc.yaml."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from stages.outputs import named_in

    own = features is not None
    for path in (features, test_features, train_features if own else None, head):
        if path is not None and not _from(folder, path).is_file():
            found = "is a folder" if _from(folder, path).is_dir() else "is not there"
            raise MissingFile(found, where=folder / path, do="name a file, as seen from the folder to set up")
    environment = Environment(
        loader=PackageLoader("nsfcli"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["yaml"] = _scalar
    model = sections.get("model", {})
    weights = [str(path) for path in named_in(model) if _from(folder, path).exists()]
    code = _code(folder, model)
    return environment.get_template("dvc.yaml.j2").render(
        data=None if own else watched,
        train=trains,
        weights=weights,
        code=code,
        val=_files_of(folder, features) if own else [str(VAL)],
        test=_files_of(folder, test_features) if own else [str(TEST)],
        seen=_files_of(folder, train_features),
        head=str(head or "") if own else str(HEAD),
        flags={
            "val": f" --features {shlex.quote(str(features))}" if own else "",
            "test": f" --features {shlex.quote(str(test_features))}" if own else "",
            "seen": f" --train-features {shlex.quote(str(train_features))}" if train_features else "",
            "head": f" --head {shlex.quote(str(head))}" if own and head else "",
        },
    )


def _code(folder: Path, model: Mapping[str, Any]) -> list[str]:
    """The file in this folder of the function that makes the model; none where there is no such function or file."""
    module = str(model.get("function") or "").partition(":")[0].replace(".", "/")
    return [name for name in (f"{module}/__init__.py", f"{module}.py") if module and _from(folder, name).is_file()][:1]


def _watched(folder: Path, data: Mapping[str, Any]) -> tuple[list[str], str]:
    """The files and folders of the data for DVC to watch, and what is to be said where images are in none of them.

    Never a folder around `folder` itself, where the pipeline writes.
    """
    if not data.get("file"):
        return [str(data["root"])], ""
    table = Path(str(data["file"]))
    tables = sorted(_from(folder, table.parent).glob(table.name.replace("{split}", "*")))
    if "{split}" in table.name and _from(folder, table.parent) not in _around(folder):
        watched = [str(table.parent)]
    else:
        # One file, or one per split.
        watched = [str(table.parent / path.name) for path in tables]
    if data.get("text_column"):
        return watched, ""
    images, beside = _image_folders(folder, Path(str(data.get("root") or table.parent)), _folder_names(tables, data))
    unwatched = "" if images else "dvc.yaml does not watch the images; add their folder to the deps of "
    if beside:
        places = " and ".join(f"'{path}'" for path in beside)
        unwatched = (
            f"dvc.yaml does not watch the images right in {places}, which holds what the pipeline writes, too; move them "
            "into a folder of their own, and add it to the deps of "
        )
    return list(dict.fromkeys([*watched, *images])), unwatched


def _around(folder: Path) -> set[Path]:
    """The folder itself and all that it lies in."""
    work = _from(folder, "")
    return {above for path in (work, work.resolve()) for above in (path, *path.parents)}


def _folder_names(tables: Sequence[Path], data: Mapping[str, Any]) -> set[Path]:
    """The folders of the images that these tables name, as they stand there; none of a table that cannot be read."""
    # Here, for it brings in NumPy, and `nsf --help` does without.
    from stages.data.table import ROWS

    column, names = str(data.get("path_column", "path")), set[Path]()
    for table in tables:
        # What is wrong with it, `nsf doctor` says.
        with suppress(UserError):
            rows = ROWS[data["format"]](table, {column: None}).rows
            names |= {Path(name).parent for name in rows[column].str.strip() if name}
    return names


def _image_folders(folder: Path, start: Path, names: set[Path]) -> tuple[list[str], list[str]]:
    """The folders to watch for images in folders of these names, seen from `start`; and those that hold `folder` itself.

    To watch is `start`, or where the pipeline writes in it what lies right in it; and the common folder of images elsewhere.
    """
    work, base, around = _from(folder, ""), _from(folder, start), _around(folder)
    near, far = set() if names or base in around else {base}, set()
    for name in names:
        place = Path(os.path.normpath(base / name))
        parts = place.relative_to(base).parts if place.is_relative_to(base) else None
        top = base.joinpath(*(parts or ())[: base in around])
        if parts is None or top in around:
            far.add(place)
        else:
            near.add(top)

    def shown(path: Path) -> str:
        if path.is_relative_to(work):
            return str(path.relative_to(work))
        if path.is_relative_to(base):
            return str(start / path.relative_to(base))
        # As the table has it, relative or absolute.
        return str(path) if any(name.is_absolute() for name in names) else os.path.relpath(path, work)

    found = [path for path in [*sorted(near), *_common(far - around, around)] if path == base or path.is_dir()]
    return [shown(path) for path in found], [shown(path) for path in sorted(far & around)]


def _common(places: set[Path], around: set[Path]) -> list[Path]:
    """The folder that holds all of these; where it is one of `around`, the folders in it that hold those with one top."""
    if not places:
        return []
    common = Path(os.path.commonpath(places))
    if common not in around:
        return [common]
    tops: dict[str, set[Path]] = {}
    for place in places:
        tops.setdefault(place.relative_to(common).parts[0], set()).add(place)
    return [path for top in sorted(tops) for path in _common(tops[top], around)]


def _files_of(folder: Path, features: Path | None) -> list[str]:
    """A features file, or an index of features in shards and the files that it names; none where there are no features."""
    from stages.artifacts import INDEX_SUFFIX, shards

    if features is None:
        return []
    parts = shards(_from(folder, features)) if features.name.endswith(INDEX_SUFFIX) else None
    return [str(features), *(str(features.with_name(part.name)) for part in parts or ())]


def _scalar(text: str) -> str:
    """A string as it stands in dvc.yaml: plain where nothing in it means anything to YAML, in double quotes elsewhere."""
    # ${...} is DVC's own templating.
    text = text.replace("${", "\\${")
    if re.fullmatch(r"[A-Za-z./_-][\w./ -]*(?<! )", text, flags=re.ASCII) and re.search(r"[./ ]|[a-z]{6}", text):
        return text
    return json.dumps(text, ensure_ascii=False)


def _write(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write the files, all or none; returns their names."""
    from stages.outputs import outputs

    with outputs() as files:
        for name, text in texts.items():
            files.text(folder / name, text)
    return list(texts)


def _version_control(folder: Path) -> list[str]:
    """Set up DVC (with git or without) and have git ignore the artifacts; returns the names of the files made."""
    made: list[str] = []
    ignore = folder / ".gitignore"
    if not folder.is_dir() and os.path.lexists(folder):
        raise CannotWrite("is no folder", where=folder, do="name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise CannotWrite("cannot be read as text", where=ignore, do="mend or remove it") from error
    if (folder / ".dvc").is_file():
        raise CannotWrite("is a file, and DVC keeps a folder of that name", where=folder / ".dvc", do="rename it")
    # DVC tracks the artifacts, and writes what `dvc plots` draws.
    if lacking := [line for line in ("/artifacts/", "/dvc_plots/") if line not in lines]:
        made += _write(folder, {".gitignore": "\n".join([*lines, *lacking]) + "\n"})
    top = _git_top(folder)
    if top is not None and top != folder.resolve() and _ignored(folder):
        # DVC would refuse to keep its own files where git does not see them.
        top = None
    above = [folder.resolve(), *folder.resolve().parents]
    inside = above[: above.index(top) + 1] if top in above else above[:1]
    if any((parent / ".dvc").is_dir() for parent in inside):
        # Set up before there was git.
        if top == folder.resolve() and _without_git(folder):
            _dvc(folder, "config", "--unset", "core.no_scm")
            made.append(".dvc")
        return made
    mode = ["--no-scm"] if top is None else [] if top == folder.resolve() else ["--subdir"]
    _dvc(folder, "init", "--quiet", *mode)
    _dvc(folder, "config", "core.analytics", "false")
    if top is None:
        # As DVC itself where there is git, for the day when there is.
        _write(folder / ".dvc", {".gitignore": "".join(f"/{name}\n" for name in ("config.local", "tmp", "cache"))})
    return [*made, ".dvc"]


def _without_git(folder: Path) -> bool:
    """Whether DVC's settings of this folder say that there is no git to work with."""
    settings = ConfigParser(interpolation=None)
    try:
        settings.read(folder / ".dvc" / "config", encoding="utf-8")
        return settings.getboolean("core", "no_scm", fallback=False)
    except (ConfigParserError, OSError, ValueError):
        return False


def _git_top(folder: Path) -> Path | None:
    """The top folder of the git repository that `folder` lies in."""
    try:
        done = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def _ignored(folder: Path) -> bool:
    """Whether the repository around the folder has git ignore it."""
    done = subprocess.run(["git", "check-ignore", "--quiet", "."], cwd=folder, capture_output=True)
    return done.returncode == 0


def _dvc(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        text = " ".join((done.stderr or done.stdout).split()).removeprefix("ERROR: ")
        raise CannotWrite(f"`dvc {arguments[0]}` failed ({text})", where=folder / ".dvc", do="set DVC up by hand: dvc init")
