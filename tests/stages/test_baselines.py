"""Each baseline on a case whose answer is known: by hand, from scikit-learn, or from the planted bias."""

from typing import get_args

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cosine_similarity

from nsfcli.sections import Method
from stages import baselines
from stages.baselines import BASELINES, Head
from stages.eliminate import eliminate
from stages.identify import identify
from stages.logistic import moments
from stages.metrics import report
from stages.neutralize import neutralize
from stages.passes import predict
from stages.update import select, update
from tests.conftest import planted

# A head that looks at the attribute alone, which the first half of the planted features tells.
BASE: Head = (torch.tensor([[0.0] * 8, [1.0] * 4 + [0.0] * 4]), torch.zeros(2))


def three_classes(samples: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 5) of different scales, some off the origin, and labels of three classes of different sizes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(samples // 6)
    features = torch.randn(len(labels), 5, generator=generator)
    features[:, :3] += torch.nn.functional.one_hot(labels, 3)
    return features * torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0]) + torch.tensor([0.0, 50.0, 1.0, 0.0, 0.0]), labels


THREE_BASE: Head = (torch.zeros(3, 5), torch.zeros(3))


def worst(head: Head, split: dict[str, torch.Tensor]) -> float:
    guesses = predict(split["features"], *head)
    return report(guesses, split["labels"], split["attributes"], ["0", "1"])["worst_group_accuracy"]


# ------------------------------------------------------------------------------------------------ logistic regression


@pytest.mark.parametrize(("baseline", "class_weight"), [("last-layer", None), ("class-balanced", "balanced")])
@pytest.mark.parametrize("C", [0.01, 1.0])
def test_scikit_learn_s_coefficients(baseline: str, class_weight: str | None, C: float) -> None:
    features, labels = three_classes()
    scaling = moments(features)
    standardised = (features - scaling.mean) / scaling.deviation
    model = LogisticRegression(C=C, class_weight=class_weight, tol=1e-8, max_iter=1000).fit(standardised, labels)
    weight, bias = BASELINES[baseline].fit(features, labels, THREE_BASE, C=C)
    expected = torch.from_numpy(model.coef_).float()
    torch.testing.assert_close(weight * scaling.deviation, expected, atol=5e-3, rtol=0)
    # Up to a shift of all logits, which no penalty holds and no probability feels.
    offset = bias + weight @ scaling.mean - torch.from_numpy(model.intercept_).float()
    torch.testing.assert_close(offset - offset.mean(), torch.zeros(3), atol=5e-3, rtol=0)


def test_jtt_weighs_the_errors_of_the_base_head() -> None:
    split = planted()
    features, labels = split["features"], split["labels"]
    alike = baselines.jtt(features, labels, BASE, lambda_up=1, C=0.1)
    for got, expected in zip(alike, baselines.last_layer(features, labels, BASE, C=0.1), strict=True):
        assert torch.equal(got, expected)
    # Weight 3 is the same as being there three times.
    errors = predict(features, *BASE) != labels
    order = torch.cat([torch.arange(200), *[errors.nonzero().flatten()] * 2])
    scaling = moments(features)
    standardised = (features - scaling.mean) / scaling.deviation
    # scikit-learn sums its losses, and has one row for two classes: where each has its own, they share the penalty.
    C = 2 * 0.1 * 200 / len(order)
    model = LogisticRegression(C=C, tol=1e-8, max_iter=1000).fit(standardised[order], labels[order])
    weight, bias = baselines.jtt(features, labels, BASE, lambda_up=3, C=0.1)
    between = (weight[1] - weight[0]) * scaling.deviation
    torch.testing.assert_close(between, torch.from_numpy(model.coef_[0]).float(), atol=5e-3, rtol=0)
    assert worst((weight, bias), split) > worst(BASE, split)


def test_erm_is_the_base_head() -> None:
    split = planted()
    assert baselines.erm(split["features"], split["labels"], BASE) is BASE


# ---------------------------------------------------------------------------------------------------------------- dfr


