"""Pseudo-attributes: what finds the samples that carry another class's attribute; on planted features."""

from typing import Any

import pytest
import torch

from stages import attributes
from stages.attributes import (
    AGREED,
    DOUBTFUL,
    EVENNESSES,
    SEEDS,
    _agreement,
    _classified,
    _dragged,
    agreed,
    pseudo_attributes,
)
from stages.identify import identify
from stages.logistic import moments
from stages.mixture import Mixture
from stages.passes import group_means
from stages.reliance import Reliance
from stages.runtime import silent
from tests.stages.planted import biased_head, shares, spurious


def found(features: torch.Tensor, labels: torch.Tensor, classes: int = 2) -> torch.Tensor:
    nearest = identify(features, labels, classes=classes).nearest
    return pseudo_attributes(features, labels, nearest, classes=classes, scaling=moments(features)).attributes


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


def test_many_classes_are_the_mixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 x 30 cells most have no sample or two, and rounds of a classifier would lead away from all they began with."""
    generator = torch.Generator().manual_seed(0)
    places, shifts = 1.2 * torch.randn(30, 64, generator=generator), 1.5 * torch.randn(30, 64, generator=generator)
    labels = torch.arange(2000) % 30
    elsewhere = torch.randint(0, 30, (2000,), generator=generator)
    true = torch.where(torch.rand(2000, generator=generator) < 0.8, labels, elsewhere)
    features = torch.randn(2000, 64, generator=generator) + places[labels] + shifts[true]
    assert float((found(features, labels, 30) == true).double().mean()) > 0.99
    monkeypatch.setattr(attributes, "MOST_CLASSIFIED", 30)
    assert float((found(features, labels, 30) == true).double().mean()) < 0.7


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


def test_shared_is_told_for_each_sample_of_the_minority() -> None:
    features, labels, _ = spurious(2000, bias=0.9)
    scaling = moments(features)
    named = pseudo_attributes(features, labels, identify(features, labels).nearest, classes=2, scaling=scaling)
    minority = float((named.attributes != labels).double().mean())
    assert 0.05 < minority < 0.15
    transfer = Mixture.of(features, labels, 2, scaling, 0).transfer(named.attributes)
    assert named.shared == pytest.approx(transfer / minority, rel=1e-4)


def test_a_share_of_each_class_is_dragged_to_the_closest_other_centroid() -> None:
    features = torch.cat([torch.arange(20.0), 100 + torch.arange(30.0), 300 + torch.arange(10.0)]).unsqueeze(1)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 30, 10]))
    nearness = Mixture.of(features, labels, 3, moments(features), 0).nearness()
    expected = labels.clone()
    expected[[18, 19]], expected[[20, 21, 22]], expected[50] = 1, 0, 1
    small, large = _dragged(nearness, labels, 0.1, 0.14)
    torch.testing.assert_close(small, expected)
    expected[17], expected[23] = 1, 0
    torch.testing.assert_close(large, expected)
