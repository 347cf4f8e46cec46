"""Accuracy by class and by group (class x attribute): worst-group accuracy and its kin, in one place."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import MissingFile, WrongArtifact

if TYPE_CHECKING:
    from torch import Tensor

# A sample's attribute where the data does not tell it.
UNKNOWN = -1


def read_metrics(path: Path) -> dict[str, Any]:
    """What `nsf evaluate` wrote as JSON; see `evaluate.run`.

    Raises:
        MissingFile: there is no such file.
        WrongArtifact: it is no JSON, or not of `nsf evaluate`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFile("there is no such file", where=path, do="`nsf evaluate` makes it") from error
    except OSError as error:
        raise WrongArtifact(f"cannot be read ({error.strerror})", where=path, do="check who may read it") from error
    except (ValueError, RecursionError) as error:
        raise WrongArtifact("cannot be read as JSON", where=path, do="`nsf evaluate` makes it") from error
    if not isinstance(found, dict) or not isinstance(found.get("samples"), dict) or not _has_reports(found):
        raise WrongArtifact("holds no metrics of `nsf evaluate`", where=path, do="`nsf evaluate` makes it")
    return found


def _has_reports(found: Mapping[str, Any]) -> bool:
    reports = [found.get("nsf"), *([found["base"]] if found.get("base") is not None else [])]
    notes = found.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        return False
    keys = {"worst_group_accuracy", "mean_accuracy", "classes", "groups"}
    if not all(isinstance(report, dict) and keys <= report.keys() for report in reports):
        return False
    # Of these `samples` holds the counts.
    parts = [report["groups" if found["nsf"]["groups"] else "classes"] for report in reports]
    if not all(isinstance(part, dict) and part.keys() == found["samples"].keys() for part in parts):
        return False
    measures = ("worst_group_accuracy", "mean_accuracy", "adjusted_mean_accuracy")
    numbers = [report[measure] for report in reports for measure in measures if report.get(measure) is not None]
    numbers += [number for part in (*parts, found["samples"]) for number in part.values()]
    return all(isinstance(number, int | float) for number in numbers)


def report(
    predictions: "Tensor",
    labels: "Tensor",
    attributes: "Tensor | None",
    class_names: Sequence[str],
    attribute_names: Sequence[str] | None = None,
    train_groups: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Accuracies of one head.

    Worst-group accuracy is the lowest accuracy over the groups that have samples (Sagawa et al. 2020); a group is a
    class x attribute pair. A sample whose attribute is unknown (-1) counts in the mean and in its class only.

    Args:
        predictions, labels: (m,) int64.
        attributes: (m,) int64, -1 where unknown, or None where there are none.
        class_names: C names.
        attribute_names: one name an attribute value; by default the values themselves.
        train_groups: how many training samples each group has, by its name.

    Returns:
        `worst_group_accuracy` and `worst_group` (None without attributes), `mean_accuracy` over the samples,
        `adjusted_mean_accuracy`: the groups' accuracies weighted by their shares of the *training* samples, which papers
        of this field report as Waterbirds' average (Sagawa et al. 2020, section 5; None where those are unknown), and
        `classes` and `groups`: maps from a name to its accuracy. Groups are named "class/attribute".
    """
    correct = predictions == labels
    classes, groups = members(labels, attributes, class_names, attribute_names)
    by_group = {name: _mean(correct[chosen]) for name, chosen in groups.items()}
    worst = min(by_group, key=lambda name: by_group[name]) if by_group else None
    return {
        "worst_group_accuracy": by_group[worst] if worst is not None else None,
        "worst_group": worst,
        "mean_accuracy": _mean(correct),
        "adjusted_mean_accuracy": _adjusted(by_group, train_groups or {}),
        "classes": {name: _mean(correct[chosen]) for name, chosen in classes.items()},
        "groups": by_group,
    }


# Of accuracies on the very samples that a head was fitted to.
FITTED_ON = "These are the samples that the head was fitted on: its accuracy on others is what counts."


def members(
    labels: "Tensor",
    attributes: "Tensor | None",
    class_names: Sequence[str],
    attribute_names: Sequence[str] | None = None,
) -> tuple[dict[str, "Tensor"], dict[str, "Tensor"]]:
    """Which samples belong to each class and each group, (m,) bool each; those without samples are left out."""
    classes: list[tuple[str, str, Tensor]] = []
    groups: list[tuple[str, str, Tensor]] = []
    for index, name in enumerate(class_names):
        in_class = labels == index
        if not bool(in_class.any()):
            continue
        classes.append((name, f"{name}#{index}", in_class))
        if attributes is not None:
            for value in sorted(set(attributes[in_class].tolist()) - {UNKNOWN}):
                known = attribute_names or ()
                attribute = known[value] if value < len(known) else value
                chosen = in_class & (attributes == value)
                groups.append((f"{name}/{attribute}", f"{name}#{index}/{attribute}#{value}", chosen))
    return _by_name(classes), _by_name(groups)


def _by_name(parts: "Sequence[tuple[str, str, Tensor]]") -> "dict[str, Tensor]":
    """(name, name with numbers, members): by name, or where two share one, by the names with numbers."""
    distinct = len({name for name, _, _ in parts}) == len(parts)
    return {name if distinct else numbered: chosen for name, numbered, chosen in parts}


def _adjusted(accuracies: Mapping[str, float], train_groups: Mapping[str, int]) -> float | None:
    trained_on = {name: count for name, count in train_groups.items() if count}
    if not trained_on or trained_on.keys() - accuracies.keys():
        return None
    weighted = sum(count * accuracies[name] for name, count in trained_on.items())
    return round(weighted / sum(trained_on.values()), 6)


def _mean(correct: "Tensor") -> float:
    # A quotient of two counts, rounded where no test split is large enough to tell: the same on every device.
    return round(int(correct.sum()) / len(correct), 6)
