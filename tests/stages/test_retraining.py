"""The regression that makes the new head, and how its strength is chosen."""

import math

import pytest
import torch

from stages import retraining
from stages.identify import identify
from stages.logistic import RARITY, balanced, moments
from stages.passes import predict
from stages.retraining import PENALTIES, WEAKER, group_balanced, likelihood, retrain, worse_half, worst_quarter
from tests.stages.planted import (
    spurious,
)


def in_few_directions(samples: int, bias: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (n, 32), labels, attributes: all in four directions, of which the class's is two hundred times fainter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    attributes = torch.where(torch.rand(samples, generator=generator) < bias, labels, 1 - labels)
    told = torch.randn(samples, 4, generator=generator) * torch.tensor([2.0, 0.025, 3.0, 1.0])
    told[:, 0] += 10 * (2 * attributes - 1)
    told[:, 1] += 0.05 * (2 * labels - 1)
    directions = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(9)))[0][:4]
    return told @ directions + 1e-3 * torch.randn(samples, 32, generator=generator), labels, attributes


def test_worst_quarter() -> None:
    groups = torch.arange(8).repeat_interleave(4)
    right = torch.ones(32, dtype=torch.bool)
    right[:4], right[4:6] = False, False
    assert worst_quarter(right, groups) == pytest.approx((0 + 0.5) / 2)
    assert worst_quarter(torch.tensor([True] * 4 + [False] * 3), torch.tensor([0] * 4 + [1] * 3)) == 0.0
    # A group of two says nothing.
    assert worst_quarter(torch.tensor([True] * 4 + [False] * 2), torch.tensor([0] * 4 + [1] * 2)) == 1.0


def test_worse_half() -> None:
    """Of 1, 9, 9, 9 samples 0, 6, 9, 9 are right: the worse two count as (0 + 3 * 24/28) / 4 and (6 + 3 * 24/28) / 12."""
    groups = torch.tensor([0] + [1] * 9 + [2] * 9 + [3] * 9)
    labels = torch.zeros(28, dtype=torch.int64)
    labels[:4] = 1
    logits = torch.tensor([[1.0, 0.0]]).expand(28, 2)
    assert worse_half(logits, labels, groups, torch.ones(28)) == pytest.approx((18 / 28 + 20 / 28) / 2, abs=1e-6)


def test_likelihood() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 9.0]])
    weights = torch.tensor([0.75, 0.25])
    expected = 0.75 * math.log(0.5) - 0.25 * math.log(1 + math.exp(9))
    assert likelihood(logits, torch.tensor([1, 0]), torch.tensor([0, 1]), weights) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("classes", "judge"), [(2, "worse_half"), (3, "likelihood")])
def test_the_strength_is_the_best_by_the_measure(monkeypatch: pytest.MonkeyPatch, classes: int, judge: str) -> None:
    features, labels, _ = spurious(600, bias=0.95, classes=classes)
    seen: list[torch.Tensor] = []

    def third(logits: torch.Tensor, *rest: torch.Tensor) -> float:
        seen.append(logits)
        return float(len(seen) == 3)

    monkeypatch.setattr(retraining, judge, third)
    new = retrain(features, labels, identify(features, labels).nearest, classes=classes)
    assert len(seen) == len(PENALTIES) and new.penalty == PENALTIES[2]
    assert torch.equal(new.right, seen[2].argmax(dim=1) == labels)


def test_of_equal_strengths_the_strongest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, attributes = spurious(300)
    new = group_balanced(
        features, labels, attributes, classes=2, scaling=moments(features), merit=lambda *given: 0.5
    )  # fmt: skip
    assert new.penalty == max(PENALTIES) == PENALTIES[0]


