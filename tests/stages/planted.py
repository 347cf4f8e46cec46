"""Features with a planted spurious attribute or an uneven class, and heads that lean on it, for the tests of solver auto."""

from functools import cache

import torch

from stages.logistic import fit, moments
from stages.passes import predict

WIDTH = 40


def spurious(
    samples: int = 1200, *, bias: float = 0.9, classes: int = 2, noise: float = 0.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (n, 40), labels, attributes: the attribute told loudly by some features, the label softly by others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    other = (labels + torch.randint(1, classes, (samples,), generator=generator)) % classes
    attributes = torch.where(torch.rand(samples, generator=generator) < bias, labels, other)
    features = torch.randn(samples, WIDTH, generator=generator)
    features[torch.arange(samples), attributes] += 5.0
    features[torch.arange(samples), 10 + labels] += 3.0
    flipped = torch.rand(samples, generator=generator) < noise
    return features, torch.where(flipped, (labels + 1) % classes, labels), attributes


def soft(samples: int, *, bias: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `spurious`, but it is the class that is told loudly, by features that are wrong of one sample in eight."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    seen = torch.where(torch.rand(samples, generator=generator) < 1 / 8, 1 - labels, labels)
    attributes = torch.where(torch.rand(samples, generator=generator) < bias, labels, 1 - labels)
    features = torch.randn(samples, WIDTH, generator=generator)
    features[torch.arange(samples), seen] += 5.0
    features[torch.arange(samples), 10 + attributes] += 3.0
    return features, labels, attributes


def biased_head(classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A head that looks at the attribute far more than at the label."""
    weight = torch.zeros(classes, WIDTH)
    for index in range(classes):
        weight[index, index], weight[index, 10 + index] = 2.0, 0.3
    return weight, torch.zeros(classes)


def fitted(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A head of two classes as training makes one: every sample weighs the same."""
    scaling, alike = moments(features), torch.full((1, len(labels)), 1 / len(labels))
    weight, bias = fit(features, labels, alike, classes=2, penalty=penalty, scaling=scaling).on_features(scaling)
    return weight[0], bias[0]


def worst_group(head: tuple[torch.Tensor, torch.Tensor], classes: int = 2) -> float:
    features, labels, attributes = spurious(4000, bias=1 / classes, classes=classes, seed=99)
    right = predict(features, *head) == labels
    groups = labels * classes + attributes
    return min(float(right[groups == group].double().mean()) for group in groups.unique())


def uneven(
    samples: int, *, seed: int, rare: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Features (n, 40), labels of which few are 1, three in ten hard and none spurious, and the head that fits them best."""
    features, labels = _uneven(samples, seed, rare)
    return features, labels, head_of_uneven(rare)


def _uneven(samples: int, seed: int, rare: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(samples, generator=generator) < rare).long()
    features = torch.randn(samples, WIDTH, generator=generator)
    hard = torch.rand(samples, generator=generator) < 0.3
    features[torch.arange(samples), 10 + labels] += torch.where(hard, 1.0, 4.0)
    features[hard, 12:20] += 2.0
    return features, labels


@cache
def head_of_uneven(rare: float) -> tuple[torch.Tensor, torch.Tensor]:
    return fitted(*_uneven(20_000, 77, rare), 1e-4)


def class_accuracies(head: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    features, labels = _uneven(8000, 9, 0.5)
    right = predict(features, *head) == labels
    return [float(right[labels == label].double().mean()) for label in (0, 1)]


def too_sure() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """An even split of 1000, and a head with logits three times too large that was fitted to a biased one."""
    weight, bias = fitted(*spurious(6000, bias=0.97, seed=5)[:2], 1e-2)
    features, labels, _ = spurious(1000, bias=0.5, seed=6)
    return features, labels, (3 * weight, 3 * bias)


def shares(guess: torch.Tensor, labels: torch.Tensor, attributes: torch.Tensor) -> tuple[float, float]:
    """Recall and precision of the minority, its attribute named right."""
    minority, said = attributes != labels, guess != labels
    hits = int((minority & said & (guess == attributes)).sum())
    return hits / int(minority.sum()), hits / max(1, int(said.sum()))
