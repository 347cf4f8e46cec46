"""What speaks for and against a repair: the bounds, and what a base head's probabilities say."""

from dataclasses import replace

import pytest
import torch

from stages.evidence import LEAST_OF_CLASS, Evidence, calibration, lost_in_training, weigh
from stages.identify import BIASED, CANNOT_TELL, NOT_BIASED, Verdict
from stages.logistic import balanced, moments
from stages.passes import predict
from stages.retraining import group_balanced, likelihood
from tests.stages.planted import WIDTH, biased_head, spurious, uneven


def test_against_not_biased_the_mirror_alone_speaks() -> None:
    shared, mirrored = Evidence(-0.4, 0.6, 0.2, 5.0, 0.2), Evidence(-0.7, 0.6, 0.2, -1.0, 0.0)
    unsure, not_biased = Verdict(CANNOT_TELL, -0.25, []), Verdict(NOT_BIASED, -0.15, [])
    assert shared.tells(unsure) and mirrored.tells(unsure) and mirrored.tells(not_biased)
    assert not shared.tells(not_biased)


def test_a_head_that_is_plainly_better_is_carried() -> None:
    """An even validation split: the base head errs on half of it, and a new one need not show where the bias lies."""
    features, labels, attributes = spurious(2000, bias=0.5)
    base = (biased_head()[0] * torch.tensor([1.0] * 10 + [0.0] * (WIDTH - 10)), torch.zeros(2))
    new = group_balanced(features, labels, attributes, classes=2, scaling=moments(features))
    evidence = weigh(features, labels, labels, new, base, classes=2)
    right = predict(features, *base) == labels
    gains = [float(new.right[labels == y].double().mean() - right[labels == y].double().mean()) for y in (0, 1)]
    assert evidence.better == pytest.approx(sum(gains) / 2, abs=1e-6) and evidence.better > 0.3
    told = Verdict(CANNOT_TELL, None, [])
    assert evidence.tells(told) and evidence.lacks(told) is None
    nothing = replace(evidence, mirror=None, better=0.05)
    assert not nothing.tells(told) and nothing.lacks(told) is not None


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
        (Evidence(-0.7, 0.59, 0.2, -1.0, -0.05, 1.5), False),  # dear, as hard samples are,
        (Evidence(-0.7, 0.61, 0.2, -1.0, -0.05, 1.5), True),  # but recovered
        (Evidence(-0.7, 0.59, 0.2, -1.0, -0.03, 1.5), True),  # for little accuracy,
        (Evidence(-0.7, 0.59, 0.2, -1.0, -0.05, 1.6), True),  # of a head that is too sure,
        (Evidence(-0.7, 0.59, 0.2, 5.0, -0.05, 1.5), True),  # or shared
    ],
)
def test_what_carries_a_repair(evidence: Evidence, carried: bool) -> None:
    assert (evidence.lacks(Verdict(BIASED, -0.4, [])) is None) == carried


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
        (Evidence(-0.7, 0.55, 0.2, -1.0, -0.05, 1.5), True),  # what is dear is for two classes
    ],
)
def test_what_carries_a_repair_of_more_than_two_classes(evidence: Evidence, carried: bool) -> None:
    assert (replace(evidence, classes=3).lacks(Verdict(BIASED, -0.4, [])) is None) == carried


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


@pytest.mark.parametrize(
    ("errors", "unused", "sure"),
    [(1.55, 0.045, True), (9.0, 0.045, True), (1.54, 0.5, False), (1.55, 0.044, False), (None, None, False)],
)
def test_whether_a_base_head_is_too_sure(errors: float | None, unused: float | None, sure: bool) -> None:
    assert Evidence(errors=errors, unused=unused).too_sure() is sure


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


def test_a_rare_class_is_nothing_that_a_head_does_not_use() -> None:
    """The head that fits these labels best gains a lot of class-balanced likelihood by weighing classes alike alone."""
    features, labels, base = uneven(6000, seed=1)
    assert abs(calibration(features, labels, base, classes=2, scaling=moments(features), seed=0).unused) < 0.02
    fair = base[1] - torch.log(torch.bincount(labels) / len(labels))
    logits = [features @ base[0].T + offset for offset in (base[1], fair)]
    weights = balanced(labels, 2)
    gain = likelihood(logits[1], labels, labels, weights) - likelihood(logits[0], labels, labels, weights)
    assert gain > 0.1


@pytest.mark.parametrize(("errors", "unused", "sure"), [(3.0, 0.1, True), (2.99, 0.5, False), (9.0, 0.099, False)])
def test_whether_a_base_head_is_far_too_sure(errors: float, unused: float, sure: bool) -> None:
    assert Evidence(errors=errors, unused=unused).far_too_sure() is sure


