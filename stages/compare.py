"""compare: NSF beside the baselines, on the same features, with mean and standard deviation over seeds.

Group labels are read for scoring on the test split and, where the validation split has them, for the rows marked "group
labels": hyperparameters chosen by them, and `dfr`, which needs them to train. All other rows never see them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, TypeAlias

from stages import artifacts, metrics
from stages.baselines import BASELINES, Baseline, Head, groups_of
from stages.errors import BadParameter, BadValues
from stages.identify import identify
from stages.lineage import agree, check_known, check_labels, check_model, check_training
from stages.logistic import FOLDS
from stages.outputs import outputs
from stages.passes import predict
from stages.runtime import Progress, begin, reproducible, silent

if TYPE_CHECKING:
    from torch import Tensor, device

    from stages.rows import Features

Setting: TypeAlias = Mapping[str, Any]
Scores: TypeAlias = Mapping[str, float | None]
# fit(rows, setting): a method fitted to these rows of the validation split.
Fit: TypeAlias = "Callable[[Tensor, Setting], Head]"

# Of the largest feature: squared and summed over all of them, a larger one would be beyond float32.
LARGEST = 1e16
# A group of fewer samples says too little to choose hyperparameters by.
LEAST_GROUP = 5
# The group of a sample whose group is unknown: it counts in the mean alone.
NO_GROUP = -1
# How a row's hyperparameters are chosen.
GROUP_FREE, GROUP_LABELS = "group-free", "group labels"
# What is reported of each row, with "_std" beside it.
MEASURES = ("worst_group_accuracy", "worst_class_accuracy", "mean_accuracy")
# In cross-validation DFR is fitted to one subset, as its paper tunes it; the chosen setting is averaged over all.
IN_FOLDS: Mapping[str, Setting] = {"dfr": {"subsets": 1}}


def compare(
    features: "Tensor",
    labels: "Tensor",
    base: Head,
    test_features: "Tensor",
    test_labels: "Tensor",
    *,
    attributes: "Tensor | None" = None,
    test_attributes: "Tensor | None" = None,
    training: "tuple[Features, Tensor] | None" = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    methods: Sequence[str] = tuple(BASELINES),
    seeds: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Fit every method to the validation split and score it on the test split, once a seed.

    Hyperparameters are those of the best worst-group accuracy in 5-fold cross-validation, mean accuracy deciding between
    equals. The groups are class x the class of the nearest centroid ("group-free"; `stages.identify`), or the true ones
    ("group labels"). Groups under 5 samples are left out of the worst, and of DFR. A seed decides folds, subsets and
    initialisations.

    Args:
        features, labels: (n, d) float32 and (n,) int64 of the validation split, at least 5 samples of every class.
        base: the base head, (C, d), (C,).
        test_features, test_labels: (m, d), (m,) of the test split.
        attributes, test_attributes: (n,), (m,) int64, -1 where unknown, or None.
        training: (m, d), (m,) of the training split, for the methods that look at their head there
            (`baselines.Baseline.checked`).
        class_names, attribute_names: by default their numbers.
        methods: names of `stages.baselines.BASELINES`, in the order of the rows.
        seeds: how many, at least 1.

    Returns:
        `seeds`; `methods`: method -> selection -> mean over seeds and standard deviation (of a sample; None of one seed) of
        the MEASURES, and `hyperparameters`, one setting a seed; `left_out`: method -> why. `worst_group_accuracy` is None
        where test has no attributes.

    Raises:
        BadParameter: an unknown method.
    """
    import torch

    names = list(dict.fromkeys(methods))
    for name in names:
        if name not in BASELINES:
            raise BadParameter(f"there is no method '{name}'", where="compare.methods", do=f"use {', '.join(BASELINES)}")
    pseudo = identify(features, labels, classes=len(base[1])).nearest
    known = _in_large_groups(labels, attributes)
    selections = {GROUP_FREE: groups_of(labels, pseudo)}
    if known is not None:
        selections[GROUP_LABELS] = torch.where(known == metrics.UNKNOWN, NO_GROUP, groups_of(labels, known))
    left_out = _left_out(names, labels, attributes, known, class_names)
    names = [name for name in names if name not in left_out]

    names_of_classes = class_names or [str(index) for index in range(len(base[1]))]
    everything = torch.arange(len(labels), device=labels.device)
    total, done = seeds * sum(len(BASELINES[name].grid) for name in names), 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress("compare", done, total)

    def score(head: Head) -> Scores:
        guesses = predict(test_features, *head).cpu()
        report = metrics.report(guesses, test_labels.cpu(), _cpu(test_attributes), names_of_classes, attribute_names)
        return {
            "worst_group_accuracy": report["worst_group_accuracy"],
            "worst_class_accuracy": min(report["classes"].values()),
            "mean_accuracy": report["mean_accuracy"],
        }

    found: dict[str, dict[str, list[tuple[Setting, Scores]]]] = {}
    for seed in range(seeds):
        for name in names:
            baseline = BASELINES[name]
            fold = stratified_folds(labels, known if baseline.oracle and known is not None else pseudo, seed)
            fit = _fitting(baseline, features, labels, base, known, training, seed)
            chosen = _choose(name, fit, features, labels, fold, selections, tick)
            scores = {best: score(fit(everything, baseline.grid[best])) for best in set(chosen.values())}
            for selection, best in chosen.items():
                found.setdefault(name, {}).setdefault(selection, []).append((baseline.grid[best], scores[best]))
    rows = {name: {selection: _summary(seen) for selection, seen in of.items()} for name, of in found.items()}
    return {"seeds": seeds, "methods": rows, "left_out": left_out}


