"""update.solver auto: a new head by group-balanced logistic regression, the groups found without their labels.

Goes on where NSF's identify (Li et al., section 3.1) ends: `stages.attributes` completes its minority. docs/method.md has
the measurements.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages import distributed
from stages.attributes import Naming, agreed, pseudo_attributes
from stages.identify import BIASED, CANNOT_TELL, NOT_BIASED, Identified, Verdict, assess, identify
from stages.logistic import RARITY, Heads, Moments, balanced, even_biases, fit, folds, held_out, moments
from stages.passes import blocks, group_means, predict
from stages.reliance import logits_of
from stages.rows import Rows
from stages.runtime import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features

# Penalties that are tried, from the strongest on; each starts at the solution before it.
PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.003)
# And these, where the weakest is within so much of the best, if they are better by so much: features of a fine-tuned network
# may lie in a few directions, of which the one that tells the classes is the faintest.
WEAKER = (3e-4, 3e-5, 3e-6)
AT_THE_EDGE = 0.01
PLAINLY_WEAKER = 0.03
# A group of fewer samples says nothing about accuracies.
LEAST_SCORED = 3
# Where strengths are compared, a pseudo-group's accuracy counts with so many samples of the mean accuracy beside its own.
PULL = 3
# What carries a repair, see `Evidence` and docs/method.md, "When the base head is kept": the mirror of the completed
# minority at most, what the repair recovers at least, both together at least, and the gain in the worst groups at least.
MOST_MIRROR = -0.5
LEAST_RECOVERED = 0.45
LEAST_TOGETHER = 0.78
LEAST_GAINED = 0.02
# Where classes plainly share their shifts (nats for each sample of the minority, more of them where there are more than two
# classes) less will do of the first two, and the third is not asked for; where the mirror is as clear as can be, no gain is,
# nor of more than two classes: a gain is measured on the groups that most readings agree on, and the head is of no single
# one of them.
PLAINLY_SHARED = 4.0
PLAINLY_SHARED_SEVERAL = 5.0
MOST_MIRROR_SHARED = -0.3
LEAST_RECOVERED_SHARED = 0.1
CLEAR_MIRROR = -0.85
# Of more than two classes, in place of LEAST_TOGETHER: what it recovers less the completed minority's mirror, at
# least, unless it is no worse at the classes than the base head. Several look-alike classes come near it without a bias.
LEAST_OF_BOTH = 1.24
# The completed minority's mirror up to which it speaks for a bias where the verdict could not tell, or was "not biased" with
# a mirror up to DOUBTED.
TELLING_MIRROR = -0.6
DOUBTED = -0.1
# A head that is so much better at the classes needs no other evidence: the base head errs on what is plentiful here.
PLAINLY_BETTER = 0.1
# Where the base head makes between so many times the errors that its probabilities expect, it is calibrated: no attribute
# that it leans on has come apart from the classes. If plain retraining then gains so many nats a sample, the split couples
# something that the model does not use.
CALIBRATED = (0.7, 1.4)
LEAST_UNUSED = 0.045
# What the base head's logits are tried times, so that their scale alone gains nothing.
SCALES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3)
# Groups and strength are chosen on all samples or, of more than these many values (512 MiB) and samples, on a draw of them.
SELECTION_VALUES = 1 << 27
LEAST_SELECTION = 20_000
# A draw has as many samples of each class as an even one divided by this, or all that there are.
RARE = 4
# Samples that a class must have for its accuracy to count in *better* and *neglected*, and for heads that no pseudo-groups
# are behind: below, a handful of samples would be a whole class's say.
LEAST_OF_CLASS = 20
# Where no pseudo-groups carry a repair, plain retraining may be one: under the verdict "biased", of a base head that makes
# so many times the errors that it expects, if LEAST_UNUSED is gained. What it leans on has come apart from the classes.
TOO_SURE = 1.55
# And against "not biased" where it makes so many times the errors that it expects, and that many nats are gained: more than
# flipped labels or the overconfidence of a network that has been trained for long come to.
FAR_TOO_SURE = 3.0
MUCH_UNUSED = 0.1
# A base head neglects a class where other biases alone, for which every class weighs the same, are so much better at its
# worst class.
NEGLECTED = 0.02
# And at the classes' mean by more standard errors than this.
BEYOND = 2.0
# What a new head came of: pseudo-groups, plain retraining with every class weighing the same, or the base head with other
# biases.
GROUPS, PLAIN, EVENED = "groups", "plain", "evened"


@dataclass(frozen=True)
class Retrained:
    """A new head and what cross-validation says of it.

    Attributes:
        weight, bias: (C, d), (C,) float32, on the features as they are.
        readings: (K, n) int64, the pseudo-attributes as K candidates have them: the class whose spurious attribute each
            sample carries. A sample weighs the mean of what each of them makes it weigh.
        penalty: the L2 penalty that was chosen, on standardised features.
        right: (n,) bool, whether the head fitted to the other folds gives the sample's class.
        scaling: the moments that features were standardised by.
        rarity: how much the more rare cells weigh, see `logistic.balanced`.
        namings, shared: see `attributes.Named`; nothing where the attributes were given.
    """

    weight: "Tensor"
    bias: "Tensor"
    readings: "Tensor"
    penalty: float
    right: "Tensor"
    scaling: Moments
    rarity: float = RARITY
    namings: tuple[Naming, ...] = ()
    shared: float | None = None

    @property
    def attributes(self) -> "Tensor":
        """What most readings say, (n,) int64."""
        return agreed(self.readings)


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


def repair(
    features: "Features",
    labels: "Tensor",
    base: "tuple[Tensor, Tensor] | None",
    *,
    found: Identified | None = None,
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
    drawn = draw(features, labels, found.nearest, seed=seed)
    repaired, known = _by_groups(
        features, labels, base, found, drawn,
        classes=classes, regularization=regularization, force=force, seed=seed, progress=progress,
    )  # fmt: skip
    if repaired.kept is None or base is None:
        return repaired
    if _few(drawn.labels, classes):
        return repaired
    if known is None:
        with distributed.alone():
            scaling = moments(drawn.features)
            known = calibration(drawn.features, drawn.labels, base, classes=classes, scaling=scaling, seed=seed)
    sure = repaired.evidence or Evidence(errors=known.errors, unused=known.unused, classes=classes)
    if repaired.verdict.bias == NOT_BIASED and sure.too_sure(FAR_TOO_SURE, MUCH_UNUSED):
        repaired = replace(repaired, verdict=replace(repaired.verdict, bias=BIASED), evidence=sure)
    if repaired.verdict.bias == BIASED and sure.too_sure():
        return _plainly(
            features, labels, repaired, drawn, known,
            classes=classes, regularization=regularization, seed=seed, progress=progress,
        )  # fmt: skip
    return _evened(base, repaired, drawn, classes=classes)


def _by_groups(
    features: "Features",
    labels: "Tensor",
    base: "tuple[Tensor, Tensor] | None",
    found: Identified,
    drawn: "Draw",
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
    doubted = verdict.bias == NOT_BIASED and verdict.mirror is not None and verdict.mirror <= DOUBTED
    if kept is not None and verdict.bias == NOT_BIASED and not doubted:
        return Repaired(*kept, verdict, None, f"the verdict is '{verdict.bias}'", None), None
    known = None
    with distributed.alone():
        new = retrain(
            drawn.features, drawn.labels, drawn.nearest,
            classes=classes, base=base, regularization=drawn.strength(regularization), seed=seed, progress=progress,
        )  # fmt: skip
        if base is not None:
            known = calibration(drawn.features, drawn.labels, base, classes=classes, scaling=new.scaling, seed=seed)
        evidence = weigh(drawn, new, base, known, classes=classes)
    if (verdict.bias == CANNOT_TELL or doubted) and evidence.tells(verdict):
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
        new = _fitted_to_all(features, labels, new, classes=classes)
    return Repaired(new.weight, new.bias, verdict, new, None, evidence, doubt, GROUPS), known


def _plainly(
    features: "Features",
    labels: "Tensor",
    repaired: Repaired,
    drawn: "Draw",
    known: "Calibration",
    *,
    classes: int,
    regularization: float | None,
    seed: int,
    progress: Progress,
) -> Repaired:
    """A head for which every class weighs the same, and no group more."""
    with distributed.alone():
        plain = group_balanced(
            drawn.features, drawn.labels, drawn.labels,
            classes=classes, scaling=known.scaling, regularization=drawn.strength(regularization), merit=likelihood,
            guesses=known.guesses if regularization is None else None, seed=seed, progress=progress,
        )  # fmt: skip
    plain = replace(plain, readings=labels.unsqueeze(0))
    if drawn.samples > len(drawn.labels):
        plain = _fitted_to_all(features, labels, plain, classes=classes)
    return replace(repaired, weight=plain.weight, bias=plain.bias, retrained=plain, kept=None, remedy=PLAIN)


def _few(labels: "Tensor", classes: int) -> list[int]:
    """The classes of fewer than LEAST_OF_CLASS samples."""
    import torch

    few: list[int] = (torch.bincount(labels, minlength=classes) < LEAST_OF_CLASS).nonzero().flatten().tolist()
    return few


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
    before, after, changed = (_class_means(part, labels, sizes) for part in (was, now, was != now))
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
    return Repaired(*evened, verdict, None, None, evidence, remedy=EVENED, neglected=neglected_class)


def _class_means(of_samples: "Tensor", labels: "Tensor", sizes: "Tensor") -> "Tensor":
    """The share of each class (C,) float64, of so many samples, for which this (n,) bool is true."""
    import torch

    return torch.bincount(labels[of_samples], minlength=len(sizes)).double() / sizes


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


def _fitted_to_all(features: "Features", labels: "Tensor", new: Retrained, *, classes: int) -> Retrained:
    """The head fitted to all samples, with the strength that the draw chose, starting from the draw's head."""
    scaling = new.scaling
    weights = _weights(labels, new.readings, classes, classes, new.rarity).unsqueeze(0)
    start = Heads.of(new.weight.unsqueeze(0), new.bias.unsqueeze(0), scaling)
    heads = fit(features, labels, weights, classes=classes, penalty=new.penalty, scaling=scaling, start=start)
    weight, bias = heads.on_features(scaling)
    return replace(new, weight=weight[0], bias=bias[0])


