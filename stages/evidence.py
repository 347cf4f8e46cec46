"""What speaks for and against a repair: the new head out of fold, its minority, and the base head's probabilities.

Nothing here reads a group label. docs/method.md, "When the base head is kept", has the rules, and the bounds' measurements
stand in docs/method-choices.md.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import distributed
from stages.identify import LEAST_TO_TELL, NOT_BIASED, Identified, Verdict, assess
from stages.logistic import Moments, balanced, folds, held_out
from stages.mixture import Mixture
from stages.passes import best, group_means, predict
from stages.reliance import logits_of
from stages.retraining import PENALTIES, Retrained, likelihood, worst_quarter
from stages.runtime import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features

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
# Of two classes, what a repair recovers at least where it is dear: it lowers the classes' accuracy by so much, and nothing
# that the base head leans on has come apart from the classes (TOO_SURE). Hard samples of an unbiased model come near it.
DEAR = -0.04
LEAST_RECOVERED_DEAR = 0.6
# Of more than two classes, in place of LEAST_TOGETHER: what it recovers less the completed minority's mirror, at
# least, unless it is no worse at the classes than the base head. Several look-alike classes come near it without a bias.
LEAST_OF_BOTH = 1.24
# The completed minority's mirror up to which it speaks for a bias where the verdict could not tell, or was "not biased" with
# a mirror up to DOUBTED.
TELLING_MIRROR = -0.6
DOUBTED = -0.1
# A head that is so much better at the classes needs no other evidence: the base head errs on what is plentiful here.
PLAINLY_BETTER = 0.1
# Of more than two classes, what the nearest centroid draws away is scarce where it is fewer samples than these, and less
# than this share of all: a handful over so many pairs of classes, in a split about as biased as the model, of which
# cross-validation tells nothing. In a small split as many are a plain minority.
LEAST_FOUND = 30
LEAST_FOUND_SHARE = 0.01
# Where the base head makes between so many times the errors that its probabilities expect, it is calibrated: no attribute
# that it leans on has come apart from the classes. If plain retraining then gains so many nats a sample, the split couples
# something that the model does not use.
CALIBRATED = (0.7, 1.4)
LEAST_UNUSED = 0.045
# And, of two classes and a base head that is not too sure of itself, if plain retraining gains so many nats for each of the
# base head's errors: it mends what the minority is told by, be it that the split couples something that the model does not
# use, or that it couples what the model leans on a little, and no more. The minority found is then the hard part of either.
MENDED = 0.4
# Of two classes, a new head trades one minority for another where it is so much less accurate than the base head on the
# minority that its own errors lead to, and loses so many times as much there as it gains on the minority it was made for.
BROKEN = 0.3
TRADED = 1.5
# What the base head's logits are tried times, so that their scale alone gains nothing.
SCALES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3)
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
# A new head is worse on the training split where its class-balanced accuracy there is lower by this, or by all that the
# base head errs on the validation split, than the base head's, and than its own on the validation split.
MOST_LOST = 0.05
# A base head neglects a class where other biases alone, for which every class weighs the same, are so much better at its
# worst class.
NEGLECTED = 0.02


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
        found, samples: how many the nearest centroid draws away, and of how many.
        lost: class-balanced accuracy that the new head lacks on the training split, to the base head's there or its own, out
            of fold, on the validation split, whichever is lower; None where no training split is given, or no base head.
        given_up: whether the new head has fewer samples right than the base head, out of fold, of a class too small for
            *better*.
        wrong: class-balanced share of errors of the base head; None where *better* is.
        raised: accuracy of the new head, out of fold, on the completed minority, less the base head's; None without either.
        broken: of two classes, accuracy of the base head, less the new head's, out of fold, on the minority that the mixture
            completes from the new head's errors; None without one of LEAST_TO_TELL samples.
    """

    mirror: float | None = None
    recovered: float | None = None
    gained: float | None = None
    shared: float | None = None
    better: float | None = None
    errors: float | None = None
    unused: float | None = None
    classes: int = 2
    found: int | None = None
    samples: int | None = None
    lost: float | None = None
    given_up: bool = False
    neglected: float | None = None
    wrong: float | None = None
    raised: float | None = None
    broken: float | None = None

    def plainly_shared(self) -> bool:
        """Whether one class's minority tells where another's lies."""
        found = self.mirror is not None and self.mirror <= MOST_MIRROR_SHARED
        return found and self.shares()

    def shares(self) -> bool:
        """Whether *shared* is what it is at least where one class's minority tells of another's."""
        return self.shared is not None and self.shared >= (PLAINLY_SHARED if self.classes == 2 else PLAINLY_SHARED_SEVERAL)

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

    def mended(self) -> bool:
        """Whether plain retraining mends what the minority is told by."""
        if self.classes > 2 or self.plainly_shared() or self.plainly_better():
            return False
        if self.errors is None or self.unused is None or not self.wrong:
            return False
        return self.errors < TOO_SURE and self.unused >= MENDED * self.wrong

    def trades(self) -> bool:
        """Whether the new head loses more on samples that lie together than it gains on the minority it was made for."""
        if self.broken is None or self.raised is None:
            return False
        return self.broken >= BROKEN and self.broken >= TRADED * self.raised

    def worse_in_training(self) -> bool:
        """Whether the new head leans on what goes with the class in the validation split, and not in the training split.

        A model's features tell the classes of its training samples apart the better, so that a head is as good there as on
        other samples of their kind; what it loses there it had from what the two splits do not share.
        """
        most = MOST_LOST if self.wrong is None else min(MOST_LOST, self.wrong)
        return self.lost is not None and self.lost > 0 and self.lost >= most

    def loss(self) -> str:
        """What is lost on the training split, in words."""
        return f"its accuracy is {self.lost or 0:.2f} lower on the training split, which lacks the validation split's bias"

    def dear(self) -> bool:
        """Whether a repair costs accuracy on the classes, and the base head is not too sure of itself."""
        costs = self.better is not None and self.better <= DEAR
        return costs and self.errors is not None and self.errors < TOO_SURE

    def too_sure(self, errors: float = TOO_SURE, unused: float = LEAST_UNUSED) -> bool:
        """Whether what the base head leans on has come apart from the classes, and plain retraining finds something else."""
        return self.errors is not None and self.errors >= errors and (self.unused or 0.0) >= unused

    def far_too_sure(self) -> bool:
        """Whether it is too sure by so much that a verdict of "not biased" does not hold."""
        return self.too_sure(FAR_TOO_SURE, MUCH_UNUSED)

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

    def scarce(self) -> bool:
        """Whether the minority that all begins with is a handful for more than two classes."""
        if self.classes == 2 or self.found is None or self.samples is None:
            return False
        return self.found < min(LEAST_FOUND, LEAST_FOUND_SHARE * self.samples)

    def lacks(self, verdict: Verdict) -> str | None:
        """The first condition of a repair under this verdict that does not hold, in words; None where all hold."""
        if self.plainly_better():
            return None
        if self.scarce():
            return f"{self.found} minority samples are too few to repair {self.classes} classes by"
        if verdict.mirror is None or self.mirror is None or self.recovered is None:
            return "cross-validation shows no reliable gain"
        if not self.mirrored():
            most = MOST_MIRROR_SHARED if self.shares() else MOST_MIRROR
            return _no_gain("mirror of the completed minority", self.mirror, f"at most {most:g}")
        if self.recovered < (least := self.least_recovered()):
            return _no_gain("recovered", self.recovered, f"at least {least:g}")
        if not self.plainly_shared():
            of, least = (verdict.mirror, LEAST_TOGETHER) if self.classes == 2 else (self.mirror, LEAST_OF_BOTH)
            no_worse = self.classes > 2 and self.better is not None and self.better >= 0
            if not no_worse and self.recovered - of < least:
                return _no_gain("recovered - mirror", self.recovered - of, f"at least {least:g}")
        least = 0.0 if self.classes > 2 or self.mirror <= CLEAR_MIRROR else LEAST_GAINED
        if self.gained is not None and self.gained < least:
            return _no_gain("gained", self.gained, f"at least {least:g}")
        return None

    def least_recovered(self) -> float:
        """What a repair recovers at least."""
        if self.plainly_shared():
            return LEAST_RECOVERED_SHARED
        return LEAST_RECOVERED_DEAR if self.classes == 2 and self.dear() else LEAST_RECOVERED

    def against(self, verdict: Verdict) -> str | None:
        """Why the base head is to be kept under a verdict of "biased", in words; None where nothing speaks for that."""
        if (lacking := self.lacks(verdict)) is not None:
            return lacking
        if self.worse_in_training():
            return self.loss()
        if self.split_alone():
            return "in the validation split an attribute goes with the class, and the model does not seem to use it"
        if self.mended():
            return "plain retraining alone mends the base head, so that the minority may be no spurious attribute's"
        if self.trades():
            return (
                f"the new head breaks more than it mends (accuracy {-(self.broken or 0):+.2f} on samples that its errors "
                f"lead to, {self.raised or 0:+.2f} on the minority)"
            )
        return "the new head is worse at a class that has few validation samples" if self.given_up else None


