"""Validation splits of any bias, size, imbalance and label noise, drawn from the pools of `benchmarks.pools`."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.pools import Pool, make
from stages.metrics import report
from stages.passes import predict


@dataclass(frozen=True)
class FeatureSet:
    """One draw: a pool's model with a validation split of this bias, size and seed; of a pool with a shape, all of it.

    Attributes:
        pool: see `benchmarks.pools.POOLS`.
        bias: share of each class's validation samples whose attribute agrees with the class.
        size: validation samples.
        seed: of the draw.
        noise: share of validation labels flipped to another class.
        imbalance: the first class has this many times the samples of each other class.
    """

    pool: Pool
    bias: float
    size: int = 2000
    seed: int = 0
    noise: float = 0.0
    imbalance: float = 1.0

    @property
    def name(self) -> str:
        extra = f" noise {self.noise:g}" if self.noise else ""
        extra += f" 1:{self.imbalance:g}" if self.imbalance != 1 else ""
        return f"{self.pool.name} / {self.bias:g} n={self.size}{extra} #{self.seed}"


@dataclass(frozen=True)
class Drawn:
    """What methods see, (n, d), (n,), and the base head (C, d), (C,); and what only scoring sees.

    `training`: features (m, d) and labels (m,) of the training split; None of a pool that was made without them.
    """

    features: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    attributes: torch.Tensor
    test_features: torch.Tensor
    test_labels: torch.Tensor
    test_attributes: torch.Tensor
    training: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def classes(self) -> int:
        return len(self.weight)

    def worst_group(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Worst-group accuracy on the test split of a head (C, d), (C,)."""
        return self._report(weight, bias)["worst_group_accuracy"]

    def mean(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Mean accuracy on the test split of a head (C, d), (C,)."""
        return self._report(weight, bias)["mean_accuracy"]

    def _report(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, Any]:
        names = [str(index) for index in range(self.classes)]
        guesses = predict(self.test_features, weight, bias)
        return report(guesses, self.test_labels, self.test_attributes, names)


@lru_cache(maxsize=4)
def _loaded(pool: Pool) -> dict[str, dict[str, torch.Tensor]]:
    folder = make(pool)
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def draw(chosen: FeatureSet) -> Drawn:
    """The set's tensors; the same ones each time."""
    files = _loaded(chosen.pool)
    val, head = files["val"], files["head"]
    random = np.random.RandomState([chosen.seed, 5])
    labels, attributes = val["labels"].numpy(), val["attributes"].numpy()
    if chosen.pool.shape is not None:
        # As it is, in an order of the seed's.
        return _of(random.permutation(len(labels)), labels, files)
    classes, values = len(head["weight"]), int(attributes.max()) + 1
    shares = np.ones(classes)
    shares[0] = chosen.imbalance
    rows: list[np.ndarray] = []
    for label, size in enumerate(np.round(chosen.size * shares / shares.sum()).astype(int)):
        counts = _by_attribute(chosen, label, int(size), values, random)
        for attribute, count in enumerate(counts):
            members = np.flatnonzero((labels == label) & (attributes == attribute))
            if count > len(members):
                raise ValueError(f"{chosen.name}: {count} samples of a group of {len(members)}")
            rows.append(random.permutation(members)[:count])
    order = random.permutation(np.concatenate(rows))
    flipped = random.rand(len(order)) < chosen.noise
    given = labels.copy()
    given[order[flipped]] = (given[order[flipped]] + random.randint(1, classes, flipped.sum())) % classes
    return _of(order, given, files)


def _of(order: np.ndarray, labels: np.ndarray, files: dict[str, dict[str, torch.Tensor]]) -> Drawn:
    val, test, head, train = files["val"], files["test"], files["head"], files.get("train")
    given, attributes = torch.from_numpy(labels[order]), val["attributes"][order]
    return Drawn(
        val["features"][order], given, head["weight"], head["bias"], attributes,
        test["features"], test["labels"], test["attributes"], (train["features"], train["labels"]) if train else None,
    )  # fmt: skip


def _by_attribute(chosen: FeatureSet, label: int, size: int, values: int, random: np.random.RandomState) -> list[int]:
    """How many samples of one class carry each attribute."""
    if chosen.pool.second:
        # digit + 2 * bar, each agreeing with the class on its own.
        share = [chosen.bias if value == label else 1 - chosen.bias for value in (0, 1)]
        return [round(size * share[value % 2] * share[value // 2]) for value in range(values)]
    agreeing = round(size * chosen.bias)
    counts = [0] * values
    counts[label] = agreeing
    others = random.permutation([value for value in range(values) if value != label])
    for index in range(size - agreeing):
        counts[others[index % len(others)]] += 1
    return counts
