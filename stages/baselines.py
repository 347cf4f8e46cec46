"""What NSF is compared with: other ways to a new last layer from the same features, one function each.

A baseline takes validation features (n, d) float32, labels (n,) int64 and the base head (C, d), (C,), with every class among
the labels, and gives a head of the same shapes on the features as they are. Each is written from its paper; where that
leaves a choice, or trains by steps of SGD what is convex, the docstring says what is done here.

Logistic regression is on standardised features and has scikit-learn's `C`: the loss is a weighted mean, and the penalty
||W||^2 / (2 n C). (Two classes have a row each, where scikit-learn has one: C here is 2 C there.)
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

from stages import logistic
from stages.auto import repair
from stages.eliminate import eliminate
from stages.identify import identify
from stages.neutralize import neutralize
from stages.passes import predict
from stages.update import select, update

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features

Head: TypeAlias = "tuple[Tensor, Tensor]"

# Of the heads that are pulled toward the base head: L-BFGS steps at most, and where it stops.
ITERATIONS = 200
GRADIENT_TOLERANCE = 1e-6
CHANGE_TOLERANCE = 1e-9


# ------------------------------------------------------------------------------------------------ logistic regression


def erm(features: "Tensor", labels: "Tensor", base: Head) -> Head:
    """The base head as it is (empirical risk minimisation)."""
    return base


def last_layer(features: "Tensor", labels: "Tensor", base: Head, *, C: float) -> Head:
    """Plain last-layer retraining: L2 logistic regression, every sample alike."""
    import torch

    return _logistic(features, labels, torch.ones_like(labels, dtype=torch.float32), base, C)


def class_balanced(features: "Tensor", labels: "Tensor", base: Head, *, C: float) -> Head:
    """The same with each class weighing the same: weights inverse to the class's size."""
    return _logistic(features, labels, _inverse_sizes(labels), base, C)


def jtt(features: "Tensor", labels: "Tensor", base: Head, *, lambda_up: float, C: float) -> Head:
    """Just Train Twice (Liu et al., ICML 2021, section 3.1), its second training on the last layer alone.

    Samples that the base head gets wrong weigh `lambda_up`, all others 1. The paper's first model is an early-stopped one
    and its error set comes from the training split; here it is the base head, and the validation split's.
    """
    import torch

    wrong = predict(features, *base) != labels
    return _logistic(features, labels, torch.where(wrong, float(lambda_up), 1.0), base, C)


def _logistic(features: "Tensor", labels: "Tensor", weights: "Tensor", base: Head, C: float) -> Head:
    """The L2 logistic regression with these sample weights (n,), which are brought to sum 1."""
    scaling = logistic.moments(features)
    heads = logistic.fit(
        features,
        labels,
        (weights / weights.sum()).unsqueeze(0),
        classes=len(base[1]),
        penalty=1 / (len(labels) * C),
        scaling=scaling,
    )
    weight, bias = heads.on_features(scaling)
    return weight[0], bias[0]


def _inverse_sizes(labels: "Tensor") -> "Tensor":
    """1 / (how many samples the class has), (n,) float32 for each sample."""
    import torch

    return 1 / torch.bincount(labels)[labels].to(torch.float32)


# ---------------------------------------------------------------------------------------------------- with group labels


def groups_of(labels: "Tensor", attributes: "Tensor") -> "Tensor":
    """A number (n,) int64 for class x attribute, sorted by class, then attribute; attribute -1 is one like the others."""
    import torch

    # Numbers of attributes may be as large as integers are.
    values, numbers = torch.unique(attributes, return_inverse=True)
    groups: Tensor = labels * len(values) + numbers
    return groups


