"""train and extract on real images: the same bytes each time, whatever the workers; mistakes leave nothing behind."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest
import torch
from PIL import Image

from stages import artifacts, encoding, extract, models, train
from stages.artifacts import Metadata
from stages.data import Split, open_split
from stages.errors import BadData, BadModel, BadValues, CannotWrite, Mismatch
from stages.outputs import outputs
from stages.runtime import reproducible
from stages.tensorfile import RowWriter
from tests.conftest import Done, assert_one_sentence, leftovers, photos

MODEL = {"source": "torchvision", "architecture": "resnet18", "weights": None, "image_size": [24, 24]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes: warm and cold noise."""
    return photos(tmp_path_factory.mktemp("photos"), {"train": 12, "val": 9, "test": 5}, size=24, noise=160, lift=90)


@pytest.fixture
def data(images: Path) -> dict[str, Any]:
    return {"format": "folder", "root": str(images)}


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    train_on({"format": "folder", "root": str(images)}, out, epochs=3)
    return out


def train_on(data: dict[str, Any], out: Path, **options: Any) -> dict[str, Any]:
    chosen = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "device": "cpu", **options}
    return train.run(data=data, model=chosen.pop("model", MODEL), out=out, **chosen)


def extract_to(folder: Path, data: dict[str, Any], model: Path, **options: Any) -> dict[str, Any]:
    chosen = {"out": folder / "features", "head_out": folder / "head.safetensors", "batch_size": 4, "device": "cpu"}
    return extract.run(data=data, model=model, **{**chosen, **options})


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [0.01] * 6), ("linear", [0.01 * (1 - step / 6) for step in range(6)]),
     ("cosine", [0.005 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])],
)  # fmt: skip
def test_the_rate_and_the_order_of_each_step(
    schedule: str, rates: list[float], data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to zero; every epoch its own order, and all samples in it."""
    used: list[float] = []
    orders: list[list[int]] = []
    step, make = torch.optim.SGD.step, train.batches
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *rest: used.append(self.param_groups[0]["lr"]) or step(self, *rest)
    )
    monkeypatch.setattr(
        train, "batches", lambda *given, **options: orders.append(options["order"].tolist()) or make(*given, **options)
    )
    train_on(data, tmp_path, epochs=2, schedule=schedule)
    assert used == pytest.approx(rates)
    first, second = orders
    assert sorted(first) == sorted(second) == list(range(24)) and len({*map(tuple, (first, second, range(24)))}) == 3


def test_training_learns_and_says_so(data: dict[str, Any], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    summary = train_on(data, tmp_path, epochs=6, progress=lambda *args: seen.append(args))
    assert summary["train_accuracy"] > 0.9 and summary["samples"] == 24 and summary["classes"] == ["cold", "warm"]
    assert seen == [("train", step, 18) for step in range(1, 19)]


def test_a_single_sample_trains_nothing(images: Path, tmp_path: Path) -> None:
    """Batch norm makes nothing of it, and a network as random as it came would be written."""
    (tmp_path / "train.csv").write_text("path,label\nval/warm/00.png,1\n")
    data = {"format": "csv", "file": str(tmp_path / "{split}.csv"), "root": str(images)}
    with pytest.raises(BadData, match="train split: holds a single sample"):
        train_on(data, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_same_seed_same_bytes_whatever_the_workers(data: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        train_on(data, tmp_path / name / "model", workers=workers)
        extract_to(tmp_path / name, data, trained, workers=workers)
    first, again, parallel = (files_in(tmp_path / name) for name in "abc")
    assert first == again == parallel
    assert set(first) == {
        "model/model.safetensors", "features/val.safetensors", "features/test.safetensors", "head.safetensors"
    }  # fmt: skip
    train_on(data, tmp_path / "other", seed=1)
    assert files_in(tmp_path / "other")["model.safetensors"] != first["model/model.safetensors"]


def test_features_through_the_head_are_the_models_logits(data: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    summary = extract_to(tmp_path, data, trained)
    assert (summary["width"], summary["samples"]) == (512, {"val": 18, "test": 10})
    held = artifacts.read("features", tmp_path / "features/val.safetensors")
    head = artifacts.read("head", tmp_path / "head.safetensors")
    assert held["labels"].tolist() == [0] * 9 + [1] * 9 and held["ids"].tolist() == list(range(18))
    assert held.get("attributes") is None and held.class_names(2) == ["cold", "warm"]
    assert "image of val/" in held.metadata.notes["ids"]
    classifier = models.load(trained).classifier
    network = classifier.network.eval()
    paths = sorted(Path(data["root"]).glob("val/*/*.png"))
    with torch.no_grad():
        logits = network(torch.stack([classifier.transform(Image.open(path).convert("RGB")) for path in paths]))
    torch.testing.assert_close(held["features"] @ head["weight"].T + head["bias"], logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(head["weight"], network.fc.weight)


def test_the_training_splits_groups_go_to_test_features_alone(
    data: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a stage is fitted on holds what group labels say."""
    monkeypatch.setattr("stages.extract._train_groups", lambda *given: {"cold/day": 3})
    extract_to(tmp_path, data, trained)
    noted = {
        split: artifacts.read("features", tmp_path / f"features/{split}.safetensors").metadata.notes.get("train_groups")
        for split in ("val", "test")
    }
    assert noted == {"val": None, "test": '{"cold/day": 3}'}


def test_features_are_written_once(
    data: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no sample is skipped, the header that was planned is the header: no byte of the features moves again."""
    moves: list[tuple[int, int]] = []
    monkeypatch.setattr(RowWriter, "_move", lambda self, source, target, size: moves.append((source, target)))
    extract_to(tmp_path, data, trained)
    assert len(moves) == 4 and all(source == target for source, target in moves), "a part and a file for each split"


def test_all_splits_and_a_batch_larger_than_the_split(data: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    extract_to(tmp_path, data, trained, splits=["train"], batch_size=1000, progress=lambda *args: seen.append(args))
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["train.safetensors"]
    assert seen == [("extract train", 24, 24)]


def test_mixed_precision_is_close(data: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        extract_to(tmp_path / precision, data, trained, precision=precision)
    exact, mixed = (
        artifacts.read("features", tmp_path / precision / "features/val.safetensors")
        for precision in ("float32", "bfloat16")
    )
    assert mixed.metadata.parameters["precision"] == "bfloat16"
    difference = (exact["features"] - mixed["features"]).norm() / exact["features"].norm()
    assert 0 < float(difference) < 0.05


def test_a_learning_rate_that_diverges(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadValues, match=r"the training diverged; lower train\.learning_rate"):
        train_on(data, tmp_path / "model", learning_rate=1e30, epochs=2)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image(workers: int, images: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "photos")
    for split in ("train", "test"):
        (tmp_path / f"photos/{split}/warm/03.png").write_bytes(b"not an image")
    data = {"format": "folder", "root": str(tmp_path / "photos")}
    with pytest.raises(BadData, match=r"train/warm/03\.png: cannot be read as an image; replace or remove it"):
        train_on(data, tmp_path / "out/model", workers=workers)
    with pytest.raises(BadData, match=r"test/warm/03\.png: cannot be read"):
        extract_to(tmp_path / "out", data, trained, workers=workers)
    # What was finished of val is kept for the next run, and nothing else.
    assert set(files_in(tmp_path / "out/features/.val.parts")) == {"00000.safetensors", "manifest.json"}
    assert len(files_in(tmp_path / "out")) == 2
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_corrupt_images_are_skipped_and_counted(
    workers: int, batch_size: int, images: Path, trained: Path, nsf: Callable[..., Done], tmp_path: Path
) -> None:
    """What is left is what a table without those rows would give, byte for byte but for ids and the note."""
    shutil.copytree(images, tmp_path / "photos")
    rows = ["path,label,split,place"]
    for split in ("train", "val", "test"):
        for position, path in enumerate(sorted((tmp_path / "photos" / split).rglob("*.png"))):
            rows.append(f"{path.relative_to(tmp_path)},{path.parent.name},{split},{position % 3}")
    broken = [row for row in rows if any(name in row for name in ("cold/00.png", "cold/03.png", "warm/04.png"))]
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "readable.csv").write_text("\n".join(row for row in rows if row not in broken) + "\n")
    for row in broken:
        (tmp_path / row.split(",")[0]).write_bytes(b"not an image")
    options = {"workers": workers, "batch_size": batch_size}
    data = {"format": "csv", "attribute_column": "place", "root": str(tmp_path)}
    skip = {**data, "file": str(tmp_path / "all.csv"), "on_error": "skip"}
    said = extract_to(tmp_path / "skipped", skip, trained, **options)
    assert said["skipped"] == {"val": 3, "test": 3} and "cannot be read as an image" in said["first_skipped"]
    extract_to(tmp_path / "clean", {**data, "file": str(tmp_path / "readable.csv")}, trained, **options)
    for split in ("val", "test"):
        left, clean = (artifacts.read("features", tmp_path / f"{name}/features/{split}.safetensors", attributes=True)
                       for name in ("skipped", "clean"))  # fmt: skip
        assert left.metadata.notes["skipped"] == "3"
        torch.testing.assert_close(left["features"], clean["features"], rtol=1e-4, atol=1e-5)
        assert torch.equal(left["labels"], clean["labels"]) and torch.equal(left["attributes"], clean["attributes"])
        readable = [row for row in rows[1:] if f",{split}," in row and row not in broken]
        assert [rows[1:][row] for row in left["ids"].tolist()] == readable, "ids lead back to their rows"
    trained_on = train_on(skip, tmp_path / "model", epochs=2, workers=workers)
    assert trained_on["skipped"] == 3
    (tmp_path / "params.yaml").write_text(
        f"data: {{format: csv, file: all.csv, on_error: skip}}\nextract: {{splits: [val], workers: {workers}}}\n"
    )
    done = nsf("extract", "--model", trained)
    assert done.code == 0 and "Skipped 3 samples that cannot be read, the first: " in done.stderr


def test_nothing_can_be_read(images: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "photos")
    for path in (tmp_path / "photos/test").rglob("*.png"):
        path.write_bytes(b"not an image")
    data = {"format": "folder", "root": str(tmp_path / "photos"), "on_error": "skip"}
    with pytest.raises(
        BadData, match=r"test split, .*00\.png: none of the 10 samples can be read, the first: cannot be read"
    ):
        extract_to(tmp_path / "out", data, trained)
    for path in (tmp_path / "photos/train").rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(BadData, match=r"train split, .*\.png: none of the 24 samples can be read"):
        train_on(data, tmp_path / "trained")
    assert not (tmp_path / "trained").exists() and leftovers(tmp_path) == []
    assert not [path for path in (tmp_path / "out").rglob("*.safetensors") if ".parts" not in str(path)]


def test_classes_in_another_order_and_other_capitals(images: Path, trained: Path, tmp_path: Path) -> None:
    rows = [
        "path,label,split",
        *(f"val/{name}/{i:02}.png,{name.upper()},val" for name in ("warm", "cold") for i in range(9)),
    ]
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    data = {"format": "csv", "file": str(tmp_path / "all.csv"), "root": str(images), "class_names": ["WARM", "COLD"]}
    (tmp_path / "all.csv").write_text("\n".join(rows).replace("WARM", "0").replace("COLD", "1") + "\n")
    extract_to(tmp_path, data, trained, splits=["val"])
    held = artifacts.read("features", tmp_path / "features/val.safetensors")
    assert held["labels"].tolist() == [1] * 9 + [0] * 9 and held.class_names(2) == ["cold", "warm"]


def test_classes_of_another_data_set(images: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "val/warm", tmp_path / "photos/val/hot")
    shutil.copytree(images / "val/cold", tmp_path / "photos/val/cold")
    with pytest.raises(Mismatch, match=r"the val split has the classes cold, hot, and the model was trained on cold, warm"):
        extract_to(tmp_path / "out", {"format": "folder", "root": str(tmp_path / "photos")}, trained, splits=["val"])


def test_classes_that_capitals_alone_tell_apart(images: Path, data: dict[str, Any], tmp_path: Path) -> None:
    """As EMNIST's letters: exact names then, whatever their order."""
    with outputs() as files:
        network = models.build(**{**MODEL, "classes": 3})
        models.save(files, tmp_path / "letters", network, ["b", "A", "a"], Metadata())
    rows = [f"val/{name}/{i:02}.png,{letter}" for name in ("warm", "cold") for i, letter in enumerate("Aab")]
    (tmp_path / "val.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    data = {"format": "csv", "file": str(tmp_path / "{split}.csv"), "root": str(images)}
    extract_to(tmp_path, data, tmp_path / "letters", splits=["val"])
    held = artifacts.read("features", tmp_path / "features/val.safetensors")
    assert held["labels"].tolist() == [1, 2, 0] * 2 and held.class_names(3) == ["b", "A", "a"]


def test_splits_that_number_their_classes_differently(images: Path, tmp_path: Path) -> None:
    """Where the model names no classes, nothing tells which of the two numberings is the head's."""
    datasets = pytest.importorskip("datasets")
    names = {"validation": ["cold", "warm"], "test": ["warm", "cold"]}
    made = {}
    for split, order in names.items():
        columns = {"image": [str(images / f"val/{name}/00.png") for name in names["test"]], "label": [0, 1]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=order)})
        made[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(made).save_to_disk(tmp_path / "set")
    torch.save(models.build(**{**MODEL, "classes": 2}).network.state_dict(), tmp_path / "own.pt")
    own = {**MODEL, "weights": str(tmp_path / "own.pt")}
    data = {"format": "huggingface", "root": str(tmp_path / "set")}
    with pytest.raises(Mismatch, match="the classes are cold, warm in the val split and warm, cold in the test split"):
        extract_to(tmp_path / "out", data, tmp_path / "none", own_model=own, splits=["val", "test"])
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_one_class_is_nothing_to_train_on(tmp_path: Path) -> None:
    photos(tmp_path / "photos", {"train": 3, "val": 3, "test": 3}, size=24, noise=10, lift=0)
    for split in ("train", "val", "test"):
        shutil.rmtree(tmp_path / "photos" / split / "warm")
    with pytest.raises(BadData, match=r"data: holds one class only \(cold\); give samples of at least two classes"):
        train_on({"format": "folder", "root": str(tmp_path / "photos")}, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("command", ["extract", "doctor"])
def test_a_model_that_is_left_from_earlier_work(
    command: str, nsf: Callable[..., Done], images: Path, trained: Path, tmp_path: Path
) -> None:
    """What `nsf train` once wrote here is not what section model names."""
    shutil.copytree(trained, tmp_path / "artifacts/model")
    torch.save(models.build(**{**MODEL, "classes": 2}).network.state_dict(), tmp_path / "own.pt")
    section = "{source: torchvision, architecture: resnet18, weights: own.pt, image_size: [24, 24]}"
    data = f"data: {{format: folder, root: '{images}'}}\n"

    def left_over(parameters: str, *options: str) -> bool:
        (tmp_path / "params.yaml").write_text(data + parameters)
        done = nsf(command, "--device", "cpu", *options)
        assert done.code == 0, done.stderr
        assert ("is left aside" in done.stderr) is (command == "extract" and "artifacts/model" not in done.stdout)
        return "artifacts/model" in done.stdout

    assert left_over("") and not left_over(f"model: {section}\n")
    assert left_over(f"model: {section}\ntrain: {{epochs: 1}}\n"), "the pipeline trains first"
    assert left_over(f"model: {section.replace('own.pt', 'null')}\n"), "it was trained with this section"
    assert not left_over("", "--model-weights", "own.pt"), "without a section train the option is heard"
    (tmp_path / "params.yaml").write_text(f"{data}model: {{architecture: resnet34}}\n")
    assert_one_sentence(
        nsf(command), "artifacts/model: was trained with another section 'model', and the model of params.yaml"
    )
    (tmp_path / "params.yaml").write_text(f"{data}train: {{epochs: 1}}\n")
    words = "option --model-weights", "artifacts/model was trained with another section 'model'"
    assert_one_sentence(nsf(command, "--model-weights", "own.pt"), *words)


def test_a_model_is_known_again_by_its_section(tmp_path: Path) -> None:
    """Which its file holds as JSON: numbers as keys come back as texts, and what is no number equals nothing."""
    section = {"source": "callable", "function": "mine:make", "options": {"names": {0: "a"}, "wide": math.nan}}
    assert models.trained_with(tmp_path, section), "there is nothing to say otherwise"
    with outputs() as files:
        metadata = Metadata(stage="train", parameters={"model": section})
        files.tensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, replace(metadata, kind="model"))
    assert models.trained_with(tmp_path, section)
    assert not models.trained_with(tmp_path, {**section, "options": {"names": {1: "a"}}})


def test_a_model_that_gives_nan(data: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    opened = models.load(trained)
    model, names = opened.classifier, opened.class_names
    with torch.no_grad():
        model.network.bn1.weight[3] = torch.nan
    with outputs() as files:
        models.save(files, tmp_path / "bad", model, names, Metadata())
    with pytest.raises(BadModel, match="the model gives NaN or infinity; check its weights"):
        extract_to(tmp_path / "out", data, tmp_path / "bad")
    assert not (tmp_path / "out").exists()


def test_inputs_are_not_overwritten(data: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    """Neither the model that features are extracted from, nor the weights that training starts from."""
    weights = tmp_path / "mine/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes((trained / "model.safetensors").read_bytes())
    before = weights.read_bytes()
    refused = pytest.raises(CannotWrite, match=r"model\.safetensors: is an input of this command and would be overwritten")
    with refused:
        extract_to(tmp_path, data, weights.parent, head_out=weights)
    with refused:
        extract_to(tmp_path, data, tmp_path / "none", own_model={**MODEL, "weights": str(weights)}, head_out=weights)
    with refused:
        train_on(data, weights.parent, model={**MODEL, "weights": str(weights)})
    assert weights.read_bytes() == before


def test_where_the_model_cannot_be_written_is_told_before_the_training(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen: list[object] = []
    with pytest.raises(CannotWrite, match=r"file/model\.safetensors: cannot be written"):
        train_on(data, tmp_path / "file", progress=lambda *args: seen.append(args))
    assert seen == []


def test_a_last_batch_of_one_sample(data: dict[str, Any], tmp_path: Path) -> None:
    """Batch norm refuses it where the image is small enough: it is left out, and training goes on."""
    assert train_on(data, tmp_path / "model", batch_size=23)["samples"] == 24


@pytest.mark.parametrize("command", ["train", "extract"])
def test_on_the_command_line(
    command: str, data: dict[str, Any], trained: Path, nsf: Callable[..., Done], tmp_path: Path
) -> None:
    where = ["--data-format", "folder", "--data-root", data["root"], "--workers", 0]
    if command == "train":
        options = ["--model-image-size", "[24, 24]", "--epochs", 1]
        done = nsf("train", *where, *options, "--json")
        assert done.code == 0, done.stderr
        assert done.json["samples"] == 24 and (tmp_path / "artifacts/model/model.safetensors").exists()
        assert_one_sentence(nsf("train", *where, "--model-architecture", "resnet19"), "did you mean resnet18?")
    else:
        done = nsf("extract", *where, "--model", trained, "--splits", "[val]")
        assert done.code == 0 and "features of width 512 for val 18 images" in done.stdout
        assert_one_sentence(nsf("extract", *where), "artifacts/model", "`nsf train` makes it")


def test_the_callers_random_numbers_are_left_alone(data: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_on(data, tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)
    with reproducible(seed=3):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batches_of(
    encode: Callable[[torch.Tensor], torch.Tensor], model: models.Classifier, split: Split, batch_size: int = 16
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features and positions, batch by batch, on the CPU."""
    options = {"workers": 0, "device": torch.device("cpu"), "dtype": torch.float32, "what": ""}
    return list(encoding.encoded(encode, model, split, batch_size=batch_size, **options))


@pytest.mark.parametrize("batch_size", [3, 16, 100])
def test_threads_share_a_batch_and_keep_its_order(
    data: dict[str, Any], trained: Path, two_threads: None, batch_size: int
) -> None:
    split = open_split("val", **data)
    opened = models.open_trained(trained, None).classifier
    encode, _, _ = encoding.cut(opened, split, torch.device("cpu"))
    whole = torch.stack([opened.transform(split.load(position)) for position in range(len(split))])
    with torch.no_grad():
        expected = encode(whole)
    callers: set[int] = set()

    def watched(inputs: torch.Tensor) -> torch.Tensor:
        assert torch.get_num_threads() == 1 and not torch.is_grad_enabled()
        callers.add(get_ident())
        return encode(inputs)

    found = batches_of(watched, opened, split, batch_size)
    torch.testing.assert_close(torch.cat([features for features, _ in found]), expected, rtol=1e-4, atol=1e-5)
    assert torch.cat([positions for _, positions in found]).tolist() == list(range(len(split)))
    assert get_ident() not in callers and len(callers) <= 2
    assert torch.get_num_threads() == 2


def test_a_network_of_the_users_own_is_run_by_one_thread_at_a_time(data: dict[str, Any], two_threads: None) -> None:
    """Its forward pass may keep something in the network."""
    split = open_split("val", **data)
    classifier = models.build(source="torchvision", architecture="resnet18", weights=None, image_size=24, classes=2)
    own = replace(classifier, spec={"source": "callable"})
    encode, _, _ = encoding.cut(own, split, torch.device("cpu"))
    callers: set[int] = set()

    def watched(inputs: torch.Tensor) -> torch.Tensor:
        callers.add(get_ident())
        return encode(inputs)

    batches_of(watched, own, split)
    assert callers == {get_ident()}


def test_an_error_in_a_thread_ends_the_extraction(data: dict[str, Any], trained: Path, two_threads: None) -> None:
    split = open_split("val", **data)
    opened = models.open_trained(trained, None).classifier

    def broken(inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        batches_of(broken, opened, split)
    assert torch.get_num_threads() == 2
