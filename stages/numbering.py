"""Which number each class has: the model's numbering and the data's, brought together by the classes' names."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.data import Split
from stages.errors import BadData, Mismatch, listed
from stages.lineage import comparable
from stages.models import Classifier, Opened

if TYPE_CHECKING:
    import numpy as np


def check_classes(classifier: Classifier, classes: int, split: Split) -> None:
    """Raise Mismatch where the model tells another number of classes apart than the data has."""
    if len(split.class_names) != classes:
        raise Mismatch(
            f"has {classes} classes, and the data {len(split.class_names)} ({listed(split.class_names)}; "
            "numbers as classes start at 0)",
            where=classifier.name,
            do="run `nsf train` on this data, or give the data that the model is for",
        )


def check_two_classes(split: Split) -> None:
    """Raise BadData where there is nothing to tell apart."""
    if len(split.class_names) < 2:
        raise BadData(
            f"holds one class only ({', '.join(split.class_names)})", where="data", do="give samples of at least two classes"
        )


def check_numbering(opened: Opened, splits: Mapping[str, Split]) -> None:
    """Raise Mismatch where splits number their classes differently and do not go by the names that the model knows."""
    (first, names), *others = ((name, list(split.class_names)) for name, split in splits.items())
    for name, found in others:
        if found != names and not (opened.class_names and same_names(opened, splits[name])):
            raise Mismatch(
                f"the classes are {', '.join(names)} in the {first} split and {', '.join(found)} in the {name} split",
                where="data",
                do="number the same classes alike in every split",
            )


def number_as(opened: Opened, split: Split, name: str) -> "np.ndarray":
    """The split's labels, (n,) int64, numbered as the model numbers its classes.

    Classes go by their names where model and data have the same ones, whatever their order and capitals; otherwise by
    their numbers.

    Raises:
        Mismatch: `nsf train` made the model on classes of other names, or some names agree and contradict the numbers.
    """
    import numpy as np

    ours, theirs = comparable(split.class_names, opened.class_names or ())
    same = set(ours) == set(theirs)
    elsewhere = [name for index, name in enumerate(ours) if name in theirs and theirs.index(name) != index]
    if elsewhere and not same:
        raise Mismatch(
            f"the {name} split has the classes {', '.join(split.class_names)}, and the model "
            f"{', '.join(opened.class_names)}: '{elsewhere[0]}' has another number in each",
            where=opened.classifier.name,
            do="give the data the model's class names, all of them",
        )
    if theirs and same:
        order = np.array([theirs.index(value) for value in ours], dtype=np.int64)
        numbered: np.ndarray = order[split.labels]
        return numbered
    if opened.by_nsf and theirs:
        raise Mismatch(
            f"the {name} split has the classes {', '.join(split.class_names)}, and the model was trained on "
            f"{', '.join(opened.class_names)}",
            where=opened.classifier.name,
            do="run `nsf train` on this data",
        )
    return split.labels


def same_names(opened: Opened, split: Split) -> bool:
    """Whether the model's class names, where it has any, are the data's."""
    ours, theirs = comparable(split.class_names, opened.class_names or ())
    return not theirs or set(ours) == set(theirs)
