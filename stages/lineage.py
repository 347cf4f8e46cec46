"""Whether artifacts fit one another: their sizes, what they were made from, the model and the classes they are of."""

from collections.abc import Sequence

from stages.artifacts import KINDS, SIZE_NAMES, Artifact, numbers
from stages.errors import BadValues, Mismatch, listed


def agree(size: str, *artifacts: Artifact | None) -> int:
    """The size ("n", "d" or "C") that all these artifacts share; None stands for an artifact that was not given.

    Raises:
        Mismatch: two of them differ.
    """
    first, *others = [artifact for artifact in artifacts if artifact is not None]
    for other in others:
        if other.sizes[size] != first.sizes[size]:
            raise Mismatch(
                f"has {other.sizes[size]} {SIZE_NAMES[size]}, where {first.path} has {first.sizes[size]}",
                where=other.path,
                do="give artifacts that were made from one another",
            )
    return first.sizes[size]


def check_lineage(artifact: Artifact, **inputs: Artifact | None) -> None:
    """Hold an artifact's recorded inputs against the files given now.

    Raises:
        Mismatch: the artifact was made from another version of an input.
    """
    for name, given in inputs.items():
        recorded = artifact.metadata.inputs.get(name)
        if given is not None and recorded is not None and recorded != given.fingerprint:
            raise Mismatch(
                f"was made from other {name} than {given.path} holds",
                where=artifact.path,
                do=f"run `nsf {KINDS[artifact.kind].stage}` again",
            )


def check_model(features: Artifact, head: Artifact | None) -> None:
    """Refuse a head, a base one or an update's, of another model than the one that the features were extracted with.

    Raises:
        Mismatch: both files say which model they are of, and it is not the same.
    """
    ours, theirs = (each.metadata.inputs.get("model") if each is not None else None for each in (features, head))
    if head is not None and ours is not None and theirs is not None and ours != theirs:
        raise Mismatch(
            f"is the head of another model than the one that {features.path} was extracted with",
            where=head.path,
            do="give features and head of one model",
        )


def check_names(features: Artifact, classes: int, source: Artifact | None) -> None:
    """Refuse features that number other classes than `source`, the artifact that `classes` comes from, by their names.

    Raises:
        Mismatch: the features name another number of classes, or `source` has other names, or others at these numbers.
    """
    ours = features.metadata.class_names
    if ours is None:
        return
    if len(ours) != classes:
        held = f"{source.path} has {classes}" if source is not None else f"its labels are 0 to {classes - 1}"
        raise Mismatch(
            f"names {len(ours)} classes, and {held}",
            where=features.path,
            do="give samples of every class, and the head of the model that these features come from",
        )
    theirs = source.metadata.class_names if source is not None else None
    # Where a file names no classes, later ones carry their numbers.
    named = [names for names in (ours, theirs) if names is not None and list(names) != numbers(classes)]
    if source is not None and len(named) == 2 and (number := _first_other(*named)) is not None:
        raise Mismatch(
            f"calls class {number} '{named[0][number]}', and {source.path} calls it '{named[1][number]}'",
            where=features.path,
            do="give features that number the same classes in the same order",
        )


def _first_other(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first number at which the names differ (see `comparable`); None where there is none."""
    for number, (our, their) in enumerate(zip(*comparable(ours, theirs), strict=False)):
        if our != their:
            return number
    return None


def comparable(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of classes as they are to be compared: whatever their capitals, unless these tell classes apart ("a", "A")."""
    folded = [name.casefold() for name in ours], [name.casefold() for name in theirs]
    if any(len(set(names)) < len(names) for names in folded):
        return list(ours), list(theirs)
    return folded


def check_known(features: Artifact, classes: int, source: Artifact | None, *, do: str) -> None:
    """Refuse labels beyond the classes of `source`, the artifact that `classes` comes from.

    Raises:
        Mismatch: a label is beyond the classes, or the features name others (`check_names`).
    """
    highest = int(features["labels"].max())
    if highest >= classes:
        raise Mismatch(
            f"holds label {highest}, where {source.path if source else 'the head'} has {classes} classes "
            f"(0 to {classes - 1})",
            where=features.path,
            do=do,
        )
    check_names(features, classes, source)


def check_labels(features: Artifact, classes: int | None = None, *, source: Artifact | None = None) -> int:
    """The number of classes C, after checking that every class has a sample.

    Args:
        features: a features artifact that a stage is fitted on.
        classes: C where it is known from elsewhere; otherwise the highest label says it.
        source: the artifact that `classes` comes from, for the sentence.

    Raises:
        Mismatch: a label is beyond the classes, or the features name others (`check_names`).
        BadValues: fewer than two classes, or a class with no sample.
    """
    if classes is not None:
        check_known(features, classes, source, do="give the head of the model that these features come from")
    highest = int(features["labels"].max())
    if highest >= features.sizes["n"]:
        # More classes than samples: told here, for a count of so many classes may not even fit into memory.
        raise BadValues(
            f"holds label {highest} among {features.sizes['n']} samples, so that a class has no sample",
            where=features.path,
            do="number the classes 0, 1, 2, ... without gaps",
        )
    counts = features.class_sizes(classes or 0)
    if classes is None:
        check_names(features, len(counts), source)
    if len(counts) < 2:
        raise BadValues("holds one class only", where=features.path, do="give samples of at least two classes")
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        names = features.class_names(len(counts))
        beside = f", and {source.path} has {len(counts)} classes" if source is not None else ""
        raise BadValues(
            f"there is no sample of class {listed([names[index] for index in empty])}{beside}",
            where=features.path,
            do="give at least one sample of every class, or number the classes without gaps",
        )
    return len(counts)


def check_training(
    training: Artifact, features: Artifact, head: Artifact | None, classes: int, *, source: Artifact | None
) -> None:
    """Refuse features of a training split that do not go with those of the validation split.

    Args:
        training, features: of the training split, and of the validation split that a head is fitted to.
        source: the artifact that `classes` comes from, for the sentence.

    Raises:
        Mismatch: they are of another model, or number other classes.
        BadValues: a class has no sample, or they are the validation split's own.
    """
    agree("d", features, training)
    check_model(training, head)
    check_labels(training, classes, source=source)
    check_names(training, classes, features)
    if training.fingerprint == features.fingerprint:
        raise BadValues(
            "holds the samples that the new head is fitted to", where=training.path, do="give features of the training split"
        )
