"""What the subcommands share: the global settings, the standard paths, and the options that name other paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nsfcli.console import Console
from stages.errors import BadParameter, MissingFile

if TYPE_CHECKING:
    from nsfcli.sections import Section

MODEL = Path("artifacts/model")
FEATURES = Path("artifacts/features")
TRAIN = FEATURES / "train.safetensors"
VAL = FEATURES / "val.safetensors"
TEST = FEATURES / "test.safetensors"
HEAD = Path("artifacts/head.safetensors")
IDENTIFY = Path("artifacts/identify.safetensors")
NEUTRALIZE = Path("artifacts/neutralize.safetensors")
ELIMINATE = Path("artifacts/eliminate.safetensors")
UPDATE = Path("artifacts/update.safetensors")
EVALUATE = Path("artifacts/evaluate.safetensors")
METRICS = Path("metrics/evaluate.json")
COMPARISON = Path("metrics/compare.json")
COMPARISON_TABLE = Path("metrics/compare.csv")
EXPORT = Path("artifacts/export")


@dataclass(frozen=True)
class Settings:
    """The global options, as every command finds them in `ctx.obj`."""

    console: Console
    params: Path | None
    device: str
    debug: bool


def trained(
    model: Path, sections: "Mapping[str, Section]", overrides: Mapping[str, str | None]
) -> tuple[Path, dict[str, Any] | None]:
    """Which classifier a command takes: `model` and `own_model` of the stages.

    What `nsf train` wrote to the folder `model` counts alone where it was named, where params.yaml has a section train, and
    where nothing is said of a model; elsewhere, or where it wrote nothing, the trained classifier of section model does, see
    `models.open_trained`.

    Raises:
        MissingFile: a folder was named and is not there.
        BadParameter: options name another model than the one that was trained.
    """
    from nsfcli.params import option_name
    from stages.artifacts import exists
    from stages.models import trained_with

    there = exists(model)
    if model != MODEL and not there:
        raise MissingFile("there is no such model", where=model, do="check --model, or leave it out")
    section = sections["model"]
    given = [name for name, value in overrides.items() if name.startswith("model__") and value is not None]
    if not there or (model == MODEL and "train" not in sections and section.model_fields_set):
        return model, section.model_dump()
    if given and not trained_with(model, section.model_dump()):
        option = f"option {option_name('model', given[0].removeprefix('model__'), '')}"
        do = "run `nsf train` with it first, or leave it out"
        raise BadParameter(f"{model} was trained with another section 'model'", where=option, do=do)
    return model, None


def base_head(head: Path | None, features: Path, standard_features: Path) -> Path | None:
    """The base head to use: the one given, or the standard one beside the standard features.

    Features that another program wrote may come without a head, and then there is no base to compare with; features that
    `nsf extract` wrote always have one, so that a missing file is a mistake.
    """
    if head is not None:
        return head
    # Here, for it takes a while to import, and only a command that runs needs it.
    from stages import artifacts

    # In shards they go by the name of their index as well.
    standard = standard_features, standard_features.with_name(standard_features.name + artifacts.INDEX_SUFFIX)
    # Not Path.resolve, which ends in an error where symbolic links lead in a circle.
    if realpath(features) not in {realpath(path) for path in standard}:
        return None
    return HEAD if artifacts.exists(HEAD) or artifacts.written_by_nsf(features) else None


def check_train_features(train_features: Path | None, head: Path | None) -> None:
    """Refuse features of the training split without a base head.

    Raises:
        BadParameter: there is nothing to compare the new head with.
    """
    if train_features is not None and head is None:
        do = "give --head, too"
        raise BadParameter("compares the new head with the base head", where="option --train-features", do=do)


def file_option(help: str, metavar: str = "FILE", panel: str | None = "Files") -> Any:
    """How an option that names a file or folder is shown; on no panel of its own where `panel` is None.

    Whether it may be read is told by whoever reads it: Typer would show a page of usage, of outputs, too.
    """
    return typer.Option(help=help, metavar=metavar, rich_help_panel=panel, readable=False)


ModelOption = Annotated[
    Path,
    file_option(
        "What `nsf train` wrote; where it wrote nothing for section model, the trained model of that section is taken.",
        "DIR",
    ),
]
FeaturesOption = Annotated[
    Path, file_option("Features to read: a safetensors file with `features` (n,d) and `labels` (n,), from any program.")
]
HeadOption = Annotated[
    Path | None,
    file_option(
        "The base linear head: safetensors with `weight` (C,d), `bias` (C,); default: artifacts/head.safetensors "
        "for features at the standard path, none for others."
    ),
]
IdentifyOption = Annotated[Path, file_option("What `nsf identify` wrote.")]
NeutralizeOption = Annotated[Path, file_option("What `nsf neutralize` wrote.")]
EliminateOption = Annotated[Path, file_option("What `nsf eliminate` wrote.")]
UpdateOption = Annotated[Path, file_option("What `nsf update` wrote.")]
OutOption = Annotated[Path, file_option("The artifact to write.")]
MetricsOption = Annotated[Path, file_option("Accuracies as JSON.")]
