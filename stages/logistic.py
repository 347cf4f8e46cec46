"""Weighted multinomial logistic regression with an L2 penalty, several problems over the same features at once.

Own code around torch's L-BFGS rather than scikit-learn's, for three reasons: it runs where the features are, on a GPU too;
it standardises by algebra, where a copy of standardised features would double the memory; and the folds of a
cross-validation, which differ only in their weights, share each pass over the features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages import distributed
from stages.passes import COLUMNS, as_numpy, blocks, chosen, compiled, pool
from stages.rows import BLOCK_ROWS, Rows
from stages.runtime import Progress, silent, threads

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features

# Of a cross-validation.
FOLDS = 5
# How much more the rarer class x pseudo-attribute cells weigh: k samples weigh k^-RARITY together. A head separates the
# few that it has seen and not the next ones like them; Cao et al. (NeurIPS 2019, section 3.1) ask of a class of k samples a
# margin that goes with k^-1/4.
RARITY = 0.25
# A cell of fewer samples weighs less than the others, in proportion: one odd sample must not weigh as much as a class.
LEAST_CELL = 4

# L-BFGS: pairs it remembers, and where it stops.
HISTORY = 10
GRADIENT_TOLERANCE = 1e-4
CHANGE_TOLERANCE = 1e-7

# Values of a batch from which on it is shared among threads, and the classes beyond which a matrix product is faster than
# the compiled loop.
LEAST_SHARED = 1 << 18
MANY_CLASSES = 32
# Times its mean, the deviation of a feature that does not vary: what rounding leaves of it must not count either.
BEYOND = 1e12
# A variance below this has been made of squares that float32 holds with few digits, or none.
SMALLEST_SQUARE = 1e-30


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (d,) float32 of the features.

    A feature that does not vary has a deviation beyond anything: standardised it is nothing, and no head weighs it.
    """

    mean: "Tensor"
    deviation: "Tensor"


def moments(features: "Features") -> Moments:
    """Of features (n, d), in two passes and summed in float64: the squares of a large mean would drown the variance."""
    import torch

    samples, width = distributed.count(features.shape[0]), features.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=features.device)
    # Some columns at a time: PyTorch makes a float64 copy of what it sums.
    for (rows,) in blocks(features):
        for part, own in zip(torch.split(rows, COLUMNS, dim=1), torch.split(total, COLUMNS), strict=True):
            own += part.sum(dim=0, dtype=torch.float64)
    mean = (distributed.summed(total) / samples).to(torch.float32)
    variance = _squares(features, mean) / samples
    # Where the squares are beyond float32, or lost below it, once more in float64.
    lost = variance.isinf() | ((variance < SMALLEST_SQUARE) & (mean != 0) & (mean.double().square() < SMALLEST_SQUARE))
    if bool(lost.any()):
        variance = torch.where(lost, _squares(features, mean.to(torch.float64)) / samples, variance)
    deviation = variance.sqrt().to(torch.float32)
    # Below this a feature is a constant with rounding errors, and dividing by it would blow them up.
    constant = deviation <= 1e-6 * mean.abs().clamp(min=1e-30)
    beyond = (BEYOND * mean.abs().clamp(min=1.0)).clamp(max=torch.finfo(torch.float32).max)
    return Moments(mean, torch.where(constant, beyond, deviation))


def _squares(features: "Features", mean: "Tensor") -> "Tensor":
    """The sums of the squared differences from a mean (d,), in its precision: (d,) float64, over all processes."""
    import torch

    squares = torch.zeros_like(mean, dtype=torch.float64)
    for (rows,) in blocks(features):
        for part, middle, own in zip(*(torch.split(each, COLUMNS, dim=-1) for each in (rows, mean, squares)), strict=True):
            own += (part - middle).square_().sum(dim=0, dtype=torch.float64)
    return distributed.summed(squares)


