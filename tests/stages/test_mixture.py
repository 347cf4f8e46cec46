"""The mixture of tied means: its equations, what it says of candidates, its spread; on planted features."""

from dataclasses import replace

import pytest
import torch

from stages.identify import CANNOT_TELL, Verdict
from stages.logistic import FOLDS, folds, moments
from stages.mixture import SHRINKAGE, Full, Mixture, Wide, _aligned, log_shares_of
from tests.stages.planted import WIDTH, shares, spurious


@pytest.mark.parametrize("evenness", [0.0, 0.65])
def test_the_equations_are_least_squares(evenness: float) -> None:
    """Weighted by the size of a sample's class x name cell to the power -evenness."""
    features, labels, attributes = spurious(500, classes=3, bias=0.6)
    scaling = moments(features)
    mixture = replace(Mixture.of(features, labels, 3, scaling, 0), evenness=evenness)
    normal, sums = mixture._equations(attributes, folds(500, 0), FOLDS)
    solved = torch.linalg.solve(normal.sum(dim=0), sums.sum(dim=0))
    z = ((features - scaling.mean) / scaling.deviation).double()
    sizes = torch.bincount(labels * 3 + attributes)[labels * 3 + attributes].double()
    root = (sizes**-evenness).sqrt().unsqueeze(1)
    design = torch.cat([torch.nn.functional.one_hot(column, 3) for column in (labels, attributes)], dim=1).double()
    expected = design @ torch.linalg.lstsq(design * root, z * root, driver="gelsd").solution
    torch.testing.assert_close(design @ solved, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_transfer_tells_a_shared_shift_from_a_cluster_of_one_class(classes: int) -> None:
    """With 12 classes they are held out in groups."""
    features, labels, attributes = spurious(6000, bias=0.9, classes=classes)
    mixture = Mixture.of(features, labels, classes, moments(features), 0)
    shared = mixture.transfer(attributes)
    assert shared > 0.05
    # The same samples, moved another way in each class.
    random = torch.Generator().manual_seed(1)
    minority = attributes != labels
    own_way = 4.0 * torch.nn.functional.normalize(torch.randn(classes, features.shape[1], generator=random), dim=1)
    torn = features + minority.unsqueeze(1) * own_way[labels]
    mixture = Mixture.of(torn, labels, classes, moments(torn), 0)
    assert mixture.transfer(attributes) < shared
    assert mixture.transfer(labels) == pytest.approx(0.0, abs=0.02 * classes)


@pytest.mark.parametrize(
    ("transfer", "mirror", "merit"),
    [(0.0, None, 1.0), (-2.0, None, 0.0), (2.0, None, 1.0), (0.0, -0.3, 1.12), (0.0, -0.9, 1.32), (0.0, 0.5, 1.0)],
)
def test_what_speaks_for_and_against_a_candidate(
    transfer: float, mirror: float | None, merit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likelihood, half of the nats lost where others tell the shifts, and 0.4 of a mirror down to -0.8."""
    features, labels, attributes = spurious(200, bias=0.9)
    monkeypatch.setattr(Mixture, "likelihood", lambda self, attributes: 1.0)
    monkeypatch.setattr(Mixture, "transfer", lambda self, attributes: transfer)
    monkeypatch.setattr("stages.mixture.assess", lambda *_: Verdict(CANNOT_TELL, mirror, []))
    mixture = Mixture.of(features, labels, 2, moments(features), 0)
    assert mixture.merit(attributes) == pytest.approx(merit)


def test_transfer_of_two_classes_by_hand() -> None:
    """Class 0's place under the other's attribute is its own moved by what class 1's minority shows, and vice versa."""
    features, labels, attributes = spurious(400, bias=0.8)
    scaling = moments(features)
    mixture = Mixture.of(features, labels, 2, scaling, 0)
    z = ((features - scaling.mean) / scaling.deviation).double()
    mean = {(y, a): z[(labels == y) & (attributes == a)].mean(dim=0) for y in (0, 1) for a in (0, 1)}
    log_shares = log_shares_of(labels, attributes, 2)
    gains = []
    for own, other in ((0, 1), (1, 0)):
        members = z[labels == own]
        moved = mean[other, other] - mean[other, own]
        minority = float((attributes[labels == own] == other).double().mean())
        places = [members.mean(dim=0) + (share - minority) * moved for share in (0.0, 1.0)]

        def density(place: torch.Tensor, members: torch.Tensor = members) -> torch.Tensor:
            away = members - place
            return -((away @ mixture.precision.times(torch.eye(WIDTH)).double()) * away).sum(dim=1) / 2

        parts = [density(place) + log_shares[own, name] for place, name in zip(places, (own, other), strict=True)]
        gains.append(torch.logsumexp(torch.stack(parts), dim=0) - density(members.mean(dim=0)))
    assert mixture.transfer(attributes) == pytest.approx(float(torch.cat(gains).mean()), abs=1e-3)


def test_a_head_repaired_with_the_wrong_names_errs_on_the_minority() -> None:
    """A second attribute, rarer than the spurious one: a head that is freed of it leans on the other."""
    features, labels, attributes = spurious(3000, bias=0.95)
    features[:, 10:12] -= 2.0 * torch.nn.functional.one_hot(labels, 2)
    decoy = torch.where(torch.rand(3000, generator=torch.Generator().manual_seed(5)) < 0.98, labels, 1 - labels)
    features[torch.arange(3000), 20 + decoy] += 4.0
    mixture = Mixture.of(features, labels, 2, moments(features), 0)
    wrong, right = (shares(mixture.mistaken(names), labels, attributes) for names in (decoy, attributes))
    assert wrong[0] > 0.8 and wrong[1] > 0.25
    assert right[0] < 0.4


def test_the_spread_is_the_classes_covariance_shrunk_to_its_diagonal() -> None:
    features, labels, _ = spurious(500, classes=3, bias=0.6)
    scaling = moments(features)
    z = ((features - scaling.mean) / scaling.deviation).double()
    around = z - torch.stack([z[labels == index].mean(dim=0) for index in range(3)])[labels]
    covariance = around.T @ around / 500
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * torch.diag(covariance.diagonal())
    precision = Mixture.of(features, labels, 3, scaling, 0).precision.times(torch.eye(40))
    torch.testing.assert_close(precision.double() @ shrunk, torch.eye(40).double(), atol=1e-4, rtol=0)


def test_of_far_more_features_than_samples_no_square_matrix_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its product is the same; a feature that does not vary has no say in either."""
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(60, 300, generator=generator), torch.arange(60) % 2
    features = features @ torch.randn(300, 300, generator=generator)
    features[:, 7] = 1.0
    wide = Mixture.of(features, labels, 2, moments(features), 0)
    monkeypatch.setattr("stages.mixture.WIDE", 6)
    full = Mixture.of(features, labels, 2, moments(features), 0)
    assert isinstance(wide.precision, Wide) and isinstance(full.precision, Full)
    vectors = torch.randn(2, 5, 300, generator=generator)
    torch.testing.assert_close(wide.precision.times(vectors), full.precision.times(vectors), rtol=1e-3, atol=1e-3)


def test_names_are_exchanged_until_most_samples_have_their_own() -> None:
    labels = torch.arange(4).repeat_interleave(10)
    attributes = torch.tensor([2, 0, 3, 1])[labels]
    attributes[::10] = labels[::10]
    aligned = _aligned(attributes, labels, 4)
    assert int((aligned == labels).sum()) == 36
    # The same groups: one new name for each old one.
    assert len({*zip(attributes.tolist(), aligned.tolist(), strict=True)}) == 4
    few = labels.clone()
    few[:4] = 1
    torch.testing.assert_close(_aligned(few, labels, 4), few)


def test_log_shares_by_hand() -> None:
    labels, attributes = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1])
    expected = torch.tensor([[2.5 / 4, 1.5 / 4], [0.5 / 4, 3.5 / 4]]).double().log()
    torch.testing.assert_close(log_shares_of(labels, attributes, 2), expected)