@pytest.mark.parametrize(("merits", "chosen"), [([0.82], -1), ([0.80, 0.84], 1), ([0.829, 0.829, 0.829], -1)])
def test_a_weaker_penalty_is_taken_where_it_is_plainly_better(merits: list[float], chosen: int) -> None:
    """Than the best of the others, 0.80, by 0.03; a little better may be chance."""
    features, labels, attributes = spurious(200)
    given = iter([*(0.7 + 0.1 * step / (len(PENALTIES) - 1) for step in range(len(PENALTIES))), *merits, 0.0, 0.0])
    new = group_balanced(
        features, labels, attributes, classes=2, scaling=moments(features), merit=lambda *_: round(next(given), 6)
    )
    assert new.penalty == (PENALTIES[-1] if chosen < 0 else WEAKER[chosen])


def test_penalties_go_on_where_the_weakest_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network's features after fine-tuning: standardised, they are still all but the attribute's."""
    features, labels, attributes = in_few_directions(800, 0.9, seed=0)
    test, truth, groups = in_few_directions(2000, 0.5, seed=1)
    options = {"classes": 2, "scaling": moments(features), "rarity": RARITY, "merit": worse_half}
    chosen, worst = [], []
    for weaker in (WEAKER, ()):
        monkeypatch.setattr(retraining, "WEAKER", weaker)
        new = group_balanced(features, labels, attributes, **options)
        chosen.append(new.penalty)
        right = predict(test, new.weight, new.bias) == truth
        worst.append(min(float(right[(truth == c) & (groups == a)].float().mean()) for c in (0, 1) for a in (0, 1)))
    assert chosen[0] in WEAKER and chosen[1] == PENALTIES[-1] and worst[0] > 0.93 and worst[1] < 0.85, (chosen, worst)
    # Given, it is the one.
    assert group_balanced(features, labels, attributes, **options, regularization=1 / 0.8).penalty == pytest.approx(1e-3)


def test_a_sample_weighs_the_mean_of_what_readings_make_it_weigh() -> None:
    """Two readings of which one names nobody: between the head of the other and that without names."""
    features, labels, attributes = spurious(800, bias=0.9, classes=3)
    scaling = moments(features)

    def head(*readings: torch.Tensor) -> torch.Tensor:
        return group_balanced(
            features, labels, torch.stack(readings), classes=3, scaling=scaling, regularization=0.01
        ).weight  # fmt: skip

    assert torch.equal(head(attributes, attributes), head(attributes))
    both, named, unnamed = head(attributes, labels), head(attributes), head(labels)
    assert float((both - named).norm()) < float((unnamed - named).norm())
    assert float((both - unnamed).norm()) < float((unnamed - named).norm())


@pytest.mark.parametrize("classes", [2, 3])
def test_regularization_is_scikit_learn_s_c(classes: int) -> None:
    """Of two classes scikit-learn has one output, and C here is its 2 C."""
    from sklearn.linear_model import LogisticRegression

    features, labels, attributes = spurious(600, classes=classes)
    new = group_balanced(features, labels, attributes, classes=classes, scaling=moments(features), regularization=0.1)
    cells = labels * classes + attributes
    weights = 600 * balanced(cells, classes * classes)
    scaling = moments(features)
    model = LogisticRegression(C=0.2 if classes == 2 else 0.1, max_iter=2000, tol=1e-8)
    model.fit((features - scaling.mean) / scaling.deviation, labels, sample_weight=weights)
    ours, theirs = new.weight * scaling.deviation, torch.from_numpy(model.coef_).float()
    ours = ours[1:] - ours[:1] if classes == 2 else ours - ours.mean(dim=0)
    torch.testing.assert_close(ours, theirs - (0 if classes == 2 else theirs.mean(dim=0)), atol=5e-3, rtol=5e-3)


def test_the_penalty_counts_samples() -> None:
    features, labels, _ = spurious(600)
    nearest = identify(features, labels).nearest
    weak, strong = (retrain(features, labels, nearest, classes=2, regularization=c) for c in (1.0, 1e-4))
    assert weak.penalty == pytest.approx(1 / 600) and strong.penalty == pytest.approx(1e4 / 600)
    assert weak.weight.norm() > strong.weight.norm()