@dataclass(frozen=True)
class Heads:
    """K linear heads on standardised features: weight (K, C, d), bias (K, C) float32."""

    weight: "Tensor"
    bias: "Tensor"

    @classmethod
    def of(cls, weight: "Tensor", bias: "Tensor", scaling: Moments) -> "Heads":
        """`on_features` undone: heads (K, C, d), (K, C) on features as they are, as heads on standardised ones."""
        import torch

        offset = bias.to(torch.float64) + weight.to(torch.float64) @ scaling.mean.to(torch.float64)
        return cls(weight * scaling.deviation, offset.to(torch.float32))

    def on_features(self, scaling: Moments) -> tuple["Tensor", "Tensor"]:
        """The same heads on the features as they are: (K, C, d), (K, C)."""
        import torch

        weight = self.weight / scaling.deviation
        bias = self.bias.to(torch.float64) - weight.to(torch.float64) @ scaling.mean.to(torch.float64)
        return weight, bias.to(torch.float32)


def lbfgs(parameters: "list[Tensor]", iterations: int, gradient_tolerance: float, change_tolerance: float) -> Any:
    """PyTorch's L-BFGS with a strong Wolfe line search, without the 1.3 s of CPU that its import of a compiler takes."""
    import torch

    class Solver(torch.optim.LBFGS):
        # The function under the wrapper that imports the compiler when it is first called.
        add_param_group = getattr(
            torch.optim.Optimizer.add_param_group, "__wrapped__", torch.optim.Optimizer.add_param_group
        )

    return Solver(
        parameters, max_iter=iterations, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=gradient_tolerance, tolerance_change=change_tolerance,
    )  # fmt: skip