def _no_gain(name: str, value: float, asked: str) -> str:
    """That a measure of docs/method.md falls short, in words."""
    return f"cross-validation shows no reliable gain ({name} {value:.3f}, {asked} is asked for)"


def doubted(verdict: Verdict) -> bool:
    """Whether a verdict is "not biased", but by so little that the completed minority may say otherwise."""
    return verdict.bias == NOT_BIASED and verdict.mirror is not None and verdict.mirror <= DOUBTED


def weigh(
    features: "Tensor",
    labels: "Tensor",
    nearest: "Tensor",
    new: Retrained,
    base: "tuple[Tensor, Tensor] | None",
    known: "Calibration | None" = None,
    *,
    classes: int,
    seed: int = 0,
    progress: Progress = silent,
) -> Evidence:
    """The evidence for a repair, from the samples that it was made on, and what is known of the base head.

    Args:
        features, labels, nearest: (n, d), (n,) and (n,) int64, the class of the nearest centroid.
        seed: of the folds by which the new head's errors are completed.
    """
    attributes = new.attributes
    minority = attributes != labels
    centroids = group_means(features, labels, classes)
    completed = assess(features, labels, Identified(centroids, attributes, minority))
    recovered = gained = better = wrong = errors = unused = raised = broken = None
    given_up = False
    if bool(minority.any()) and not bool(minority.all()):
        recovered = float(new.right[minority].double().mean() + new.right[~minority].double().mean()) - 1
    if base is not None:
        groups = labels * classes + attributes
        before = predict(features, *base) == labels
        gained = worst_quarter(new.right, groups) - worst_quarter(before, groups)
        if recovered is not None:
            raised = -_lost_on(minority, before, new.right)
        if classes == 2 and not bool(new.right.all()):
            led_to = _led_to(features, labels, new, seed, progress)
            broken = _lost_on(led_to, before, new.right) if int(led_to.sum()) >= LEAST_TO_TELL else None
        if few := too_few(labels, classes):
            given_up = any(int(new.right[labels == index].sum()) < int(before[labels == index].sum()) for index in few)
        else:
            weights = balanced(labels, classes).double()
            better = float(weights[new.right].sum() - weights[before].sum())
            wrong = 1 - float(weights[before].sum())
    if known is not None:
        errors, unused = known.errors, known.unused
    return Evidence(
        mirror=completed.mirror,
        recovered=recovered,
        gained=gained,
        shared=new.shared,
        better=better,
        wrong=wrong,
        errors=errors,
        unused=unused,
        classes=classes,
        found=int((nearest != labels).sum()),
        samples=len(labels),
        given_up=given_up,
        raised=raised,
        broken=broken,
    )


