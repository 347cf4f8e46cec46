"""update.solver auto: a new head by group-balanced logistic regression, the groups found without their labels.

Goes on where NSF's identify (Li et al., section 3.1) ends: `stages.attributes` completes its minority, `stages.retraining`
makes the new head, `stages.evidence` says what speaks for it, and here it is decided. docs/method.md has the measurements.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages import distributed
from stages.evidence import Calibration, Evidence, calibration, class_means, doubted, lost_in_training, too_few, weigh
from stages.identify import BIASED, CANNOT_TELL, NOT_BIASED, Identified, Verdict, assess, identify
from stages.logistic import even_biases, moments
from stages.passes import blocks, predict
from stages.reliance import logits_of
from stages.retraining import Retrained, fitted_to_all, group_balanced, likelihood, retrain
from stages.rows import Rows
from stages.runtime import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features

# Groups and strength are chosen on all samples or, of more than these many values (512 MiB) and samples, on a draw of them.
SELECTION_VALUES = 1 << 27
LEAST_SELECTION = 20_000
# A draw has as many samples of each class as an even one divided by this, or all that there are.
RARE = 4
# A class is neglected only where other biases gain at the classes' mean, too, by more standard errors than this.
BEYOND = 2.0
# What a new head came of: pseudo-groups, plain retraining with every class weighing the same, or the base head with other
# biases.
GROUPS, PLAIN, EVENED = "groups", "plain", "evened"
# Why a base head is kept that has all samples right.
FAULTLESS = "it makes no mistake on the validation split, so that nothing there says where it would"


@dataclass(frozen=True)
class Repaired:
    """What came of a repair.

    Attributes:
        weight, bias: the head to use, the new or the base one.
        verdict: of `identify`, or of the second look where that could not tell or was in doubt.
        retrained: None where the verdict alone has decided, and where the base head has other biases alone.
        kept: why the base head is kept, in words; None where it is not.
        doubt: why it would have been kept, where a new head is returned all the same: by force, or for want of a base head.
        evidence: what decides beside the verdict; None where the verdict alone has decided.
        remedy: what the head came of, one of GROUPS, PLAIN and EVENED; None where the base head is kept.
        neglected: the class that the base head neglects, where EVENED is the remedy.
        refused: why no pseudo-groups are the remedy, in words, where another is.
    """

    weight: "Tensor"
    bias: "Tensor"
    verdict: Verdict
    retrained: Retrained | None
    kept: str | None
    evidence: "Evidence | None"
    doubt: str | None = None
    remedy: str | None = None
    neglected: int | None = None
    refused: str | None = None


def repair(
    features: "Features",
    labels: "Tensor",
    base: "tuple[Tensor, Tensor] | None",
    *,
    found: Identified | None = None,
    training: "tuple[Features, Tensor] | None" = None,
    classes: int | None = None,
    regularization: float | None = None,
    force: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Repaired:
    """Retrain the head where there is a bias to remove and cross-validation carries it; otherwise keep the base head.

    Where no pseudo-groups carry a repair, and the base head is too sure of itself, the new head is one for which every class
    weighs the same; where it neglects a class, it is the base head with other biases.

    Of more than SELECTION_VALUES values (and LEAST_SELECTION samples), groups and strength are chosen on a seeded draw of
    the samples, and the head is then fitted to all of them.

    Args:
        features: (n, d).
        labels: (n,) int64 in [0, C).
        base: the base head (C, d), (C,); without it the new head is returned whatever was found.
        found: what `identify` gives; made here by default.
        training: features (m, d) and labels (m,) of samples that the model was trained on: nothing is fitted to them, and a
            new head that is worse there is not returned (`evidence.Evidence.worse_in_training`).
        classes: C; by default the base head's or the highest label plus one.
        regularization: C of scikit-learn's logistic regression, with one output a class: of two classes, for which
            scikit-learn has one output, C here is its 2 C. By default cross-validated.
        force: return the new head whatever was found.
        seed: of the draw and the folds.
    """
    if classes is None:
        classes = len(base[1]) if base is not None else int(labels.max()) + 1
    if found is None:
        found = identify(features, labels, classes=classes, progress=progress)
    if base is not None and not force and not distributed.count(int((predict(features, *base) != labels).sum())):
        return Repaired(*base, assess(features, labels, found, base, progress=progress), None, FAULTLESS, None)
    drawn = draw(features, labels, found.nearest, seed=seed)
    repaired, known = _by_groups(
        features, labels, base, found, drawn, training,
        classes=classes, regularization=regularization, force=force, seed=seed, progress=progress,
    )  # fmt: skip
    if repaired.kept is None or base is None:
        return repaired
    if too_few(drawn.labels, classes):
        return repaired
    if known is None:
        with distributed.alone():
            scaling = moments(drawn.features)
            known = calibration(drawn.features, drawn.labels, base, classes=classes, scaling=scaling, seed=seed)
    sure = repaired.evidence or Evidence(errors=known.errors, unused=known.unused, classes=classes)
    if repaired.verdict.bias == NOT_BIASED and sure.far_too_sure():
        repaired = replace(repaired, verdict=replace(repaired.verdict, bias=BIASED), evidence=sure)
    if repaired.verdict.bias == BIASED and sure.too_sure():
        repaired = _plainly(
            features, labels, base, repaired, drawn, known, training,
            classes=classes, regularization=regularization, seed=seed, progress=progress,
        )  # fmt: skip
        if repaired.kept is None:
            return repaired
    return _evened(base, repaired, drawn, classes=classes)


def _by_groups(
    features: "Features",
    labels: "Tensor",
    base: "tuple[Tensor, Tensor] | None",
    found: Identified,
    drawn: "Draw",
    training: "tuple[Features, Tensor] | None",
    *,
    classes: int,
    regularization: float | None,
    force: bool,
    seed: int,
    progress: Progress,
) -> "tuple[Repaired, Calibration | None]":
    """`repair`, with pseudo-groups alone; and what is known of the base head where these were looked for."""
    verdict = assess(features, labels, found, base, progress=progress)
    # What there is to fall back on.
    kept = None if force else base
    if kept is not None and verdict.bias == NOT_BIASED and not doubted(verdict):
        return Repaired(*kept, verdict, None, f"the verdict is '{verdict.bias}'", None), None
    known = None
    with distributed.alone():
        new = retrain(
            drawn.features, drawn.labels, drawn.nearest,
            classes=classes, base=base, regularization=drawn.strength(regularization), seed=seed, progress=progress,
        )  # fmt: skip
        if base is not None:
            known = calibration(drawn.features, drawn.labels, base, classes=classes, scaling=new.scaling, seed=seed)
        evidence = weigh(
            drawn.features, drawn.labels, drawn.nearest, new, base, known, classes=classes, seed=seed, progress=progress
        )  # fmt: skip
    if training is not None and base is not None:
        evidence = replace(evidence, lost=lost_in_training(*training, base, new, drawn.labels, progress=progress))
    if (verdict.bias == CANNOT_TELL or doubted(verdict)) and evidence.tells(verdict):
        verdict = replace(verdict, bias=BIASED, mirror=evidence.mirror)
    doubt = None
    if verdict.bias != BIASED:
        doubt = f"the verdict is '{verdict.bias}'"
        if kept is not None:
            return Repaired(*kept, verdict, None, doubt, evidence), known
    new = _for_all(features, labels, found.nearest, drawn, new)
    doubt = doubt or evidence.against(verdict)
    if doubt is not None and kept is not None:
        return Repaired(*kept, verdict, new, doubt, evidence), known
    if drawn.samples > len(drawn.labels):
        new = fitted_to_all(features, labels, new, classes=classes)
    return Repaired(new.weight, new.bias, verdict, new, None, evidence, doubt, GROUPS), known


def _plainly(
    features: "Features",
    labels: "Tensor",
    base: "tuple[Tensor, Tensor]",
    repaired: Repaired,
    drawn: "Draw",
    known: "Calibration",
    training: "tuple[Features, Tensor] | None",
    *,
    classes: int,
    regularization: float | None,
    seed: int,
    progress: Progress,
) -> Repaired:
    """A head for which every class weighs the same, and no group more; kept where that is worse on the training split."""
    with distributed.alone():
        plain = group_balanced(
            drawn.features, drawn.labels, drawn.labels,
            classes=classes, scaling=known.scaling, regularization=drawn.strength(regularization), merit=likelihood,
            guesses=known.guesses if regularization is None else None, seed=seed, progress=progress,
        )  # fmt: skip
    evidence = repaired.evidence or Evidence()
    if training is not None:
        before = evidence.worse_in_training()
        evidence = replace(evidence, lost=lost_in_training(*training, base, plain, drawn.labels, progress=progress))
        # Where the groups' head was worse there, nothing may be lost: what that leaned on is at hand here, too.
        if before and (evidence.lost or 0) > 0:
            return repaired
        if evidence.worse_in_training():
            return replace(repaired, evidence=evidence, kept=evidence.loss())
    plain = replace(plain, readings=labels.unsqueeze(0))
    if drawn.samples > len(drawn.labels):
        plain = fitted_to_all(features, labels, plain, classes=classes)
    return replace(
        repaired, weight=plain.weight, bias=plain.bias, retrained=plain, evidence=evidence,
        kept=None, remedy=PLAIN, refused=repaired.kept,
    )  # fmt: skip


def _evened(base: "tuple[Tensor, Tensor]", repaired: Repaired, drawn: "Draw", *, classes: int) -> Repaired:
    """The base head with other biases, where it neglects a class; otherwise `repaired` as it is.

    A bias a class is too little to learn from a split what couples attribute and class in it, whatever the split.
    """
    import torch

    labels = drawn.labels
    with distributed.alone():
        sizes = torch.bincount(labels, minlength=classes)
        evened = base[0], base[1] + even_biases(logits_of(drawn.features, base), labels, classes)
        was, now = (predict(drawn.features, *head) == labels for head in (base, evened))
        before, after, changed = (class_means(part, labels, sizes) for part in (was, now, was != now))
    # One class's accuracy for another's is a trade, and chance may look like a bargain. The error is of the differences,
    # with one more prediction that changes: of a rare class without any nobody knows that there is none.
    spread = (changed * sizes + 1) / (sizes + 2) - (after - before).square()
    if float((after - before).mean()) <= BEYOND * float((spread / sizes).sum().sqrt()) / classes:
        return repaired
    neglected = round(float(after.min() - before.min()), 6)
    evidence = replace(repaired.evidence or Evidence(classes=classes), neglected=neglected)
    if not evidence.neglects():
        return replace(repaired, evidence=evidence)
    verdict = replace(repaired.verdict, bias=BIASED)
    neglected_class = int(before.argmin())
    return Repaired(
        *evened, verdict, None, None, evidence, remedy=EVENED, neglected=neglected_class, refused=repaired.kept
    )  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """The samples that groups and strength are chosen on, the same in every process.

    Attributes:
        features, labels, nearest: (m, d) float32, (m,), (m,).
        own, at: of this process's samples, the numbers of those drawn, and where they stand among the m.
        samples: how many there are in all.
    """

    features: "Tensor"
    labels: "Tensor"
    nearest: "Tensor"
    own: "Tensor"
    at: "Tensor"
    samples: int

    def strength(self, regularization: float | None) -> float | None:
        """The C of `repair` for the samples that were drawn: it counts samples, and the strength is to be the same."""
        return None if regularization is None else regularization * self.samples / len(self.labels)


def draw(features: "Features", labels: "Tensor", nearest: "Tensor", *, seed: int) -> Draw:
    """All samples or, where there are more than the selection is made on, a seeded draw of them, in their order."""
    import torch

    rows, device = Rows.of(features), labels.device
    counts = distributed.gathered(len(rows))
    samples, before = sum(counts), sum(counts[: distributed.rank()])
    limit = max(LEAST_SELECTION, SELECTION_VALUES // rows.shape[1])
    if samples > limit:
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        numbers = _with_every_class(distributed.rows_of_all(labels).cpu()[order], order, limit)
    else:
        numbers = torch.arange(samples)
    mine = (numbers >= before) & (numbers < before + len(rows))
    own, at = (numbers[mine] - before).to(device), mine.nonzero().flatten().to(device)
    taken = rows.tensor() if distributed.size() == 1 and samples == len(own) else distributed.rows_of_all(rows.take(own))
    classes, closest = (distributed.rows_of_all(column[own]) for column in (labels, nearest))
    return Draw(taken, classes, closest, own, at, samples)


def _with_every_class(labels: "Tensor", order: "Tensor", limit: int) -> "Tensor":
    """The first `limit` samples of an order (n,), with those of a rare class that come later in place of others; sorted.

    Args:
        labels: (n,) of the samples in this order.
    """
    import torch

    classes = int(labels.max()) + 1
    sure = torch.zeros(len(order), dtype=torch.bool)
    for label in range(classes):
        sure[(labels == label).nonzero().flatten()[: max(1, limit // (classes * RARE))]] = True
    others = (~sure).nonzero().flatten()[: limit - int(sure.sum())]
    numbers: Tensor = order[torch.cat([sure.nonzero().flatten(), others])].sort().values
    return numbers


def _for_all(features: "Features", labels: "Tensor", nearest: "Tensor", drawn: Draw, new: Retrained) -> Retrained:
    """What was found on the draw, with a pseudo-attribute for each sample of this process.

    A sample that was not drawn gets what the classifiers of all folds say of it together.
    """
    if drawn.samples == len(drawn.own):
        return new
    readings = nearest.repeat(len(new.readings), 1)
    if drawn.samples > len(drawn.labels):
        for rows, members, *outs in blocks(features, labels, *readings):
            for out, naming in zip(outs, new.namings, strict=True):
                out.copy_(naming.names(rows, members))
    readings[:, drawn.own] = new.readings[:, drawn.at]
    return replace(new, readings=readings)