def fit(
    features: "Features",
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
        features: (n, d).
        labels: (n,) int64 in [0, classes).
        weights: (K, n) float32, each row of sum 1 over all processes; zero leaves a sample out.
        penalty: of the squared weights; with 1 / (n * c) the solution is scikit-learn's at C = c.
        scaling: see `moments`.
        start: where to begin, such as the solution at a stronger penalty; by default zero.
        iterations: L-BFGS steps at most.
    """
    import torch
    from torch.nn.functional import one_hot

    problems, width = weights.shape[0], features.shape[1]
    device = labels.device
    if start is None:
        start = Heads(
            torch.zeros(problems, classes, width, device=device), torch.zeros(problems, classes, device=device)
        )  # fmt: skip
    weight, bias = start.weight.clone(), start.bias.clone()
    weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
    weight.grad, bias.grad = weight_gradient, bias_gradient
    optimizer = lbfgs([weight, bias], iterations, GRADIENT_TOLERANCE, CHANGE_TOLERANCE)
    by_sample = weights.T.contiguous()

    def loss_and_gradient() -> "Tensor":
        on_features = weight / scaling.deviation
        offset = bias - on_features @ scaling.mean
        flat = on_features.reshape(problems * classes, width)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        # Blocks are the same whatever the number of processes, and float64 adds them up to the same float32.
        products = torch.zeros_like(flat, dtype=torch.float64)
        sums = torch.zeros_like(bias, dtype=torch.float64)
        for rows, targets, shares in blocks(features, labels, by_sample):
            logits = (rows @ flat.T).view(len(rows), problems, classes) + offset
            log_p = torch.log_softmax(logits, dim=2)
            truth = one_hot(targets, classes).unsqueeze(1)
            loss -= ((log_p * truth).sum(dim=2) * shares).sum(dtype=torch.float64)
            residual = (log_p.exp() - truth) * shares.unsqueeze(2)
            products += residual.view(len(rows), -1).T @ rows
            sums += residual.sum(dim=0)
        loss, products, sums = (distributed.summed(part) for part in (loss, products, sums))
        products, sums = products.to(torch.float32), sums.to(torch.float32)
        pulled = products.view_as(weight) - sums.unsqueeze(2) * scaling.mean
        weight_gradient.copy_(pulled / scaling.deviation + penalty * weight)
        bias_gradient.copy_(sums)
        return loss + penalty / 2 * weight.square().sum(dtype=torch.float64)

    with torch.no_grad():
        optimizer.step(loss_and_gradient)
    return Heads(weight.detach(), bias.detach())


def balanced(cells: "Tensor", count: int | None = None, rarity: float = 0.0) -> "Tensor":
    """Weights (n,) float32 of sum 1: a cell of k samples weighs k^-rarity, those under LEAST_CELL in proportion less.

    With rarity 0 every cell weighs the same; above it the rarer ones weigh more. Over all processes, where `count` says how
    many cells there may be.
    """
    import torch

    counts = distributed.summed(torch.bincount(cells, minlength=count or 0)).to(torch.float64)
    each = counts.clamp(min=1) ** -rarity / counts.clamp(min=LEAST_CELL)
    raw = each[cells]
    weights: Tensor = (raw / distributed.summed(raw.sum())).to(torch.float32)
    return weights


def even_biases(logits: "Tensor", labels: "Tensor", classes: int, iterations: int = 100) -> "Tensor":
    """What to add to a head's biases for every class to weigh the same: (C,) float32, of mean zero.

    Bias-corrected temperature scaling (Alexandari et al., ICML 2020, section 3.2) with class-balanced weights w: where
    sum_i w_i * CE(t * logits_i + b, y_i) is least over t > 0 and b, b / t. The logits' scale is let loose, for with that of
    a head that is too sure of itself the biases would be too large; it changes no prediction.

    Args:
        logits: (n, C) float64.
        labels: (n,) int64 in [0, classes), some of each class.
    """
    import torch
    from torch.nn.functional import one_hot

    weights = balanced(labels, classes).double().unsqueeze(1)
    truth = one_hot(labels, classes)
    # Of unit spread, so that steps in the scale and in the biases are of one size.
    spread = logits.std().clamp(min=1e-9)
    unit = logits / spread
    scale = torch.zeros(1, dtype=torch.float64, device=logits.device)
    bias = torch.zeros(classes, dtype=torch.float64, device=logits.device)
    scale.grad, bias.grad = torch.zeros_like(scale), torch.zeros_like(bias)
    of_scale, of_bias = scale.grad, bias.grad
    optimizer = lbfgs([scale, bias], iterations, GRADIENT_TOLERANCE / 100, CHANGE_TOLERANCE / 100)

    def loss_and_gradient() -> "Tensor":
        scaled = scale.exp() * unit
        log_p = torch.log_softmax(scaled + bias, dim=1)
        residual = (log_p.exp() - truth) * weights
        of_bias.copy_(residual.sum(dim=0))
        of_scale.copy_((residual * scaled).sum())
        return -(log_p * truth * weights).sum()

    with torch.no_grad():
        optimizer.step(loss_and_gradient)
    added = (bias - bias.mean()) / scale.exp() * spread
    return added.float()


def folds(samples: int, seed: int) -> "Tensor":
    """The fold (n,) int64 in which each sample is held out, on the CPU, so that every device draws alike."""
    import torch

    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed)) % FOLDS


def held_out(
    features: "Tensor",
    targets: "Tensor",
    weights: "Tensor",
    fold: "Tensor",
    *,
    classes: int,
    penalties: Sequence[float],
    scaling: Moments,
    progress: Progress = silent,
) -> tuple["list[Tensor]", Heads]:
    """Logits (n, C) of each sample by the head fitted to the other folds, for each penalty; the last penalty's heads."""
    import torch

    by_fold = torch.stack([weights * (fold != index) for index in range(FOLDS)])
    by_fold = by_fold / by_fold.sum(dim=1, keepdim=True)
    heads: Heads | None = None
    result = []
    for step, penalty in enumerate(penalties):
        progress("cross-validate", step, len(penalties))
        heads = fit(features, targets, by_fold, classes=classes, penalty=penalty, scaling=scaling, start=heads)
        weight, bias = heads.on_features(scaling)
        result.append(by_own_fold(features, weight, bias, fold))
    progress("cross-validate", len(penalties), len(penalties))
    assert heads is not None
    return result, heads


def by_own_fold(features: "Tensor", weight: "Tensor", bias: "Tensor", fold: "Tensor") -> "Tensor":
    """x @ weight[f].T + bias[f] with each sample's own fold f: (n, K) float32.

    Args:
        features: (n, d).
        weight, bias: (F, K, d), (F, K) float32.
        fold: (n,) int64 in [0, F).
    """
    import torch

    count, outputs, width = weight.shape
    flat = weight.reshape(count * outputs, width)
    result = torch.empty(len(fold), outputs, device=features.device)
    # All folds' heads in one pass, then each row's own: cheaper than gathering the rows of each fold.
    for rows, out, own in blocks(features, result, fold):
        everything = (rows @ flat.T).view(len(rows), count, outputs) + bias
        out.copy_(everything[torch.arange(len(rows), device=rows.device), own])
    return result


def cross_entropy(
    features: "Features", labels: "Tensor", rows: "Tensor", shares: "Tensor", weight: "Tensor", bias: "Tensor"
) -> tuple[float, "Tensor"]:
    """The loss of a linear head (C, d), (C,) on some rows, sum shares[k] * CE(W x + b, y), and its gradient.

    Args:
        features: (n, d).
        labels: (n,) int64 in [0, C).
        rows: (k,) int64, the rows to take, some perhaps twice.
        shares: (k,) float64.

    Returns:
        The loss, and (C, d + 1) float64: the gradient of the weight and, last, of the bias; over all processes.
    """
    import torch

    classes, width = weight.shape
    totals = torch.zeros(classes * (width + 1) + 1, dtype=torch.float64, device=weight.device)
    gradient = totals[:-1].view(classes, width + 1)
    if compiled(features) and classes <= MANY_CLASSES:
        for loss, part in _compiled(features, labels, rows, shares, weight, bias):
            totals[-1] += loss
            gradient[:-1] += part
        gradient[-1] = -gradient[:-1].sum(dim=0)
    else:
        for start, (numbers, taken) in zip(range(0, len(rows), BLOCK_ROWS), chosen(features, rows), strict=True):
            wide, weights = taken.to(torch.float64), shares[start : start + len(numbers)]
            log_p = torch.log_softmax(wide @ weight.T.to(torch.float64) + bias, dim=1)
            truth = torch.nn.functional.one_hot(labels[numbers], classes)
            totals[-1] -= ((log_p * truth).sum(dim=1) * weights).sum()
            residual = (log_p.exp() - truth) * weights.unsqueeze(1)
            gradient[:, :-1] += residual.T @ wide
            gradient[:, -1] += residual.sum(dim=0)
    distributed.summed(totals)
    return float(totals[-1]), gradient


def _compiled(
    features: "Features", labels: "Tensor", rows: "Tensor", shares: "Tensor", weight: "Tensor", bias: "Tensor"
) -> "Iterator[tuple[float, Tensor]]":
    """`cross_entropy` by the compiled loop: each thread's loss and gradient (C - 1, d + 1) of all classes but the last."""
    import torch

    from stages import kernels

    classes, width = weight.shape
    on_rows, offsets = (weight[:-1] - weight[-1]).numpy(), (bias[:-1] - bias[-1]).to(torch.float64).numpy()
    work: list[Any] = []
    for inside, part, numbers in Rows.of(features).held(rows):
        # A batch that one thread is done with sooner than others are woken stays whole.
        pieces = threads() if len(numbers) * width >= LEAST_SHARED else 1
        for which, few in zip(inside.tensor_split(pieces), numbers.tensor_split(pieces), strict=True):
            if len(few):
                work.append((as_numpy(part), few.numpy(), labels[rows[which]].numpy(), shares[which].numpy()))

    def run(task: Any) -> "tuple[float, Tensor]":
        gradient = torch.zeros(classes - 1, width + 1, dtype=torch.float64)
        x, numbers, targets, weights = task
        return kernels.slope(x, numbers, targets, weights, on_rows, offsets, gradient.numpy()), gradient

    if len(work) < 2:
        yield from map(run, work)
    else:
        yield from pool(threads()).map(run, work)