@dataclass(frozen=True)
class Evidence:
    """What cross-validation and the completed minority say of a repair; None where there is nothing to say it of.

    Attributes:
        mirror: of the samples whose pseudo-attribute is another class's, as `identify.assess` measures it.
        recovered: accuracy out of fold on this minority plus that on the rest, minus 1 (Youden's J). Zero where a head can
            do no more than trade one for the other, as with flipped labels or classes that look alike.
        gained: accuracy of the worst quarter of pseudo-groups, out of fold, less the base head's; None without a base head.
        shared: see `attributes.Named`.
        better: class-balanced accuracy, out of fold, less the base head's; None without a base head, and where a class has
            too few samples for one.
        errors: those of the base head over those that its probabilities expect; None without a base head.
        unused: nats a sample that plain, class-balanced retraining gains over the base head, out of fold; None without one.
        neglected: what the base head with other biases gains in the accuracy on its worst class; None where the classes on
            average gain nothing, or where that was not looked at.
        classes: C. Of more than two, hard samples pass for a bias more easily: the bounds are others.
        given_up: whether the new head has fewer samples right than the base head, out of fold, of a class too small for
            *better*.
    """

    mirror: float | None = None
    recovered: float | None = None
    gained: float | None = None
    shared: float | None = None
    better: float | None = None
    errors: float | None = None
    unused: float | None = None
    classes: int = 2
    given_up: bool = False
    neglected: float | None = None

    def plainly_shared(self) -> bool:
        """Whether one class's minority tells where another's lies."""
        found = self.mirror is not None and self.mirror <= MOST_MIRROR_SHARED
        least = PLAINLY_SHARED if self.classes == 2 else PLAINLY_SHARED_SEVERAL
        return found and self.shared is not None and self.shared >= least

    def mirrored(self, most: float = MOST_MIRROR) -> bool:
        """Whether the completed minority is a spurious attribute's."""
        return self.mirror is not None and (self.mirror <= most or self.plainly_shared())

    def plainly_better(self) -> bool:
        """Whether the new head is so much better at the classes that the base head must rely on something else."""
        return self.better is not None and self.better >= PLAINLY_BETTER

    def split_alone(self) -> bool:
        """Whether the validation split couples attribute and class, and the model does not use it.

        A head that leans on an attribute is too sure of itself where the split couples it less than the training data did,
        and has nothing to gain where it couples it as much.
        """
        if self.errors is None or self.unused is None:
            return False
        return CALIBRATED[0] <= self.errors <= CALIBRATED[1] and self.unused >= LEAST_UNUSED

    def too_sure(self, errors: float = TOO_SURE, unused: float = LEAST_UNUSED) -> bool:
        """Whether what the base head leans on has come apart from the classes, and plain retraining finds something else."""
        return self.errors is not None and self.errors >= errors and (self.unused or 0.0) >= unused

    def neglects(self) -> bool:
        """Whether other biases alone would be far better at the class that the base head is worst at."""
        return self.neglected is not None and self.neglected >= NEGLECTED

    def tells(self, verdict: Verdict) -> bool:
        """Whether there is a bias, though this verdict could not tell or, in doubt, said that there was none.

        Against "not biased" the mirror alone speaks: what flipped labels or several look-alike classes leave is shared, too.
        """
        if verdict.bias == NOT_BIASED:
            return self.mirror is not None and self.mirror <= TELLING_MIRROR
        # Of a handful nothing is told, however sure the base head may be.
        sure = self.too_sure() and self.mirror is not None and (self.recovered or 0.0) >= LEAST_RECOVERED
        return self.plainly_better() or self.mirrored(TELLING_MIRROR) or sure

    def carries(self, verdict: Verdict) -> bool:
        """Whether a repair under this verdict is worth its risk."""
        if self.plainly_better():
            return True
        if verdict.mirror is None or self.mirror is None or self.recovered is None or not self.mirrored():
            return False
        if self.plainly_shared():
            recovers = self.recovered >= LEAST_RECOVERED_SHARED
        elif self.classes > 2:
            no_worse = self.better is not None and self.better >= 0
            recovers = self.recovered >= LEAST_RECOVERED and (no_worse or self.recovered - self.mirror >= LEAST_OF_BOTH)
        else:
            recovers = self.recovered >= LEAST_RECOVERED and self.recovered - verdict.mirror >= LEAST_TOGETHER
        least = 0.0 if self.classes > 2 or self.mirror <= CLEAR_MIRROR else LEAST_GAINED
        return recovers and (self.gained is None or self.gained >= least)

    def against(self, verdict: Verdict) -> str | None:
        """Why the base head is to be kept under a verdict of "biased", in words; None where nothing speaks for that."""
        if not self.carries(verdict):
            return "cross-validation shows no reliable gain"
        if self.split_alone():
            return "in the validation split an attribute goes with the class, and the model does not seem to use it"
        return "the new head is worse at a class that has few validation samples" if self.given_up else None


