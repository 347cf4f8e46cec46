"""update.solver auto: when the head is a new one and when the base head is kept, on planted features and by the command."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import auto, evidence, retraining
from stages.artifacts import read
from stages.attributes import EVENNESSES, SEEDS
from stages.auto import EVENED, FAULTLESS, GROUPS, PLAIN, Draw, repair
from stages.evidence import LEAST_OF_CLASS, Evidence, calibration
from stages.identify import BIASED, CANNOT_TELL, NOT_BIASED, Verdict, assess, identify
from stages.logistic import balanced, fit, moments
from stages.mixture import Naming
from stages.passes import predict
from stages.retraining import PENALTIES, Retrained, group_balanced, likelihood
from tests.conftest import Done
from tests.stages.planted import (
    WIDTH,
    biased_head,
    class_accuracies,
    fitted,
    head_of_uneven,
    soft,
    spurious,
    too_sure,
    uneven,
    worst_group,
)


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
    monkeypatch.setattr(Evidence, "lacks", lambda *_: "cross-validation shows no reliable gain")
    features, labels, base = too_sure()
    assert repair(features, labels, base).remedy == PLAIN
    kept = labels == 0
    kept[(labels == 1).nonzero().flatten()[: LEAST_OF_CLASS - 1]] = True
    assert repair(features[kept], labels[kept], base).kept is not None


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
    assert kept.evidence is not None and kept.evidence.lacks(kept.verdict) is None and kept.verdict.bias == BIASED
    assert 0.8 < kept.evidence.errors < 1.2 and torch.equal(kept.weight, base[0])  # type: ignore[operator]
    features, labels, attributes = soft(4000, bias=0.5, seed=3)
    worst = [
        min(float((predict(features, *head) == labels)[groups].double().mean()) for groups in
            ((labels == label) & (attributes == attribute) for label in (0, 1) for attribute in (0, 1)))
        for head in (base, (forced.weight, forced.bias))
    ]  # fmt: skip
    assert worst[0] > 0.8 and worst[1] < 0.2


@pytest.mark.parametrize("means", ["groups", "plain"])
def test_the_training_split_tells_that_the_validation_split_alone_is_biased(
    means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a base head that is too sure of itself, whose probabilities say nothing."""
    if means == "plain":
        monkeypatch.setattr(Evidence, "lacks", lambda *_: "cross-validation shows no reliable gain")
    training = soft(6000, bias=0.5, seed=1)[:2]
    weight, bias = fitted(*training, 1e-4)
    base = 2 * weight, 2 * bias
    features, labels, _ = soft(2000, bias=0.95, seed=2)
    spoiled = repair(features, labels, base)
    assert spoiled.remedy == means and not torch.equal(spoiled.weight, base[0])
    kept = repair(features, labels, base, training=training)
    assert torch.equal(kept.weight, base[0]) and torch.equal(kept.bias, base[1])
    assert kept.kept is not None and kept.evidence is not None
    if means == "groups":
        assert kept.kept == "its accuracy is 0.40 lower on the training split, which lacks the validation split's bias"
        before, after = (
            float((predict(training[0], *head) == training[1]).double().mean())
            for head in (base, (spoiled.weight, spoiled.bias))
        )
        here = float(spoiled.retrained.right.double().mean())  # type: ignore[union-attr]
        assert kept.evidence.lost == pytest.approx(min(before, here) - after, abs=1e-6)
        assert repair(features, labels, base, training=training, force=True).doubt == kept.kept