@pytest.mark.parametrize(("lost", "given_up"), [((), False), ((2,), True), ((3,), True), ((2, 3), True), ((0,), False)])
def test_one_small_class_given_up_is_enough(lost: tuple[int, ...], given_up: bool) -> None:
    """Of four classes, two of five samples each; a large one counts by *better*."""
    features, labels, attributes = spurious(400, classes=4, bias=0.9)
    kept = (labels < 2) | (torch.arange(400) < 20)
    features, labels, attributes = features[kept], labels[kept], attributes[kept]
    base = torch.zeros(4, WIDTH)
    base[range(4), range(10, 14)] = 1.0
    before = predict(features, base, torch.zeros(4)) == labels
    new = group_balanced(features, labels, attributes, classes=4, scaling=moments(features), regularization=1.0)
    right = before.clone()
    for index in lost:
        right[((labels == index) & before).nonzero()[0]] = False
    evidence = weigh(features, labels, labels, replace(new, right=right), (base, torch.zeros(4)), classes=4)
    assert evidence.given_up is given_up and evidence.better is None


@pytest.mark.parametrize(
    ("classes", "found", "samples", "carried"),
    [(3, 30, 9000, True), (3, 29, 2901, False), (3, 29, 2900, True), (2, 12, 9000, True), (3, None, None, True)],
)
def test_a_handful_carries_no_repair_of_more_than_two_classes(
    classes: int, found: int | None, samples: int | None, carried: bool
) -> None:
    evidence = Evidence(-0.9, 0.9, 0.2, -1.0, 0.0, classes=classes, found=found, samples=samples)
    verdict = Verdict(BIASED, -0.6, [])
    assert (evidence.lacks(verdict) is None) is carried
    assert evidence.against(verdict) == (None if carried else "29 minority samples are too few to repair 3 classes by")
    assert replace(evidence, better=0.1).lacks(verdict) is None, "plainly better needs no minority"


@pytest.mark.parametrize(
    ("evidence", "short"),
    [
        (Evidence(-0.41, 0.6, 0.2, -1.0), "mirror of the completed minority -0.410, at most -0.5"),
        (Evidence(-0.21, 0.6, 0.2, 5.0), "mirror of the completed minority -0.210, at most -0.3"),
        (Evidence(-0.7, 0.4, 0.2, -1.0), "recovered 0.400, at least 0.45"),
        (Evidence(-0.7, 0.55, 0.2, -1.0, -0.05, 1.5), "recovered 0.550, at least 0.6"),
        (Evidence(-0.4, 0.09, 0.2, 5.0), "recovered 0.090, at least 0.1"),
        (Evidence(-0.7, 0.46, 0.2, -1.0), "recovered - mirror 0.760, at least 0.78"),
        (Evidence(-0.7, 0.5, 0.2, -1.0, -0.1, classes=3), "recovered - mirror 1.200, at least 1.24"),
        (Evidence(-0.7, 0.6, 0.01, -1.0), "gained 0.010, at least 0.02"),
        (Evidence(-0.9, 0.6, -0.01, -1.0), "gained -0.010, at least 0"),
        (Evidence(None, 0.6), None),
    ],
)
def test_what_a_repair_lacks_is_told(evidence: Evidence, short: str | None) -> None:
    """By the measures' names in docs/method.md and by what each is held against."""
    told = "" if short is None else f" ({short} is asked for)"
    assert evidence.against(Verdict(BIASED, -0.3, [])) == f"cross-validation shows no reliable gain{told}"


MENDED = Evidence(-0.9, 0.9, 0.5, -1.0, 0.0, 1.4, 0.016, wrong=0.04)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, True),
        ({"unused": 0.0159}, False),
        ({"wrong": 0.041}, False),
        ({"errors": 1.55}, False),  # too sure: what it leans on has come apart from the classes
        ({"shared": 4.0}, False),  # plainly a spurious attribute
        ({"better": 0.1}, False),  # or plainly better
        ({"classes": 3, "better": 0.0}, False),
        ({"wrong": None}, False),
        ({"wrong": 0.0}, False),
    ],
)
def test_what_plain_retraining_mends_needs_no_minority(changed: dict[str, float | None], kept: bool) -> None:
    against = replace(MENDED, **changed).against(Verdict(BIASED, -0.9, []))  # type: ignore[arg-type]
    assert (
        against == "plain retraining alone mends the base head, so that the minority may be no spurious attribute's"
    ) is kept
    assert (against is None) is not kept