def test_dfr_mends_the_worst_group_whatever_the_majority() -> None:
    split, test = planted(400), planted(400, seed=1)
    agree = (split["attributes"] == split["labels"]).nonzero().flatten()
    rows = {"as it is": torch.arange(400), "enlarged": torch.cat([torch.arange(400), agree.repeat(4)])}
    heads = {
        name: baselines.dfr(
            split["features"][chosen], split["labels"][chosen], BASE, attributes=split["attributes"][chosen], C=0.3
        )
        for name, chosen in rows.items()
    }
    assert worst(BASE, test) < 0.2
    scores = {name: worst(head, test) for name, head in heads.items()}
    assert scores["as it is"] > 0.9 and abs(scores["as it is"] - scores["enlarged"]) < 0.04
    directions = [weight[1] - weight[0] for weight, _ in heads.values()]
    assert cosine_similarity(*directions, dim=0) > 0.98


def test_dfr_of_one_subset_is_scikit_learn_s_l1_regression() -> None:
    """Groups of one size leave nothing to draw; samples of unknown attribute are not looked at."""
    features, order = three_classes(60)[0], torch.arange(60)
    labels, attributes, keep = order % 3, order // 3 % 2, order[:54]
    attributes[54:] = -1
    weight, bias = baselines.dfr(features, labels, THREE_BASE, attributes=attributes, C=0.5, subsets=3)
    scaling = moments(features)
    standardised = ((features - scaling.mean) / scaling.deviation)[keep]
    for index in range(3):
        model = LogisticRegression(C=0.5, l1_ratio=1, solver="liblinear", random_state=0, tol=1e-6, max_iter=1000)
        model.fit(standardised, labels[keep] == index)
        torch.testing.assert_close(
            weight[index] * scaling.deviation, torch.tensor(model.coef_[0]).float(), atol=1e-2, rtol=0
        )
        offset = bias[index] + weight[index] @ scaling.mean
        assert float(offset) == pytest.approx(model.intercept_[0], abs=1e-2)


def test_dfr_draws_by_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other samples, and not only another order of the solver's."""
    drawn: list[torch.Tensor] = []
    solve = baselines._liblinear
    monkeypatch.setattr(baselines, "_liblinear", lambda rows, *rest: drawn.append(rows) or solve(rows, *rest))
    split = planted()
    given = (split["features"], split["labels"], BASE)
    heads = [baselines.dfr(*given, attributes=split["attributes"], C=0.1, subsets=1, seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_dfr_with_attributes_as_large_as_integers_are() -> None:
    split = planted()
    heads = [
        baselines.dfr(split["features"], split["labels"], BASE, attributes=split["attributes"] * large, C=0.1, subsets=2)[0]
        for large in (1, 2**62, 2**63 - 1)
    ]
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[0], heads[2])


# ---------------------------------------------------------------------------------------------------------------- afr


def test_afr_s_weights_by_hand() -> None:
    """Three samples of class 0 and one of class 1; the head gives them probabilities 1/2, 4/5, 1/5 and 3/4."""
    logits = torch.tensor([[0.0, 0.0], [4.0, 1.0], [1.0, 4.0], [1.0, 3.0]]).clamp(min=1).log()
    head = (torch.eye(2), torch.zeros(2))
    weights = baselines.afr_weights(logits, torch.tensor([0, 0, 0, 1]), head, gamma=2.0)
    raw = torch.exp(-2 * torch.tensor([1 / 2, 4 / 5, 1 / 5, 3 / 4])) / torch.tensor([3.0, 3.0, 3.0, 1.0])
    torch.testing.assert_close(weights, raw / raw.sum())
    flat = baselines.afr_weights(logits, torch.tensor([0, 0, 0, 1]), head, gamma=0.0)
    torch.testing.assert_close(flat, torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]))


def test_afr_stays_at_the_base_head_or_leaves_it() -> None:
    split, test = planted(), planted(seed=1)
    given = (split["features"], split["labels"], BASE)
    for got, expected in zip(baselines.afr(*given, gamma=0, pull=1e8), BASE, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert worst(baselines.afr(*given, gamma=4, pull=0.01), test) > 0.8 > 0.2 > worst(BASE, test)


def test_the_pulled_head_is_a_minimum() -> None:
    """The gradient of the objective as it stands in the paper, in float64, vanishes there."""
    split = planted()
    features, labels = split["features"].double(), split["labels"]
    pull, weights = 0.05, baselines.afr_weights(split["features"], labels, BASE, 2.0).double()
    weight, bias = baselines.afr(split["features"], labels, BASE, gamma=2.0, pull=pull)
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="none")
    distance = (weight - BASE[0]).square().sum() + (bias - BASE[1]).square().sum()
    (weights @ losses + pull * distance).backward()
    assert weight.grad is not None and bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-4 and float(bias.grad.abs().max()) < 1e-4


