"""nsf compare: selection, what is reported, and that group labels reach no row that is not marked so."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages import compare as module
from stages.artifacts import read
from stages.baselines import BASELINES, Baseline, Head
from stages.compare import GROUP_FREE, GROUP_LABELS, compare, run, stratified_folds
from stages.errors import BadParameter
from stages.metrics import report
from stages.passes import predict
from tests.conftest import Done, assert_one_sentence, planted
from tests.stages.planted import fitted, soft

BASE: Head = (torch.tensor([[0.0] * 8, [1.0] * 4 + [0.0] * 4]), torch.zeros(2))
QUICK = ("erm", "last-layer", "dfr", "self")
VAL, TEST, HEAD = (Path(f"artifacts/{name}.safetensors") for name in ("features/val", "features/test", "head"))


def given(**changes: torch.Tensor | None) -> dict:
    """What `compare` takes, of planted splits."""
    val, test = planted(), planted(seed=1)
    return {
        "features": val["features"],
        "labels": val["labels"],
        "base": BASE,
        "test_features": test["features"],
        "test_labels": test["labels"],
        "attributes": val["attributes"],
        "test_attributes": test["attributes"],
        "methods": QUICK,
        "seeds": 2,
        **changes,
    }


def fixed(features: torch.Tensor, labels: torch.Tensor, base: Head, *, column: int) -> Head:
    """The sign of one column, whatever the samples."""
    weight = torch.zeros(2, 8)
    weight[1, column] = 1.0
    return weight, torch.zeros(2)


@pytest.fixture
def splits(own_features: Callable[..., Path], tmp_path: Path) -> None:
    """Another program's features and head on the standard paths."""
    (tmp_path / "artifacts/features").mkdir(parents=True)
    for seed, split in enumerate(("val", "test")):
        own_features(f"artifacts/features/{split}", **planted(seed=seed))
    save_file({"weight": BASE[0], "bias": BASE[1]}, tmp_path / HEAD)


# ------------------------------------------------------------------------------------------------------- on tensors


