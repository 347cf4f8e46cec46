"""Weighted multinomial logistic regression with an L2 penalty, several problems over the same features at once.

Own code around torch's L-BFGS rather than scikit-learn's, for three reasons: it runs where the features are, on a GPU too;
it standardises by algebra, where a copy of standardised features would double the memory; and the folds of a
cross-validation, which differ only in their weights, share each pass over the features.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.passes import blocks

if TYPE_CHECKING:
    from torch import Tensor

# L-BFGS: pairs it remembers, and where it stops.
HISTORY = 10
GRADIENT_TOLERANCE = 1e-4
CHANGE_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (d,) float32 of the features; a feature that does not vary has deviation 1."""

    mean: "Tensor"
    deviation: "Tensor"


def moments(features: "Tensor") -> Moments:
    """Of features (n, d), in two passes and in float64, for the squares of a large mean would drown the variance."""
    import torch

    samples, width = features.shape
    total = torch.zeros(width, dtype=torch.float64, device=features.device)
    for (rows,) in blocks(features):
        total += rows.sum(dim=0, dtype=torch.float64)
    mean = (total / samples).to(torch.float32)
    squares = torch.zeros_like(total)
    for (rows,) in blocks(features):
        squares += (rows - mean).square_().sum(dim=0, dtype=torch.float64)
    deviation = (squares / samples).sqrt().to(torch.float32)
    # Below this a feature is a constant with rounding errors, and dividing by it would blow them up.
    constant = deviation <= 1e-6 * mean.abs().clamp(min=1e-30)
    return Moments(mean, torch.where(constant, 1.0, deviation))


@dataclass(frozen=True)
class Heads:
    """K linear heads on standardised features: weight (K, C, d), bias (K, C) float32."""

    weight: "Tensor"
    bias: "Tensor"

    def on_features(self, scaling: Moments) -> tuple["Tensor", "Tensor"]:
        """The same heads on the features as they are: (K, C, d), (K, C)."""
        import torch

        weight = self.weight / scaling.deviation
        bias = self.bias.to(torch.float64) - weight.to(torch.float64) @ scaling.mean.to(torch.float64)
        return weight, bias.to(torch.float32)


def fit(
    features: "Tensor",
    labels: "Tensor",
    weights: "Tensor",
    *,
    classes: int,
    penalty: float,
    scaling: Moments,
    start: Heads | None = None,
    iterations: int = 100,
) -> Heads:
    """Minimise for each k: sum_i weights[k, i] * CE(W_k z_i + b_k, y_i) + penalty / 2 * ||W_k||^2, z standardised.

    Args:
        features: (n, d) float32.
        labels: (n,) int64 in [0, classes).
        weights: (K, n) float32, each row of sum 1; zero leaves a sample out.
        penalty: of the squared weights; with 1 / (n * c) the solution is scikit-learn's at C = c.
        scaling: see `moments`.
        start: where to begin, such as the solution at a stronger penalty; by default zero.
        iterations: L-BFGS steps at most.
    """
    import torch
    from torch.nn.functional import one_hot

    problems, width = weights.shape[0], features.shape[1]
    device = features.device
    if start is None:
        start = Heads(
            torch.zeros(problems, classes, width, device=device), torch.zeros(problems, classes, device=device)
        )  # fmt: skip
    weight, bias = start.weight.clone(), start.bias.clone()
    weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
    weight.grad, bias.grad = weight_gradient, bias_gradient
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=GRADIENT_TOLERANCE, tolerance_change=CHANGE_TOLERANCE,
    )  # fmt: skip
    by_sample = weights.T.contiguous()

    def loss_and_gradient() -> "Tensor":
        on_features = weight / scaling.deviation
        offset = bias - on_features @ scaling.mean
        flat = on_features.reshape(problems * classes, width)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        products = torch.zeros_like(flat)
        sums = torch.zeros_like(bias)
        for rows, targets, shares in blocks(features, labels, by_sample):
            logits = (rows @ flat.T).view(len(rows), problems, classes) + offset
            log_p = torch.log_softmax(logits, dim=2)
            truth = one_hot(targets, classes).unsqueeze(1)
            loss -= ((log_p * truth).sum(dim=2) * shares).sum(dtype=torch.float64)
            residual = (log_p.exp() - truth) * shares.unsqueeze(2)
            products += residual.view(len(rows), -1).T @ rows
            sums += residual.sum(dim=0)
        pulled = products.view_as(weight) - sums.unsqueeze(2) * scaling.mean
        weight_gradient.copy_(pulled / scaling.deviation + penalty * weight)
        bias_gradient.copy_(sums)
        return loss + penalty / 2 * weight.square().sum(dtype=torch.float64)

    with torch.no_grad():
        optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return Heads(weight.detach(), bias.detach())
