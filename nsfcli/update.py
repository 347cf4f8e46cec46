"""nsf update."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nsfcli import params
from nsfcli.command import (
    ELIMINATE,
    IDENTIFY,
    NEUTRALIZE,
    UPDATE,
    VAL,
    EliminateOption,
    FeaturesOption,
    HeadOption,
    IdentifyOption,
    NeutralizeOption,
    OutOption,
    Settings,
    base_head,
    check_train_features,
    file_option,
)
from stages.errors import listed

# The parameters that each solver reads.
READS = {"auto": ("solver", "regularization", "seed"), "published": ("solver", "steps", "learning_rate", "seed")}
# The head by its remedy (`stages.auto.Repaired`), where it is of no pseudo-groups.
WITHOUT_GROUPS = {"plain": "new head, every class weighing the same", "evened": "base head with other biases"}


@params.options("update")
def update(
    ctx: typer.Context,
    features: FeaturesOption = VAL,
    identify: IdentifyOption = IDENTIFY,
    neutralize: NeutralizeOption = NEUTRALIZE,
    eliminate: EliminateOption = ELIMINATE,
    head: HeadOption = None,
    train_features: Annotated[
        Path | None,
        file_option(
            "Of solver auto: features of the training split. A new head that is worse there than the base head, and "
            "than on the validation split, is not written; nothing is fitted to them."
        ),
    ] = None,
    out: OutOption = UPDATE,
    force: Annotated[
        bool, typer.Option("--force", help="Of solver auto: return the new head whatever the verdict is.")
    ] = False,
    **overrides: str | None,
) -> None:
    """Make the new linear head, or keep the base head where there is no bias to remove.

    Solver auto retrains with rare class x pseudo-attribute cells weighing the more. Where these carry no repair it retrains
    with every class weighing the same if the base head is too sure of itself, and changes the base head's biases alone if
    it neglects a class (docs/method.md). Solver published trains on T(x) as the paper does, half rescued and half
    conforming samples a step.

    Reads artifacts/features/val.safetensors, the three artifacts before this one and the base head; writes
    artifacts/update.safetensors: `rescued`, `conforming` (n,), `weight`, `bias` on T(x), `folded_weight`, `folded_bias`
    on x, and of solver auto `pseudo_attributes` (n,).
    """
    from stages.update import run

    settings: Settings = ctx.obj
    sections = params.load("update", overrides, settings.params)
    solver = sections["update"].model_dump()["solver"]
    of_auto = {"--force": force, "--train-features": train_features is not None}
    if idle := _idle(solver, overrides, [name for name, given in of_auto.items() if given]):
        other = next(each for each in READS if each != solver)
        verb, applies = ("has", "it applies") if len(idle) == 1 else ("have", "they apply")
        settings.console.message(
            f"{' and '.join(idle)} {verb} no effect with --solver {solver}; {applies} to --solver {other}."
        )
    base = base_head(head, features, VAL)
    check_train_features(train_features, base)
    with settings.console.progress() as progress:
        summary = run(
            features=features,
            identify=identify,
            neutralize=neutralize,
            eliminate=eliminate,
            head=base,
            training=train_features,
            out=out,
            force=force,
            device=settings.device,
            progress=progress,
            **sections["update"].model_dump(),
        )
    for message in _messages(summary, force=force):
        settings.console.message(message)
    if solver == "auto":
        new = f"new head from {summary['pseudo_minority']} samples found to be minority"
        new = "base head kept" if summary["base_head_kept"] else WITHOUT_GROUPS.get(summary["remedy"], new)
        line = f"verdict {summary['verdict']}, {new}"
    else:
        line = f"{summary['rescued']} of {summary['minority']} minority samples rescued, {summary['conforming']} conforming"
    settings.console.result(summary, line=f"{line} -> {out}")


def _messages(summary: Mapping[str, Any], *, force: bool) -> Iterator[str]:
    """What is worth knowing beside the summary's line."""
    auto = summary["solver"] == "auto"
    if summary["base_head_kept"]:
        way_out = ". Use --force to write the new head anyway" if auto else ""
        yield f"The base head is kept: {summary['kept_because']}{way_out}."
    elif summary["small_classes"]:
        few = listed([f"{name} ({count})" for name, count in summary["small_classes"].items()])
        yield f"Too few validation samples to judge the new head by: {few}. Check these classes before you use it."
    if not auto:
        return
    first = summary["verdict_of_identify"]
    if summary["remedy"] in WITHOUT_GROUPS:
        yield f"The minority carries no repair ({summary['groups_refused']}), but {_why(summary)}."
    elif first is not None and summary["verdict"] != first:
        yield (
            f"`nsf identify` said '{first}'; the minority as re-estimated (mirror {_signed(summary['mirror'])}) and "
            f"cross-validation ({_better(summary['better'])}) say '{summary['verdict']}'."
        )
    if summary["doubt"] is not None and not force:
        yield (
            f"Doubtful: {summary['doubt']}. The base head would have been kept, but none is given (--head), so the new head "
            "is written."
        )


def _why(summary: Mapping[str, Any]) -> str:
    """Why there is a new head, though no pseudo-groups carry one."""
    if summary["neglected_class"] is not None:
        return (
            f"the base head neglects class {summary['neglected_class']}. It gets other biases, with which every class "
            f"weighs the same: its accuracy on the worst class rises by {summary['neglected']:.2f}"
        )
    return (
        f"the base head is overconfident ({summary['errors']:.1f} times as many errors as its probabilities predict). The "
        f"last layer is retrained with every class weighing the same (cross-validated log-likelihood "
        f"{_signed(summary['unused'])} a sample)"
    )


def _idle(solver: str, overrides: Mapping[str, str | None], of_auto: Sequence[str]) -> list[str]:
    """The options given that have no effect with the solver; `of_auto` are those of auto alone that are no parameters."""
    given = {name.removeprefix("update__") for name, value in overrides.items() if value is not None}
    idle = [params.option_name("update", key, "update") for key in sorted(given - {*READS[solver]})]
    return idle + (list(of_auto) if solver != "auto" else [])


def _better(value: float | None) -> str:
    """What a head gains in class-balanced accuracy; None where a class has too few samples for one."""
    return "a class has too few samples for an accuracy" if value is None else f"class-balanced accuracy {value:+.2f}"


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.2f}"
