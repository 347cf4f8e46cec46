"""The method written the straightforward way, from tests/golden/README.md alone: what nsf's speed is measured against.

Plain PyTorch as one writes it first: boolean masks, torch.cdist, whole-set expressions, autograd and torch.optim. It spares
what nobody needs (the centers of the labels are gathered once, no index is copied in a step), so that a ratio against it
tells what nsf's passes gain and not what carelessness costs. tests/test_speed_benchmarks.py holds its results against the
golden cases and against nsf's own.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# The published recipe that whole fits are measured with.
ELIMINATE_STEPS, UPDATE_STEPS = 350, 110

# Rows that `planted` draws at once; what it draws depends on it.
DRAWN_ROWS = 4096


@dataclass(frozen=True)
class Planted:
    """Features (n, d) with a planted attribute, labels and attributes (n,) int64, and the biased head (2, d), (2,)."""

    features: Tensor
    labels: Tensor
    attributes: Tensor
    head: tuple[Tensor, Tensor]


def planted(
    samples: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, agree: float = 0.92, first: int = 0
) -> Planted:
    """Non-negative features of two classes, 15 % of class 1, whose attribute agrees with the label for 92 %.

    The attribute is louder than the class, so that the samples on which it lies (8 %) are nearest to the other class's
    centroid; the class is plain enough for most of them to be rescued.

    Args:
        samples, width: n and d.
        seed: of all draws.
        dtype: what the features are stored as.
        agree: the share of samples whose attribute agrees.
        first: the row to begin with, a multiple of DRAWN_ROWS: rows are the same whatever piece they are drawn in.
    """
    assert first % DRAWN_ROWS == 0
    loud, soft = max(1, width // 16), max(1, width // 4)
    features = torch.empty(samples, width, dtype=dtype)
    labels, attributes = torch.empty(samples, dtype=torch.int64), torch.empty(samples, dtype=torch.int64)
    for start in range(0, samples, DRAWN_ROWS):
        part = slice(start, min(start + DRAWN_ROWS, samples))
        generator = torch.Generator().manual_seed(1_000_003 * seed + (first + start) // DRAWN_ROWS)
        # Of a full block always, so that the last block of a small set begins like that of a large one.
        label, agrees = torch.rand(2, DRAWN_ROWS, generator=generator)[:, : part.stop - start]
        labels[part] = (label < 0.15).long()
        attributes[part] = torch.where(agrees < agree, labels[part], 1 - labels[part])
        rows = torch.randn(part.stop - start, width, generator=generator).abs_()
        rows[:, :loud] += 5 / loud**0.5 * (2 * attributes[part] - 1).unsqueeze(1)
        rows[:, loud : loud + soft] += 3 / soft**0.5 * (2 * labels[part] - 1).unsqueeze(1)
        features[part] = rows
    # A head that reads the attribute alone; its threshold lies between the two attributes' means.
    weight, bias = torch.zeros(2, width), torch.zeros(2)
    weight[1, :loud] = 1.0
    bias[1] = -loud * (2 / torch.pi) ** 0.5
    return Planted(features, labels, attributes, (weight, bias))


def identify(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids (C, d) and minority (n,) bool."""
    centroids = torch.stack([features[labels == c].mean(dim=0) for c in range(int(labels.max()) + 1)])
    return centroids, torch.cdist(features, centroids).argmin(dim=1) != labels


def neutralize(features: Tensor, labels: Tensor, minority: Tensor) -> Tensor:
    """Centers (C, d)."""
    centers = []
    for c in range(int(labels.max()) + 1):
        mine, rest = (labels == c) & minority, (labels == c) & ~minority
        center = features[rest].mean(dim=0)
        if int(mine.sum()) >= 2:
            center = 0.5 * (center + features[mine].mean(dim=0))
        centers.append(center)
    return torch.stack(centers)