def weigh(
    drawn: Draw, new: Retrained, base: "tuple[Tensor, Tensor] | None", known: "Calibration | None" = None, *, classes: int
) -> Evidence:
    """The evidence for a repair, from the samples that it was made on, and what is known of the base head."""
    labels, attributes = drawn.labels, new.attributes
    minority = attributes != labels
    centroids = group_means(drawn.features, labels, classes)
    completed = assess(drawn.features, labels, Identified(centroids, attributes, minority))
    recovered = gained = better = errors = unused = None
    given_up = False
    if bool(minority.any()) and not bool(minority.all()):
        recovered = float(new.right[minority].double().mean() + new.right[~minority].double().mean()) - 1
    if base is not None:
        groups = labels * classes + attributes
        before = predict(drawn.features, *base) == labels
        gained = worst_quarter(new.right, groups) - worst_quarter(before, groups)
        if few := _few(labels, classes):
            given_up = any(int(new.right[labels == index].sum()) < int(before[labels == index].sum()) for index in few)
        else:
            weights = balanced(labels, classes).double()
            better = float(weights[new.right].sum() - weights[before].sum())
    if known is not None:
        errors, unused = known.errors, known.unused
    return Evidence(completed.mirror, recovered, gained, new.shared, better, errors, unused, classes, given_up)


