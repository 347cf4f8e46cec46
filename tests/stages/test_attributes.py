"""Pseudo-attributes: what finds the samples that carry another class's attribute; on planted features."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stages import attributes
from stages.attributes import (
    AGREED,
    DOUBTFUL,
    EVENNESSES,
    SEEDS,
    SHRINKAGE,
    _agreement,
    _aligned,
    _classified,
    _dragged,
    _Full,
    _log_shares,
    _Mixture,
    _Wide,
    agreed,
    pseudo_attributes,
)
from stages.identify import CANNOT_TELL, Verdict, identify
from stages.logistic import FOLDS, folds, moments
from stages.passes import group_means
from stages.reliance import Reliance
from stages.runtime import silent
from tests.stages.planted import WIDTH, biased_head, spurious


def found(features: torch.Tensor, labels: torch.Tensor, classes: int = 2) -> torch.Tensor:
    nearest = identify(features, labels, classes=classes).nearest
    return pseudo_attributes(features, labels, nearest, classes=classes, scaling=moments(features)).attributes


def shares(guess: torch.Tensor, labels: torch.Tensor, attributes: torch.Tensor) -> tuple[float, float]:
    """Recall and precision of the minority, its attribute named right."""
    minority, said = attributes != labels, guess != labels
    hits = int((minority & said & (guess == attributes)).sum())
    return hits / int(minority.sum()), hits / max(1, int(said.sum()))


@pytest.mark.parametrize(("samples", "bias", "classes"), [(3000, 0.9, 2), (600, 0.98, 2), (3000, 0.95, 4), (1200, 0.7, 2)])
def test_finds_the_minority(samples: int, bias: float, classes: int) -> None:
    features, labels, attributes = spurious(samples, bias=bias, classes=classes)
    recall, precision = shares(found(features, labels, classes), labels, attributes)
    assert recall > 0.9 and precision > 0.9


def test_finds_what_the_centroids_miss() -> None:
    """A weaker attribute among louder noise: the nearest centroid's minority is neither complete nor clean."""
    features, labels, attributes = spurious(2000, bias=0.95)
    features[:, 20:24] += 6.0 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(7))
    features[torch.arange(2000), attributes] -= 2.0
    nearest = identify(features, labels).nearest
    guess = found(features, labels)
    (recall, precision), before = shares(guess, labels, attributes), shares(nearest, labels, attributes)
    assert recall > before[0] + 0.1 and precision > before[1]


