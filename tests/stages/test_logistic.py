"""Weighted logistic regression: against scikit-learn, and the algebra around it."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stages.logistic import Heads, balanced, cross_entropy, even_biases, fit, folds, held_out, moments


def sample(samples: int = 300, width: int = 7, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator) * torch.arange(1, width + 1) + 5
    labels = torch.randint(classes, (samples,), generator=generator)
    features[torch.arange(samples), labels] += 3.0
    return features, labels


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_is_scikit_learn_s(classes: int, strength: float) -> None:
    """Two classes have a row each here and one there: half the row, and twice the strength."""
    features, labels = sample(classes=classes)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(1))
    scaling = moments(features)
    half = 2 if classes == 2 else 1
    penalty = half / (float(weights.sum()) * strength)
    heads = fit(features, labels, weights.unsqueeze(0) / weights.sum(), classes=classes, penalty=penalty, scaling=scaling)
    standardised = ((features - scaling.mean) / scaling.deviation).numpy()
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(standardised, labels, sample_weight=weights)
    ours = heads.weight[0].numpy()
    expected = np.concatenate([-theirs.coef_, theirs.coef_]) / 2 if classes == 2 else theirs.coef_
    np.testing.assert_allclose(ours, expected, atol=5e-3 * float(np.abs(expected).max()))


def test_problems_do_not_touch_each_other() -> None:
    features, labels = sample()
    weights = torch.rand(3, 300, generator=torch.Generator().manual_seed(2))
    weights[1, :100] = 0.0
    weights = weights / weights.sum(dim=1, keepdim=True)
    options = {"classes": 3, "penalty": 0.1, "scaling": moments(features)}
    together = fit(features, labels, weights, **options)
    for index in range(3):
        alone = fit(features, labels, weights[index : index + 1], **options)
        torch.testing.assert_close(together.weight[index], alone.weight[0], atol=2e-3, rtol=0)


def test_a_sample_of_weight_zero_is_not_seen() -> None:
    features, labels = sample()
    weights = torch.ones(1, 300)
    weights[0, 200:] = 0.0
    scaling = moments(features)
    options = {"classes": 3, "penalty": 0.1, "scaling": scaling}
    kept = fit(features, labels, weights / 200, **options)
    other = features.clone()
    other[200:] = 100.0
    assert torch.equal(kept.weight, fit(other, labels, weights / 200, **options).weight)


def test_heads_on_the_features_as_they_are() -> None:
    features, labels = sample()
    scaling = moments(features)
    heads = fit(features, labels, torch.full((1, 300), 1 / 300), classes=3, penalty=0.01, scaling=scaling)
    weight, bias = heads.on_features(scaling)
    standardised = (features - scaling.mean) / scaling.deviation
    expected = standardised @ heads.weight[0].T + heads.bias[0]
    torch.testing.assert_close(features @ weight[0].T + bias[0], expected, atol=1e-4, rtol=1e-4)


def test_moments_of_large_and_of_constant_features() -> None:
    features = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-3, 0.0]) + 1000
    found = moments(features)
    assert found.deviation[2] >= 1e14
    torch.testing.assert_close(found.mean, features.double().mean(dim=0).float())
    torch.testing.assert_close(
        found.deviation[:2], features.double().std(dim=0, correction=0).float()[:2], rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("scale", [1e-24, 1e20, 1e30])
def test_moments_of_features_whose_squares_float32_cannot_hold(scale: float) -> None:
    features = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.0]) + 0.5
    found, usual = moments(features * scale), moments(features)
    torch.testing.assert_close(found.deviation[:2] / scale, usual.deviation[:2], rtol=1e-4, atol=0)
    assert found.deviation[2] >= 1e6 * found.mean[2]


def test_a_constant_with_rounding_errors_is_not_blown_up() -> None:
    features = 1000 + 1e-4 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = features.to(torch.float32)
    assert rounded.unique().numel() > 1
    assert float(((rounded - moments(rounded).mean) / moments(rounded).deviation).abs().max()) < 1e-15


def test_a_start_at_the_solution_stays_there() -> None:
    features, labels = sample()
    options = {"classes": 3, "penalty": 0.1, "scaling": moments(features)}
    weights = torch.full((1, 300), 1 / 300)
    solved = fit(features, labels, weights, **options)
    again = fit(features, labels, weights, **options, start=Heads(solved.weight, solved.bias))
    torch.testing.assert_close(again.weight, solved.weight, atol=1e-3, rtol=0)


def test_a_batch_that_threads_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of rows, each with its own labels and shares: the loss and gradient of the whole."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(500, 6, generator=generator), torch.randint(3, (500,), generator=generator)
    rows, shares = torch.randint(500, (300,), generator=generator), torch.rand(300, generator=generator).double()
    weight, bias = torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator)
    loss, gradient = cross_entropy(features, labels, rows, shares, weight, bias)
    monkeypatch.setattr("stages.passes.KERNEL_VALUES", 0)
    monkeypatch.setattr("stages.logistic.LEAST_SHARED", 0)
    for count in (1, 2, 7):
        monkeypatch.setattr("stages.logistic.threads", lambda count=count: count)
        found, slopes = cross_entropy(features, labels, rows, shares, weight, bias)
        assert found == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(slopes, gradient, rtol=1e-4, atol=1e-4)


def test_balanced_weighs_every_cell_alike_and_small_ones_less() -> None:
    weights = balanced(torch.tensor([0] * 8 + [3] * 4 + [7] * 1))
    sums = [float(weights[start:end].sum()) for start, end in ((0, 8), (8, 12), (12, 13))]
    assert sums == pytest.approx([4 / 9, 4 / 9, 1 / 9])


def test_rarity_lets_rare_cells_weigh_more() -> None:
    weights = balanced(torch.tensor([0] * 256 + [1] * 16), rarity=0.25)
    assert float(weights[256:].sum() / weights[:256].sum()) == pytest.approx(2.0)


def test_folds_are_a_seed_s_and_even() -> None:
    assert torch.equal(folds(101, 3), folds(101, 3)) and not torch.equal(folds(101, 3), folds(101, 4))
    assert folds(101, 3).bincount().tolist() == [21, 20, 20, 20, 20]


def test_held_out_logits_do_not_know_their_own_label() -> None:
    """Labels that mean nothing: held-out predictions are no better than a coin."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(400, 300, generator=generator), torch.randint(2, (400,), generator=generator)
    options = {"classes": 2, "penalties": (0.003,), "scaling": moments(features)}
    [logits], _ = held_out(features, labels, torch.full((400,), 1 / 400), folds(400, 0), **options)
    assert abs(float((logits.argmax(dim=1) == labels).double().mean()) - 0.5) < 0.1


