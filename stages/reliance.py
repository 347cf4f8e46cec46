"""What a base head's own probabilities say of it: whether they are borne out, and how much it relies on an attribute.

The class labels are the judge of both. Nothing here knows a true attribute: the names are those that `stages.attributes`
finds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.logistic import balanced, lbfgs
from stages.passes import blocks

if TYPE_CHECKING:
    from torch import Tensor

# What a head's logits are tried times, so that their scale alone gains nothing.
SCALES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3)
# What keeps the scale and the names' weight finite where they tell every sample's class.
RIDGE = 1e-5
ITERATIONS = 100
TOLERANCE = 1e-9


def logits_of(features: "Tensor", head: "tuple[Tensor, Tensor]") -> "Tensor":
    """Of a head (C, d), (C,) on features (n, d): (n, C) float64."""
    import torch

    return torch.cat([rows @ head[0].T + head[1] for (rows,) in blocks(features)]).double()


def likelihood(logits: "Tensor", labels: "Tensor", groups: "Tensor", weights: "Tensor") -> float:
    """Mean log-likelihood of the labels under logits (n, C), by the weights (n,) of sum 1."""
    import torch

    log_p = torch.log_softmax(logits.double(), dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return round(float(log_p @ weights.double()), 6)


def calibrated(logits: "Tensor", labels: "Tensor", classes: int) -> tuple[float, float]:
    """A head's errors over those that its probabilities expect, and its log-likelihood with the best of SCALES.

    Every class weighs the same in both. The logits are as they are or, where that is likelier, as they would be if classes
    were of one size: that a rare class is rare is no error.

    Args:
        logits: (n, C) float64.
        labels: (n,) int64 in [0, classes).
    """
    import torch

    weights = balanced(labels, classes)
    rareness = -torch.log((torch.bincount(labels, minlength=classes) * classes / len(labels)).clamp(min=1e-9)).double()
    best, offset = -torch.inf, rareness
    for tried in (0 * rareness, rareness):
        reached = max(likelihood(scale * logits + tried, labels, labels, weights) for scale in SCALES)
        if reached > best:
            best, offset = reached, tried
    sure, guesses = torch.softmax(logits + offset, dim=1).max(dim=1)
    wrong, expected = weights[guesses != labels].double().sum(), weights.double() @ (1 - sure)
    return round(float(wrong / expected.clamp(min=1e-9 / len(labels))), 6), best


@dataclass(frozen=True)
class Reliance:
    """What an attribute says of the class, in nats of log-odds for the class that it goes with against any other.

    Attributes:
        coupled: by the samples at hand.
        relied: by the head: what it says is worth no more than the samples bear out with `relied - coupled` taken from it.
        explained: nats a sample that this adds to the likelihood of the labels, the head's logits at their best scale before
            and after.
    """

    coupled: float
    relied: float
    explained: float

    @property
    def overused(self) -> float:
        """How much more the head makes of the attribute than the samples bear out; below zero where it makes less."""
        return self.relied - self.coupled


def reliance(logits: "Tensor", labels: "Tensor", names: "Tensor", classes: int) -> Reliance | None:
    """How much a head relies on an attribute, whatever the split that it is asked on; None without a minority.

    Where p(y | x, a) ~ exp(t * logit_y + b [a = y]) is likeliest over t and b, b is what the samples add to the head's word
    on the attribute a, and with t = 0 it is all that they say of it. The difference is the head's. Every class weighs the
    same. The form is that of `logistic.even_biases`, with names in place of classes.

    Args:
        logits: (n, C) float64.
        labels: (n,) int64 in [0, classes).
        names: (n,) int64, the class whose attribute each sample carries.
    """
    import torch

    weights, own = balanced(labels, classes).double(), names == labels
    share = float(weights[own].sum() / weights.sum())
    if bool(own.all()) or share == 0:
        return None
    coupled = float(torch.tensor(share * (classes - 1) / (1 - share), dtype=torch.float64).log())
    unit = logits / logits.std().clamp(min=1e-9)
    told = torch.nn.functional.one_hot(names, classes).double()
    (_, added), best = _likeliest([unit, told], labels, weights)
    _, alone = _likeliest([unit], labels, weights)
    return Reliance(round(coupled, 6), round(coupled - added, 6), round(best - alone, 9))


def _likeliest(parts: "list[Tensor]", labels: "Tensor", weights: "Tensor") -> tuple[list[float], float]:
    """The factors of these (n, C) with which their sum, as logits, makes labels the likeliest, and the log-likelihood."""
    import torch

    weights, truth = weights.unsqueeze(1), torch.nn.functional.one_hot(labels, parts[0].shape[1])
    factors = torch.zeros(len(parts), dtype=torch.float64, device=labels.device)
    factors.grad = torch.zeros_like(factors)
    gradient = factors.grad

    def loss_and_gradient() -> "Tensor":
        log_p = torch.log_softmax(sum(factor * part for factor, part in zip(factors, parts, strict=True)), dim=1)
        residual = (log_p.exp() - truth) * weights
        gradient.copy_(torch.stack([(residual * part).sum() for part in parts]) + 2 * RIDGE * factors)
        return -(log_p * truth * weights).sum() + RIDGE * factors.square().sum()

    with torch.no_grad():
        lbfgs([factors], ITERATIONS, TOLERANCE, TOLERANCE).step(loss_and_gradient)
        return factors.tolist(), -float(loss_and_gradient())