# --------------------------------------------------------------------------------------------------------------- self


def test_self_s_set_is_class_balanced_and_half_wrong() -> None:
    labels = torch.tensor([0] * 10 + [1] * 6)
    wrong = torch.zeros(16, dtype=torch.bool)
    wrong[[0, 1, 2, 10]] = True
    weights = baselines.self_weights(labels, wrong)
    chosen = weights > 0
    for label, errors in ((0, 3), (1, 1)):
        mine = chosen & (labels == label)
        assert (int((mine & wrong).sum()), int((mine & ~wrong).sum())) == (errors, errors)
        assert float(weights[labels == label].sum()) == pytest.approx(0.5)
    assert float(weights[wrong].sum()) == pytest.approx(0.5)
    others = [baselines.self_weights(labels, wrong, seed=seed) for seed in range(4)]
    assert torch.equal(others[0], weights) and any(not torch.equal(other, weights) for other in others)


def test_self_s_set_where_a_class_has_one_kind_alone() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    wrong = torch.tensor([1, 1, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    weights = baselines.self_weights(labels, wrong)
    assert int((weights[labels == 1] > 0).sum()) == 2 and bool((weights[labels == 2] > 0).all())
    for label in range(3):
        assert float(weights[labels == label].sum()) == pytest.approx(1 / 3)
    assert not baselines.self_weights(labels, torch.zeros_like(wrong)).any()


def test_self_moves_from_the_base_head() -> None:
    split, test = planted(), planted(seed=1)
    given = (split["features"], split["labels"])
    assert worst(baselines.misclassification_self(*given, BASE, pull=0.01), test) > 0.8
    for got, expected in zip(baselines.misclassification_self(*given, BASE, pull=1e8), BASE, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    faultless = (split["features"], predict(split["features"], *BASE))
    assert baselines.misclassification_self(*faultless, BASE, pull=0.01) is BASE


# ---------------------------------------------------------------------------------------------------------- published


def test_published_is_the_stages_one_by_one() -> None:
    split = planted()
    x, y = split["features"], split["labels"]
    found = identify(x, y)
    centers = neutralize(x, y, found.minority)
    learned = eliminate(x, y, centers, steps=5)
    rescued, conforming = select(x, y, found.minority, centers, learned.scale, learned.shift)
    assert rescued.any()
    new = update(x, y, rescued, conforming, learned.scale, learned.shift, classes=2, steps=20, seed=3)
    weight, bias = baselines.published(x, y, BASE, eliminate_steps=5, update_steps=20, seed=3)
    assert torch.equal(weight, new.folded_weight) and torch.equal(bias, new.folded_bias)


def test_published_keeps_the_base_head_where_nothing_is_rescued() -> None:
    labels = torch.arange(40) % 2
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) + 9.0 * labels.unsqueeze(1)
    assert baselines.published(features, labels, BASE, eliminate_steps=2, update_steps=2) is BASE


# ---------------------------------------------------------------------------------------------------------- all of them


def test_the_parameter_names_every_baseline() -> None:
    assert get_args(Method) == tuple(BASELINES)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"erm", "published", "auto"}))
def test_each_setting_gives_a_head_of_the_base_head_s_shape(name: str) -> None:
    """Three classes, and a class that is small."""
    features, labels = three_classes(60)
    baseline = BASELINES[name]
    for setting in (baseline.grid[0], baseline.grid[-1]):
        extra = {"attributes": torch.arange(60) % 2} if baseline.oracle else {}
        weight, bias = baseline.fit(features, labels, THREE_BASE, **setting, **extra)
        assert (weight.shape, bias.shape) == ((3, 5), (3,))
        assert weight.dtype == bias.dtype == torch.float32 and weight.isfinite().all() and bias.isfinite().all()
