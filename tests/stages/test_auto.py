"""update.solver auto: the new head, the verdict, and when the base head is kept; on planted features."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import auto
from stages.artifacts import read
from stages.attributes import EVENNESSES, SEEDS, Naming
from stages.auto import (
    EVENED,
    GROUPS,
    LEAST_OF_CLASS,
    PENALTIES,
    PLAIN,
    WEAKER,
    Draw,
    Evidence,
    Retrained,
    calibration,
    group_balanced,
    likelihood,
    repair,
    retrain,
    weigh,
    worse_half,
    worst_quarter,
)
from stages.identify import BIASED, CANNOT_TELL, NOT_BIASED, Verdict, _said, assess, identify
from stages.logistic import balanced, fit, moments
from stages.passes import predict
from tests.conftest import Done

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


@pytest.mark.parametrize("classes", [2, 4])
def test_repairs_where_the_model_is_biased(classes: int) -> None:
    features, labels, attributes = spurious(3000, classes=classes)
    base = biased_head(classes)
    done = repair(features, labels, base)
    assert done.verdict.bias == BIASED and done.kept is None
    oracle = group_balanced(features, labels, attributes, classes=classes, scaling=moments(features))
    assert worst_group((done.weight, done.bias), classes) > worst_group(base, classes) + 0.3
    assert worst_group((done.weight, done.bias), classes) > worst_group((oracle.weight, oracle.bias), classes) - 0.04


def test_without_bias_the_base_head_is_kept() -> None:
    """Two classes that overlap and no attribute: the minority is hard, and nothing mirrors it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    difficulty = torch.rand(2000, generator=generator)
    features = torch.randn(2000, WIDTH, generator=generator)
    features[:, 0] += (2 * labels - 1) * 2 * difficulty
    features[:, 1:6] -= 4 * difficulty.unsqueeze(1)
    base = (torch.tensor([[-1.0], [1.0]]) * torch.eye(1, WIDTH), torch.zeros(2))
    done = repair(features, labels, base)
    assert done.kept is not None and done.verdict.bias != BIASED
    assert torch.equal(done.weight, base[0]) and torch.equal(done.bias, base[1])


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_flipped_labels_are_no_bias(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(2000) % 2
    features = torch.randn(2000, WIDTH, generator=generator)
    features[:, :5] += 3.0 * (2 * truth - 1).unsqueeze(1)
    labels = torch.where(torch.rand(2000, generator=generator) < noise, 1 - truth, truth)
    base = (torch.tensor([[-1.0], [1.0]]) * torch.cat([torch.ones(1, 5), torch.zeros(1, WIDTH - 5)], dim=1), torch.zeros(2))
    assert repair(features, labels, base).kept is not None


def test_force_returns_the_new_head() -> None:
    features, labels, _ = spurious(400, bias=0.99)
    base = biased_head()
    kept, forced = (repair(features, labels, base, force=force) for force in (False, True))
    assert kept.verdict.bias == CANNOT_TELL and kept.kept == "the verdict is 'cannot tell'" and kept.retrained is None
    assert forced.kept is None and forced.retrained is not None
    assert torch.equal(forced.weight, forced.retrained.weight) and not torch.equal(forced.weight, base[0])


def hidden(off: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels whose hard samples, all `off` in one direction, hide the mirror of the minority."""
    features, labels, _ = spurious(3000, bias=0.97)
    hard = torch.rand(3000, generator=torch.Generator().manual_seed(3)) < 0.02
    features[hard, :2] = features[hard, :2].mean(dim=1, keepdim=True)
    features[hard, 10:12] = torch.randn(int(hard.sum()), 2, generator=torch.Generator().manual_seed(4))
    features[hard, 12:20] += off
    return features, labels


@pytest.mark.parametrize(
    ("off", "first", "last"), [(3.0, CANNOT_TELL, BIASED), (3.4, NOT_BIASED, BIASED), (4.0, NOT_BIASED, NOT_BIASED)]
)
def test_a_second_look_at_what_identify_is_not_sure_of(off: float, first: str, last: str) -> None:
    """More and more of the mirror is hidden."""
    features, labels = hidden(off)
    assert assess(features, labels, identify(features, labels)).bias == first
    base = biased_head()
    done = repair(features, labels, base)
    assert done.verdict.bias == last
    if last == NOT_BIASED:
        assert done.kept == "the verdict is 'not biased'" and done.evidence is None
    else:
        assert done.kept is None
        assert worst_group((done.weight, done.bias)) > worst_group(base) + 0.3


def with_few_of_the_last_class(few: int) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels, _ = spurious(1500, classes=3)
    kept = labels < 2
    kept[(labels == 2).nonzero().flatten()[:few]] = True
    return features[kept], labels[kept]


def test_a_class_of_a_handful_is_not_given_up() -> None:
    """A head fitted to three of its samples gets two of three of them wrong."""
    features, labels = with_few_of_the_last_class(3)
    base = biased_head(3)
    kept, forced = (repair(features, labels, base, force=force) for force in (False, True))
    assert kept.verdict.bias == BIASED and kept.evidence is not None and kept.evidence.given_up
    assert kept.kept == forced.doubt == "the new head is worse at a class that has few validation samples"
    test, truth, _ = spurious(3000, classes=3, bias=1 / 3, seed=9)
    lost = float((predict(test, forced.weight, forced.bias) == truth)[truth == 2].double().mean())
    assert lost < float((predict(test, *base) == truth)[truth == 2].double().mean()) - 0.05
    done = repair(*with_few_of_the_last_class(30), base)
    assert done.kept is None and done.evidence is not None and not done.evidence.given_up


def test_a_handful_makes_no_head_too_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every class weighs the same, three samples would be half of what is measured."""
    monkeypatch.setattr(Evidence, "carries", lambda *_: False)
    features, labels, base = too_sure()
    assert repair(features, labels, base).remedy == PLAIN
    kept = labels == 0
    kept[(labels == 1).nonzero().flatten()[: LEAST_OF_CLASS - 1]] = True
    assert repair(features[kept], labels[kept], base).kept is not None


def test_against_not_biased_the_mirror_alone_speaks() -> None:
    shared, mirrored = Evidence(-0.4, 0.6, 0.2, 5.0, 0.2), Evidence(-0.7, 0.6, 0.2, -1.0, 0.0)
    unsure, not_biased = Verdict(CANNOT_TELL, -0.25, []), Verdict(NOT_BIASED, -0.15, [])
    assert shared.tells(unsure) and mirrored.tells(unsure) and mirrored.tells(not_biased)
    assert not shared.tells(not_biased)


def test_a_head_that_is_plainly_better_is_carried() -> None:
    """An even validation split: the base head errs on half of it, and a new one need not show where the bias lies."""
    features, labels, attributes = spurious(2000, bias=0.5)
    base = (biased_head()[0] * torch.tensor([1.0] * 10 + [0.0] * (WIDTH - 10)), torch.zeros(2))
    drawn = Draw(features, labels, labels, torch.arange(2000), torch.arange(2000), 2000)
    new = group_balanced(features, labels, attributes, classes=2, scaling=moments(features))
    evidence = weigh(drawn, new, base, classes=2)
    right = predict(features, *base) == labels
    gains = [float(new.right[labels == y].double().mean() - right[labels == y].double().mean()) for y in (0, 1)]
    assert evidence.better == pytest.approx(sum(gains) / 2, abs=1e-6) and evidence.better > 0.3
    told = Verdict(CANNOT_TELL, None, [])
    assert evidence.tells(told) and evidence.carries(told)
    nothing = replace(evidence, mirror=None, better=0.05)
    assert not nothing.tells(told) and not nothing.carries(told)


@pytest.mark.parametrize(
    ("evidence", "carried"),
    [
        (Evidence(-0.7, 0.6, 0.2, -1.0, 0.0), True),
        (Evidence(-0.4, 0.6, 0.2, -1.0, 0.0), False),  # hardly a mirror
        (Evidence(-0.7, 0.4, 0.2, -1.0, 0.0), False),  # little recovered
        (Evidence(-0.7, 0.6, 0.01, -1.0, 0.0), False),  # hardly anything gained,
        (Evidence(-0.9, 0.6, 0.01, -1.0, 0.0), True),  # but the clearest of mirrors
        (Evidence(-0.4, 0.2, 0.2, 5.0, 0.0), True),  # one class's minority tells where the other's lies,
        (Evidence(-0.2, 0.2, 0.2, 5.0, 0.0), False),  # as flipped labels' does
        (Evidence(None, 0.6, 0.2, 5.0, 0.0), False),
        (Evidence(-0.7, 0.6, None, None, None), True),  # without a base head
    ],
)
def test_what_carries_a_repair(evidence: Evidence, carried: bool) -> None:
    assert evidence.carries(Verdict(BIASED, -0.4, [])) == carried


@pytest.mark.parametrize(
    ("evidence", "carried"),
    [
        (Evidence(-0.7, 0.6, 0.2, -1.0, -0.1), True),
        (Evidence(-0.7, 0.6, 0.005, -1.0, -0.1), True),  # it need not gain
        (Evidence(-0.7, 0.6, -0.05, -1.0, 0.0), False),
        (Evidence(-0.4, 0.6, 0.2, -1.0, 0.0), False),  # hardly mirrored
        (Evidence(-0.65, 0.55, 0.2, -1.0, -0.03), False),  # as look-alike classes are,
        (Evidence(-0.65, 0.55, 0.2, -1.0, 0.03), True),  # but for being better at the classes
        (Evidence(-0.65, 0.55, 0.2, -1.0, None), False),
        (Evidence(-0.65, 0.4, 0.2, -1.0, 0.03), False),
        (Evidence(-0.4, 0.4, 0.2, 4.5, -0.1), False),
        (Evidence(-0.4, 0.4, 0.2, 5.5, -0.1), True),
    ],
)
def test_what_carries_a_repair_of_more_than_two_classes(evidence: Evidence, carried: bool) -> None:
    assert replace(evidence, classes=3).carries(Verdict(BIASED, -0.4, [])) == carried


def test_a_base_head_that_is_too_sure_tells_where_the_verdict_cannot() -> None:
    evidence = Evidence(mirror=-0.28, recovered=0.9, gained=0.9, shared=-11.0, better=0.02, errors=2.2, unused=0.28)
    assert evidence.tells(Verdict(CANNOT_TELL, -0.25, [])) and not evidence.tells(Verdict(NOT_BIASED, -0.15, []))
    assert not replace(evidence, errors=1.5).tells(Verdict(CANNOT_TELL, -0.25, []))


def test_more_than_two_classes_must_share_more_to_tell() -> None:
    evidence, unsure = Evidence(-0.4, 0.5, 0.2, 4.5, 0.0), Verdict(CANNOT_TELL, -0.25, [])
    assert evidence.tells(unsure) and not replace(evidence, classes=3).tells(unsure)
    assert replace(evidence, classes=3, shared=5.5).tells(unsure)


@pytest.mark.parametrize(
    ("errors", "unused", "alone"),
    [
        (1.0, 0.045, True),
        (0.7, 0.1, True),
        (1.4, 0.1, True),
        (1.41, 0.5, False),  # too sure of itself: what it leans on has come apart from the classes
        (0.69, 0.5, False),  # its probabilities are no probabilities
        (1.0, 0.044, False),  # nothing in the split that it does not use
        (None, None, False),
    ],
)
def test_whether_it_is_the_split_that_is_biased(errors: float | None, unused: float | None, alone: bool) -> None:
    assert Evidence(-0.7, 0.6, 0.2, -1.0, 0.0, errors, unused).split_alone() is alone


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


@pytest.mark.parametrize("bias", [0.85, 0.95])
def test_an_unbiased_model_is_kept_where_the_split_alone_is_biased(bias: float) -> None:
    """Everything else speaks for a repair that would lean on the attribute: it is right where the model errs."""
    features, labels, attributes = soft(6000, bias=0.5, seed=1)
    base = fitted(features, labels, 1e-4)
    features, labels, _ = soft(2000, bias=bias, seed=2)
    kept, forced = (repair(features, labels, base, force=force) for force in (False, True))
    assert (
        kept.kept
        == forced.doubt
        == "in the validation split an attribute goes with the class, and the model does not seem to use it"
    )
    assert kept.evidence is not None and kept.evidence.carries(kept.verdict) and kept.verdict.bias == BIASED
    assert 0.8 < kept.evidence.errors < 1.2 and torch.equal(kept.weight, base[0])  # type: ignore[operator]
    features, labels, attributes = soft(4000, bias=0.5, seed=3)
    worst = [
        min(float((predict(features, *head) == labels)[groups].double().mean()) for groups in
            ((labels == label) & (attributes == attribute) for label in (0, 1) for attribute in (0, 1)))
        for head in (base, (forced.weight, forced.bias))
    ]  # fmt: skip
    assert worst[0] > 0.8 and worst[1] < 0.2


def test_calibration_by_hand() -> None:
    """Labels drawn by the head's own probabilities: as many errors as it expects, and nothing to gain over it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 6, generator=generator)
    weight, offset = torch.tensor([[0.0] * 6, [2.0, -1.0, 0.0, 0.0, 0.0, 0.0]]), torch.tensor([0.0, 0.3])
    chances = torch.softmax(features @ weight.T + offset, dim=1)[:, 1]
    labels = (torch.rand(4000, generator=generator) < chances).long()
    told = {"classes": 2, "scaling": moments(features), "seed": 0}
    known = calibration(features, labels, (weight, offset), **told)
    assert known.errors == pytest.approx(1, abs=0.1) and abs(known.unused) < 0.01
    # Three times as sure: more errors than expected, and its scale alone is nothing to gain by.
    surer = calibration(features, labels, (3 * weight, 3 * offset), **told)
    assert surer.errors > 2 and surer.unused == pytest.approx(known.unused, abs=0.005)
    # Another feature that tells the class, which the head does not use.
    features[:, 5] += 3.0 * labels
    told["scaling"] = moments(features)
    more = calibration(features, labels, (weight, offset), **told)
    assert more.errors == known.errors and more.unused > 0.2


def test_plain_retraining_is_cross_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is the repair: the readings' guesses are those that the strength of the new head is chosen by."""
    features, labels, base = too_sure()
    known = calibration(features, labels, base, classes=2, scaling=moments(features), seed=0)
    fitted_alike = {"classes": 2, "scaling": known.scaling, "merit": likelihood}
    anew, known_already = (
        group_balanced(features, labels, labels, guesses=guesses, **fitted_alike) for guesses in (None, known.guesses)
    )
    assert torch.equal(anew.weight, known_already.weight) and torch.equal(anew.right, known_already.right)
    calls = []
    real = auto.held_out
    monkeypatch.setattr(
        auto, "held_out", lambda *told, **more: calls.append((told[2], more["penalties"])) or real(*told, **more)
    )
    monkeypatch.setattr(Evidence, "carries", lambda *_: False)
    done = repair(features, labels, base)
    plainly = [penalties for weights, penalties in calls if torch.equal(weights, balanced(labels, 2))]
    assert done.remedy == PLAIN and plainly.count(auto.PENALTIES) == 1 and plainly[0] == auto.PENALTIES


def test_a_rare_class_is_nothing_that_a_head_does_not_use() -> None:
    """The head that fits these labels best gains a lot of class-balanced likelihood by weighing classes alike alone."""
    features, labels, base = uneven(6000, seed=1)
    assert abs(calibration(features, labels, base, classes=2, scaling=moments(features), seed=0).unused) < 0.02
    fair = base[1] - torch.log(torch.bincount(labels) / len(labels))
    logits = [features @ base[0].T + offset for offset in (base[1], fair)]
    weights = balanced(labels, 2)
    gain = likelihood(logits[1], labels, labels, weights) - likelihood(logits[0], labels, labels, weights)
    assert gain > 0.1


def uneven(
    samples: int, *, seed: int, rare: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Features (n, 40), labels of which few are 1, three in ten hard and none spurious, and the head that fits them best."""
    features, labels = _uneven(samples, seed, rare)
    return features, labels, _head_of_uneven(rare)


def _uneven(samples: int, seed: int, rare: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(samples, generator=generator) < rare).long()
    features = torch.randn(samples, WIDTH, generator=generator)
    hard = torch.rand(samples, generator=generator) < 0.3
    features[torch.arange(samples), 10 + labels] += torch.where(hard, 1.0, 4.0)
    features[hard, 12:20] += 2.0
    return features, labels


@cache
def _head_of_uneven(rare: float) -> tuple[torch.Tensor, torch.Tensor]:
    return fitted(*_uneven(20_000, 77, rare), 1e-4)


def class_accuracies(head: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    features, labels = _uneven(8000, 9, 0.5)
    right = predict(features, *head) == labels
    return [float(right[labels == label].double().mean()) for label in (0, 1)]


@pytest.mark.parametrize("samples", [3000, 1000])
def test_a_class_that_the_base_head_neglects(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No minority carries a repair: the base head's weights, with biases for which every class weighs the same."""
    features, labels, base = uneven(3000, seed=2)
    monkeypatch.setattr(auto, "SELECTION_VALUES", samples * WIDTH)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    done = repair(features, labels, base)
    assert done.kept is None and done.remedy == EVENED and done.neglected == 1 and done.verdict.bias == BIASED
    assert done.evidence is not None and done.evidence.neglected is not None and done.evidence.neglected >= 0.1
    before, after = class_accuracies(base), class_accuracies((done.weight, done.bias))
    assert before[0] > 0.95 and before[1] < 0.8 and min(after) > 0.85
    assert torch.equal(done.weight, base[0]) and done.bias[1] - base[1][1] > done.bias[0] - base[1][0] + 1
    if samples == 3000:
        right = [predict(features, *head) == labels for head in (base, (done.weight, done.bias))]
        worst = [min(float(each[labels == label].double().mean()) for label in (0, 1)) for each in right]
        assert done.evidence.neglected == pytest.approx(worst[1] - worst[0], abs=1e-6)


@pytest.mark.parametrize(
    ("errors", "unused", "sure"),
    [(1.55, 0.045, True), (9.0, 0.045, True), (1.54, 0.5, False), (1.55, 0.044, False), (None, None, False)],
)
def test_whether_a_base_head_is_too_sure(errors: float | None, unused: float | None, sure: bool) -> None:
    assert Evidence(errors=errors, unused=unused).too_sure() is sure


@pytest.mark.parametrize("samples", [1000, 600])
def test_a_base_head_that_is_too_sure_is_retrained_plainly(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An even validation split, a head of a biased one, and pseudo-groups that carry nothing; of a draw, too."""
    monkeypatch.setattr(auto, "SELECTION_VALUES", samples * WIDTH)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    monkeypatch.setattr(Evidence, "carries", lambda *_: False)
    features, labels, base = too_sure()
    done = repair(features, labels, base)
    assert done.kept is None and done.remedy == PLAIN and done.neglected is None
    assert done.evidence is not None and done.evidence.too_sure() and done.evidence.neglected is None
    assert worst_group((done.weight, done.bias)) > worst_group(base) + 0.1
    assert done.retrained is not None and torch.equal(done.retrained.readings, labels.unsqueeze(0))
    weights, penalty = balanced(labels, 2).unsqueeze(0), done.retrained.penalty
    known = fit(features, labels, weights, classes=2, penalty=penalty, scaling=moments(features))
    # Of a draw the penalty is on features that were standardised by the draw.
    torch.testing.assert_close(done.weight, known.on_features(moments(features))[0][0], atol=0.02, rtol=0)
    given = repair(features, labels, base, regularization=0.01)
    assert given.retrained is not None and given.retrained.penalty == pytest.approx(1 / (0.01 * 1000))
    # Not where the verdict is another.
    monkeypatch.setattr(auto, "assess", lambda *_, **__: Verdict(CANNOT_TELL, -0.25, []))
    monkeypatch.setattr(Evidence, "tells", lambda *_: False)
    assert repair(features, labels, base).kept == "the verdict is 'cannot tell'"


@pytest.mark.parametrize("looked", [-0.05, -0.15])
def test_a_base_head_that_is_far_too_sure_is_heard_against_not_biased(
    looked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not there was a second look; where it is less sure, the verdict stays."""
    monkeypatch.setattr(auto, "assess", lambda *_, **__: Verdict(NOT_BIASED, looked, []))
    monkeypatch.setattr(Evidence, "tells", lambda *_: False)
    features, labels, (weight, bias) = too_sure()
    base = 2 * weight, 2 * bias
    done = repair(features, labels, base)
    assert (done.remedy, done.verdict.bias) == (PLAIN, BIASED) and done.kept is None
    assert done.evidence is not None and done.evidence.too_sure(auto.FAR_TOO_SURE, auto.MUCH_UNUSED)
    assert worst_group((done.weight, done.bias)) > worst_group(base) + 0.1
    for name, bound in (("FAR_TOO_SURE", done.evidence.errors + 0.1), ("MUCH_UNUSED", done.evidence.unused + 0.01)):
        with monkeypatch.context() as patched:
            patched.setattr(auto, name, bound)
            assert repair(features, labels, base).kept == "the verdict is 'not biased'"


def too_sure() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """An even split of 1000, and a head with logits three times too large that was fitted to a biased one."""
    weight, bias = fitted(*spurious(6000, bias=0.97, seed=5)[:2], 1e-2)
    features, labels, _ = spurious(1000, bias=0.5, seed=6)
    return features, labels, (3 * weight, 3 * bias)


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


@pytest.mark.parametrize(("merits", "chosen"), [([0.82], -1), ([0.80, 0.84], 1), ([0.829, 0.829, 0.829], -1)])
def test_a_weaker_penalty_is_taken_where_it_is_plainly_better(merits: list[float], chosen: int) -> None:
    """Than the best of the others, 0.80, by 0.03; a little better may be chance."""
    features, labels, attributes = spurious(200)
    given = iter([*(0.7 + 0.1 * step / (len(PENALTIES) - 1) for step in range(len(PENALTIES))), *merits, 0.0, 0.0])
    new = group_balanced(
        features, labels, attributes, classes=2, scaling=moments(features), merit=lambda *_: round(next(given), 6)
    )
    assert new.penalty == (PENALTIES[-1] if chosen < 0 else WEAKER[chosen])


def test_drawn_samples_keep_their_names() -> None:
    """Others get what the classifiers of all folds say of them together."""
    features, labels, _ = spurious(40)
    own, drawn_names = torch.arange(0, 40, 2), 1 - labels[::2]
    drawn = Draw(features[own], labels[own], labels[own], own, torch.arange(20), samples=40)
    naming = Naming(torch.zeros(2, WIDTH), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    made = Retrained(torch.zeros(2, WIDTH), torch.zeros(2), drawn_names.unsqueeze(0), 1.0, labels == 0, moments(features),
                     namings=(naming,))  # fmt: skip
    [names] = auto._for_all(features, labels, labels, drawn, made).readings
    assert torch.equal(names[::2], drawn_names) and torch.equal(names[1::2], labels[1::2])


def test_penalties_go_on_where_the_weakest_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network's features after fine-tuning: standardised, they are still all but the attribute's."""
    features, labels, attributes = in_few_directions(800, 0.9, seed=0)
    test, truth, groups = in_few_directions(2000, 0.5, seed=1)
    options = {"classes": 2, "scaling": moments(features), "rarity": auto.RARITY, "merit": auto.worse_half}
    chosen, worst = [], []
    for weaker in (WEAKER, ()):
        monkeypatch.setattr(auto, "WEAKER", weaker)
        new = group_balanced(features, labels, attributes, **options)
        chosen.append(new.penalty)
        right = predict(test, new.weight, new.bias) == truth
        worst.append(min(float(right[(truth == c) & (groups == a)].float().mean()) for c in (0, 1) for a in (0, 1)))
    assert chosen[0] in WEAKER and chosen[1] == PENALTIES[-1] and worst[0] > 0.93 and worst[1] < 0.85, (chosen, worst)
    # Given, it is the one.
    assert group_balanced(features, labels, attributes, **options, regularization=1 / 0.8).penalty == pytest.approx(1e-3)


def test_what_is_no_neglected_class(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, base = uneven(3000, seed=2)
    # By force it is the pseudo-groups' head.
    assert repair(features, labels, base, force=True).remedy == GROUPS
    # A base head that is as good at one class as at the other, and one whose accuracies differ less than that.
    for rare in (0.5, 0.35):
        kept = repair(features, labels, _head_of_uneven(rare))
        assert kept.kept == "the verdict is 'not biased'" and kept.evidence is None
    # Too few samples for an accuracy.
    few = torch.cat([(labels == 0).nonzero().flatten(), (labels == 1).nonzero().flatten()[:19]])
    kept = repair(features[few], labels[few], base)
    assert kept.kept is not None and torch.equal(kept.weight, base[0])
    # A gain of the classes' mean within the standard errors, and one of the worst class below the bound.
    for name, value in (("BEYOND", 20.0), ("NEGLECTED", 0.5)):
        with monkeypatch.context() as patched:
            patched.setattr(auto, name, value)
            kept = repair(features, labels, base)
        assert kept.kept is not None and torch.equal(kept.bias, base[1])
        told = kept.evidence is not None and kept.evidence.neglected is not None
        assert told is (name == "NEGLECTED")


@pytest.mark.parametrize("bias", [0.8, 0.95])
def test_other_biases_learn_nothing_of_a_split_that_alone_is_biased(bias: float) -> None:
    """A base head that neglects a class, and an attribute that goes with the class in the validation split alone."""
    features, labels, base = uneven(4000, seed=3)
    generator = torch.Generator().manual_seed(1)
    agrees = torch.rand(4000, generator=generator) < bias
    features[:, 30] += 4.0 * torch.where(agrees, labels, 1 - labels)
    done = repair(features, labels, base)
    assert done.remedy == EVENED
    before, after = class_accuracies(base), class_accuracies((done.weight, done.bias))
    assert min(after) > min(before) + 0.05


def test_without_a_head_there_is_nothing_to_keep() -> None:
    features, labels, _ = spurious(400, bias=0.99)
    assert repair(features, labels, None).kept is None


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

    monkeypatch.setattr(auto, judge, third)
    new = retrain(features, labels, identify(features, labels).nearest, classes=classes)
    assert len(seen) == len(PENALTIES) and new.penalty == PENALTIES[2]
    assert torch.equal(new.right, seen[2].argmax(dim=1) == labels)


def test_of_equal_strengths_the_strongest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, attributes = spurious(300)
    new = group_balanced(
        features, labels, attributes, classes=2, scaling=moments(features), merit=lambda *given: 0.5
    )  # fmt: skip
    assert new.penalty == max(PENALTIES) == PENALTIES[0]


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


def test_more_samples_than_the_selection_is_made_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were not drawn are named by what was learned from the draw, in each reading."""
    features, labels, attributes = spurious(3000, bias=0.95, classes=3)
    monkeypatch.setattr(auto, "SELECTION_VALUES", 1200 * WIDTH)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    done = repair(features, labels, None, classes=3)
    assert done.retrained is not None and done.retrained.readings.shape == (SEEDS * len(EVENNESSES) + 1, 3000)
    minority = attributes != labels
    # All but the classifier's, which misses many here.
    for reading in done.retrained.readings[:-1]:
        assert float((reading == attributes)[minority].double().mean()) > 0.9
    oracle = group_balanced(features, labels, attributes, classes=3, scaling=moments(features))
    assert worst_group((done.weight, done.bias), 3) > worst_group((oracle.weight, oracle.bias), 3) - 0.03


def test_a_given_strength_is_the_same_on_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """C counts samples: the penalty is that of all of them, whichever number the groups are found on."""
    features, labels, _ = spurious(3000, bias=0.95)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    penalties = []
    for samples in (3000, 1000):
        monkeypatch.setattr(auto, "SELECTION_VALUES", samples * WIDTH)
        done = repair(features, labels, None, regularization=0.5)
        assert done.retrained is not None
        penalties.append(done.retrained.penalty)
    assert penalties == [pytest.approx(1 / (0.5 * 3000))] * 2


def test_a_seed_decides_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, _ = spurious(600)
    monkeypatch.setattr(auto, "SELECTION_VALUES", 100 * WIDTH)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    seen = []
    monkeypatch.setattr(auto, "retrain", lambda rows, *rest, **options: seen.append(rows) or 1 / 0)
    for seed in (3, 3, 4):
        with pytest.raises(ZeroDivisionError):
            repair(features, labels, None, seed=seed)
    assert len(seen[0]) == 100 and torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_a_draw_has_some_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "SELECTION_VALUES", 1000 * WIDTH)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    generator = torch.Generator().manual_seed(7)
    labels = torch.zeros(20_000, dtype=torch.int64)
    labels[torch.randperm(20_000, generator=generator)[:400]] = 1
    labels[torch.randperm(20_000, generator=generator)[:3]] = 2
    features = torch.arange(20_000.0).unsqueeze(1).expand(-1, WIDTH)
    drawn = auto.draw(features, labels, labels, seed=0)
    assert len(drawn.labels) == 1000 and bool((drawn.own.diff() > 0).all())
    assert torch.equal(drawn.labels, labels[drawn.own]) and torch.equal(drawn.features[:, 0].long(), drawn.own)
    # A third of a quarter of the draw, and all of those that are fewer.
    assert torch.bincount(drawn.labels).tolist() == [1000 - 83 - 3, 83, 3]
    # Where classes are even it is a plain draw.
    even = auto.draw(features, torch.arange(20_000) % 3, labels, seed=0)
    plain = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))[:1000].sort().values
    assert torch.equal(even.own, plain)


@pytest.mark.parametrize("rare", [1, 5, 19])
def test_a_class_of_a_few_samples_carries_nothing(rare: int) -> None:
    """A head that gives up such a class is better at the others, which says nothing of bias."""
    features, labels, attributes = spurious(2000, bias=0.85)
    chosen = labels == 0
    chosen[((labels == 1) & (attributes == 0)).nonzero().flatten()[:rare]] = True
    done = repair(features[chosen], labels[chosen], biased_head())
    assert done.evidence is not None and done.evidence.better is None and done.kept is not None


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


def test_the_same_seed_gives_the_same_bits() -> None:
    features, labels, _ = spurious(600)
    first, second = (repair(features, labels, biased_head(), seed=5) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


# -------------------------------------------------------------------------------------------------------- on files


@pytest.fixture
def files(tmp_path: Path) -> None:
    (tmp_path / "artifacts/features").mkdir(parents=True)
    for split, bias, seed in (("val", 0.9, 0), ("test", 0.5, 1)):
        features, labels, attributes = spurious(800, bias=bias, seed=seed)
        tensors = {"features": features, "labels": labels, "attributes": attributes}
        save_file(tensors, tmp_path / f"artifacts/features/{split}.safetensors")
    weight, bias_ = biased_head()
    save_file({"weight": weight, "bias": bias_}, tmp_path / "artifacts/head.safetensors")


@pytest.mark.usefixtures("files")
def test_the_chain(nsf: Callable[..., Done]) -> None:
    said = nsf("identify", "--json").json
    assert said["verdict"] == "biased" and said["mirror"] < -0.29
    assert {"dispersion", "verdict", "drawn_to", "share"} <= said["classes"][0].keys()
    nsf("neutralize")
    steps = nsf("eliminate", "--json").json["steps"]
    assert 10 < steps < 350
    done = nsf("update", "--json")
    assert done.json["solver"] == "auto" and not done.json["base_head_kept"] and done.json["verdict"] == "biased"
    made = read("update", Path("artifacts/update.safetensors"))
    assert made["pseudo_attributes"].shape == (800,)
    assert (
        int((made["pseudo_attributes"] != load_file("artifacts/features/val.safetensors")["labels"]).sum())
        == (done.json["pseudo_minority"])
    )
    val = load_file("artifacts/features/val.safetensors")["features"]
    learned = load_file("artifacts/eliminate.safetensors")
    mapped = (val + learned["shift"]) * learned["scale"] - learned["shift"]
    on_map, folded = (
        mapped @ made["weight"].T + made["bias"], val @ made["folded_weight"].T + made["folded_bias"]
    )  # fmt: skip
    torch.testing.assert_close(on_map, folded, atol=1e-3, rtol=1e-3)
    scored = nsf("evaluate", "--json").json
    assert scored["nsf"]["worst_group_accuracy"] > scored["base"]["worst_group_accuracy"] + 0.3
    again = Path("artifacts/update.safetensors").read_bytes()
    assert nsf("update").code == 0 and Path("artifacts/update.safetensors").read_bytes() == again


@pytest.mark.usefixtures("files")
def test_a_second_look_is_told(nsf: Callable[..., Done]) -> None:
    """Of what `identify` said, and of what says otherwise now."""
    features, labels = hidden(3.0)
    save_file({"features": features, "labels": labels}, "artifacts/features/val.safetensors")
    assert nsf("identify", "--json").json["verdict"] == CANNOT_TELL
    assert nsf("neutralize").code == nsf("eliminate").code == 0
    done = nsf("update", "--json")
    assert (done.json["verdict_of_identify"], done.json["verdict"]) == (CANNOT_TELL, BIASED)
    mirror, better = (f"{done.json[key]:+.2f}" for key in ("mirror", "better"))
    assert done.stderr == (
        f"`nsf identify` said 'cannot tell'; the minority as re-estimated (mirror {mirror}) and cross-validation (balanced "
        f"accuracy {better}) say 'biased'.\n"
    )


@pytest.mark.usefixtures("files")
def test_a_neglected_class_is_told(nsf: Callable[..., Done]) -> None:
    features, labels, (weight, bias) = uneven(2000, seed=2)
    done, made = _updated(nsf, features, labels, weight, bias)
    assert (done["neglected_class"], done["verdict"], done["remedy"]) == ("1", BIASED, EVENED)
    assert done["stderr"] == (
        "No minority was found that a repair can rely on, but the base head neglects class 1. It gets other biases, with "
        f"which every class weighs the same: its accuracy on the worst class rises by {done['neglected']:.2f}.\n"
    )
    assert nsf("update").stdout.startswith("verdict biased, base head with other biases -> ")
    assert torch.equal(made["folded_weight"], weight) and not torch.equal(made["folded_bias"], bias)
    assert done["penalty"] is None


@pytest.mark.usefixtures("files")
def test_a_head_that_is_too_sure_is_told(nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evidence, "carries", lambda *_: False)
    features, labels, (weight, bias) = too_sure()
    done, made = _updated(nsf, features, labels, weight, bias)
    assert (done["neglected_class"], done["verdict"], done["remedy"]) == (None, BIASED, PLAIN)
    assert done["stderr"] == (
        f"No minority was found that a repair can rely on, but the base head is overconfident ({done['errors']:.1f} times "
        "as many errors as its probabilities predict). The last layer is retrained with every class weighing the same "
        f"(cross-validated log-likelihood {done['unused']:+.2f} a sample).\n"
    )
    assert nsf("update").stdout.startswith("verdict biased, new head, every class weighing the same -> ")
    assert not torch.equal(made["folded_weight"], weight) and done["penalty"] in PENALTIES


def _updated(
    nsf: Callable[..., Done], features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `nsf update --json` says on stdout and, as `stderr`, beside it; and what it writes."""
    save_file({"features": features, "labels": labels}, "artifacts/features/val.safetensors")
    save_file({"weight": weight, "bias": bias}, "artifacts/head.safetensors")
    for stage in ("identify", "neutralize", "eliminate"):
        assert nsf(stage).code == 0
    done = nsf("update", "--json")
    made = load_file("artifacts/update.safetensors")
    assert not done.json["base_head_kept"] and done.json["pseudo_minority"] is None and "pseudo_attributes" not in made
    return done.json | {"stderr": done.stderr}, made


@pytest.mark.usefixtures("files")
def test_kept_aloud_and_forced(nsf: Callable[..., Done]) -> None:
    features, labels, _ = spurious(200, bias=0.99)
    save_file({"features": features, "labels": labels}, "artifacts/features/val.safetensors")
    for stage in ("identify", "neutralize", "eliminate"):
        assert nsf(stage).code == 0
    kept = nsf("update", "--json")
    assert kept.json["base_head_kept"] and "the verdict is 'cannot tell'" in kept.stderr and "--force" in kept.stderr
    head, made = load_file("artifacts/head.safetensors"), load_file("artifacts/update.safetensors")
    assert torch.equal(made["folded_weight"], head["weight"]) and "pseudo_attributes" not in made
    forced = nsf("update", "--force", "--json")
    assert not forced.json["base_head_kept"] and forced.stderr == ""
    assert not torch.equal(load_file("artifacts/update.safetensors")["folded_weight"], head["weight"])
