"""export and predict: from every kind of model, through all stages, back into the format that came in - bit by bit."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages import models
from stages.auto import EVENED, PLAIN, Repaired
from stages.evidence import Evidence
from stages.identify import Verdict
from stages.models import checkpoints
from stages.runtime import reproducible
from tests.conftest import Done, assert_one_sentence, leftovers
from tests.stages.models.conftest import TEXT_WORDS, Pretrained, pretrained

__all__ = ["pretrained"]

STAGES = ("extract", "identify", "neutralize", "eliminate", "update", "evaluate", "export")
Nsf = Callable[..., Done]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise of two classes, warm and cold, a border of the other color on some: 60 images a split."""
    random = np.random.RandomState(0)
    for split in ("val", "test"):
        for label, name in enumerate(("cold", "warm")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(30):
                pixels = random.randint(0, 200, (16, 16, 3), dtype=np.uint8)
                pixels[..., 0 if label else 2] += 20
                pixels[:5, :, 0 if (label == 1) != (index % 5 == 0) else 2] = 255
                Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Texts of two classes with an attribute: 80 a split."""
    random = np.random.RandomState(0)
    lines = ["text,second,label,split,source"]
    for split in ("val", "test"):
        for index in range(80):
            label, source = index % 2, int((index % 2 == 1) != (index % 10 < 2))
            words = [*random.choice(TEXT_WORDS, 6), ["bad", "good"][label], *["film"] * (3 * source)]
            lines.append(f"{' '.join(words)},the film,{'NEG' if label == 0 else 'POS'},{split},{['press', 'film'][source]}")
    (tmp_path / "reviews.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "reviews.csv"


def write_params(**sections: dict[str, Any]) -> None:
    # So few samples say nothing to solver auto, which would keep the head.
    method = {"eliminate": {"steps": 5}, "update": {"solver": "published", "steps": 30}}
    Path("params.yaml").write_text(json.dumps({**sections, **method}))


def repair(nsf: Nsf, *export: str) -> dict[str, Any]:
    """Run all stages with params.yaml; what export said."""
    for stage in STAGES:
        done = nsf(stage, "--json", *(export if stage == "export" else ()))
        assert done.code == 0, (stage, done.stderr)
    assert Path("metrics/evaluate.json").exists()
    return done.json


def repaired_logits(features: str = "test") -> torch.Tensor:
    held, new = load_file(f"artifacts/features/{features}.safetensors"), load_file("artifacts/update.safetensors")
    return held["features"] @ new["folded_weight"].T + new["folded_bias"]


def assert_only(changed: set[str], before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Every tensor but these has the same bits, and these have others."""
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape
        assert torch.equal(tensor, after[name]) == (name not in changed), name


def resnet(classes: int = 2) -> torch.nn.Module:
    with reproducible(seed=0):
        return models.build(source="torchvision", architecture="resnet18", classes=classes, image_size=16).network


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_somebodys_state_dict(suffix: str, photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    """A training script's checkpoint, with a prefix, containers and all; plain inference code runs on the copy unchanged."""
    from safetensors.torch import save_file

    state = {f"module.{name}": tensor for name, tensor in resnet().state_dict().items()}
    if suffix == ".pth":
        torch.save({"epoch": 7, "state_dict": state, "arch": "resnet18"}, tmp_path / "best.pth")
    else:
        save_file(state, tmp_path / "best.safetensors", metadata={"epoch": "7"})
    section = {"source": "torchvision", "architecture": "resnet18", "weights": f"best{suffix}", "image_size": [16, 16]}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    said = repair(nsf)
    assert said["files"] == [f"best{suffix}", "MODEL_CARD.md"] and said["changed"] == ["module.fc.bias", "module.fc.weight"]
    after = checkpoints.read(tmp_path / f"artifacts/export/best{suffix}")
    assert_only({"module.fc.weight", "module.fc.bias"}, checkpoints.read(tmp_path / f"best{suffix}"), after)
    network = resnet().eval()
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in after.items()})
    transform = models.build(**section, classes=None).transform
    images = [transform(Image.open(path).convert("RGB")) for path in sorted(photos.glob("test/*/*.png"))]
    with torch.no_grad():
        torch.testing.assert_close(network(torch.stack(images)), repaired_logits(), rtol=1e-3, atol=1e-4)
    if suffix == ".pth":
        whole = torch.load(tmp_path / "artifacts/export/best.pth", weights_only=True)
        assert whole["epoch"] == 7 and whole["arch"] == "resnet18"
    card = Path("artifacts/export/MODEL_CARD.md").read_text()
    for words in (
        "# resnet18, repaired by nsf",
        "`module.fc.weight`",
        "cold, warm",
        "60 validation samples",
        "| mean |",
        "sha256:",
    ):
        assert words in card, words