def stratified_folds(labels: "Tensor", strata: "Tensor", seed: int) -> "Tensor":
    """The fold (n,) int64 in [0, FOLDS) that holds each sample out, spread evenly over classes and their strata (n,)."""
    import torch

    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    cells = groups_of(labels, strata)[shuffled]
    order = shuffled[torch.argsort(cells, stable=True)]
    fold = torch.empty_like(labels)
    # Dealt out like cards, cell after cell: a class of five samples has one in every fold.
    fold[order] = torch.arange(len(labels), device=labels.device) % FOLDS
    return fold


def _in_large_groups(labels: "Tensor", attributes: "Tensor | None") -> "Tensor | None":
    """The attributes with -1 for those of groups under LEAST_GROUP samples; None where no group is left."""
    import torch

    if attributes is None:
        return None
    groups = groups_of(labels, attributes)
    large = torch.bincount(groups)[groups] >= LEAST_GROUP
    kept = torch.where(large, attributes, metrics.UNKNOWN)
    return kept if bool((kept != metrics.UNKNOWN).any()) else None


def _left_out(
    names: Sequence[str],
    labels: "Tensor",
    attributes: "Tensor | None",
    known: "Tensor | None",
    class_names: Sequence[str] | None,
) -> dict[str, str]:
    """The methods that cannot run on this validation split, and why."""
    if attributes is None:
        why = "needs group labels, and the val split has no attributes"
    elif known is None:
        why = f"needs group labels, and no group of the val split has {LEAST_GROUP} samples"
    else:
        lone = sorted(set(labels.tolist()) - set(labels[known != metrics.UNKNOWN].tolist()))
        if not lone:
            return {}
        name = class_names[lone[0]] if class_names is not None else str(lone[0])
        why = f"needs group labels, and no group of class {name} has {LEAST_GROUP} samples in the val split"
    return {name: why for name in names if BASELINES[name].oracle}


def _choose(
    name: str,
    fit: Fit,
    features: "Tensor",
    labels: "Tensor",
    fold: "Tensor",
    selections: "Mapping[str, Tensor]",
    tick: Callable[[], None],
) -> dict[str, int]:
    """Which setting of the method's grid each selection, a name with the groups (n,) it looks at, takes.

    All selections look at the same held-out predictions. An oracle has the rows marked "group labels" alone; one setting
    leaves nothing to choose, and is the "group-free" row alone.
    """
    baseline = BASELINES[name]
    if len(baseline.grid) == 1:
        tick()
        return {GROUP_LABELS if baseline.oracle else GROUP_FREE: 0}
    correct = []
    for setting in baseline.grid:
        correct.append(_held_out(fit, {**setting, **IN_FOLDS.get(name, {})}, features, fold) == labels)
        tick()
    allowed = [GROUP_LABELS] if baseline.oracle else list(selections)
    merits = {selection: [_merit(each, selections[selection]) for each in correct] for selection in allowed}
    # The first of several equals.
    return {selection: values.index(max(values)) for selection, values in merits.items()}


def _fitting(
    baseline: Baseline,
    features: "Tensor",
    labels: "Tensor",
    base: Head,
    attributes: "Tensor | None",
    training: "tuple[Features, Tensor] | None",
    seed: int,
) -> Fit:
    """fit(rows, setting): the baseline on these rows. The attributes go to an oracle alone."""

    def fit(rows: "Tensor", setting: Setting) -> Head:
        given = dict(setting)
        if baseline.seeded:
            given["seed"] = seed
        if baseline.oracle and attributes is not None:
            given["attributes"] = attributes[rows]
        if baseline.checked:
            given["training"] = training
        return baseline.fit(features[rows], labels[rows], base, **given)

    return fit


def _held_out(fit: Fit, setting: Setting, features: "Tensor", fold: "Tensor") -> "Tensor":
    """The class (n,) int64 that each sample is given by the head fitted to the other folds."""
    import torch

    guesses = torch.empty_like(fold)
    for index in range(FOLDS):
        held = (fold == index).nonzero().flatten()
        guesses[held] = predict(features[held], *fit((fold != index).nonzero().flatten(), setting))
    return guesses


