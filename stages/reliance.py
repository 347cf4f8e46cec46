"""How much a base head relies on an attribute, by its logits and the class labels.

Nothing here knows a true attribute: the names are those that `stages.attributes` finds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.logistic import balanced, lbfgs
from stages.passes import blocks

if TYPE_CHECKING:
    from torch import Tensor

# What keeps the scale and the names' weight finite where they tell every sample's class.
RIDGE = 1e-5
ITERATIONS = 100
TOLERANCE = 1e-9


def logits_of(features: "Tensor", head: "tuple[Tensor, Tensor]") -> "Tensor":
    """Of a head (C, d), (C,) on features (n, d): (n, C) float64."""
    import torch

    weight, bias = head
    result = torch.empty(len(features), len(bias), dtype=torch.float64, device=features.device)
    for rows, out in blocks(features, result):
        out.copy_(rows @ weight.T + bias)
    if not bool(torch.isfinite(result).all()):
        # Beyond float32.
        for rows, out in blocks(features, result):
            out.copy_(rows.double() @ weight.double().T + bias.double())
    return result


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