@pytest.mark.parametrize(("rare", "plenty"), [(0.2, True), (0.17, False)])
def test_plenty_is_a_share_of_a_class(rare: float, plenty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth on average over classes, however many samples each of them has."""
    labels = torch.cat([torch.zeros(900, dtype=torch.int64), torch.ones(100, dtype=torch.int64)])
    nearest = labels.clone()
    nearest[:18], nearest[900 : 900 + round(100 * rare)] = 1, 0
    features = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) + 3.0 * nearest.unsqueeze(1)
    searched: list[bool] = []
    monkeypatch.setattr(attributes, "_searched", lambda *given: searched.append(True) or given[2])
    pseudo_attributes(features, labels, nearest, classes=2, scaling=moments(features))
    assert bool(searched) is not plenty


def test_classes_learn_a_shift_from_one_another() -> None:
    """No centroid gives class 0's minority away, but the other classes' does."""
    features, labels, attributes = spurious(3000, bias=0.95, classes=3)
    nearest = identify(features, labels, classes=3).nearest
    nearest[labels == 0] = 0
    guess = pseudo_attributes(features, labels, nearest, classes=3, scaling=moments(features)).attributes
    own = labels == 0
    recall, _ = shares(guess[own], labels[own], attributes[own])
    assert recall > 0.9


def test_names_other_samples_as_those_it_has_seen() -> None:
    for bias in (0.9, 0.7):
        features, labels, _ = spurious(3000, bias=bias)
        nearest = identify(features, labels).nearest
        named = pseudo_attributes(features, labels, nearest, classes=2, scaling=moments(features))
        guess, [naming] = named.attributes, named.namings
        assert float((naming.names(features, labels) == guess).double().mean()) > 0.97
        fresh, classes, attributes = spurious(3000, bias=bias, seed=3)
        assert min(shares(naming.names(fresh, classes), classes, attributes)) > 0.85


def test_a_sample_has_no_say_in_its_own_name() -> None:
    """More features than samples, all noise: names that could be learned by heart do not stay."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(200, 400, generator=generator), torch.arange(200) % 2
    started = torch.where(torch.rand(200, generator=generator) < 0.1, 1 - labels, labels)
    guess = pseudo_attributes(features, labels, started, classes=2, scaling=moments(features)).attributes
    both = (started != labels) & (guess != labels)
    assert int(both.sum()) < 0.5 * int((started != labels).sum())


@pytest.mark.parametrize("evenness", [0.0, 0.65])
def test_the_equations_are_least_squares(evenness: float) -> None:
    """Weighted by the size of a sample's class x name cell to the power -evenness."""
    features, labels, attributes = spurious(500, classes=3, bias=0.6)
    scaling = moments(features)
    mixture = replace(_Mixture.of(features, labels, 3, scaling, 0), evenness=evenness)
    normal, sums = mixture._equations(attributes, folds(500, 0), FOLDS)
    solved = torch.linalg.solve(normal.sum(dim=0), sums.sum(dim=0))
    z = ((features - scaling.mean) / scaling.deviation).double()
    sizes = torch.bincount(labels * 3 + attributes)[labels * 3 + attributes].double()
    root = (sizes**-evenness).sqrt().unsqueeze(1)
    design = torch.cat([torch.nn.functional.one_hot(column, 3) for column in (labels, attributes)], dim=1).double()
    expected = design @ torch.linalg.lstsq(design * root, z * root, driver="gelsd").solution
    torch.testing.assert_close(design @ solved, expected, atol=1e-5, rtol=1e-5)


def test_more_than_two_classes_have_several_readings() -> None:
    features, labels, _ = spurious(900, bias=0.95, classes=3)
    nearest = identify(features, labels).nearest
    named = pseudo_attributes(features, labels, nearest, classes=3, scaling=moments(features))
    assert named.readings.shape == (SEEDS * len(EVENNESSES) + 1, 900) and len(named.namings) == len(named.readings)
    agree = [
        float((naming.names(features, labels) == reading).double().mean())
        for reading, naming in zip(named.readings, named.namings, strict=True)
    ]
    # The last is the classifier's, which on so few samples changes its mind from fold to fold.
    assert min(agree[:-1]) > 0.97 and agree[-1] > 0.9


@pytest.mark.parametrize(("bias", "weaker"), [(0.9, 1.0), (0.8, 2.0)])
def test_what_the_base_heads_doubts_lead_to_counts_where_two_ways_agree(bias: float, weaker: float) -> None:
    features, labels, attributes = spurious(2000, bias=bias, classes=4)
    features[torch.arange(2000), attributes] -= weaker
    nearest, base, scaling = identify(features, labels).nearest, biased_head(4), moments(features)
    named = pseudo_attributes(features, labels, nearest, classes=4, scaling=scaling, base=base)
    mixture = named.readings[: len(DOUBTFUL)]
    assert len(named.readings) == len(named.namings) == len(DOUBTFUL) + 2
    assert _agreement(mixture[0], named.readings[len(DOUBTFUL)], labels) >= AGREED
    before = shares(nearest, labels, attributes)
    # The mixture's word goes before the classifiers' where as many say one thing as another.
    for names in (*mixture, named.attributes):
        recall, precision = shares(names, labels, attributes)
        assert recall > before[0] + 0.2 and precision > 0.95


@pytest.mark.parametrize(("agreement", "readings"), [(0.399, SEEDS * len(EVENNESSES) + 1), (0.4, 4)])
def test_where_they_do_not_agree_rounds_start_from_the_nearest_centroid(
    agreement: float, readings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels, _ = spurious(600, bias=0.9, classes=3)
    monkeypatch.setattr(attributes, "_agreement", lambda *_: agreement)
    nearest = identify(features, labels).nearest
    named = pseudo_attributes(features, labels, nearest, classes=3, scaling=moments(features), base=biased_head(3))
    assert len(named.readings) == len(named.namings) == readings


@pytest.mark.parametrize(
    ("share", "agreement", "alone"), [(0.3, 0.5, True), (0.299, 0.5, False), (0.3, 0.499, False), (0.9, 1.0, True)]
)
def test_where_the_split_is_close_to_even_the_classifier_of_the_doubts_counts_alone(
    share: float, agreement: float, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the nearest centroid draws plenty away, whose classifier is the only reading otherwise."""
    features, labels, _ = spurious(3000, bias=0.5, classes=3)
    nearest, scaling = identify(features, labels).nearest, moments(features)
    assert float((nearest != labels).double().mean()) > 0.1
    naming = _classified(features, labels, nearest, 3, scaling, 0, silent)[1]
    doubted = torch.where(torch.arange(3000) < round(share * 3000), (labels + 1) % 3, labels)
    given = iter([(nearest, naming), (doubted, naming)])
    monkeypatch.setattr(attributes, "_classified", lambda *_: next(given))
    monkeypatch.setattr(attributes, "_agreement", lambda *_: agreement)
    [reading] = pseudo_attributes(features, labels, nearest, classes=3, scaling=scaling, base=biased_head(3)).readings
    assert torch.equal(reading, doubted if alone else nearest)


OVERUSED, NONE = Reliance(1.0, 2.0, 0.04), None


@pytest.mark.parametrize(
    ("agreement", "half", "nearest", "counts"),
    [
        (0.5, OVERUSED, Reliance(1.0, 1.1, 0.039), True),
        (0.499, OVERUSED, Reliance(1.0, 1.1, 0.039), False),
        (0.5, Reliance(1.0, 1.999, 0.04), Reliance(1.0, 1.1, 0.039), False),
        (0.5, OVERUSED, Reliance(1.0, 1.1, 0.04), False),
        (0.5, OVERUSED, Reliance(1.0, 1.0, 0.9), True),  # which the base head does not overuse
        (0.5, OVERUSED, NONE, True),
        (0.5, NONE, NONE, False),
    ],
)
def test_when_half_of_the_base_heads_doubts_counts(
    agreement: float, half: Reliance | None, nearest: Reliance | None, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels, _ = spurious(1000, bias=0.5)
    drawn, scaling = identify(features, labels).nearest, moments(features)
    naming = _classified(features, labels, drawn, 2, scaling, 0, silent)[1]
    found, told = iter([(drawn, naming), (1 - drawn, naming)]), iter([half, nearest])
    monkeypatch.setattr(attributes, "PLENTY", 0.0)
    monkeypatch.setattr(attributes, "_classified", lambda *_: next(found))
    monkeypatch.setattr(attributes, "_agreement", lambda *_: agreement)
    monkeypatch.setattr(attributes, "reliance", lambda *_: next(told))
    named = pseudo_attributes(features, labels, drawn, classes=2, scaling=scaling, base=biased_head())
    assert torch.equal(named.attributes, 1 - drawn if counts else drawn)


def test_doubts_are_the_base_heads_and_without_one_the_nearest_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, _ = spurious(600, bias=0.9, classes=3)
    base, asked = biased_head(3), []

    def dragged(*given: Any) -> list[torch.Tensor]:
        asked.append(given)
        return _dragged(*given)

    monkeypatch.setattr(attributes, "_dragged", dragged)
    nearest, scaling = identify(features, labels).nearest, moments(features)
    for head in (base, None):
        pseudo_attributes(features, labels, nearest, classes=3, scaling=scaling, base=head)
    assert [tuple(shares) for _, _, *shares in asked] == [DOUBTFUL, DOUBTFUL]
    logits, nearness = (scores for scores, *_ in asked)
    torch.testing.assert_close(logits.float(), features @ base[0].T + base[1])
    torch.testing.assert_close(nearness, -torch.cdist(features, group_means(features, labels, 3)))


def test_agreement_counts_names() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    one, other = torch.tensor([0, 1, 2, 1, 1, 2]), torch.tensor([0, 1, 1, 0, 0, 2])
    # Two of four and of four samples are the same; two minorities of nothing agree on nothing.
    assert _agreement(one, other, labels) == pytest.approx(2 * 2 / 8)
    assert _agreement(labels, labels, labels) == 0.0


def test_what_most_readings_say() -> None:
    readings = torch.tensor([[0, 2, 1, 2], [1, 2, 0, 0], [1, 0, 0, 0], [2, 0, 1, 0]])
    assert agreed(readings).tolist() == [1, 2, 1, 0]
    assert torch.equal(agreed(readings[:1]), readings[0])


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_transfer_tells_a_shared_shift_from_a_cluster_of_one_class(classes: int) -> None:
    """With 12 classes they are held out in groups."""
    features, labels, attributes = spurious(6000, bias=0.9, classes=classes)
    mixture = _Mixture.of(features, labels, classes, moments(features), 0)
    shared = mixture.transfer(attributes)
    assert shared > 0.05
    # The same samples, moved another way in each class.
    random = torch.Generator().manual_seed(1)
    minority = attributes != labels
    own_way = 4.0 * torch.nn.functional.normalize(torch.randn(classes, features.shape[1], generator=random), dim=1)
    torn = features + minority.unsqueeze(1) * own_way[labels]
    mixture = _Mixture.of(torn, labels, classes, moments(torn), 0)
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
    monkeypatch.setattr(_Mixture, "likelihood", lambda self, attributes: 1.0)
    monkeypatch.setattr(_Mixture, "transfer", lambda self, attributes: transfer)
    monkeypatch.setattr("stages.attributes.assess", lambda *_: Verdict(CANNOT_TELL, mirror, []))
    mixture = _Mixture.of(features, labels, 2, moments(features), 0)
    assert mixture.merit(attributes) == pytest.approx(merit)


def test_shared_is_told_for_each_sample_of_the_minority() -> None:
    features, labels, _ = spurious(2000, bias=0.9)
    scaling = moments(features)
    named = pseudo_attributes(features, labels, identify(features, labels).nearest, classes=2, scaling=scaling)
    minority = float((named.attributes != labels).double().mean())
    assert 0.05 < minority < 0.15
    transfer = _Mixture.of(features, labels, 2, scaling, 0).transfer(named.attributes)
    assert named.shared == pytest.approx(transfer / minority, rel=1e-4)


def test_transfer_of_two_classes_by_hand() -> None:
    """Class 0's place under the other's attribute is its own moved by what class 1's minority shows, and vice versa."""
    features, labels, attributes = spurious(400, bias=0.8)
    scaling = moments(features)
    mixture = _Mixture.of(features, labels, 2, scaling, 0)
    z = ((features - scaling.mean) / scaling.deviation).double()
    mean = {(y, a): z[(labels == y) & (attributes == a)].mean(dim=0) for y in (0, 1) for a in (0, 1)}
    log_shares = _log_shares(labels, attributes, 2)
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
    mixture = _Mixture.of(features, labels, 2, moments(features), 0)
    wrong, right = (shares(mixture.mistaken(names), labels, attributes) for names in (decoy, attributes))
    assert wrong[0] > 0.8 and wrong[1] > 0.25
    assert right[0] < 0.4


def test_a_share_of_each_class_is_dragged_to_the_closest_other_centroid() -> None:
    features = torch.cat([torch.arange(20.0), 100 + torch.arange(30.0), 300 + torch.arange(10.0)]).unsqueeze(1)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 30, 10]))
    nearness = _Mixture.of(features, labels, 3, moments(features), 0).nearness()
    expected = labels.clone()
    expected[[18, 19]], expected[[20, 21, 22]], expected[50] = 1, 0, 1
    small, large = _dragged(nearness, labels, 0.1, 0.14)
    torch.testing.assert_close(small, expected)
    expected[17], expected[23] = 1, 0
    torch.testing.assert_close(large, expected)