def dfr(
    features: "Tensor", labels: "Tensor", base: Head, *, attributes: "Tensor", C: float, subsets: int = 10, seed: int = 0
) -> Head:
    """Deep Feature Reweighting (Kirichenko, Izmailov, Wilson, ICLR 2023, section 4): an oracle, for it reads group labels.

    L1 logistic regression on standardised features of a random subset with as many samples of every group as the
    smallest group has; the mean of the heads of several subsets (they take 10, or 20). The solver is liblinear, as in the
    paper's experiments: it also shrinks the intercept, and takes more than two classes one against the rest.

    Args:
        attributes: (n,) int64; a sample of unknown attribute (-1) is in no group and left out. Every class has a group.
        C: scikit-learn's, inverse to the L1 penalty.
        subsets: how many heads are averaged.
        seed: of the subsets and of the solver.
    """
    import torch

    classes, width = base[0].shape
    scaling = logistic.moments(features)
    groups = groups_of(labels, attributes)
    found = torch.unique(groups[attributes >= 0])
    rows = [(groups == group).nonzero().flatten() for group in found]
    smallest = min(len(members) for members in rows)
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.zeros(classes, width, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    for _ in range(subsets):
        drawn = [torch.randperm(len(members), generator=generator)[:smallest] for members in rows]
        subset = torch.cat([members[chosen.to(members.device)] for members, chosen in zip(rows, drawn, strict=True)])
        standardised = (features[subset] - scaling.mean) / scaling.deviation
        # Of two classes, one against the other says all, and the first class keeps logit zero.
        for index in range(1, 2) if classes == 2 else range(classes):
            coefficients, intercept = _liblinear(standardised, labels[subset] == index, C, seed)
            weight[index] += coefficients / subsets
            bias[index] += intercept / subsets
    heads = logistic.Heads(weight.unsqueeze(0).float(), bias.unsqueeze(0).float())
    weights, biases = heads.on_features(logistic.Moments(scaling.mean.cpu(), scaling.deviation.cpu()))
    return weights[0].to(features.device), biases[0].to(features.device)


def _liblinear(features: "Tensor", positive: "Tensor", C: float, seed: int) -> "tuple[Tensor, float]":
    """scikit-learn's binary L1 logistic regression: coefficients (d,) float64 and the intercept."""
    import torch
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", random_state=seed, max_iter=300)
    with warnings.catch_warnings():
        # A last digit that is not there yet is no news to whoever compares methods.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.cpu().numpy(), positive.cpu().numpy())
    return torch.from_numpy(model.coef_[0]).to(torch.float64), float(model.intercept_[0])


# ---------------------------------------------------------------------------------------------- toward the base head


def afr(features: "Tensor", labels: "Tensor", base: Head, *, gamma: float, pull: float) -> Head:
    """Automatic Feature Reweighting (Qiu, Potapczynski, Izmailov, Wilson, ICML 2023, section 4).

    Minimises sum_i mu_i CE(i) + pull * ||w - w_base||^2, with `afr_weights` for mu; w is weight and bias. `pull` is the
    paper's lambda. The paper takes some hundred full-batch steps of SGD; the problem is convex, and solved here.
    """
    return _pulled(features, labels, afr_weights(features, labels, base, gamma), base, pull)


def afr_weights(features: "Tensor", labels: "Tensor", base: Head, gamma: float) -> "Tensor":
    """mu (n,) float32 of sum 1, proportional to beta_y * exp(-gamma * p).

    p is the probability that the base head gives to the sample's class, beta_y the inverse of its class's size.
    """
    import torch

    weight, bias = base
    probability = torch.softmax(features @ weight.T + bias, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    raw = _inverse_sizes(labels) * torch.exp(-gamma * probability)
    return raw / raw.sum()


def misclassification_self(features: "Tensor", labels: "Tensor", base: Head, *, pull: float, seed: int = 0) -> Head:
    """Misclassification SELF (LaBonte, Muthukumar, Kumar, NeurIPS 2023, section 5): fine-tunes the base head on its errors.

    The set is `self_weights`'. The paper fine-tunes by 250 or 500 steps of SGD and tunes their rate and the set's size (20,
    100 or 500 samples of highest loss); what keeps so short a training near the base head is here the pull of
    `pull` * ||w - w_base||^2 on the solution: one hyperparameter instead of three, and no trace of the order of batches.
    Without errors there is nothing to learn from, and the base head is kept.
    """
    weights = self_weights(labels, predict(features, *base) != labels, seed=seed)
    return _pulled(features, labels, weights, base, pull) if bool(weights.any()) else base


def self_weights(labels: "Tensor", wrong: "Tensor", *, seed: int = 0) -> "Tensor":
    """Weights (n,) float32 of the samples in SELF's set: zero for those left out, sum 1, or all zero without errors.

    The set has all samples that the base head gets wrong and, drawn from each class, as many that it gets right. Every
    class weighs the same (the paper balances by sampling, of which this is the expectation), half of it on its wrong
    samples. A class with one kind alone is that kind: where nothing is wrong, as many right ones as the class with
    the most errors has wrong ones.

    Args:
        labels: (n,) int64.
        wrong: (n,) bool, whether the base head gets the sample wrong.
        seed: of the draw.
    """
    import torch

    weights = torch.zeros(len(labels), device=labels.device)
    most = int(torch.bincount(labels[wrong], minlength=1).max())
    if most == 0:
        return weights
    generator = torch.Generator().manual_seed(seed)
    present = torch.unique(labels)
    for label in present:
        errors = ((labels == label) & wrong).nonzero().flatten()
        right = ((labels == label) & ~wrong).nonzero().flatten()
        drawn = torch.randperm(len(right), generator=generator)[: len(errors) or most]
        kinds = [kind for kind in (errors, right[drawn.to(right.device)]) if len(kind)]
        for kind in kinds:
            weights[kind] = 1 / (len(present) * len(kinds) * len(kind))
    return weights


def _pulled(features: "Tensor", labels: "Tensor", weights: "Tensor", base: Head, pull: float) -> Head:
    """Minimise sum_i weights_i CE(i) + pull * (||W - W_base||^2 + ||b - b_base||^2), on the features as they are."""
    import torch
    from torch.nn.functional import cross_entropy

    weight, bias = base
    logits = features @ weight.T + bias
    step, lift = torch.zeros_like(weight, requires_grad=True), torch.zeros_like(bias, requires_grad=True)
    optimizer = logistic.lbfgs([step, lift], ITERATIONS, GRADIENT_TOLERANCE, CHANGE_TOLERANCE)

    def loss() -> float:
        optimizer.zero_grad()
        losses = cross_entropy(logits + features @ step.T + lift, labels, reduction="none")
        total = weights @ losses + pull * (step.square().sum() + lift.square().sum())
        total.backward()  # type: ignore[no-untyped-call]
        return total.item()

    optimizer.step(loss)
    return weight + step.detach(), bias + lift.detach()


# ------------------------------------------------------------------------------------------------------------- NSF


def published(
    features: "Tensor", labels: "Tensor", base: Head, *, eliminate_steps: int, update_steps: int, seed: int = 0
) -> Head:
    """NSF as published (Li et al., CVPR 2025): the stages one after the other.

    Where no sample is rescued, or none conforms, the base head is kept, as `nsf update` does.
    """
    classes = len(base[1])
    minority = identify(features, labels, classes=classes).minority
    centers = neutralize(features, labels, minority, classes=classes)
    learned = eliminate(features, labels, centers, steps=eliminate_steps)
    rescued, conforming = select(features, labels, minority, centers, learned.scale, learned.shift)
    if not bool(rescued.any()) or not bool(conforming.any()):
        return base
    new = update(
        features, labels, rescued, conforming, learned.scale, learned.shift,
        classes=classes, steps=update_steps, seed=seed,
    )  # fmt: skip
    return new.folded_weight, new.folded_bias


def auto(
    features: "Tensor", labels: "Tensor", base: Head, *, training: "tuple[Features, Tensor] | None" = None, seed: int = 0
) -> Head:
    """NSF auto (docs/method.md): it chooses its penalty itself, and keeps the base head where it sees no bias to remove.

    Args:
        training: features (m, d), labels (m,) of the training split, see `stages.auto.repair`.
    """
    repaired = repair(features, labels, base, training=training, seed=seed)
    return repaired.weight, repaired.bias


# ------------------------------------------------------------------------------------------------------ all of them


@dataclass(frozen=True)
class Baseline:
    """A baseline and what it is tuned over.

    Attributes:
        fit: the function above.
        grid: the hyperparameters to choose from, one setting each; one setting means that there is nothing to choose.
        seeded: whether it takes a `seed`.
        oracle: whether it takes the true `attributes`.
        checked: whether it takes the `training` split, on which its head is looked at.
    """

    fit: Callable[..., Head]
    grid: Sequence[Mapping[str, Any]] = ({},)
    seeded: bool = False
    oracle: bool = False
    checked: bool = False


def _grid(**values: Sequence[float]) -> list[dict[str, float]]:
    """Every combination of these values."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


# From the strongest regularisation on, for the first of two equal settings is chosen. AFR's gamma and JTT's lambda_up span
# what their papers try; published NSF has the three settings of its authors (eliminate steps / update steps).
BASELINES: Mapping[str, Baseline] = {
    "erm": Baseline(erm),
    "last-layer": Baseline(last_layer, _grid(C=[0.001, 0.01, 0.1, 1.0, 10.0])),
    "class-balanced": Baseline(class_balanced, _grid(C=[0.001, 0.01, 0.1, 1.0, 10.0])),
    "dfr": Baseline(dfr, _grid(C=[0.01, 0.03, 0.1, 0.3, 1.0]), seeded=True, oracle=True),
    "afr": Baseline(afr, _grid(pull=[1.0, 0.1, 0.01, 0.001, 0.0001], gamma=[1.0, 2.0, 4.0, 8.0, 16.0])),
    "jtt": Baseline(jtt, _grid(C=[0.001, 0.01, 0.1], lambda_up=[5.0, 20.0, 50.0, 100.0])),
    "self": Baseline(misclassification_self, _grid(pull=[1.0, 0.1, 0.01, 0.001]), seeded=True),
    "published": Baseline(
        published,
        [
            {"eliminate_steps": 10, "update_steps": 500},
            {"eliminate_steps": 350, "update_steps": 110},
            {"eliminate_steps": 1200, "update_steps": 1500},
        ],
        seeded=True,
    ),
    "auto": Baseline(auto, seeded=True, checked=True),
}