@dataclass(frozen=True)
class Calibration:
    """What a base head's probabilities say, beside plain, class-balanced retraining.

    Attributes:
        errors: of the base head over those that its probabilities expect.
        unused: nats a sample that plain retraining gains over it, out of fold.
        guesses: the logits (n, C) of plain retraining, out of fold, with each of PENALTIES.
        scaling: of the features.
    """

    errors: float
    unused: float
    guesses: "list[Tensor]"
    scaling: Moments


def calibration(
    features: "Tensor", labels: "Tensor", base: "tuple[Tensor, Tensor]", *, classes: int, scaling: Moments, seed: int
) -> Calibration:
    """Errors of the base head over those that its probabilities expect, and what plain retraining gains over it.

    Every class weighs the same in both. The base head's logits are as they are or, where that is likelier, as they would be
    if classes were of one size: that a rare class is rare is no error, and nothing that the model does not use. The gain is
    of the log-likelihood, in nats a sample: that of the best strength, out of fold, less that of the base head with its
    logits times the best of SCALES.

    Args:
        features: (n, d) float32.
        labels: (n,) int64 in [0, classes).
        base: the base head (C, d), (C,).
        scaling: of the features.
        seed: of the folds.
    """
    import torch

    logits, weights = logits_of(features, base), balanced(labels, classes)
    rareness = -torch.log((torch.bincount(labels, minlength=classes) * classes / len(labels)).clamp(min=1e-9)).double()
    before, offset = -torch.inf, rareness
    for tried in (0 * rareness, rareness):
        reached = max(likelihood(scale * logits + tried, labels, labels, weights) for scale in SCALES)
        if reached > before:
            before, offset = reached, tried
    sure, guesses = torch.softmax(logits + offset, dim=1).max(dim=1)
    wrong, expected = weights[guesses != labels].double().sum(), weights.double() @ (1 - sure)
    fold = folds(len(labels), seed).to(features.device)
    plain, _ = held_out(features, labels, weights, fold, classes=classes, penalties=PENALTIES, scaling=scaling)
    gain = max(likelihood(guessed, labels, labels, weights) for guessed in plain) - before
    errors = float(wrong / expected.clamp(min=1e-9 / len(labels)))
    return Calibration(round(errors, 6), round(gain, 6), plain, scaling)