def test_a_model_that_nsf_trained(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    shutil.copytree(photos / "val", photos / "train")
    section = {"source": "torchvision", "architecture": "resnet18", "image_size": [16, 16]}
    write_params(data={"format": "folder", "root": "photos"}, model=section, train={"epochs": 1})
    assert nsf("train").code == 0
    repair(nsf)
    before, after = (load_file(tmp_path / f"artifacts/{name}/model.safetensors") for name in ("model", "export"))
    assert_only({"fc.weight", "fc.bias"}, before, after)
    again = models.load(tmp_path / "artifacts/export")
    assert torch.equal(again.classifier.network.fc.weight, load_file("artifacts/update.safetensors")["folded_weight"])


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "DistilBert"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_transformers_folder(architecture: str, pairs: bool, pretrained: Pretrained, reviews: Path, nsf: Nsf) -> None:
    import transformers

    folder = pretrained(architecture, "classifier", id2label={0: "pos", 1: "neg"})
    (folder / "README.md").write_text("another model's card")
    columns = {"text_column": "text", **({"second_text_column": "second"} if pairs else {})}
    data = {"format": "csv", "file": "reviews.csv", **columns, "attribute_column": "source"}
    write_params(data=data, model={"source": "transformers", "name": "classifier"})
    said = repair(nsf)
    assert "README.md" not in said["files"]
    before, after = (load_file(path / "model.safetensors") for path in (folder, Path("artifacts/export")))
    assert_only(set(said["changed"]), before, after)
    with safe_open("artifacts/export/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    network = transformers.AutoModelForSequenceClassification.from_pretrained("artifacts/export").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("artifacts/export")
    rows = [line.split(",") for line in reviews.read_text().splitlines() if ",test," in line]
    texts = ([row[0] for row in rows], [row[1] for row in rows] if pairs else None)
    with torch.no_grad():
        logits = network(**tokenizer(*texts, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits, repaired_logits(), rtol=1e-3, atol=1e-4)
    # The data's classes take the model's numbers: its NEG is the model's 1.
    assert load_file("artifacts/features/test.safetensors")["labels"][:2].tolist() == [1, 0]
    assert json.loads(Path("metrics/evaluate.json").read_text())["nsf"]["groups"].keys() == {
        "pos/film", "pos/press", "neg/film", "neg/press"
    }  # fmt: skip


def test_a_transformers_folder_in_shards_and_in_pytorchs_format(pretrained: Pretrained, reviews: Path, nsf: Nsf) -> None:
    folder = pretrained("Bert", "classifier")
    network = models.build(source="transformers", name=str(folder)).network
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text"}
    write_params(data=data, model={"source": "transformers", "name": "classifier"})
    for form in ("shards", "bin"):
        (folder / "model.safetensors").unlink(missing_ok=True)
        if form == "shards":
            network.save_pretrained(folder, max_shard_size="5KB")
            assert len(list(folder.glob("model-*.safetensors"))) > 1
        else:
            for path in folder.glob("model*.safetensors*"):
                path.unlink()
            torch.save(network.state_dict(), folder / "pytorch_model.bin")
        shutil.rmtree("artifacts", ignore_errors=True)
        repair(nsf)
        again = models.build(source="transformers", name="artifacts/export").network
        assert_only({"classifier.weight", "classifier.bias"}, network.state_dict(), again.state_dict())


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_base_head_kept(
    outputs: int, pretrained: Pretrained, reviews: Path, nsf: Nsf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of what came in, and neither the message nor the card says that anything is repaired."""
    folder = pretrained("Bert", "classifier", num_labels=outputs)
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text"}
    write_params(data=data, model={"source": "transformers", "name": "classifier"})
    # Labels that have nothing to do with the texts: cross-validation carries no repair.
    random = np.random.RandomState(0)
    lines = [
        f"{' '.join(random.choice(TEXT_WORDS, 8))},{split},{index % 2}" for split in ("val", "test") for index in range(80)
    ]
    reviews.write_text("\n".join(["text,split,label", *lines]) + "\n")
    for stage in STAGES[:-1]:
        assert nsf(stage, *(["--solver", "auto"] if stage == "update" else [])).code == 0
    done = nsf("export")
    assert done.code == 0 and "with the base head unchanged, for update kept it (" in done.stdout
    said = nsf("export", "--json").json
    assert said["changed"] == [] and said["kept_because"]
    before, after = (load_file(path / "model.safetensors") for path in (folder, Path("artifacts/export")))
    assert_only(set(), before, after)
    card = Path("artifacts/export/MODEL_CARD.md").read_text()
    assert "left as it was by nsf" in card and said["kept_because"] in card and "repaired" not in card
    # And of heads that know of no group.
    evidence = Evidence(errors=2.0, unused=0.1)
    for remedy, said_of_it in ((PLAIN, "been rebuilt so that every"), (EVENED, "other biases, with which every")):
        even = Repaired(torch.ones(2, 16), torch.zeros(2), Verdict("biased", None, []), None, None, evidence, remedy=remedy)
        monkeypatch.setattr("stages.update.repair", lambda *_, even=even, **__: even)
        assert nsf("update", "--solver", "auto").code == nsf("evaluate").code == nsf("export").code == 0
        card = Path("artifacts/export/MODEL_CARD.md").read_text()
        assert "repaired by nsf" in card and said_of_it in card and "leans less" not in card


def test_what_is_as_it_was_keeps_its_bits(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    """Weights that float32 cannot hold: of a base head that is kept, and of one with other biases."""
    held = resnet().double().state_dict()
    held["fc.weight"] *= 1 + 1e-12
    save_file(held, "best.safetensors")
    write_params(
        data={"format": "folder", "root": str(photos)},
        model={"source": "torchvision", "architecture": "resnet18", "weights": "best.safetensors", "image_size": 16},
    )
    for stage in STAGES[:-1]:
        assert nsf(stage, *(["--solver", "auto"] if stage == "update" else [])).code == 0
    update = Path("artifacts/update.safetensors")
    with safe_open(update, framework="pt") as file:
        metadata = file.metadata()
    base, new = load_file("artifacts/head.safetensors"), load_file(update)
    for moved in (0.0, 1.0):
        save_file(
            {**new, "folded_weight": base["weight"], "folded_bias": base["bias"] + moved},
            update, metadata={**metadata, "kept_because": "" if moved else "so it is"},
        )  # fmt: skip
        # Of another head than the metrics are.
        Path("metrics/evaluate.json").unlink(missing_ok=True)
        changed = {"fc.bias"} if moved else set()
        assert nsf("export", "--json").json["changed"] == sorted(changed)
        assert_only(changed, load_file("best.safetensors"), load_file("artifacts/export/best.safetensors"))


def test_one_sigmoid_output(pretrained: Pretrained, reviews: Path, nsf: Nsf) -> None:
    folder = pretrained("Bert", "classifier", num_labels=1)
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text", "attribute_column": "source"}
    write_params(data=data, model={"source": "transformers", "name": "classifier"})
    repair(nsf)
    before, after = (load_file(path / "model.safetensors") for path in (folder, Path("artifacts/export")))
    assert_only({"classifier.weight", "classifier.bias"}, before, after)
    assert after["classifier.weight"].shape == (1, 16)
    features, expected = load_file("artifacts/features/test.safetensors")["features"], repaired_logits()
    score = features @ after["classifier.weight"].T + after["classifier.bias"]
    torch.testing.assert_close(score[:, 0], expected[:, 1] - expected[:, 0], rtol=1e-3, atol=1e-4)


def test_training_and_repairing_a_text_encoder(pretrained: Pretrained, reviews: Path, nsf: Nsf) -> None:
    """What nsf trains of transformers is a folder that from_pretrained loads, and so is what it repairs."""
    import transformers

    folder = pretrained("Bert", "encoder", num_labels=7)
    reviews.write_text(reviews.read_text().replace(",val,", ",train,", 40))
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text"}
    train = {"epochs": 2, "optimizer": "adamw", "schedule": "linear", "learning_rate": 0.001}
    write_params(data=data, model={"source": "transformers", "name": str(folder)}, train=train)
    assert nsf("train").code == 0
    repair(nsf)
    for name in ("model", "export"):
        network, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            f"artifacts/{name}", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"] and network.config.num_labels == 2
        transformers.AutoTokenizer.from_pretrained(f"artifacts/{name}")
    assert torch.equal(network.classifier.weight, load_file("artifacts/update.safetensors")["folded_weight"])
    assert transformers.AutoConfig.from_pretrained("artifacts/export").id2label == {0: "NEG", 1: "POS"}


OWN = """
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 12), nn.Tanh()), nn.Linear(12, 2), to_tensor
"""


def test_a_function_of_the_users_own(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    (tmp_path / "own_model_here.py").write_text(OWN)
    section = {"source": "callable", "function": "own_model_here:made"}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    said = repair(nsf)
    assert said["files"] == ["head.safetensors", "MODEL_CARD.md"]
    _, head, _ = models.import_module("own_model_here").made()
    head.load_state_dict(load_file("artifacts/export/head.safetensors"))
    assert torch.equal(head.weight, load_file("artifacts/update.safetensors")["folded_weight"])

    _, head, _ = models.import_module("own_model_here").made()
    torch.save({"enc": torch.zeros(3), "out.w": head.weight.detach(), "out.b": head.bias.detach()}, tmp_path / "mine.pt")
    Path("own_model_here.py").write_text(f"{OWN}\ndef loaded():\n    encoder, head, transform = made()\n"
        "    state = torch.load('mine.pt')\n    head.weight.data, head.bias.data = state['out.w'], state['out.b']\n"
        "    return encoder, head, transform\n")  # fmt: skip
    import sys

    del sys.modules["own_model_here"]
    write_params(
        data={"format": "folder", "root": "photos"},
        model={"source": "callable", "function": "own_model_here:loaded", "checkpoint": "mine.pt"},
    )
    said = repair(nsf)
    assert said["changed"] == ["out.b", "out.w"]
    assert_only({"out.w", "out.b"}, checkpoints.read(Path("mine.pt")), checkpoints.read(Path("artifacts/export/mine.pt")))


def test_a_head_without_a_bias(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    """On its own it gets one; the network has no place for it, which doctor says before anything is computed."""
    (tmp_path / "own_without_bias.py").write_text(OWN.replace("nn.Linear(12, 2)", "nn.Linear(12, 2, bias=False)"))
    section = {"source": "callable", "function": "own_without_bias:made"}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    assert "its head has no bias" in nsf("doctor").stdout
    assert repair(nsf)["changed"] == ["bias", "weight"]
    assert load_file("artifacts/export/head.safetensors")["bias"].shape == (2,)
    assert_one_sentence(nsf("export", "--onnx"), "has no bias, and the repaired one needs one", "a bias of zeros")


def test_a_model_no_better_than_chance(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    """As one whose classes are in another order."""
    name = "own_wrong"
    (tmp_path / f"{name}.py").write_text(f"{OWN}\ndef wrong():\n    encoder, head, transform = made()\n"
        "    head.weight.data.zero_(), head.bias.data.copy_(torch.tensor([0.0, 1.0]))\n"
        "    return encoder, head, transform\n")  # fmt: skip
    section = {"source": "callable", "function": f"{name}:wrong"}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    assert "right on 50% of" in nsf("doctor").stdout and "no better than chance: check the order" in nsf("doctor").stdout


def test_onnx(photos: Path, pretrained: Pretrained, reviews: Path, nsf: Nsf, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.save(resnet().state_dict(), tmp_path / "best.pth")
    section = {"source": "torchvision", "architecture": "resnet18", "weights": "best.pth", "image_size": [16, 16]}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    repair(nsf, "--onnx")
    session = runtime.InferenceSession("artifacts/export/model.onnx")
    transform = models.build(**section).transform
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in sorted(photos.glob("test/*/*.png"))])
    [logits] = session.run(None, {"input": images.numpy()})
    np.testing.assert_allclose(logits, repaired_logits().numpy(), rtol=1e-2, atol=1e-3)


def test_a_function_for_images_of_one_size_as_onnx(photos: Path, nsf: Nsf) -> None:
    """One sentence, and no log of what torch thinks of it."""
    pytest.importorskip("onnxscript")
    Path("one_size_here.py").write_text(OWN)
    write_params(data={"format": "folder", "root": "photos"}, model={"source": "callable", "function": "one_size_here:made"})
    repair(nsf)
    done = nsf("export", "--onnx")
    assert_one_sentence(done, "one_size_here:made: the network does not take", "64 x 64 image", "have the transform bring")


def test_predict_images(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "best.pth")
    section = {"source": "torchvision", "architecture": "resnet18", "weights": "best.pth", "image_size": [16, 16]}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    repair(nsf)
    done = nsf("predict", "photos/test", "--json", "--out", "predictions.csv")
    assert done.code == 0, done.stderr
    held = load_file("artifacts/evaluate.safetensors")
    names = ["cold", "warm"]
    assert [row["nsf"] for row in done.json["samples"]] == [names[label] for label in held["predictions"]]
    assert [row["base"] for row in done.json["samples"]] == [names[label] for label in held["base_predictions"]]
    heading, first, *_ = Path("predictions.csv").read_text().splitlines()
    assert heading == "sample,base,nsf,base:cold,base:warm,nsf:cold,nsf:warm"
    shares = [float(cell) for cell in first.split(",")[3:]]
    assert shares[0] + shares[1] == pytest.approx(1, abs=1e-5) and shares[2] + shares[3] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(torch.tensor(shares[2:]), torch.softmax(repaired_logits()[0], 0), rtol=1e-3, atol=1e-4)
    shown = nsf("predict", "photos/test/cold/00.png")
    assert shown.code == 0 and "photos/test/cold/00.png" in shown.stdout
    for path in ("best.pth", "photos/test/warm/00.png", "artifacts/update.safetensors"):
        before = Path(path).read_bytes()
        assert_one_sentence(nsf("predict", "photos/test", "--out", path), f"{path}: is an input of this command")
        assert Path(path).read_bytes() == before
    assert_one_sentence(nsf("predict", "photos/test", "--model", "nope"), "nope: there is no such model", "check --model")
    assert_one_sentence(nsf("predict"), "nothing to predict")
    assert_one_sentence(nsf("predict", "nowhere.png"), "nowhere.png: there is no such file")
    assert_one_sentence(nsf("predict", "--text", "words"), "the model takes images, and a text was given")


def test_predict_texts(pretrained: Pretrained, reviews: Path, nsf: Nsf) -> None:
    pretrained("Bert", "classifier")
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text"}
    write_params(data=data, model={"source": "transformers", "name": "classifier"})
    repair(nsf)
    Path("new.txt").write_text("\ufeffa good\u2028film\n\nvery bad\r\n")
    done = nsf("predict", "new.txt", "--text", "happy", "--json")
    assert [row["sample"] for row in done.json["samples"]] == ["happy", "a good\u2028film", "very bad"]
    assert done.json["empty_lines"] == 1 and "Empty lines are left out (1)." in done.stderr
    without = "--text-column has no effect: no table is named."
    assert without in nsf("predict", "new.txt", "--text-column", "body").stderr and without not in done.stderr
    assert_one_sentence(nsf("predict", "--text", " "), "option --text: is empty")
    assert {row["nsf"] for row in done.json["samples"]} <= {"NEG", "POS"}
    of_table = nsf("predict", "reviews.csv", "new.txt", "--text-column", "text", "--json")
    assert without not in of_table.stderr
    rows = nsf("predict", "reviews.csv", "--json").json["samples"]
    assert len(rows) == 160 and of_table.json["samples"][:160] == rows
    pd.read_csv("reviews.csv").to_parquet("reviews.parquet")
    assert nsf("predict", "reviews.parquet", "--json").json["samples"] == rows
    Path("reviews.xlsx").touch()
    Path("reviews.csv.gz").write_bytes(gzip.compress(reviews.read_bytes()))
    assert nsf("predict", "reviews.csv.gz", "--json").json["samples"] == rows
    assert_one_sentence(nsf("predict", "reviews.xlsx"), "is no .txt, .csv, .jsonl, .parquet file")
    assert_one_sentence(
        nsf("predict", "reviews.csv", "--text-column", "words"), "there is no column 'words'", "--text-column"
    )
    assert_one_sentence(nsf("predict", "photo.png"), "there is no such file")
    assert_one_sentence(nsf("predict", "artifacts"), "is a folder, and the model takes texts")
    Path("ragged.csv").write_text("text,x\ngood, with comma,1\n")
    assert_one_sentence(nsf("predict", "ragged.csv"), "more fields than the header")
    for value in ("null", '["a"]', '"  "'):
        Path("odd.jsonl").write_text(f'{{"text": {value}}}\n')
        assert_one_sentence(nsf("predict", "odd.jsonl"), "line 1, column 'text'")
    pretrained("DistilBert", "another")
    assert_one_sentence(nsf("predict", "--text", "a", "--model-name", "another"), "was made for another model")


def test_predict_pairs_as_the_data_has_them(pretrained: Pretrained, reviews: Path, nsf: Nsf) -> None:
    """The columns are those of section data: the first text alone would be another sample."""
    pretrained("Bert", "classifier")
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text", "second_text_column": "second"}
    write_params(data=data, model={"source": "transformers", "name": "classifier"})
    repair(nsf)
    rows = nsf("predict", "reviews.csv", "--json").json["samples"]
    assert rows[0]["sample"].endswith(" | the film")
    held, names = load_file("artifacts/evaluate.safetensors"), ["NEG", "POS"]
    assert [row["nsf"] for row in rows[80:]] == [names[label] for label in held["predictions"]]
    words = "one text a sample, and the model takes pairs (column 'second' has the second); give a table"
    assert_one_sentence(nsf("predict", "--text", "good"), "option --text", words)
    Path("new.txt").write_text("good\n")
    assert_one_sentence(nsf("predict", "new.txt"), "new.txt", words)
    # MultiNLI's are always pairs, in columns that its owners named.
    write_params(data={"format": "multinli", "root": "."}, model={"source": "transformers", "name": "classifier"})
    assert_one_sentence(nsf("predict", "--text", "good"), "option --text", "the model takes pairs (column 'sentence2'")
    lines = Path("reviews.csv").read_text().splitlines()
    Path("dev.csv").write_text("\n".join(["sentence1,sentence2,label,split,source", *lines[1:]]))
    assert nsf("predict", "dev.csv", "--json").json["samples"] == rows


def test_predict_with_another_encoder(nsf: Nsf, photos: Path, tmp_path: Path) -> None:
    """The same head, behind other weights."""
    state = resnet().state_dict()
    torch.save(state, tmp_path / "best.pth")
    section = {"source": "torchvision", "architecture": "resnet18", "weights": "best.pth", "image_size": [16, 16]}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    repair(nsf)
    torch.save({**state, "conv1.weight": state["conv1.weight"] + 1}, tmp_path / "best.pth")
    assert_one_sentence(nsf("predict", "photos/test"), "was made for another model", "run `nsf extract`")


def test_the_adjusted_mean_where_the_model_names_its_classes_in_another_way(
    pretrained: Pretrained, reviews: Path, nsf: Nsf
) -> None:
    """The training groups are counted under the model's names, which the accuracies go by."""
    pretrained("Bert", "classifier", id2label={0: "pos", 1: "neg"})
    train = [f"a film,the film,NEG,train,{source}" for source in ("press", "press", "press", "film")]
    train += [f"a film,the film,POS,train,{source}" for source in ("film", "film", "press")]
    reviews.write_text(reviews.read_text() + "\n".join(train) + "\n")
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text", "attribute_column": "source"}
    write_params(data=data, model={"source": "transformers", "name": "classifier"})
    repair(nsf)
    for scored in (json.loads(Path("metrics/evaluate.json").read_text())[model] for model in ("base", "nsf")):
        groups = scored["groups"]
        sizes = {"neg/press": 3, "neg/film": 1, "pos/film": 2, "pos/press": 1}
        expected = sum(count * groups[name] for name, count in sizes.items()) / 7
        assert scored["adjusted_mean_accuracy"] == pytest.approx(expected, abs=1e-5)


def test_classes_of_other_names_or_another_number(pretrained: Pretrained, reviews: Path, nsf: Nsf) -> None:
    data = {"format": "csv", "file": "reviews.csv", "text_column": "text"}
    pretrained("Bert", "other", id2label={0: "toxic", 1: "fine"})
    write_params(data=data, model={"source": "transformers", "name": "other"})
    done = nsf("extract")
    assert done.code == 0 and "matched by number, and called toxic, fine" in done.stderr
    assert "have other names, and are matched by number" in nsf("doctor").stdout
    assert load_file("artifacts/features/val.safetensors")["labels"][:2].tolist() == [0, 1]
    pretrained("Bert", "partly", id2label={0: "pos", 1: "fine"})
    write_params(data=data, model={"source": "transformers", "name": "partly"})
    assert_one_sentence(nsf("extract"), "'pos' has another number in each")
    pretrained("Bert", "three", num_labels=3)
    write_params(data=data, model={"source": "transformers", "name": "three"})
    for command in ("extract", "doctor"):
        assert_one_sentence(nsf(command), "three: has 3 classes, and the data 2 (NEG, POS")


def test_what_cannot_be_exported(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "best.pth")
    section = {"source": "torchvision", "architecture": "resnet18", "weights": "best.pth", "image_size": [16, 16]}
    write_params(data={"format": "folder", "root": "photos"}, model=section)
    assert_one_sentence(nsf("export"), "artifacts/head.safetensors", "`nsf extract` makes it")
    repair(nsf)
    shutil.rmtree("artifacts/export")
    other = resnet().state_dict()
    torch.save({**other, "conv1.weight": other["conv1.weight"] + 1}, tmp_path / "best.pth")
    assert_one_sentence(nsf("export"), "was extracted from another model", "run `nsf extract`")
    torch.save(other, tmp_path / "best.pth")
    assert_one_sentence(nsf("export", "--out", "."), "best.pth", "is an input of this command")
    Path("artifacts/export").mkdir()
    Path("artifacts/export/old.onnx").write_text("x")
    assert "also holds old.onnx" in nsf("export").stderr
    shutil.rmtree("artifacts/export")
    assert nsf("update", "--seed", "5").code == 0
    assert_one_sentence(
        nsf("export"), "metrics/evaluate.json", "the metrics are those of another head", "run `nsf evaluate`"
    )
    assert nsf("evaluate").code == 0 and nsf("export").code == 0
    shutil.rmtree("artifacts/export")
    Path("metrics/other.json").write_text('{"methods": {}}')
    assert_one_sentence(nsf("export", "--metrics", "metrics/other.json"), "holds no metrics of `nsf evaluate`")
    Path("metrics/evaluate.json").write_text("{")
    assert_one_sentence(nsf("export"), "metrics/evaluate.json", "cannot be read as JSON")
    assert not Path("artifacts/export").exists() and leftovers(tmp_path) == []
