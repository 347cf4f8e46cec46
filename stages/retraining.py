"""A new head by group-balanced logistic regression on standardised features, its strength chosen by cross-validation.

The groups are class x pseudo-attribute (`stages.attributes`) or, for an oracle, the true ones. docs/method.md, "The
regression that makes the new head", has the measurements.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.attributes import agreed, pseudo_attributes
from stages.logistic import RARITY, Heads, Moments, balanced, fit, folds, held_out, moments
from stages.mixture import Naming
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
    weights = reading_weights(labels, readings, classes, values, rarity)
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


def fitted_to_all(features: "Features", labels: "Tensor", new: Retrained, *, classes: int) -> Retrained:
    """The head fitted to all samples, with the strength that the draw chose, starting from the draw's head."""
    scaling = new.scaling
    weights = reading_weights(labels, new.readings, classes, classes, new.rarity).unsqueeze(0)
    start = Heads.of(new.weight.unsqueeze(0), new.bias.unsqueeze(0), scaling)
    heads = fit(features, labels, weights, classes=classes, penalty=new.penalty, scaling=scaling, start=start)
    weight, bias = heads.on_features(scaling)
    return replace(new, weight=weight[0], bias=bias[0])


def reading_weights(labels: "Tensor", readings: "Tensor", classes: int, values: int, rarity: float) -> "Tensor":
    """Of each sample (n,), the mean of its weights under each of the readings (K, n) in [0, values); see `balanced`."""
    import torch

    weights = torch.zeros(len(labels), device=labels.device)
    for reading in readings:
        weights += balanced(labels * values + reading, classes * values, rarity)
    return weights / len(readings)