def retrain(
    features: "Tensor",
    labels: "Tensor",
    nearest: "Tensor",
    *,
    classes: int,
    base: "tuple[Tensor, Tensor] | None" = None,
    regularization: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Retrained:
    """A head by L2 logistic regression on standardised features, rare class x pseudo-attribute cells weighing the more.

    The penalty is chosen out of fold: by `worse_half` of the pseudo-groups where there is one reading of them, otherwise by
    the loss that the head is fitted by, for it is made for no single reading's groups.

    Args:
        features: (n, d) float32.
        labels: (n,) int64 in [0, classes).
        nearest: (n,) int64, the class of the nearest centroid, from `identify`.
        classes: C.
        base: the base head (C, d), (C,), see `pseudo_attributes`.
        regularization: the C of `repair`; by default one of PENALTIES by cross-validation.
        seed: of the folds.
    """
    scaling = moments(features)
    named = pseudo_attributes(
        features, labels, nearest, classes=classes, scaling=scaling, base=base, seed=seed, progress=progress
    )  # fmt: skip
    new = group_balanced(
        features, labels, named.readings,
        classes=classes, scaling=scaling, regularization=regularization, rarity=RARITY,
        merit=likelihood if len(named.readings) > 1 else worse_half, seed=seed, progress=progress,
    )  # fmt: skip
    return replace(new, namings=named.namings, shared=named.shared)


def worst_quarter_of(logits: "Tensor", labels: "Tensor", groups: "Tensor", weights: "Tensor") -> float:
    """The `worst_quarter` of the groups (n,) under logits (n, C): what an oracle's strength is chosen by."""
    return worst_quarter(logits.argmax(dim=1) == labels, groups)


def worse_half(logits: "Tensor", labels: "Tensor", groups: "Tensor", weights: "Tensor") -> float:
    """Mean accuracy of the worse half of the groups (n,) under logits (n, C), each pulled toward the mean of all samples.

    The worst group alone, often a handful of samples and some of them misnamed, chooses badly (docs/method-choices.md).
    """
    right = logits.argmax(dim=1) == labels
    hits, counts = _hits(right, groups)
    return _worst((hits + PULL * right.double().mean()) / (counts + PULL), 2)


def likelihood(logits: "Tensor", labels: "Tensor", groups: "Tensor", weights: "Tensor") -> float:
    """Mean log-likelihood of the labels under logits (n, C), by the weights (n,) of sum 1."""
    import torch

    log_p = torch.log_softmax(logits.double(), dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return round(float(log_p @ weights.double()), 6)


def group_balanced(
    features: "Tensor",
    labels: "Tensor",
    attributes: "Tensor",
    *,
    classes: int,
    scaling: Moments,
    regularization: float | None = None,
    rarity: float = 0.0,
    merit: "Callable[[Tensor, Tensor, Tensor, Tensor], float]" = worst_quarter_of,
    guesses: "list[Tensor] | None" = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Retrained:
    """`retrain` with given attributes, pseudo-attributes (K, n) or, for an oracle, the true ones (n,); see `balanced`.

    Args:
        merit: how good a strength is, of logits out of fold, labels, groups by most readings, and the weights of samples.
        guesses: logits (n, C) out of fold for each of PENALTIES, with these weights and folds, where they are known already.
    """
    readings = attributes.view(-1, len(labels))
    values = int(readings.max()) + 1
    weights = _weights(labels, readings, classes, values, rarity)
    penalties = PENALTIES if regularization is None else (1 / (len(labels) * regularization),)
    fold = folds(len(labels), seed).to(features.device)
    if guesses is None:
        guesses, _ = held_out(
            features, labels, weights, fold, classes=classes, penalties=penalties, scaling=scaling, progress=progress
        )
    groups = labels * values + agreed(readings)
    merits = [merit(logits, labels, groups, weights) for logits in guesses]
    strongest = max(merits)
    for penalty in WEAKER if regularization is None else ():
        if merits[-1] < max(merits) - AT_THE_EDGE:
            break
        [logits], _ = held_out(
            features, labels, weights, fold, classes=classes, penalties=(penalty,), scaling=scaling, progress=progress
        )  # fmt: skip
        guesses, penalties = [*guesses, logits], (*penalties, penalty)
        merits.append(merit(logits, labels, groups, weights))
    best = merits.index(max(merits) if max(merits) >= strongest + PLAINLY_WEAKER else strongest)
    heads: Heads | None = None
    for step, penalty in enumerate(penalties[: best + 1]):
        progress("retrain", step, best + 1)
        heads = fit(
            features, labels, weights.unsqueeze(0), classes=classes, penalty=penalty, scaling=scaling, start=heads
        )  # fmt: skip
    progress("retrain", best + 1, best + 1)
    assert heads is not None
    weight, bias = heads.on_features(scaling)
    right = guesses[best].argmax(dim=1) == labels
    return Retrained(weight[0], bias[0], readings, penalties[best], right, scaling, rarity)


def _weights(labels: "Tensor", readings: "Tensor", classes: int, values: int, rarity: float) -> "Tensor":
    """Of each sample (n,), the mean of its weights under each of the readings (K, n) in [0, values); see `balanced`."""
    import torch

    weights = torch.zeros(len(labels), device=labels.device)
    for reading in readings:
        weights += balanced(labels * values + reading, classes * values, rarity)
    return weights / len(readings)


def worst_quarter(right: "Tensor", groups: "Tensor") -> float:
    """Mean accuracy of the worst quarter of the groups that have LEAST_SCORED samples (of four groups: of the worst)."""
    hits, counts = _hits(right, groups)
    rates = (hits / counts)[counts >= LEAST_SCORED]
    return _worst(rates, 4) if len(rates) else float(right.double().mean())


def _hits(right: "Tensor", groups: "Tensor") -> tuple["Tensor", "Tensor"]:
    """How many samples of each group (G,) are right, float64, and how many there are."""
    import torch

    _, members, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    return torch.bincount(members[right], minlength=len(counts)).double(), counts


def _worst(rates: "Tensor", part: int) -> float:
    """Mean of the lowest 1 / part of the rates (G,), of one at least.

    Rounded, so that equal settings stay equal on every machine, and the stronger penalty wins.
    """
    return round(float(rates.sort().values[: max(1, len(rates) // part)].mean()), 6)