def _merit(correct: "Tensor", groups: "Tensor") -> tuple[float, float]:
    """Worst accuracy over the groups (n,) of at least LEAST_GROUP samples, and mean accuracy over all samples."""
    import torch

    in_group = groups != NO_GROUP
    sizes = torch.bincount(groups[in_group])
    large = sizes >= LEAST_GROUP
    right = torch.bincount(groups[in_group & correct], minlength=len(sizes))
    mean = float(correct.double().mean())
    return float((right[large].double() / sizes[large]).min()) if bool(large.any()) else mean, mean


def _summary(seen: Sequence[tuple[Setting, Scores]]) -> dict[str, Any]:
    """Mean and standard deviation of each measure over the seeds' (setting, scores)."""
    row: dict[str, Any] = {}
    for measure in MEASURES:
        values = [value for _, scores in seen if (value := scores[measure]) is not None]
        row[measure] = round(fmean(values), 6) if values else None
        row[f"{measure}_std"] = round(stdev(values), 6) if len(values) > 1 else None
    row["hyperparameters"] = [dict(setting) for setting, _ in seen]
    return row


def _on(target: "device", features: artifacts.Artifact) -> "Tensor":
    """Features (n, d) on the device where they are computed with.

    Raises:
        BadValues: float32 cannot square them, as some of the methods do.
    """
    import torch

    held = features["features"].to(target)
    highest = max(float(each.abs()) for each in torch.aminmax(held))
    if highest > LARGEST:
        raise BadValues(
            f"'features' holds values up to {highest:.0e}, and some methods square them",
            where=features.path,
            do="scale the features down",
        )
    return held


def _cpu(tensor: "Tensor | None") -> "Tensor | None":
    return None if tensor is None else tensor.cpu()


def run(
    *,
    features: Path,
    test: Path,
    head: Path,
    out: Path,
    training: Path | None = None,
    csv_out: Path | None = None,
    methods: Sequence[str] = tuple(BASELINES),
    seeds: int = 3,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The same on files: read validation and test features and the base head, write the comparison.

    Writes what it returns as JSON to `out` and, where asked, one line a row to the CSV `csv_out`, for plots. `training` is
    as `update.run` has it.

    Returns:
        What `compare` gives.

    Raises:
        UserError: an input is missing, wrong, or does not fit, a class has too few samples, or a method is unknown; nothing
            is written.
    """

    target = begin(device)
    data = artifacts.read("features", features, attributes=True)
    held_out = artifacts.read("features", test, attributes=True, option="--test")
    base = artifacts.read("head", head)
    for each in (data, held_out):
        check_model(each, base)
    agree("d", data, held_out, base)
    classes = check_labels(data, base.sizes["C"], source=base)
    check_known(held_out, classes, base, do="give test features of the same classes")
    names = data.class_names(classes)
    counts = data.class_sizes(classes)
    if int(counts.min()) < FOLDS:
        raise BadValues(
            f"class {names[int(counts.argmin())]} has {int(counts.min())} samples, and {FOLDS}-fold cross-validation needs "
            f"{FOLDS} of every class",
            where=data.path,
            do="give more validation samples",
        )
    seen = None
    if training is not None:
        seen = artifacts.read("features", training, option="--train-features")
        check_training(seen, data, base, classes, source=base)
    with outputs(features, test, head, training) as files, reproducible(0):
        files.check(out, csv_out)
        attributes = data.get("attributes")
        result = compare(
            _on(target, data),
            data["labels"].to(target),
            base.head(target),
            _on(target, held_out),
            held_out["labels"],
            attributes=None if attributes is None else attributes.to(target),
            test_attributes=held_out.get("attributes"),
            training=(seen.rows.to(target), seen.own("labels").to(target)) if seen is not None else None,
            class_names=names,
            attribute_names=held_out.metadata.attribute_names,
            methods=methods,
            seeds=seeds,
            progress=progress,
        )
        # Read once more for their fingerprints only where they may be the same.
        if data.sizes["n"] == held_out.sizes["n"] and data.fingerprint == held_out.fingerprint:
            result["notes"] = [metrics.FITTED_ON]
        files.text(out, json.dumps(result, indent=2) + "\n")
        if csv_out is not None:
            files.table(csv_out, _table(result))
    return result


def _table(result: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """One line a method and selection: for `dvc plots`."""
    columns = [f"{measure}{suffix}" for measure in MEASURES for suffix in ("", "_std")]
    yield ["name", "method", "selection", *columns]
    for method, selections in result["methods"].items():
        for selection, row in selections.items():
            name = method if selection == GROUP_FREE else f"{method} ({selection})"
            yield [name, method, selection, *(row[key] for key in columns)]
