"""How much a head relies on an attribute: heads whose reliance is known, asked on splits of any bias."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stages.logistic import balanced
from stages.reliance import logits_of, reliance


def test_logits_beyond_float32() -> None:
    features, head = (
        torch.tensor([[3e38, 3e38], [1.0, 2.0]]),
        (torch.tensor([[2.0, 2.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])),
    )
    expected = torch.tensor([[12e38, 3e38], [6.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(logits_of(features, head), expected)


def odds(bias: float, classes: int) -> float:
    """Log-odds of an attribute's own class against any other, where so much of each class carries its own."""
    return math.log(bias * (classes - 1) / (1 - bias))


def asked(
    trained: float, split: float, classes: int = 2, samples: int = 20_000
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the head that is best under training's bias, labels and attributes of a split of another bias."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(samples) % classes
    other = (labels + torch.randint(1, classes, (samples,), generator=generator)) % classes
    attributes = torch.where(torch.rand(samples, generator=generator) < split, labels, other)
    # Of unit Gaussians around the classes' corners the logit is the coordinate, times the corner's distance.
    seen = torch.randn(samples, classes, generator=generator).double() + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return 1.5 * seen + odds(trained, classes) * torch.nn.functional.one_hot(attributes, classes), labels, attributes


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("trained", [0.0, 0.9, 0.98])
@pytest.mark.parametrize("split", [0.6, 0.9, 0.97])
def test_it_is_what_training_taught_whatever_the_split(trained: float, split: float, classes: int) -> None:
    logits, labels, attributes = asked(trained or 1 / classes, split, classes)
    found = reliance(logits, labels, attributes, classes)
    assert found is not None
    assert found.coupled == pytest.approx(odds(split, classes), abs=0.1)
    assert found.relied == pytest.approx(odds(trained or 1 / classes, classes), abs=0.2)
    assert found.overused == pytest.approx(found.relied - found.coupled)
    # Nor does it depend on the scale of the logits.
    again = reliance(5 * logits, labels, attributes, classes)
    assert again is not None and again.relied == pytest.approx(found.relied, abs=1e-3)
    assert again.explained == pytest.approx(found.explained, abs=1e-4) and found.explained > -1e-6


def test_it_is_a_logistic_regression() -> None:
    logits, labels, attributes = asked(0.9, 0.7, samples=999)
    weights = balanced(labels, 2).double()
    told = np.stack([(logits[:, 1] - logits[:, 0]).numpy(), 2 * attributes.numpy() - 1], axis=1)
    library = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-10, max_iter=1000)
    library.fit(told, labels.numpy(), sample_weight=weights.numpy())
    found = reliance(logits, labels, attributes, 2)
    assert found is not None and found.overused == pytest.approx(-library.coef_[0, 1], abs=2e-3)
    alone = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-10, max_iter=1000)
    alone.fit(told[:, :1], labels.numpy(), sample_weight=weights.numpy())
    likely = [
        weights.numpy() @ model.predict_log_proba(part)[np.arange(999), labels.numpy()]
        for model, part in ((library, told), (alone, told[:, :1]))
    ]
    assert found.explained == pytest.approx(likely[0] - likely[1], abs=1e-4) and found.explained > 0.01


def test_every_class_weighs_the_same() -> None:
    logits, labels, attributes = asked(0.9, 0.7)
    many = reliance(logits, labels, attributes, 2)
    rare = (labels == 0) | (torch.arange(len(labels)) % 10 == 1)
    few = reliance(logits[rare], labels[rare], attributes[rare], 2)
    assert many is not None and few is not None
    assert few.coupled == pytest.approx(many.coupled, abs=0.1) and few.relied == pytest.approx(many.relied, abs=0.2)


def test_of_no_minority_and_of_nothing_else_nobody_knows() -> None:
    logits, labels, _ = asked(0.9, 0.7, samples=200)
    assert reliance(logits, labels, labels, 2) is None
    assert reliance(logits, labels, 1 - labels, 2) is None


def test_where_every_class_is_told_it_is_finite() -> None:
    labels, attributes = torch.arange(200) % 2, torch.arange(200) // 2 % 2
    found = reliance(torch.nn.functional.one_hot(labels, 2).double() * 7, labels, attributes, 2)
    assert found is not None and abs(found.relied) < 0.1 and abs(found.coupled) < 1e-6


def test_logits() -> None:
    features, head = torch.randn(3000, 5), (torch.randn(3, 5), torch.randn(3))
    torch.testing.assert_close(logits_of(features, head), (features @ head[0].T + head[1]).double())
