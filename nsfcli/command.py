"""What the subcommands share: the global settings, the standard paths, and the options that name other paths."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nsfcli.console import Console
from stages.errors import MissingFile

MODEL = Path("artifacts/model")
FEATURES = Path("artifacts/features")
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


def trained(model: Path) -> Path:
    """The folder of a model that `nsf train` wrote; the standard one need not be there.

    Raises:
        MissingFile: another one was named and is not there.
    """
    if model != MODEL and not model.exists():
        raise MissingFile("there is no such model", where=model, do="check --model, or leave it out")
    return model


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
    if features.resolve() not in {path.resolve() for path in standard}:
        return None
    return HEAD if HEAD.exists() or artifacts.written_by_nsf(features) else None


def _option(help: str) -> object:
    return typer.Option(help=help, metavar="FILE", rich_help_panel="Files")


ModelOption = Annotated[
    Path,
    typer.Option(
        help="What `nsf train` wrote; where it is not there, the trained model of section model is taken.",
        metavar="DIR",
        rich_help_panel="Files",
    ),
]
FeaturesOption = Annotated[
    Path, _option("Features to read: a safetensors file with `features` (n,d) and `labels` (n,), from any program.")
]
HeadOption = Annotated[
    Path | None,
    _option(
        "The base linear head: safetensors with `weight` (C,d), `bias` (C,); default: artifacts/head.safetensors "
        "for features at the standard path, none for others."
    ),
]
IdentifyOption = Annotated[Path, _option("What `nsf identify` wrote.")]
NeutralizeOption = Annotated[Path, _option("What `nsf neutralize` wrote.")]
EliminateOption = Annotated[Path, _option("What `nsf eliminate` wrote.")]
UpdateOption = Annotated[Path, _option("What `nsf update` wrote.")]
OutOption = Annotated[Path, _option("The artifact to write.")]
MetricsOption = Annotated[Path, _option("Accuracies as JSON.")]