def with_a_second(samples: int = 2000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (n, 40), labels, and two attributes, each as loud as the other and the class's own in nine of ten."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 2
    first, second = (torch.where(torch.rand(samples, generator=generator) < 0.9, labels, 1 - labels) for _ in range(2))
    features = torch.randn(samples, WIDTH, generator=generator)
    for at, value, how in ((0, first, 5.0), (10, labels, 1.5), (20, second, 5.0)):
        features[torch.arange(samples), at + value] += how
    return features, labels, first, second


def test_what_a_new_head_breaks_is_told_by_what_its_errors_lead_to() -> None:
    """Freed of the first attribute, it leans on the second: a base head that did not use that was better."""
    features, labels, first, second = with_a_second()
    new = group_balanced(features, labels, first, classes=2, scaling=moments(features))
    minority, other = first != labels, second != labels
    weight = torch.zeros(2, WIDTH)
    for index in (0, 1):
        weight[index, index], weight[index, 10 + index] = 0.2, 1.0
    base = weight, torch.zeros(2)
    before = predict(features, *base) == labels
    evidence = weigh(features, labels, labels, new, base, classes=2)

    def changed(members: torch.Tensor) -> float:
        return float(new.right[members].double().mean() - before[members].double().mean())

    assert evidence.raised == pytest.approx(changed(minority)) and evidence.raised > 0
    assert evidence.broken == pytest.approx(-changed(other), abs=0.05) and evidence.trades()
    # A base head that leans on the second, too: there is less to break.
    weight[0, 20] = weight[1, 21] = 1.0
    biased = weigh(features, labels, labels, new, (weight, torch.zeros(2)), classes=2)
    assert biased.broken is not None and biased.broken < 0 and not biased.trades()
    assert weigh(features, labels, labels, new, None, classes=2).broken is None
    # Nothing is wrong, or next to nothing.
    assert weigh(features, labels, labels, replace(new, right=labels >= 0), base, classes=2).broken is None
    few = replace(new, right=~(other & (torch.arange(2000) < 40)))
    assert weigh(features, labels, labels, few, base, classes=2).broken is None


@pytest.mark.parametrize(
    ("broken", "raised", "trades"),
    [
        (0.3, 0.19, True),
        (0.29, 0.1, False),
        (0.6, 0.41, False),
        (0.6, 0.39, True),
        (0.3, -0.2, True),
        (None, 0.1, False),
        (0.5, None, False),
    ],
)
def test_whether_a_new_head_breaks_more_than_it_mends(broken: float | None, raised: float | None, trades: bool) -> None:
    """Whatever else speaks for it."""
    evidence = Evidence(-0.9, 0.9, 0.5, 9.0, 0.3, broken=broken, raised=raised)
    assert evidence.trades() is trades
    assert ("breaks more than it mends" in (evidence.against(Verdict(BIASED, -0.9, [])) or "")) is trades


@pytest.mark.parametrize(
    ("lost", "wrong", "worse"),
    [
        (0.02, 0.02, True),
        (0.02, 0.021, False),
        (0.05, 0.3, True),
        (0.049, None, False),
        (0.0, 0.0, False),
        (0.001, 0.0, True),
    ],
)
def test_what_is_much_on_the_training_split_is_what_the_base_head_errs(lost: float, wrong: float, worse: bool) -> None:
    assert Evidence(lost=lost, wrong=wrong).worse_in_training() is worse


def test_the_base_head_s_errors_count_every_class_alike() -> None:
    features, labels, attributes = spurious(1200, bias=0.9)
    kept = (labels == 0) | (torch.arange(1200) < 400)
    features, labels, attributes = features[kept], labels[kept], attributes[kept]
    base = biased_head()
    new = group_balanced(features, labels, attributes, classes=2, scaling=moments(features))
    right = predict(features, *base) == labels
    expected = 1 - sum(float(right[labels == index].double().mean()) for index in (0, 1)) / 2
    assert weigh(features, labels, labels, new, base, classes=2).wrong == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("few", [LEAST_OF_CLASS, LEAST_OF_CLASS - 1])
def test_a_class_of_a_handful_has_no_say_on_the_training_split(few: int) -> None:
    features, labels, _ = spurious(600, classes=3)
    base = biased_head(3)
    new = group_balanced(features, labels, labels, classes=3, scaling=moments(features))
    seen = torch.cat([(labels == 0).nonzero().flatten(), (labels > 0).nonzero().flatten()[: 2 * few]])
    x, y = features[seen], labels[seen]
    lost = lost_in_training(x, y, base, new, labels)
    if few < LEAST_OF_CLASS:
        assert lost is None
        return
    before, after = (
        sum(float((predict(x, *head) == y)[y == index].double().mean()) for index in range(3)) / 3
        for head in (base, (new.weight, new.bias))
    )
    here = sum(float(new.right[labels == index].double().mean()) for index in range(3)) / 3
    assert lost == pytest.approx(min(before, here) - after, abs=1e-6)


@pytest.mark.parametrize(("lost", "kept"), [(None, False), (-0.2, False), (0.049, False), (0.05, True)])
def test_a_head_that_is_worse_on_the_training_split(lost: float | None, kept: bool) -> None:
    """Whatever else speaks for it."""
    carried = Evidence(-0.9, 0.9, 0.5, 9.0, 0.3, lost=lost)
    against = carried.against(Verdict(BIASED, -0.9, []))
    words = "its accuracy is 0.05 lower on the training split, which lacks the validation split's bias"
    assert carried.lacks(Verdict(BIASED, -0.9, [])) is None and against == (words if kept else None)