def test_folds_are_even_in_classes_and_strata() -> None:
    labels = torch.tensor([0] * 50 + [1] * 5)
    strata = torch.tensor([0] * 40 + [1] * 10 + [0, 0, 1, -1, -1])
    fold = stratified_folds(labels, strata, seed=0)
    for members, size in ((strata[:50] == 0, 8), (strata[:50] == 1, 2)):
        assert torch.bincount(fold[:50][members], minlength=5).tolist() == [size] * 5
    assert sorted(fold[50:].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(fold, stratified_folds(labels, strata, seed=0)) and not torch.equal(
        fold, stratified_folds(labels, strata, seed=1)
    )


def test_rows_and_their_numbers() -> None:
    arguments = given()
    result = compare(**arguments)
    assert {name: list(row) for name, row in result["methods"].items()} == {
        "erm": [GROUP_FREE],
        "last-layer": [GROUP_FREE, GROUP_LABELS],
        "dfr": [GROUP_LABELS],
        "self": [GROUP_FREE, GROUP_LABELS],
    }
    assert result["left_out"] == {} and result["seeds"] == 2
    test = (arguments["test_labels"], arguments["test_attributes"], ["0", "1"])
    scored = report(predict(arguments["test_features"], *BASE), *test)
    erm = result["methods"]["erm"][GROUP_FREE]
    assert (erm["worst_group_accuracy"], erm["mean_accuracy"]) == (scored["worst_group_accuracy"], scored["mean_accuracy"])
    assert erm["worst_class_accuracy"] == min(scored["classes"].values())
    assert erm["worst_group_accuracy_std"] == erm["mean_accuracy_std"] == 0.0 and erm["hyperparameters"] == [{}, {}]
    for name, selection in (("dfr", GROUP_LABELS), ("self", GROUP_FREE)):
        row = result["methods"][name][selection]
        assert row["worst_group_accuracy"] > 0.8 > 0.2 > erm["worst_group_accuracy"]
        assert all(setting in BASELINES[name].grid for setting in row["hyperparameters"])


def test_mean_and_deviation_are_over_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is right or wrong throughout, by its seed."""

    def flip(features: torch.Tensor, labels: torch.Tensor, base: Head, *, seed: int) -> Head:
        return torch.zeros(2, 8), torch.tensor([0.0, -1.0 if seed % 2 else 1.0])

    monkeypatch.setitem(module.BASELINES, "flip", Baseline(flip, seeded=True))
    labels = torch.zeros(200, dtype=torch.int64)
    row = compare(**given(test_labels=labels, methods=["flip"], seeds=4))["methods"]["flip"][GROUP_FREE]
    assert row["mean_accuracy"] == 0.5 and row["mean_accuracy_std"] == pytest.approx((1 / 3) ** 0.5, abs=1e-6)
    alone = compare(**given(methods=["flip"], seeds=1))["methods"]["flip"][GROUP_FREE]
    assert alone["mean_accuracy_std"] is None


def test_each_row_is_chosen_by_its_own_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Column 0 is wrong on a whole pseudo-group, column 1 on a whole true group; both are right on the rest."""
    labels, order = torch.arange(80) % 2, torch.arange(80)
    features = torch.zeros(80, 8)
    features[:, 0] = 10.0 * (2 * labels - 1)
    features[:, 1] = 2.0 * labels - 1
    drawn_away, attributes = (labels == 0) & (order < 16), ((labels == 0) & (order >= 68)).long()
    features[drawn_away, 0] = 10.0
    features[attributes == 1, 1] = 1.0
    assert (int(drawn_away.sum()), int(attributes.sum())) == (8, 6)

    monkeypatch.setitem(module.BASELINES, "fixed", Baseline(fixed, [{"column": 0}, {"column": 1}]))

    def chosen(attributes: torch.Tensor) -> dict[str, list[dict]]:
        rows = compare(**given(features=features, labels=labels, attributes=attributes, methods=["fixed"], seeds=1))
        return {selection: row["hyperparameters"] for selection, row in rows["methods"]["fixed"].items()}

    assert chosen(attributes) == {GROUP_FREE: [{"column": 1}], GROUP_LABELS: [{"column": 0}]}
    # A true group of four samples is left out, and column 1 is then right more often.
    attributes[68:72] = 0
    assert chosen(attributes)[GROUP_LABELS] == [{"column": 1}]


def test_a_seed_decides_the_folds_that_settings_are_compared_by(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(labels: torch.Tensor, strata: torch.Tensor, seed: int) -> torch.Tensor:
        seen.append(seed)
        return stratified_folds(labels, strata, seed)

    monkeypatch.setattr(module, "stratified_folds", noted)
    compare(**given(methods=["last-layer"], seeds=3))
    assert seen == [0, 1, 2]


def test_settings_of_dfr_are_compared_by_one_subset_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the head that is reported is the mean over all of them."""
    seen: list[int] = []

    def noted(*given: object, subsets: int = 10, **rest: object) -> Head:
        seen.append(subsets)
        return BASE

    monkeypatch.setitem(BASELINES, "dfr", replace(BASELINES["dfr"], fit=noted))
    compare(**given(methods=["dfr"], seeds=1))
    assert seen == [1] * (5 * len(BASELINES["dfr"].grid)) + [10]


def test_merit_is_the_worst_of_the_large_groups_then_the_mean() -> None:
    correct = torch.tensor([False] * 4 + [True] * 9 + [False])
    groups = torch.tensor([0] * 4 + [1] * 5 + [2] * 5)
    assert module._merit(correct, groups) == (0.8, 9 / 14)
    assert module._merit(correct, groups.masked_fill(groups == 2, module.NO_GROUP)) == (1.0, 9 / 14)
    assert module._merit(correct[:4], groups[:4]) == (0.0, 0.0), "without a large group, the mean stands for both"


def test_group_labels_of_val_reach_the_marked_rows_alone() -> None:
    attributes = given()["attributes"]
    seen = [
        compare(**given(attributes=value))
        for value in (attributes, None, 1 - attributes, torch.full_like(attributes, -1), torch.arange(200))
    ]
    free = [{name: row.get(GROUP_FREE) for name, row in result["methods"].items() if name != "dfr"} for result in seen]
    assert all(other == free[0] for other in free[1:])
    for result, reason in ((seen[1], "no attributes"), (seen[3], "no group"), (seen[4], "no group")):
        assert not any(GROUP_LABELS in row for row in result["methods"].values())
        assert list(result["left_out"]) == ["dfr"] and reason in result["left_out"]["dfr"]


def test_samples_of_unknown_attribute_are_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Column 0 is wrong on the unknown samples alone, column 1 on a few of two groups: fewer, but in the worst group."""
    labels, order = torch.arange(80) % 2, torch.arange(80)
    attributes = torch.where(order < 20, -1, order // 2 % 2)
    columns = torch.where(torch.stack([order < 20, (order >= 60) & (attributes == 0)]), -1, 1).T * (
        2 * labels - 1
    ).unsqueeze(1)
    features = torch.cat([columns.float(), torch.zeros(80, 6)], dim=1)

    monkeypatch.setitem(module.BASELINES, "fixed", Baseline(fixed, [{"column": 1}, {"column": 0}]))
    rows = compare(**given(features=features, labels=labels, attributes=attributes, methods=["fixed"], seeds=1))
    assert rows["methods"]["fixed"][GROUP_LABELS]["hyperparameters"] == [{"column": 0}]


def test_a_class_without_a_group_of_five_leaves_dfr_out() -> None:
    attributes = given()["attributes"].clone()
    attributes[given()["labels"] == 1] = -1
    result = compare(**given(attributes=attributes, class_names=["cat", "dog"]))
    assert "class dog" in result["left_out"]["dfr"] and GROUP_LABELS in result["methods"]["self"]


def test_without_test_attributes_the_worst_class_is_reported() -> None:
    row = compare(**given(test_attributes=None, methods=["erm"]))["methods"]["erm"][GROUP_FREE]
    assert row["worst_group_accuracy"] is row["worst_group_accuracy_std"] is None
    assert 0 < row["worst_class_accuracy"] <= row["mean_accuracy"]


def test_unknown_method() -> None:
    with pytest.raises(BadParameter, match="no method 'dfrr'; use erm"):
        compare(**given(methods=["erm", "dfrr"]))


def test_progress_counts_the_settings() -> None:
    calls: list[tuple[str, int, int]] = []
    compare(**given(progress=lambda *call: calls.append(call), methods=["erm", "last-layer", "erm"]))
    total = 2 * (1 + len(BASELINES["last-layer"].grid))
    assert calls == [("compare", step + 1, total) for step in range(total)]


# --------------------------------------------------------------------------------------------------------- on files


@pytest.mark.usefixtures("splits")
def test_the_command_writes_json_and_csv(nsf: Callable[..., Done]) -> None:
    done = nsf("compare", "--json", "--methods", "[erm, dfr, self]", "--seeds", 2)
    assert done.code == 0, done.stderr
    assert json.loads(Path("metrics/compare.json").read_text()) == done.json
    assert list(done.json["methods"]) == ["erm", "dfr", "self"]
    rows = list(csv.DictReader(Path("metrics/compare.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["erm", "dfr (group labels)", "self", "self (group labels)"]
    for row in rows:
        expected = done.json["methods"][row["method"]][row["selection"]]
        assert float(row["worst_group_accuracy"]) == expected["worst_group_accuracy"]
        assert float(row["mean_accuracy_std"]) == expected["mean_accuracy_std"]
    table = nsf("compare", "--methods", "[erm, self]", "--seeds", 2).stdout
    assert "worst group" in table and "±" in table and "self (group labels)" in table and "pull 0." in table
    assert "…" not in table, "it fits a terminal of 80 columns"
    assert "±" not in nsf("compare", "--methods", "[erm]", "--seeds", 1).stdout


@pytest.mark.usefixtures("splits")
def test_the_same_bytes_again(nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        module.BASELINES,
        "published",
        Baseline(
            BASELINES["published"].fit, [{"eliminate_steps": 3, "update_steps": steps} for steps in (5, 9)], seeded=True
        ),
    )
    methods = [name for name in BASELINES if name != "auto"]
    files = {"features": VAL, "test": TEST, "head": HEAD, "methods": methods, "seeds": 1}
    written = []
    for name in ("a", "b"):
        torch.manual_seed(len(written))
        result = run(**files, out=Path(f"{name}.json"), csv_out=Path(f"{name}.csv"))
        written.append((Path(f"{name}.json").read_bytes(), Path(f"{name}.csv").read_bytes()))
        assert list(result["methods"]) == methods
    assert written[0] == written[1]


@pytest.mark.usefixtures("splits")
def test_auto_looks_at_the_training_split(nsf: Callable[..., Done], own_features: Callable[..., Path]) -> None:
    """As `nsf update --train-features` does: here it keeps a base head that a biased validation split speaks against."""
    splits = {
        name: soft(samples, bias=bias, seed=seed)
        for name, samples, bias, seed in (("train", 6000, 0.5, 1), ("val", 2000, 0.95, 2), ("test", 2000, 0.5, 3))
    }
    for name, (features, labels, attributes) in splits.items():
        own_features(f"artifacts/features/{name}", features=features, labels=labels, attributes=attributes)
    weight, bias = fitted(*splits["train"][:2], 1e-4)
    save_file({"weight": 2 * weight, "bias": 2 * bias}, HEAD)
    rows = []
    for option in ([], ["--train-features", "artifacts/features/train.safetensors"]):
        done = nsf("compare", "--json", "--methods", "[erm, auto]", "--seeds", 1, *option)
        assert done.code == 0, done.stderr
        rows.append([done.json["methods"][name][GROUP_FREE]["worst_group_accuracy"] for name in ("erm", "auto")])
    (erm, spoiled), (_, kept) = rows
    assert spoiled < 0.2 < 0.8 < erm == kept
    idle = nsf("compare", "--methods", "[erm]", *option)
    assert idle.code == 0 and "--train-features has no effect without method auto" in idle.stderr
    option[1] = str(VAL)
    assert_one_sentence(nsf("compare", *option), str(VAL), "give features of the training split")


@pytest.mark.usefixtures("splits")
def test_without_attributes_the_command_says_what_is_left_out(
    nsf: Callable[..., Done], own_features: Callable[..., Path]
) -> None:
    for seed, split in enumerate(("val", "test")):
        own_features(f"artifacts/features/{split}", **{**planted(seed=seed), "attributes": None})
    done = nsf("compare", "--methods", "[erm, dfr]", "--seeds", 1)
    assert done.code == 0 and "worst class" in done.stdout
    assert "dfr needs group labels" in done.stderr and "no worst group" in done.stderr


@pytest.mark.usefixtures("splits")
def test_mistakes_are_told_in_one_sentence(nsf: Callable[..., Done], own_features: Callable[..., Path]) -> None:
    assert_one_sentence(nsf("compare", "--methods", "[erm, dfrr]"), "--methods", "dfrr")
    assert_one_sentence(nsf("compare", "--methods", "[]"), "--methods")
    assert_one_sentence(nsf("compare", "--head", "none.safetensors"), "none.safetensors", "nsf extract")
    assert_one_sentence(nsf("compare", "--out", VAL, "--methods", "[erm]"), "val.safetensors", "input")
    with pytest.raises(BadParameter, match="no method"):
        run(features=VAL, test=TEST, head=HEAD, out=Path("out.json"), methods=["none"])
    labels = read("features", TEST)["labels"].clone()
    labels[0] = 2
    own_features("artifacts/features/test", **{**planted(), "labels": labels})
    assert_one_sentence(nsf("compare", "--methods", "[erm]"), "test.safetensors", "label 2")
    few = torch.tensor([0] * 196 + [1] * 4)
    own_features("artifacts/features/val", **{**planted(), "labels": few})
    own_features("artifacts/features/test", **planted())
    assert_one_sentence(nsf("compare", "--methods", "[erm]"), "val.safetensors", "class 1 has 4 samples")
    for split in ("val", "test"):
        own_features(f"artifacts/features/{split}", **planted())
    own_features("artifacts/features/test", **{**planted(), "features": planted()["features"] * 1e37})
    assert_one_sentence(nsf("compare", "--methods", "[self]"), "test.safetensors", "values up to", "scale the features down")
    assert not Path("metrics").exists() and not Path("out.json").exists()