def test_even_biases_by_scikit_learn() -> None:
    """Two classes: a logistic regression on the difference of the logits, whose scale changes nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(3000, generator=generator) < 0.1).long()
    logits = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
    logits[:, 1] += 2.0 * labels - 3.0
    added = even_biases(logits, labels, 2)
    margin = (logits[:, 1] - logits[:, 0]).unsqueeze(1).numpy()
    known = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-10).fit(margin, labels.numpy())
    assert float(added.sum()) == pytest.approx(0, abs=1e-6)
    assert float(added[1] - added[0]) == pytest.approx(known.intercept_[0] / known.coef_[0, 0], rel=1e-4)
    torch.testing.assert_close(even_biases(50 * logits, labels, 2), 50 * added, rtol=1e-3, atol=0)


def test_even_biases_undo_what_rareness_did() -> None:
    """Labels drawn by three classes' probabilities, and the head that knows how rare the classes are."""
    generator = torch.Generator().manual_seed(0)
    fair = 2 * torch.randn(60_000, 3, generator=generator, dtype=torch.float64)
    shares = torch.tensor([0.7, 0.25, 0.05], dtype=torch.float64)
    told = fair + shares.log()
    labels = torch.multinomial(torch.softmax(told, dim=1), 1, generator=generator).squeeze(1)
    added = even_biases(told, labels, 3).double()
    rareness = (torch.bincount(labels).double() / len(labels)).log()
    # The probabilities over the classes' shares, by Bayes.
    torch.testing.assert_close(added, rareness.mean() - rareness, atol=0.03, rtol=0)


@pytest.mark.parametrize("far", [5.0, 200.0])
def test_even_biases_of_a_head_that_always_gives_one_class(far: float) -> None:
    """However far away it is; and of logits that say nothing there is nothing to add."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(3000, generator=generator) < 0.2).long()
    logits = torch.zeros(3000, 2, dtype=torch.float64)
    logits[:, 0] = far + torch.randn(3000, generator=generator) - 2.0 * labels
    right = (logits + even_biases(logits, labels, 2)).argmax(dim=1) == labels
    assert min(float(right[labels == label].double().mean()) for label in (0, 1)) > 0.75
    assert torch.equal(even_biases(torch.zeros(3000, 2, dtype=torch.float64), labels, 2), torch.zeros(2))