def _led_to(features: "Tensor", labels: "Tensor", new: Retrained, seed: int, progress: Progress) -> "Tensor":
    """The samples (n,) bool, of two classes, that the mixture names otherwise when it starts from the new head's errors."""
    import torch

    mixture = Mixture.of(features, labels, 2, new.scaling, seed)
    names, _ = mixture.settle(torch.where(new.right, labels, 1 - labels), progress)
    return names != labels


def _lost_on(members: "Tensor", before: "Tensor", now: "Tensor") -> float:
    """The accuracy that is lost on these samples (n,) between two of what is right (n,), bool each."""
    return float(before[members].double().mean() - now[members].double().mean())


def lost_in_training(
    features: "Features",
    labels: "Tensor",
    base: "tuple[Tensor, Tensor]",
    new: Retrained,
    fitted: "Tensor",
    *,
    progress: Progress = silent,
) -> float | None:
    """The accuracy that a new head lacks on the training split, see `Evidence.lost`; below zero where it lacks none.

    Classes of fewer than LEAST_OF_CLASS training samples have no say; None where fewer than two have one.

    Args:
        features, labels: (m, d), (m,) of the training split, or of any part of it.
        base: the base head (C, d), (C,).
        new: the new head.
        fitted: labels (n,) of the samples it was fitted to.
    """
    import torch

    classes = len(base[1])
    sizes = distributed.summed(torch.bincount(labels, minlength=classes))
    counted = sizes >= LEAST_OF_CLASS
    if int(counted.sum()) < 2:
        return None
    guesses = best(features, [base, (new.weight, new.bias)], what="training split", progress=progress)
    before, after = (float(class_means(guess == labels, labels, sizes)[counted].mean()) for guess in guesses)
    # The same samples in every process.
    with distributed.alone():
        here = float(class_means(new.right, fitted, torch.bincount(fitted, minlength=classes))[counted].mean())
    return min(before, here) - after


def class_means(of_samples: "Tensor", labels: "Tensor", sizes: "Tensor") -> "Tensor":
    """The share of each class (C,) float64, of so many samples, for which this (n,) bool is true; over all processes."""
    import torch

    return distributed.summed(torch.bincount(labels[of_samples], minlength=len(sizes))).double() / sizes


def too_few(labels: "Tensor", classes: int) -> list[int]:
    """The classes of fewer than LEAST_OF_CLASS samples."""
    import torch

    few: list[int] = (torch.bincount(labels, minlength=classes) < LEAST_OF_CLASS).nonzero().flatten().tolist()
    return few


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
