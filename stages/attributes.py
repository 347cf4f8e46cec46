"""Pseudo-attributes: the class whose spurious attribute each sample seems to carry, from features and class labels alone.

NSF's identify (Li et al., section 3.1) finds samples that a spurious attribute drags across to another class's centroid: a
precise and incomplete minority. Here it is completed, by a mixture (`stages.mixture`) and by a classifier of the names, from
several starts, of which the best or the best several are taken. docs/method.md has the measurements.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.logistic import Moments, balanced, folds, held_out
from stages.mixture import Mixture, Naming, log_shares_of, settled
from stages.reliance import logits_of, reliance
from stages.runtime import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

# The share of a class, on average over classes, that is drawn to another one from which on a classifier of the names takes
# the model's place: the means of classes then lie between the attributes and tell them apart badly, and it has enough to
# learn from.
PLENTY = 0.1
# Of that classifier: its penalty, its rounds at most, and how much the class's own shares of the names count in the last
# round. None finds more of the minority, all of it is more precise; half the log-odds.
PENALTY = 0.3
CLASSIFIER_ROUNDS = 6
PRIOR = 0.5
# Rounds start, among others, from this share of each class, those that lie the nearest to another class's centroid: where
# classes are far apart, the nearest centroid itself draws next to nothing away.
DRAGGED = 0.1
# How often a head is repaired with what was found, so that its errors may lead to a better candidate.
REPAIRS = 3
# With more than two classes a candidate is right about some cells and wrong about others, and a head is trained on several
# at once: the classifier's, and what the base head's doubts lead to (below) or, where two ways from there do not agree,
# rounds from the nearest centroid with this many seeds of the folds, for each of these evennesses (a sample of a class x
# name cell of k has k^-evenness of a say in c and s: above 0, a cluster that one class happens to have, however many its
# samples, does not make a name's shift its own).
SEEDS = 2
EVENNESSES = (0.0, 0.65)
# The base head doubts those of a class the most whose logit of it is the least above another class's: a classifier starts
# from the first of these shares of each class, the mixture, with the last evenness, from either. They agree where Dice's
# coefficient of the classifier's minority and the mixture's, from the second, is at least so much.
DOUBTFUL = (0.1, 0.2)
AGREED = 0.4
# Where the classifier's minority is this share of the samples, at least, the split is close to even: what it makes of the
# base head's doubts then counts alone, if it agrees so much with what it makes of the nearest centroid's names.
EVEN = 0.3
EVEN_AGREED = 0.5
# Of two classes, where the nearest centroid draws plenty away, the classifier also starts from the half of each class that
# the base head doubts the most: of an even split half of each class is the minority. It counts where it agrees so much with
# what the nearest centroid leads to, the base head overuses it by so many nats, and it explains more.
HALF = 0.5
HALF_AGREED = 0.5
HALF_OVERUSED = 1.0
# With more classes than these the mixture alone names: of each class x name cell there are too few samples for a classifier,
# whose rounds lead away from what they began with.
MOST_CLASSIFIED = 10


@dataclass(frozen=True)
class Named:
    """Pseudo-attributes.

    Attributes:
        readings: (K, n) int64, the class whose spurious attribute each sample seems to carry, as K candidates have it.
        namings: what names other samples as each reading does.
        shared: nats that the features gain for each sample of the minority, given the shifts of other classes alone; far
            above zero where one class's minority tells where another's lies. None without a minority.
    """

    readings: "Tensor"
    namings: tuple[Naming, ...]
    shared: float | None

    @property
    def attributes(self) -> "Tensor":
        """What most readings say, (n,) int64."""
        return agreed(self.readings)


def agreed(readings: "Tensor") -> "Tensor":
    """The name (n,) that most of the readings (K, n) give; where as many give one as another, the earlier reading's."""
    import torch

    votes = torch.stack([(readings == reading).sum(dim=0, dtype=torch.int8) for reading in readings])
    return readings.gather(0, votes.argmax(dim=0, keepdim=True)).squeeze(0)


