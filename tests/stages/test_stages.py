"""The stages' functions beyond the golden cases, on tensors and on files."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from stages import metrics, passes
from stages import update as update_module
from stages.artifacts import read
from stages.eliminate import _settled, eliminate, transform
from stages.errors import BadValues
from stages.identify import identify
from stages.identify import run as run_identify
from stages.metrics import members, report
from stages.neutralize import _origin, neutralize
from stages.update import fold, select, unfold, update
from tests.conftest import Done, assert_one_sentence, planted

STAGES = ("identify", "neutralize", "eliminate", "update", "evaluate")
# More rows than two blocks, and a last block that is not full.
ROWS = 2 * passes.BLOCK_ROWS + 100


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(samples: int, classes: int) -> torch.Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------------------------- passes


@pytest.mark.parametrize("rows", [1, passes.BLOCK_ROWS, ROWS])
def test_group_means_are_plain_means(rows: int) -> None:
    features, groups = random(rows, 5), labels_of(rows, 4)
    means = passes.group_means(features, groups, 6)
    assert means.dtype == torch.float32 and means.shape == (6, 5)
    for group in range(6):
        chosen = features[groups == group]
        expected = chosen.mean(dim=0) if len(chosen) else torch.zeros(5)
        torch.testing.assert_close(means[group], expected, atol=1e-6, rtol=0)


def test_group_means_do_not_drift() -> None:
    """A running float32 sum would be off by more than the spread of the rows."""
    features = 1e4 + random(ROWS, 3)
    means = passes.group_means(features, torch.zeros(ROWS, dtype=torch.int64), 1)
    torch.testing.assert_close(means[0], features.double().mean(dim=0).float(), atol=0, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_nearest_is_the_least_distance(offset: float) -> None:
    """Far from the origin too, where ||x||^2 - 2 x.p + ||p||^2 in float32 has no digits left."""
    features, points = random(ROWS, 16) + offset, random(7, 16, seed=1) + offset
    expected = torch.cdist(features.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    assert torch.equal(passes.nearest(features, points), expected)
    assert len(expected.unique()) == 7


def test_predict_is_the_largest_logit() -> None:
    features, weight, bias = random(ROWS, 6), random(3, 6, seed=1), random(3, seed=2)
    assert torch.equal(passes.predict(features, weight, bias), (features @ weight.T + bias).argmax(dim=1))


# ----------------------------------------------------------------------------------------- identify and neutralize


def test_identify_by_hand() -> None:
    features = torch.tensor([[0.0], [1.0], [8.0], [10.0], [11.0], [0.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = identify(features, labels)
    assert found.centroids.tolist() == [[3.0], [7.0]]
    assert found.nearest.tolist() == [0, 0, 1, 1, 1, 0]
    assert found.minority.tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("minority", "center"),
    [
        ([0, 0, 1, 1], (1.5 + 7.0) / 2),  # the midpoint of the rest's and the minority's means
        ([0, 0, 0, 1], 3.0),  # one sample is no mean: the rest's, 1, 2 and 6
        ([0, 0, 0, 0], 4.25),
        ([1, 1, 1, 1], 4.25),
        ([0, 1, 1, 1], (1.0 + 16 / 3) / 2),
    ],
)
def test_a_class_s_center(minority: list[int], center: float) -> None:
    """The second class, all of it in one place, is there to be left alone."""
    features = torch.tensor([[1.0], [2.0], [6.0], [8.0], [-1.0], [-1.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    centers = neutralize(features, labels, torch.tensor([*minority, 0, 0], dtype=torch.bool))
    torch.testing.assert_close(centers, torch.tensor([[center], [-1.0]]))


@pytest.mark.parametrize(
    ("minority", "words"),
    [(0, "mean of the rest"), (1, "mean of the rest"), (2, "midpoint"), (3, "midpoint"), (4, "mean of the minority")],
)
def test_what_a_center_is_made_of_in_words(minority: int, words: str) -> None:
    assert _origin(4, minority) == words
    assert _origin(1, 1) == "mean of the minority"


def test_one_minority_sample_alone_in_its_class() -> None:
    centers = neutralize(torch.tensor([[3.0], [5.0]]), torch.tensor([0, 1]), torch.tensor([True, False]))
    assert centers.tolist() == [[3.0], [5.0]]


# ------------------------------------------------------------------------------------------------------- eliminate


@pytest.mark.parametrize("learning_rate", [1e-3, 1e-2])
def test_the_gradient_written_out_is_autograd_s(learning_rate: float) -> None:
    """50 steps of the loss as it stands in the paper's code, in float64."""
    steps, width = 50, 6
    labels = labels_of(ROWS, 3)
    features = random(ROWS, width) + 2 * labels.unsqueeze(1)
    centers = random(3, width, seed=1)
    scale = torch.ones(width, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([scale, shift], lr=learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        mapped = (features.double() + shift) * scale - shift
        loss = (mapped - centers.double()[labels] + 1e-6).norm(dim=1).mean() + 10 * scale.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    learned = eliminate(features, labels, centers, steps=steps, learning_rate=learning_rate)
    torch.testing.assert_close(learned.scale.double(), scale.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(learned.shift.double(), shift.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(learned.loss.double(), torch.tensor(losses, dtype=torch.float64), atol=1e-5, rtol=0)
    assert (learned.shift.abs() > 1e-3).all(), "both have moved"


def test_a_sample_on_its_center_pulls_nowhere() -> None:
    """Where ||r|| = 0 the gradient is that of the penalty alone, and no NaN."""
    learned = eliminate(torch.full((4, 2), -1e-6), torch.tensor([0, 1, 0, 1]), torch.zeros(2, 2), steps=1)
    torch.testing.assert_close(learned.scale, torch.full((2,), 1 - 1e-3))
    assert learned.shift.tolist() == [0.0, 0.0] and learned.loss.tolist() == [10.0]


def test_transform_by_hand() -> None:
    mapped = transform(torch.tensor([[1.0, 2.0]]), torch.tensor([2.0, 0.5]), torch.tensor([3.0, -1.0]))
    assert mapped.tolist() == [[(1 + 3) * 2 - 3, (2 - 1) * 0.5 + 1]]


@pytest.mark.parametrize(
    ("now", "settled"), [(0.989, False), (0.9899, False), (0.9901, True), (0.995, True), (1.0, True), (1.2, True)]
)
def test_the_loss_has_settled_where_ten_steps_lower_it_by_under_a_hundredth(now: float, settled: bool) -> None:
    losses = torch.ones(21)
    losses[-1] = now
    assert _settled(losses) is settled
    # Looked at every ten steps.
    assert not any(_settled(torch.ones(count)) for count in (1, 10, 12, 20))


@pytest.mark.parametrize(("learning_rate", "steps"), [(1e-6, 11), (2e-3, 350)])
def test_steps_auto_ends_where_the_loss_settles_or_after_350(learning_rate: float, steps: int) -> None:
    calls: list[tuple[str, int, int]] = []
    # From so far away the loss falls by the same amount each step.
    features, labels, centers = 1e3 * random(40, 3), labels_of(40, 2), 1e3 * random(2, 3, seed=1)
    learned = eliminate(
        features, labels, centers, steps="auto", learning_rate=learning_rate, progress=lambda *call: calls.append(call)
    )
    assert len(learned.loss) == steps
    assert [done for _, done, _ in calls][:11] == list(range(1, 12)) and calls[-1] == ("eliminate", 350, 350)


def test_progress_counts_the_steps() -> None:
    calls: list[tuple[str, int, int]] = []
    features, labels = random(20, 3), labels_of(20, 2)
    eliminate(features, labels, random(2, 3), steps=3, progress=lambda *call: calls.append(call))
    mask = torch.arange(20) < 5
    update(features, labels, mask, ~mask, torch.ones(3), torch.zeros(3), classes=2, steps=2,
           progress=lambda *call: calls.append(call))  # fmt: skip
    assert calls == [*(("eliminate", step, 3) for step in (1, 2, 3)), ("update", 1, 2), ("update", 2, 2)]


# ---------------------------------------------------------------------------------------------------------- update


def test_select_by_hand() -> None:
    """Doubled and moved by T(x) = 2 x - 4, the first minority sample comes to its center, and the second does not."""
    features = torch.tensor([[0.0], [4.0], [5.0], [1.0]])
    labels = torch.tensor([0, 1, 0, 1])
    minority = torch.tensor([False, True, True, False])
    centers, scale, shift = torch.tensor([[0.0], [4.0]]), torch.tensor([2.0]), torch.tensor([-4.0])
    assert transform(features, scale, shift).flatten().tolist() == [-4.0, 4.0, 6.0, -2.0]
    rescued, conforming = select(features, labels, minority, centers, scale, shift)
    assert rescued.tolist() == [False, True, False, False]
    assert conforming.tolist() == [True, False, False, True]
    none, everything = select(features, labels, torch.zeros(4, dtype=torch.bool), centers, scale, shift)
    assert not none.any() and everything.all()


def test_select_in_blocks() -> None:
    features, labels, minority = random(3 * ROWS, 4), labels_of(3 * ROWS, 3), labels_of(3 * ROWS, 2).bool()
    centers, scale, shift = random(3, 4, seed=1), 1 + 0.1 * random(4, seed=2), random(4, seed=3)
    rescued, _ = select(features, labels, minority, centers, scale, shift)
    right = torch.cdist(transform(features, scale, shift).double(), centers.double()).argmin(dim=1) == labels
    assert torch.equal(rescued, minority & right)
    assert 0 < int(rescued.sum()) < int(minority.sum()) > passes.BLOCK_ROWS


def inputs_of_update(rescued: int, conforming: int) -> tuple[torch.Tensor, ...]:
    """Features (60, 4), labels, the first samples rescued, the last ones conforming, scale and shift."""
    order = torch.arange(60)
    labels = order % 3
    features = random(60, 4) + labels.unsqueeze(1)
    return features, labels, order < rescued, order >= 60 - conforming, 1 + 0.1 * random(4, seed=2), random(4, seed=3)


def test_update_is_cross_entropy_on_half_batches() -> None:
    """With as many rescued as conforming samples every batch is all of them: the loss of torch's own linear layer."""
    features, labels, rescued, conforming, scale, shift = inputs_of_update(25, 25)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        linear = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=0.0)
    mapped = transform(features, scale, shift)
    for _ in range(50):
        logits = linear(mapped)
        loss = sum(cross_entropy(logits[chosen], labels[chosen]) for chosen in (rescued, conforming))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new = update(features, labels, rescued, conforming, scale, shift, classes=3, steps=50, learning_rate=1e-2, seed=3)
    torch.testing.assert_close(new.weight, linear.weight.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(new.bias, linear.bias.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rescued", "conforming"), [(10, 40), (40, 10), (30, 30), (1, 59)])
def test_a_seed_decides_everything(rescued: int, conforming: int) -> None:
    inputs = inputs_of_update(rescued, conforming)
    torch.manual_seed(5)
    first = update(*inputs, classes=3, steps=20, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(6)
    again, other = (update(*inputs, classes=3, steps=20, seed=seed) for seed in (1, 2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(vars(first).values(), vars(again).values(), strict=True))
    assert not torch.equal(first.weight, other.weight)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)), "the global generator is left alone"


def test_the_larger_kind_is_drawn_from_whichever_it_is() -> None:
    """Rescued and conforming samples have one part each in the loss: exchanged, they give the same head."""
    features, labels, few, many, scale, shift = inputs_of_update(10, 40)
    one = update(features, labels, few, many, scale, shift, classes=3, steps=20)
    other = update(features, labels, many, few, scale, shift, classes=3, steps=20)
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    whole = update(features, labels, many, many, scale, shift, classes=3, steps=20)
    assert not torch.allclose(one.weight, whole.weight), "the smaller kind counts"


def test_update_uses_no_other_sample() -> None:
    features, labels, rescued, conforming, scale, shift = inputs_of_update(10, 40)
    before = update(features, labels, rescued, conforming, scale, shift, classes=3, steps=20)
    spoiled = features.clone()
    spoiled[~(rescued | conforming)] = torch.nan
    after = update(spoiled, labels, rescued, conforming, scale, shift, classes=3, steps=20)
    assert torch.equal(before.weight, after.weight)


def test_fold_and_unfold_are_inverse() -> None:
    weight, bias, scale, shift = random(3, 8), random(3, seed=1), 1 + 0.3 * random(8, seed=2), random(8, seed=3)
    for there, back in ((fold, unfold), (unfold, fold)):
        for given, returned in zip((weight, bias), back(*there(weight, bias, scale, shift), scale, shift), strict=True):
            torch.testing.assert_close(returned, given, atol=1e-5, rtol=1e-5)
    folded_weight, folded_bias = fold(weight, bias, scale, shift)
    x = random(50, 8, seed=4)
    on_map = transform(x, scale, shift) @ weight.T + bias
    torch.testing.assert_close(x @ folded_weight.T + folded_bias, on_map, atol=1e-4, rtol=0)
    assert not torch.allclose(folded_weight, weight, atol=0.1)


def test_unfold_where_the_map_makes_a_feature_constant() -> None:
    """No head on T(x) can tell its values apart; the others' weights are what they would be without it."""
    weight, bias, shift = random(3, 8), random(3, seed=1), random(8, seed=3)
    scale = torch.cat([1 + 0.3 * random(7, seed=2), torch.zeros(1)])
    on_map, on_map_bias = unfold(weight, bias, scale, shift)
    alone, alone_bias = unfold(weight[:, :7], bias, scale[:7], shift[:7])
    torch.testing.assert_close(on_map, torch.cat([alone, torch.zeros(3, 1)], dim=1))
    torch.testing.assert_close(on_map_bias, alone_bias)


# --------------------------------------------------------------------------------------------------------- metrics

PREDICTIONS = torch.tensor([0, 0, 1, 1, 1, 0, 1, 1])
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
ATTRIBUTES = torch.tensor([0, 0, 1, 1, 1, 0, 0, -1])


def test_report_by_hand() -> None:
    """Class 0: 2 of 3; class 1: 4 of 5; the sample of unknown attribute counts in its class and the mean alone."""
    scored = report(PREDICTIONS, LABELS, ATTRIBUTES, ["land", "water"])
    assert scored == {
        "worst_group_accuracy": 0.0,
        "worst_group": "land/1",
        "mean_accuracy": 0.75,
        "adjusted_mean_accuracy": None,
        "classes": {"land": 0.666667, "water": 0.8},
        "groups": {"land/0": 1.0, "land/1": 0.0, "water/0": 0.5, "water/1": 1.0},
    }
    named = report(PREDICTIONS, LABELS, ATTRIBUTES, ["land", "water"], ["forest", "sea"])
    assert list(named["groups"]) == ["land/forest", "land/sea", "water/forest", "water/sea"]
    assert named["worst_group"] == "land/sea"
    half = report(PREDICTIONS, LABELS, ATTRIBUTES, ["land", "water"], ["forest"])
    assert list(half["groups"]) == ["land/forest", "land/1", "water/forest", "water/1"]


def test_adjusted_mean_by_hand() -> None:
    """Groups weighted as they were in training: 4 x 1.0, 1 x 0.0, 1 x 0.5, 4 x 1.0 of 10."""
    sizes = {"land/0": 4, "land/1": 1, "water/0": 1, "water/1": 4}
    given = (PREDICTIONS, LABELS, ATTRIBUTES, ["land", "water"], None)
    assert report(*given, sizes)["adjusted_mean_accuracy"] == 0.85
    assert report(*given, {**sizes, "fire/0": 0})["adjusted_mean_accuracy"] == 0.85
    assert report(*given, {**sizes, "fire/0": 1})["adjusted_mean_accuracy"] is None, "no test sample tells its accuracy"


def test_report_without_attributes() -> None:
    for attributes in (None, torch.full_like(LABELS, -1)):
        scored = report(PREDICTIONS, LABELS, attributes, ["0", "1"])
        assert (scored["worst_group_accuracy"], scored["worst_group"], scored["groups"]) == (None, None, {})
        assert (scored["mean_accuracy"], scored["classes"]) == (0.75, {"0": 0.666667, "1": 0.8})


def test_groups_and_classes_without_samples_are_left_out() -> None:
    labels, attributes = torch.tensor([0, 0, 2]), torch.tensor([5, 5, 1])
    classes, groups = members(labels, attributes, ["a", "b", "c"])
    assert {name: chosen.tolist() for name, chosen in classes.items()} == {
        "a": [True, True, False],
        "c": [False, False, True],
    }
    assert list(groups) == ["a/5", "c/1"]
    assert report(labels, labels, attributes, ["a", "b", "c"])["worst_group_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("class_names", "attribute_names"), [(["bird", "bird"], None), (["a", "a/0"], ["0", "0/0"]), (["a", "b"], ["x", "x"])]
)
def test_no_group_is_lost_to_its_name(class_names: list[str], attribute_names: list[str] | None) -> None:
    labels, attributes = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    _, groups = members(labels, attributes, class_names, attribute_names)
    assert len(groups) == 4


# -------------------------------------------------------------------------------------------------- stages on files


@pytest.fixture
def own_splits(own_features: Callable[..., Path], tmp_path: Path) -> None:
    """Another program's val and test features on the standard paths: no metadata, no head, no params.yaml."""
    (tmp_path / "artifacts/features").mkdir(parents=True)
    for seed, split in enumerate(("val", "test")):
        own_features(f"artifacts/features/{split}", **planted(seed=seed))


def chain(nsf: Callable[..., Done], *stages: str) -> dict[str, dict]:
    """Run these stages on the standard paths; what each of them says."""
    said = {}
    for stage in stages:
        done = nsf("--json", stage)
        assert done.code == 0, done.stderr
        said[stage] = done.json
    return said


@pytest.mark.usefixtures("own_splits")
def test_the_whole_chain_on_features_alone(nsf: Callable[..., Done]) -> None:
    said = chain(nsf, *STAGES)
    made = {stage: read(stage, Path(f"artifacts/{stage}.safetensors")) for stage in STAGES}
    val, test = (
        read("features", Path(f"artifacts/features/{split}.safetensors"), attributes=True) for split in ("val", "test")
    )

    assert said["identify"]["samples"] == 200
    assert said["identify"]["minority"] == int(made["identify"]["minority"].sum()) == said["update"]["minority"] > 0
    for row in said["identify"]["classes"]:
        minority = made["identify"]["minority"] & (val["labels"] == int(row["class"]))
        assert (row["samples"], row["minority"], row["drawn_to"]) == (100, int(minority.sum()), str(1 - int(row["class"])))
        assert row["base_accuracy_on_minority"] is None
    assert [row["minority"] for row in said["neutralize"]["classes"]] == [
        row["minority"] for row in said["identify"]["classes"]
    ]
    assert {row["center"] for row in said["neutralize"]["classes"]} == {"midpoint"}
    losses = made["eliminate"]["loss"].tolist()
    assert [said["eliminate"][key] for key in ("steps", "first_loss", "last_loss")] == [len(losses), losses[0], losses[-1]]
    assert all(after < before for before, after in pairwise(losses))
    assert said["update"]["rescued"] == int(made["update"]["rescued"].sum()) > 0
    assert said["update"]["base_head_kept"] is False

    logits = test["features"] @ made["update"]["folded_weight"].T + made["update"]["folded_bias"]
    assert torch.equal(made["evaluate"]["predictions"], logits.argmax(dim=1))
    assert made["evaluate"].get("base_predictions") is None
    scored = said["evaluate"]
    assert json.loads(Path("metrics/evaluate.json").read_text()) == scored
    assert scored["base"] is None
    assert scored["nsf"] == report(logits.argmax(dim=1), test["labels"], test["attributes"], ["0", "1"])
    assert scored["nsf"]["worst_group_accuracy"] == min(scored["nsf"]["groups"].values()) > 0.9
    assert sum(scored["samples"].values()) == 200


@pytest.mark.usefixtures("own_splits")
@pytest.mark.parametrize("solver", ["auto", "published"])
def test_group_labels_are_read_by_evaluate_alone(
    solver: str, nsf: Callable[..., Done], own_features: Callable[..., Path]
) -> None:
    """Without attributes, or with wrong ones, every artifact before evaluate is the same, byte for byte."""
    Path("params.yaml").write_text(f"update: {{solver: {solver}, steps: 50}}\n")
    tensors = planted()
    seen, scores = [], []
    for attributes in (tensors["attributes"], None, 1 - tensors["attributes"], torch.full((200,), -1)):
        for split in ("val", "test"):
            own_features(f"artifacts/features/{split}", **{**tensors, "attributes": attributes})
        said = chain(nsf, *STAGES)
        scores.append(said.pop("evaluate")["samples"])
        seen.append((said, [Path(f"artifacts/{stage}.safetensors").read_bytes() for stage in STAGES[:-1]]))
    assert all(other == seen[0] for other in seen[1:])
    assert scores[0] != scores[2] and scores[1] == scores[3] == {"0": 100, "1": 100}, "evaluate does read them"


@pytest.mark.usefixtures("own_splits")
def test_evaluate_without_attributes(nsf: Callable[..., Done], own_features: Callable[..., Path]) -> None:
    own_features("artifacts/features/test", attributes=None)
    chain(nsf, *STAGES[:-1])
    done = nsf("evaluate", "--json", "--groups", "groups.csv")
    scored = done.json["nsf"]
    assert (scored["worst_group_accuracy"], scored["worst_group"], scored["groups"]) == (None, None, {})
    assert scored["classes"].keys() == {"0", "1"} and done.json["samples"] == {"0": 100, "1": 100}
    assert '"worst_group_accuracy": null' in Path("metrics/evaluate.json").read_text()
    expected = ["group,samples,base,nsf", *(f"{name},100,,{accuracy}" for name, accuracy in scored["classes"].items())]
    assert Path("groups.csv").read_text().splitlines() == expected
    told = "No test sample has a known attribute: accuracies are by class"
    assert told in done.stderr and told in nsf("metrics").stderr
    own_features("artifacts/features/test", **{**planted(seed=1), "attributes": torch.full((200,), -1)})
    assert told in nsf("evaluate").stderr


@pytest.mark.usefixtures("own_splits")
def test_what_the_accuracies_must_not_be_read_without(nsf: Callable[..., Done], own_features: Callable[..., Path]) -> None:
    """Scored on the samples that were fitted on, or without a class."""
    own_features("artifacts/features/test", **planted(seed=1))
    assert "notes" not in chain(nsf, *STAGES)["evaluate"]
    fitted = nsf("evaluate", "--features", "artifacts/features/val.safetensors")
    assert "the samples that the head was fitted on" in fitted.stderr
    assert fitted.stderr == nsf("metrics").stderr and nsf("metrics", "--json").json["notes"] == [metrics.FITTED_ON]
    test = planted(seed=1)
    own_features("artifacts/features/test", **{name: tensor[test["labels"] == 1] for name, tensor in test.items()})
    assert "There is no test sample of class 0, and" in nsf("evaluate").stderr


@pytest.mark.usefixtures("own_splits")
def test_of_many_groups_the_worst_are_shown(nsf: Callable[..., Done], own_features: Callable[..., Path]) -> None:
    own_features("artifacts/features/test", attributes=torch.arange(200) // 2)
    scored = chain(nsf, *STAGES)["evaluate"]
    assert len(scored["samples"]) == 200
    shown = nsf("metrics")
    assert shown.stderr.startswith("The 50 worst of 200 groups; --json has all of them.\n")
    assert scored["nsf"]["worst_group"] in shown.stdout and len(shown.stdout.splitlines()) < 60


@pytest.mark.usefixtures("own_splits")
def test_artifacts_say_what_they_were_made_with(nsf: Callable[..., Done]) -> None:
    said = chain(nsf, *STAGES[:-1])
    assert said["update"]["verdict_of_identify"] == said["identify"]["verdict"]
    learned, new = (read(kind, Path(f"artifacts/{kind}.safetensors")).metadata for kind in ("eliminate", "update"))
    assert learned.parameters == {"steps": "auto", "learning_rate": 0.001}
    assert new.parameters == {"solver": "auto", "regularization": "auto", "force": False, "seed": 0}
    assert nsf("update", "--solver", "published", "--steps", "3").code == 0
    new = read("update", Path("artifacts/update.safetensors")).metadata
    assert new.parameters == {"solver": "published", "steps": 3, "learning_rate": 0.001, "seed": 0}


@pytest.mark.usefixtures("own_splits")
def test_base_and_repaired_head_side_by_side(nsf: Callable[..., Done]) -> None:
    """A head that reads the attribute alone is right on the samples where it agrees with the label."""
    weight = torch.zeros(2, 8)
    weight[1, :4] = 1.0
    save_file({"weight": weight, "bias": torch.zeros(2)}, "artifacts/head.safetensors")
    said = chain(nsf, *STAGES)
    assert all(row["base_accuracy_on_minority"] < 0.2 for row in said["identify"]["classes"])
    scored = said["evaluate"]
    assert scored["base"]["worst_group_accuracy"] < 0.2 < 0.9 < scored["nsf"]["worst_group_accuracy"]
    test = read("features", Path("artifacts/features/test.safetensors"))
    right = passes.predict(test["features"], weight, torch.zeros(2)) == test["labels"]
    assert scored["base"]["mean_accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-6)
    held = load_file("artifacts/evaluate.safetensors")
    assert torch.equal(held["base_predictions"] == test["labels"], right)


def separate(own_features: Callable[..., Path]) -> None:
    """Features without a minority: every sample is nearest to its own class's centroid."""
    labels = torch.arange(200) % 2
    for seed, split in enumerate(("val", "test")):
        features = random(200, 8, seed=seed) + 9.0 * labels.unsqueeze(1)
        own_features(f"artifacts/features/{split}", features=features, labels=labels)


@pytest.mark.usefixtures("own_splits")
def test_the_base_head_is_kept_where_no_sample_is_rescued(
    nsf: Callable[..., Done], own_features: Callable[..., Path]
) -> None:
    separate(own_features)
    head = {"weight": random(2, 8), "bias": random(2, seed=1)}
    save_file(head, "artifacts/head.safetensors")
    chain(nsf, *STAGES[:-2])
    done = nsf("update", "--json", "--solver", "published")
    assert done.code == 0 and "The base head is kept" in done.stderr and "0 samples are rescued" in done.stderr
    assert (done.json["base_head_kept"], done.json["rescued"], done.json["conforming"]) == (True, 0, 200)
    kept, learned = (read(stage, Path(f"artifacts/{stage}.safetensors")) for stage in ("update", "eliminate"))
    assert torch.equal(kept["folded_weight"], head["weight"]) and torch.equal(kept["folded_bias"], head["bias"])
    assert kept.metadata.notes["base_head_kept"] == "true" and "0 samples" in kept.metadata.notes["kept_because"]
    val = read("features", Path("artifacts/features/val.safetensors"))
    on_map = transform(val["features"], learned["scale"], learned["shift"]) @ kept["weight"].T + kept["bias"]
    torch.testing.assert_close(on_map, val["features"] @ head["weight"].T + head["bias"], atol=1e-3, rtol=0)
    scored = nsf("evaluate", "--json").json
    assert scored["nsf"] == scored["base"]
    assert nsf("update", "--quiet", "--solver", "published").stderr == ""


@pytest.mark.usefixtures("own_splits")
def test_nothing_rescued_and_no_head_to_keep(nsf: Callable[..., Done], own_features: Callable[..., Path]) -> None:
    separate(own_features)
    chain(nsf, *STAGES[:-2])
    assert_one_sentence(nsf("update", "--solver", "published"), "val.safetensors", "0 samples are rescued", "--head")
    assert not Path("artifacts/update.safetensors").exists()
    standard = {name: Path(f"artifacts/{name}.safetensors") for name in ("identify", "neutralize", "eliminate")}
    with pytest.raises(BadValues, match="nothing to train"):
        update_module.run(
            features=Path("artifacts/features/val.safetensors"), **standard, out=Path("out"), solver="published", steps=1
        )


def test_names_come_from_the_features_file(nsf: Callable[..., Done], tmp_path: Path) -> None:
    said = {"schema_version": "1", "class_names": '["land", "water"]', "attribute_names": '["forest", "sea"]'}
    (tmp_path / "artifacts/features").mkdir(parents=True)
    for split in ("val", "test"):
        save_file(planted(), tmp_path / f"artifacts/features/{split}.safetensors", metadata=said)
    path = tmp_path / "artifacts/features/val.safetensors"
    summary = run_identify(features=path, out=tmp_path / "artifacts/identify.safetensors")
    assert [(row["class"], row["drawn_to"]) for row in summary["classes"]] == [("land", "water"), ("water", "land")]
    save_file({"weight": torch.eye(2, 8), "bias": torch.zeros(2)}, tmp_path / "artifacts/head.safetensors")
    scored = chain(nsf, *STAGES)["evaluate"]
    assert list(scored["samples"]) == ["land/forest", "land/sea", "water/forest", "water/sea"]
    assert read("evaluate", tmp_path / "artifacts/evaluate.safetensors").class_names(2) == ["land", "water"]


@pytest.mark.usefixtures("own_splits")
def test_the_loss_curve_for_plots(nsf: Callable[..., Done]) -> None:
    chain(nsf, "identify", "neutralize")
    assert nsf("eliminate", "--steps", 4, "--curve", "metrics/eliminate.csv").code == 0
    heading, *rows = Path("metrics/eliminate.csv").read_text().splitlines()
    losses = read("eliminate", Path("artifacts/eliminate.safetensors"))["loss"].tolist()
    assert heading == "step,loss" and [int(row.split(",")[0]) for row in rows] == [0, 1, 2, 3]
    assert [float(row.split(",")[1]) for row in rows] == pytest.approx(losses, rel=1e-5)
