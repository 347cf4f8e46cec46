"""The reference's outputs, stage by stage (tests/golden/README.md): the numbers nsf must reproduce."""

from statistics import mean

import pytest
import torch

from stages.eliminate import eliminate, transform
from stages.identify import identify
from stages.metrics import report
from stages.neutralize import neutralize
from stages.passes import predict
from stages.update import select, update
from tests.conftest import Golden


def test_identify(golden: Golden) -> None:
    found = identify(golden["features"], golden["labels"])
    assert torch.equal(found.minority, golden["minority"])
    assert torch.equal(found.nearest != golden["labels"], golden["minority"])
    torch.testing.assert_close(found.centroids, golden["centroids"], atol=1e-5, rtol=0)


def test_neutralize(golden: Golden) -> None:
    centers = neutralize(golden["features"], golden["labels"], golden["minority"])
    torch.testing.assert_close(centers, golden["centers"], atol=1e-5, rtol=0)


def test_eliminate(golden: Golden) -> None:
    steps = int(golden.numbers["eliminate_steps"])
    learned = eliminate(golden["features"], golden["labels"], golden["centers"], steps=steps)
    torch.testing.assert_close(learned.scale, golden["scale"], atol=1e-4, rtol=0)
    torch.testing.assert_close(learned.shift, golden["shift"], atol=1e-4, rtol=0)
    assert learned.loss.shape == (steps,)
    assert learned.loss[-1] < learned.loss[0]


def test_select(golden: Golden) -> None:
    rescued, conforming = select(*(golden[name] for name in ("features", "labels", "minority", "centers", "scale", "shift")))
    assert torch.equal(rescued, golden["rescued"])
    assert torch.equal(conforming, golden["conforming"])


def test_update(golden: Golden) -> None:
    """Over seeds 0-4, the new head's worst-group accuracy and accuracy are the table's."""
    inputs = [golden[name] for name in ("features", "labels", "rescued", "conforming", "scale", "shift")]
    names = [str(index) for index in range(len(golden["centers"]))]
    steps = int(golden.numbers["update_steps"])
    reports = []
    for seed in range(5):
        new = update(*inputs, classes=len(names), steps=steps, seed=seed)
        mapped = transform(golden["test_features"], golden["scale"], golden["shift"])
        predictions = predict(mapped, new.weight, new.bias)
        reports.append(report(predictions, golden["test_labels"], golden["test_attributes"], names))
    for ours, theirs in (("worst_group_accuracy", "nsf_wga"), ("mean_accuracy", "nsf_acc")):
        tolerance = max(0.02, 3 * golden.numbers[f"{theirs}_std"])
        assert mean(one[ours] for one in reports) == pytest.approx(golden.numbers[f"{theirs}_mean"], abs=tolerance)


def test_folded_head_equals_head_on_map(golden: Golden) -> None:
    inputs = [golden[name] for name in ("features", "labels", "rescued", "conforming", "scale", "shift")]
    new = update(*inputs, classes=len(golden["centers"]), steps=50)
    test = golden["test_features"]
    on_map = transform(test, golden["scale"], golden["shift"]) @ new.weight.T + new.bias
    folded = test @ new.folded_weight.T + new.folded_bias
    torch.testing.assert_close(folded, on_map, rtol=1e-4, atol=1e-4 * float(on_map.abs().max()))
    assert torch.equal(folded.argmax(dim=1), on_map.argmax(dim=1))


def test_base_head_scores_as_in_the_table(golden: Golden) -> None:
    """The metrics themselves: the biased head's accuracies are the published ones."""
    predictions = predict(golden["test_features"], golden["head_weight"], golden["head_bias"])
    names = [str(index) for index in range(len(golden["centers"]))]
    scored = report(predictions, golden["test_labels"], golden["test_attributes"], names)
    assert scored["worst_group_accuracy"] == pytest.approx(golden.numbers["erm_wga"], abs=1e-6)
    assert scored["mean_accuracy"] == pytest.approx(golden.numbers["erm_acc"], abs=1e-6)
