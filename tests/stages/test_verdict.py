"""identify's verdict: the mirror, by hand and at its bounds."""

import pytest
import torch

from stages.identify import BIASED, CANNOT_TELL, NOT_BIASED, _said, assess, identify
from tests.stages.planted import spurious


def test_the_mirror_by_hand() -> None:
    """One attribute, one core feature: the minority stands at the other's attribute with its own core, mirror images."""
    core, attribute = torch.tensor([0.0, 1.0]), torch.tensor([4.0, 0.0])
    rows, labels = [], []
    for label in (0, 1):
        for drawn, count in ((label, 20), (1 - label, 5)):
            rows += [attribute * (2 * drawn - 1) + core * (2 * label - 1)] * count
            labels += [label] * count
    features, numbers = torch.stack(rows), torch.tensor(labels)
    found = identify(features, numbers)
    # A base head that errs as the nearest centroid does.
    base = (found.centroids, -found.centroids.square().sum(dim=1) / 2)
    said = assess(features, numbers, found, base)
    # a = (0, -2) and b = (0, 2): cos -1; across the line between (-4, -1) and (4, 1) as well: -1 - 0.3.
    assert said.mirror == pytest.approx(-1.3) and said.bias == BIASED
    row = said.classes[0]
    assert (row["samples"], row["minority"], row["share"], row["drawn_to"]) == (25, 5, 0.2, 1)
    assert row["base_accuracy_on_minority"] == 0.0 and row["verdict"] == CANNOT_TELL
    # The minority lies 8 from the rest; the centroids are (-2.4, -1) and (2.4, 1).
    assert row["dispersion"] == pytest.approx(8 / (4.8**2 + 2**2) ** 0.5, abs=1e-6)
    # One that calls class 0's minority half right and class 1's wrong.
    features[20, 0] = 5.0
    half = (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([-4.5, 0.0]))
    rows = assess(features, numbers, identify(features, numbers), half).classes
    assert [row["base_accuracy_on_minority"] for row in rows] == [0.2, 1.0]


@pytest.mark.parametrize(("back", "told"), [(1, False), (2, True)])
def test_a_pair_of_classes_counts_with_two_samples_each_way(back: int, told: bool) -> None:
    """The mean of one sample points anywhere."""
    labels = torch.arange(100) // 50
    features = torch.tensor([[-4.0, -1.0], [4.0, 1.0]])[labels]
    features[:20, 0], features[50 : 50 + back, 0] = 4.0, -4.0
    said = assess(features, labels, identify(features, labels))
    assert [row["minority"] for row in said.classes] == [20, back]
    assert said.mirror == (pytest.approx(-1.3) if told else None)


def test_a_pair_s_mirror_is_both_classes() -> None:
    """And no other's: of four classes, two and two have samples drawn to one another, one pair plainly."""
    labels = torch.arange(400) // 100
    centers = torch.tensor([[-4.0, -1.0, 0, 0], [4.0, 1.0, 0, 0], [0, 0, 99, -10.0], [0, 0, 99, 10.0]])
    features = centers[labels]
    features[:20, 0], features[100:120, 0] = 4.0, -4.0
    # Hard ones: past the border, all in the same way off it.
    features[200:220], features[300:320] = torch.tensor([0, 30.0, 99, 2.0]), torch.tensor([0, 30.0, 99, -2.0])
    said = assess(features, labels, identify(features, labels))
    assert [row["minority"] for row in said.classes] == [20] * 4
    mirrors = [row["mirror"] for row in said.classes]
    assert mirrors[0] == mirrors[1] == pytest.approx(-1.3) and mirrors[2] == mirrors[3] > 0.5
    assert [row["verdict"] for row in said.classes] == [BIASED, BIASED, NOT_BIASED, NOT_BIASED]
    assert said.mirror is not None and mirrors[2] > said.mirror > mirrors[0]


@pytest.mark.parametrize(
    ("mirror", "told_by", "said"),
    [
        (-0.29, 2.0, BIASED),
        (-0.28, 50.0, CANNOT_TELL),
        (-0.21, 50.0, CANNOT_TELL),
        (-0.2, 5.0, NOT_BIASED),
        (-0.2, 4.9, CANNOT_TELL),
        (None, 50.0, CANNOT_TELL),
    ],
)
def test_the_bounds_of_the_verdict(mirror: float | None, told_by: float, said: str) -> None:
    """As docs/method.md has them."""
    assert _said(mirror, told_by) == said


def test_a_thousand_classes() -> None:
    """Memory and time go with the cells that hold samples, not with the square of the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6000) % 1000
    features = torch.randn(6000, 16, generator=generator)
    features[torch.arange(6000), labels % 16] += 2.0
    found = identify(features, labels)
    said = assess(features, labels, found)
    assert len(said.classes) == 1000 and sum(row["minority"] for row in said.classes) == int(found.minority.sum())
    some = next(index for index, row in enumerate(said.classes) if 0 < row["minority"] < row["samples"])
    own = labels == some
    apart = features[own & found.minority].mean(dim=0) - features[own & ~found.minority].mean(dim=0)
    others = torch.cdist(found.centroids[some : some + 1], found.centroids)[0]
    others[some] = torch.inf
    assert said.classes[some]["dispersion"] == pytest.approx(float(apart.norm() / others.min()), rel=1e-4)


def test_no_minority_no_verdict() -> None:
    features, labels, _ = spurious(200, bias=1.0)
    features[:, 0] += 20 * (1 - labels)
    found = identify(features, labels)
    assert not found.minority.any()
    said = assess(features, labels, found)
    assert (said.bias, said.mirror) == (CANNOT_TELL, None)
    assert all(row["base_accuracy_on_minority"] is None and row["dispersion"] is None for row in said.classes)


def test_classes_at_one_place_have_no_distance_to_measure_by() -> None:
    """A dispersion of infinity would be no JSON."""
    features, labels = torch.tensor([0.0, 0.0, 1.0, 11.0, 1.0, 11.0]).unsqueeze(1), torch.tensor([0, 0, 1, 1, 2, 2])
    found = identify(features, labels)
    assert found.nearest.tolist() == [0, 0, 0, 1, 0, 1]
    assert [row["dispersion"] for row in assess(features, labels, found).classes] == [None, None, None]


@pytest.mark.parametrize(("back", "said"), [(3, CANNOT_TELL), (5, CANNOT_TELL), (6, NOT_BIASED), (40, NOT_BIASED)])
def test_not_biased_is_not_said_by_a_handful(back: int, said: str) -> None:
    """However many are drawn one way, the mean of those drawn the other way must be of some samples, too."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(4000) % 2
    features = torch.randn(4000, 10, generator=generator)
    features[:, 0] = (2 * labels - 1) * 9.0
    # Across the line between the classes, on the same side.
    for label, count in ((0, 120), (1, back)):
        rows = (labels == label).nonzero().flatten()[:count]
        features[rows, 0] *= -0.2
        features[rows, 1] += 8.0
    found = identify(features, labels)
    assert [int(found.minority[labels == label].sum()) for label in (0, 1)] == [120, back]
    verdict = assess(features, labels, found)
    assert verdict.mirror is not None and verdict.mirror > 0 and verdict.bias == said


def test_not_biased_is_said_of_hard_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(4000) % 2
    features = torch.randn(4000, 10, generator=generator)
    hard = torch.rand(4000, generator=generator) < 0.3
    features[:, 0] += (2 * labels - 1) * torch.where(hard, 0.0, 3.0)
    features[:, 1:5] += 4.0 * hard.unsqueeze(1)
    assert assess(features, labels, identify(features, labels)).bias == NOT_BIASED