@pytest.mark.parametrize(
    ("groups", "plain", "remedy"), [(0.05, 0.001, None), (0.05, 0.0, PLAIN), (0.04, 0.05, None), (0.04, 0.04, PLAIN)]
)
def test_what_plain_retraining_may_lose_on_the_training_split(
    groups: float, plain: float, remedy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, where the groups' head has lost there."""
    monkeypatch.setattr(Evidence, "lacks", lambda *_: "cross-validation shows no reliable gain")
    lost = iter([groups, plain])
    monkeypatch.setattr(auto, "lost_in_training", lambda *_, **__: next(lost))
    features, labels, base = too_sure()
    done = repair(features, labels, base, training=(features, labels))
    assert done.remedy == remedy and done.evidence is not None
    assert done.evidence.lost == (plain if remedy else 0.05)
    # Whatever the groups' head was refused for, what decides is told.
    cross_validation = "cross-validation shows no reliable gain"
    assert (done.kept, done.refused) == {
        (None, 0.05): (cross_validation, None), (None, 0.04): (done.evidence.loss(), None),
    }.get((remedy, groups), (None, cross_validation))  # fmt: skip
    assert torch.equal(done.weight, base[0]) == (remedy is None)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_training_split_as_biased_as_the_model_changes_nothing(classes: int) -> None:
    features, labels, _ = spurious(1200, bias=0.9, classes=classes)
    base = biased_head(classes)
    training = spurious(6000, bias=0.97, classes=classes, seed=5)[:2]
    alone, checked = (repair(features, labels, base, training=split) for split in (None, training))
    assert torch.equal(alone.weight, checked.weight) and torch.equal(alone.bias, checked.bias)
    assert alone.evidence is not None and checked.evidence is not None
    assert checked.evidence == replace(alone.evidence, lost=checked.evidence.lost)
    assert checked.evidence.lost is not None and checked.evidence.lost < 0.01


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
    real = retraining.held_out
    for module in (retraining, evidence):
        monkeypatch.setattr(
            module, "held_out", lambda *told, **more: calls.append((told[2], more["penalties"])) or real(*told, **more)
        )
    monkeypatch.setattr(Evidence, "lacks", lambda *_: "cross-validation shows no reliable gain")
    done = repair(features, labels, base)
    plainly = [penalties for weights, penalties in calls if torch.equal(weights, balanced(labels, 2))]
    assert done.remedy == PLAIN and plainly.count(PENALTIES) == 1 and plainly[0] == PENALTIES


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


@pytest.mark.parametrize("samples", [1000, 600])
def test_a_base_head_that_is_too_sure_is_retrained_plainly(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An even validation split, a head of a biased one, and pseudo-groups that carry nothing; of a draw, too."""
    monkeypatch.setattr(auto, "SELECTION_VALUES", samples * WIDTH)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    monkeypatch.setattr(Evidence, "lacks", lambda *_: "cross-validation shows no reliable gain")
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
    assert done.evidence is not None and done.evidence.far_too_sure()
    assert worst_group((done.weight, done.bias)) > worst_group(base) + 0.1
    for name, bound in (("FAR_TOO_SURE", done.evidence.errors + 0.1), ("MUCH_UNUSED", done.evidence.unused + 0.01)):
        with monkeypatch.context() as patched:
            patched.setattr(evidence, name, bound)
            assert repair(features, labels, base).kept == "the verdict is 'not biased'"


def test_a_groups_head_that_breaks_more_than_it_mends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, _ = soft(3000, bias=0.9, seed=0)
    base = biased_head()
    done = repair(features, labels, base)
    assert done.kept is None and done.evidence is not None
    broken, raised = done.evidence.broken, done.evidence.raised
    assert broken is not None and raised is not None and raised > 0.3 and not done.evidence.trades()
    monkeypatch.setattr(evidence, "BROKEN", broken)
    monkeypatch.setattr(evidence, "TRADED", broken / raised - 0.01)
    # What else there is to do of such a base head is looked at as after any refusal.
    again = repair(features, labels, base)
    assert again.evidence == done.evidence and again.remedy == PLAIN
    assert again.refused == (
        f"the new head breaks more than it mends (accuracy {-broken:+.2f} on samples that its errors lead to, "
        f"{raised:+.2f} on the minority)"
    )
    assert repair(features, labels, base, force=True).doubt == again.refused


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


def test_what_is_no_neglected_class(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, base = uneven(3000, seed=2)
    # By force it is the pseudo-groups' head.
    assert repair(features, labels, base, force=True).remedy == GROUPS
    # A base head that is as good at one class as at the other, and one whose accuracies differ less than that.
    for rare in (0.5, 0.35):
        kept = repair(features, labels, head_of_uneven(rare))
        assert kept.kept == "the verdict is 'not biased'" and kept.evidence is None
    # Too few samples for an accuracy.
    few = torch.cat([(labels == 0).nonzero().flatten(), (labels == 1).nonzero().flatten()[:19]])
    kept = repair(features[few], labels[few], base)
    assert kept.kept is not None and torch.equal(kept.weight, base[0])
    # A gain of the classes' mean within the standard errors, and one of the worst class below the bound.
    for module, name, value in ((auto, "BEYOND", 20.0), (evidence, "NEGLECTED", 0.5)):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, value)
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


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("count", "value"), [(5, 3e6), (1, 1.7e9)])
def test_features_that_do_not_vary_have_no_say(count: int, value: float, classes: int) -> None:
    """A timestamp, say: what rounding leaves of it is not to decide."""
    features, labels, _ = spurious(1600, bias=0.9, classes=classes)
    weight, bias = biased_head(classes)
    done = repair(features, labels, (weight, bias))
    beside = torch.cat([features, torch.full((1600, count), value)], dim=1)
    same = repair(beside, labels, (torch.cat([weight, torch.zeros(classes, count)], dim=1), bias))
    assert done.kept is None and same.kept is None and done.retrained is not None and same.retrained is not None
    assert torch.equal(done.retrained.attributes, same.retrained.attributes)
    torch.testing.assert_close(same.weight[:, :WIDTH], done.weight, atol=1e-4, rtol=1e-3)
    assert float(same.weight[:, WIDTH:].abs().max()) < 1e-20


def test_a_base_head_that_makes_no_mistake_is_kept() -> None:
    """An attribute that goes with the class in the split is no evidence against a head that has all of it right."""
    features, labels, _ = spurious(1200, bias=0.9)
    features[torch.arange(1200), 10 + labels] += 20.0
    base = torch.zeros(2, WIDTH)
    base[[0, 1], [10, 11]] = 1.0
    done = repair(features, labels, (base, torch.zeros(2)))
    assert done.kept == FAULTLESS and torch.equal(done.weight, base) and done.evidence is None
    assert repair(features, labels, (base, torch.zeros(2)), force=True).remedy == GROUPS
    # One mistake, and it is looked into.
    labels[0] = 1 - labels[0]
    assert repair(features, labels, (base, torch.zeros(2))).kept != FAULTLESS


def test_the_same_seed_gives_the_same_bits() -> None:
    features, labels, _ = spurious(600)
    first, second = (repair(features, labels, biased_head(), seed=5) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


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
    assert done.json["mirror_of_completed"] < -0.5
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
        f"`nsf identify` said 'cannot tell'; the minority as re-estimated (mirror {mirror}) and cross-validation "
        f"(class-balanced accuracy {better}) say 'biased'.\n"
    )


@pytest.mark.usefixtures("files")
def test_a_neglected_class_is_told(nsf: Callable[..., Done]) -> None:
    features, labels, (weight, bias) = uneven(2000, seed=2)
    done, made = _updated(nsf, features, labels, weight, bias)
    assert (done["neglected_class"], done["verdict"], done["remedy"]) == ("1", BIASED, EVENED)
    assert done["stderr"] == (
        "The minority carries no repair (the verdict is 'not biased'), but the base head neglects class 1. It gets "
        "other biases, with which every class weighs the same: its accuracy on the worst class rises by "
        f"{done['neglected']:.2f}.\n"
    )
    assert nsf("update").stdout.startswith("verdict biased, base head with other biases -> ")
    assert torch.equal(made["folded_weight"], weight) and not torch.equal(made["folded_bias"], bias)
    assert done["penalty"] is None


@pytest.mark.usefixtures("files")
def test_a_head_that_is_too_sure_is_told(nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evidence, "lacks", lambda *_: "cross-validation shows no reliable gain")
    features, labels, (weight, bias) = too_sure()
    done, made = _updated(nsf, features, labels, weight, bias)
    assert (done["neglected_class"], done["verdict"], done["remedy"]) == (None, BIASED, PLAIN)
    assert done["stderr"] == (
        "The minority carries no repair (cross-validation shows no reliable gain), but the base head is overconfident "
        f"({done['errors']:.1f} times as many errors as its probabilities predict). The last layer is retrained "
        f"with every class weighing the same (cross-validated log-likelihood {done['unused']:+.2f} a sample).\n"
    )
    assert nsf("update").stdout.startswith("verdict biased, new head, every class weighing the same -> ")
    assert not torch.equal(made["folded_weight"], weight) and done["penalty"] in PENALTIES


@pytest.mark.usefixtures("files")
def test_a_training_split_is_told_of(nsf: Callable[..., Done]) -> None:
    """It keeps a base head that a biased validation split speaks against, aloud; with --force that is only said."""
    names, update = ("features", "labels"), Path("artifacts/update.safetensors")
    training, validation = soft(6000, bias=0.5, seed=1)[:2], soft(2000, bias=0.95, seed=2)[:2]
    weight, bias = fitted(*training, 1e-4)
    save_file(dict(zip(names, training, strict=True)), "artifacts/features/train.safetensors")
    done, made = _updated(nsf, *validation, 2 * weight, 2 * bias, pseudo=True)
    assert done["lost"] is None and done["remedy"] == GROUPS
    option = ["--train-features", "artifacts/features/train.safetensors"]
    kept = nsf("update", "--json", *option)
    why = "its accuracy is 0.40 lower on the training split, which lacks the validation split's bias"
    assert (
        kept.json["base_head_kept"]
        and kept.json["kept_because"] == why
        and kept.json["lost"] == pytest.approx(0.397, abs=0.002)
    )
    assert why in kept.stderr and torch.equal(load_file(update)["folded_weight"], 2 * weight)
    assert "training" in read("update", update).metadata.inputs
    forced = nsf("update", "--json", "--force", *option)
    assert forced.json["doubt"] == why and torch.equal(load_file(update)["folded_weight"], made["folded_weight"])


def _updated(
    nsf: Callable[..., Done],
    features: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    pseudo: bool = False,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `nsf update --json` says on stdout and, as `stderr`, beside it; and what it writes."""
    save_file({"features": features, "labels": labels}, "artifacts/features/val.safetensors")
    save_file({"weight": weight, "bias": bias}, "artifacts/head.safetensors")
    for stage in ("identify", "neutralize", "eliminate"):
        assert nsf(stage).code == 0
    done = nsf("update", "--json")
    made = load_file("artifacts/update.safetensors")
    assert not done.json["base_head_kept"]
    assert (done.json["pseudo_minority"] is not None) == ("pseudo_attributes" in made) == pseudo
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