def pseudo_attributes(
    features: "Tensor",
    labels: "Tensor",
    nearest: "Tensor",
    *,
    classes: int,
    scaling: Moments,
    base: "tuple[Tensor, Tensor] | None" = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Named:
    """The class whose spurious attribute each sample seems to carry.

    No sample has a say in its own name: what names it is learned from the other folds.

    Args:
        features: (n, d) float32.
        labels: (n,) int64 in [0, classes), each class with at least one sample.
        nearest: (n,) int64, the class of the nearest centroid, from `identify`.
        classes: C.
        scaling: moments of the features.
        base: the base head (C, d), (C,), whose doubts are followed; without one, of more than two classes the nearest
            centroid's are.
        seed: of the folds.
    """
    import torch

    mixture = Mixture.of(features, labels, classes, scaling, seed)
    if classes > MOST_CLASSIFIED:
        return _named(mixture, _rounds(mixture, nearest, progress))
    drawn_away = torch.bincount(labels[nearest != labels], minlength=classes).double()
    plenty = float((drawn_away / torch.bincount(labels, minlength=classes)).mean()) >= PLENTY
    classified = _classified(features, labels, nearest, classes, scaling, seed, progress)
    if classes == 2:
        even = _of_half(mixture, classified, base, progress) if plenty else None
        found = [even or _searched(mixture, nearest, classified, progress)]
    else:
        found = _several(mixture, nearest, classified, plenty, base, progress)
    return _named(mixture, found)


def _named(mixture: Mixture, found: list[tuple["Tensor", Naming]]) -> Named:
    """The candidates, and what their agreement shares among classes."""
    import torch

    readings = torch.stack([names for names, _ in found])
    attributes = agreed(readings)
    share = float((attributes != mixture.labels).double().mean())
    shared = mixture.transfer(attributes) / share if share else None
    return Named(readings, tuple(naming for _, naming in found), shared)


def _several(
    mixture: Mixture,
    nearest: "Tensor",
    classified: tuple["Tensor", Naming],
    plenty: bool,
    base: "tuple[Tensor, Tensor] | None",
    progress: Progress,
) -> list[tuple["Tensor", Naming]]:
    """The candidates that a head of more than two classes is trained on.

    Those that the base head's doubts lead to, where two ways agree: a minority that both come to is hardly one of their
    making. Otherwise those that the nearest centroid leads to.
    """
    features, labels = mixture.features, mixture.labels
    small, large = _dragged(mixture.nearness() if base is None else logits_of(features, base), labels, *DOUBTFUL)
    doubted = _classified(features, labels, small, mixture.classes, mixture.scaling, mixture.seed, progress)
    share = float((doubted[0] != labels).double().mean())
    if share >= EVEN and _agreement(doubted[0], classified[0], labels) >= EVEN_AGREED:
        return [doubted]
    if plenty:
        return [classified]
    by_cell = replace(mixture, evenness=EVENNESSES[-1])
    settled = by_cell.settle(large, progress)
    if _agreement(settled[0], doubted[0], labels) >= AGREED:
        return [settled, by_cell.settle(small, progress), doubted, classified]
    return [*_rounds(mixture, nearest, progress), classified]


def _rounds(mixture: Mixture, nearest: "Tensor", progress: Progress) -> list[tuple["Tensor", Naming]]:
    """What the mixture makes of the nearest centroid's word."""
    return [
        replace(mixture, evenness=evenness, seed=mixture.seed * SEEDS + number).settle(nearest, progress)
        for number in range(SEEDS)
        for evenness in EVENNESSES
    ]


def _agreement(one: "Tensor", other: "Tensor", labels: "Tensor") -> float:
    """Dice's coefficient of the minorities of two readings (n,); a sample is in both where both name it the same."""
    both = int(((one == other) & (one != labels)).sum())
    return 2 * both / max(1, int((one != labels).sum()) + int((other != labels).sum()))


def _of_half(
    mixture: Mixture,
    classified: tuple["Tensor", Naming],
    base: "tuple[Tensor, Tensor] | None",
    progress: Progress,
) -> tuple["Tensor", Naming]:
    """What the nearest centroid leads to, of two classes and a split close to even, or half of the base head's doubts."""
    if base is None:
        return classified
    labels, logits = mixture.labels, logits_of(mixture.features, base)
    [half] = _dragged(logits, labels, HALF)
    doubted = _classified(mixture.features, labels, half, mixture.classes, mixture.scaling, mixture.seed, progress)
    one, other = (reliance(logits, labels, names, mixture.classes) for names in (doubted[0], classified[0]))
    if one is None or one.overused < HALF_OVERUSED or _agreement(doubted[0], classified[0], labels) < HALF_AGREED:
        return classified
    if other is not None and other.overused > 0 and one.explained <= other.explained:
        return classified
    return doubted


def _searched(
    mixture: Mixture, nearest: "Tensor", classified: tuple["Tensor", Naming], progress: Progress
) -> tuple["Tensor", Naming]:
    """The candidate of most merit, of two classes."""
    labels = mixture.labels
    # The nearest centroid's word, and nobody's: from there, c and s are half of each class's mean.
    starts = (nearest, labels, *_dragged(mixture.nearness(), labels, DRAGGED))
    # Where most of the minority lies near its own centroid, at times only a classifier gets there from the few that do not.
    found = [*(mixture.settle(start, progress) for start in starts), classified]
    merit, best = max(((mixture.merit(names), (names, naming)) for names, naming in found), key=lambda one: one[0])
    for _ in range(REPAIRS):
        again = mixture.settle(mixture.mistaken(best[0]), progress)
        better = mixture.merit(again[0])
        if better <= merit:
            break
        merit, best = better, again
    return best


def _dragged(scores: "Tensor", labels: "Tensor", *shares: float) -> list["Tensor"]:
    """For each of these shares, a name (n,) a sample: its own class's but for so much of each class, nearest to another one.

    Args:
        scores: how much each sample is like each class, (n, C).
    """
    import torch

    own = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
    other, closest = scores.scatter(1, labels.unsqueeze(1), -torch.inf).max(dim=1)
    margin = own - other
    dragged = [labels.clone() for _ in shares]
    for index in range(scores.shape[1]):
        members = (labels == index).nonzero().flatten()
        members = members[margin[members].argsort(stable=True)]
        for names, share in zip(dragged, shares, strict=True):
            first = members[: round(share * len(members))]
            names[first] = closest[first]
    return dragged


def _classified(
    features: "Tensor",
    labels: "Tensor",
    attributes: "Tensor",
    classes: int,
    scaling: Moments,
    seed: int,
    progress: Progress,
) -> tuple["Tensor", Naming]:
    """Names by a logistic regression in which every class x name weighs the same, in rounds.

    So weighed, the label's own features say nothing of the name.
    """
    for number in range(CLASSIFIER_ROUNDS + 1):
        progress("find groups", number, CLASSIFIER_ROUNDS + 1)
        fold = folds(len(labels), seed * (CLASSIFIER_ROUNDS + 2) + number).to(features.device)
        cells = balanced(labels * classes + attributes, classes * classes)
        [logits], heads = held_out(
            features, attributes, cells, fold, classes=classes, penalties=(PENALTY,), scaling=scaling
        )  # fmt: skip
        # The last one only says what the names before it make of the samples.
        if number == CLASSIFIER_ROUNDS:
            break
        before, attributes = attributes, logits.argmax(dim=1)
        if settled(before, attributes):
            break
    progress("find groups", CLASSIFIER_ROUNDS + 1, CLASSIFIER_ROUNDS + 1)
    log_shares = PRIOR * log_shares_of(labels, attributes, classes)
    weight, bias = heads.on_features(scaling)
    naming = Naming(weight.mean(dim=0), (bias.mean(dim=0) + log_shares).float())
    return (logits + log_shares[labels]).argmax(dim=1), naming