def test_the_spread_is_the_classes_covariance_shrunk_to_its_diagonal() -> None:
    features, labels, _ = spurious(500, classes=3, bias=0.6)
    scaling = moments(features)
    z = ((features - scaling.mean) / scaling.deviation).double()
    around = z - torch.stack([z[labels == index].mean(dim=0) for index in range(3)])[labels]
    covariance = around.T @ around / 500
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * torch.diag(covariance.diagonal())
    precision = _Mixture.of(features, labels, 3, scaling, 0).precision.times(torch.eye(40))
    torch.testing.assert_close(precision.double() @ shrunk, torch.eye(40).double(), atol=1e-4, rtol=0)


def test_of_far_more_features_than_samples_no_square_matrix_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its product is the same; a feature that does not vary has no say in either."""
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(60, 300, generator=generator), torch.arange(60) % 2
    features = features @ torch.randn(300, 300, generator=generator)
    features[:, 7] = 1.0
    wide = _Mixture.of(features, labels, 2, moments(features), 0)
    monkeypatch.setattr(attributes, "WIDE", 6)
    full = _Mixture.of(features, labels, 2, moments(features), 0)
    assert isinstance(wide.precision, _Wide) and isinstance(full.precision, _Full)
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
    torch.testing.assert_close(_log_shares(labels, attributes, 2), expected)