class Eliminate:
    """T's scale and shift (d,), and `step`, a full-batch step of AdamW by autograd that returns the loss before it."""

    def __init__(self, features: Tensor, labels: Tensor, centers: Tensor, learning_rate: float = 1e-3):
        self._features, self._targets = features, centers[labels]
        self.scale = torch.ones(features.shape[1], requires_grad=True)
        self.shift = torch.zeros(features.shape[1], requires_grad=True)
        self._optimizer = torch.optim.AdamW([self.scale, self.shift], lr=learning_rate, weight_decay=0.0)

    def step(self) -> Tensor:
        self._optimizer.zero_grad()
        mapped = transform(self._features, self.scale, self.shift)
        # pairwise_distance adds 1e-6 to every difference.
        loss = functional.pairwise_distance(mapped, self._targets).mean() + 10 * self.scale.mean()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def transform(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """T(x) = (x + shift) * scale - shift."""
    return (features + shift) * scale - shift


def select(mapped: Tensor, labels: Tensor, minority: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The rescued and the conforming samples, (n,) bool each, from T(features) (n, d)."""
    return minority & (torch.cdist(mapped, centers).argmin(dim=1) == labels), ~minority


class Update:
    """A new linear head on T(features), `weight` (C, d) and `bias` (C,), and `step`, which returns the loss before it.

    The draws and the initialisation come from one generator, in the order that nsf takes them in: of equal seeds, both
    train the same head.
    """

    def __init__(
        self, mapped: Tensor, labels: Tensor, rescued: Tensor, conforming: Tensor, learning_rate: float = 1e-3, seed: int = 0
    ):
        self._mapped, self._labels = mapped, labels
        self._kinds = [rescued.nonzero().flatten(), conforming.nonzero().flatten()]
        self._size = min(len(kind) for kind in self._kinds)
        self._generator = torch.Generator().manual_seed(seed)
        classes, bound = int(labels.max()) + 1, mapped.shape[1] ** -0.5
        # torch.nn.Linear's initialisation.
        self.weight = torch.empty(classes, mapped.shape[1]).uniform_(-bound, bound, generator=self._generator)
        self.bias = torch.empty(classes).uniform_(-bound, bound, generator=self._generator)
        parameters = [self.weight.requires_grad_(), self.bias.requires_grad_()]
        self._optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)

    def step(self) -> Tensor:
        self._optimizer.zero_grad()
        loss = torch.zeros(())
        for kind in self._kinds:
            drawn = kind
            if len(kind) > self._size:
                drawn = kind[torch.randint(len(kind), (self._size,), generator=self._generator)]
            logits = functional.linear(self._mapped[drawn], self.weight, self.bias)
            loss = loss + functional.cross_entropy(logits, self._labels[drawn])
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def predict(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Classes (n,) that a linear head gives."""
    return functional.linear(features, weight, bias).argmax(dim=1)


@dataclass(frozen=True)
class Fitted:
    """What the stages from identify to update make; the head works on T(x)."""

    minority: Tensor
    centers: Tensor
    scale: Tensor
    shift: Tensor
    rescued: Tensor
    conforming: Tensor
    weight: Tensor
    bias: Tensor


def fit(
    features: Tensor,
    labels: Tensor,
    *,
    eliminate_steps: int = ELIMINATE_STEPS,
    update_steps: int = UPDATE_STEPS,
    seed: int = 0,
    lap: Callable[[str], None] = lambda stage: None,
) -> Fitted:
    """The whole, identify to update; lap(stage) is called as each of its stages (and `select`) ends."""
    _, minority = identify(features, labels)
    lap("identify")
    centers = neutralize(features, labels, minority)
    lap("neutralize")
    eliminating = Eliminate(features, labels, centers)
    for _ in range(eliminate_steps):
        eliminating.step()
    scale, shift = eliminating.scale.detach(), eliminating.shift.detach()
    lap("eliminate")
    mapped = transform(features, scale, shift)
    rescued, conforming = select(mapped, labels, minority, centers)
    lap("select")
    updating = Update(mapped, labels, rescued, conforming, seed=seed)
    for _ in range(update_steps):
        updating.step()
    lap("update")
    weight, bias = updating.weight.detach(), updating.bias.detach()
    return Fitted(minority, centers, scale, shift, rescued, conforming, weight, bias)


def read_pass(features: Tensor) -> None:
    """Read every value once and do as little else as can be: the unit that passes over the features are counted in.

    The product with ones is the fastest of several ways on the machines tried (19,867 x 2,048 float32, two cores: 4.6 ms;
    torch.sum 5.9 ms, a compiled loop that adds 5.7 ms, sums of blocks of rows by a pool of threads 11 ms).
    """
    torch.mv(features, torch.ones(features.shape[1], dtype=features.dtype))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(works: Iterable[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Wall times of several pieces of work, `repeats` each after one that warms up.

    They take turns, so that whatever else the machine does meets all of them.
    """
    works = list(works)
    for work in works:
        work()
    rounds = [[seconds(work) for work in works] for _ in range(repeats)]
    return [list(times) for times in zip(*rounds, strict=True)]
