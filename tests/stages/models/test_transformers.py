"""transformers' classifiers: features are what enters the last linear layer, for texts, pairs of texts and images."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from stages import artifacts, models
from stages.errors import BadModel, MissingFile
from stages.loading import collate
from tests.stages.models.conftest import IMAGE, TEXT, Pretrained

SAMPLES = {
    "text": ["a good film", "it was very very bad and sad", "happy"],
    "pair": [("a film", "it was not good"), ("the film", "happy"), ("a", "b")],
    "image": [Image.effect_noise((20, 30), 90).convert("RGB") for _ in range(3)],
}


def batch(model: models.Classifier, samples: list) -> object:
    return collate(model.collate, [(model.transform(sample), 0) for sample in samples])[0]


def build(folder: Path, **options: object) -> models.Classifier:
    return models.build(source="transformers", name=str(folder), **options)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [*((name, kind) for name in TEXT for kind in ("text", "pair")), *((name, "image") for name in IMAGE)],
)
def test_the_head_makes_the_logits_of_the_features(architecture: str, kind: str, pretrained: Pretrained) -> None:
    model = build(pretrained(architecture, num_labels=3))
    assert model.trained and model.kind == ("image" if kind == "image" else "text")
    inputs = batch(model, SAMPLES[kind])
    network = model.network.eval()
    with torch.no_grad():
        expected = network(**inputs).logits if kind != "image" else network(inputs).logits
        encode, head, name = models.split(model, inputs)
        features = encode(inputs)
    assert features.shape == (3, head.in_features) and head.out_features == 3
    assert network.get_submodule(name) is head
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-4)


def test_texts_of_unequal_length_are_padded_and_cut(pretrained: Pretrained) -> None:
    folder = pretrained("Bert")
    inputs = batch(build(folder, max_length=6), ["good", "a good film and a very bad film"])
    assert inputs["input_ids"].shape == (2, 6)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch(build(folder), ["film " * 99])["input_ids"].shape == (1, 32), "what the tokenizer allows"


@pytest.mark.parametrize(("architecture", "positions"), [("Bert", 20), ("Roberta", 21), ("DebertaV2", None)])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("max_length", [None, 8, 600])
def test_texts_are_cut_at_what_tokenizer_and_network_allow(
    architecture: str, positions: int | None, limited: bool, max_length: int | None, pretrained: Pretrained
) -> None:
    """The network: rows in its table of positions, of which RoBERTa's first belongs to the padding; DeBERTa has none."""
    options = {"position_biased_input": False} if positions is None else {"max_position_embeddings": positions}
    folder = pretrained(architecture, **options)
    if not limited:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("model_max_length")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = build(folder, max_length=max_length)
    inputs = batch(model, ["film " * 900])
    limits = [*([32] if limited else []), *([20] if positions else [])]
    assert inputs["input_ids"].shape[1] == min([*limits, max_length or (32 if limits else 512)])
    if limits:
        assert model.network.eval()(**inputs).logits.shape == (1, 2)


def test_class_names_come_from_the_configuration(pretrained: Pretrained) -> None:
    named = pretrained("Bert", "named", id2label={0: "NEGATIVE", 1: "POSITIVE"})
    assert build(named).class_names == ["NEGATIVE", "POSITIVE"]
    assert build(pretrained("Bert", "unnamed")).class_names is None


def test_a_new_head_for_training(pretrained: Pretrained) -> None:
    folder = pretrained("Bert")
    model = build(folder, classes=5)
    assert not model.trained and model.network.classifier.out_features == 5
    body = build(folder).network.bert.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in model.network.bert.state_dict().items())


def test_an_encoder_without_a_head_is_not_trained(pretrained: Pretrained, tmp_path: Path) -> None:
    folder = pretrained("Bert")
    build(folder).network.bert.save_pretrained(tmp_path / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "encoder" / name).write_bytes((folder / name).read_bytes())
    section = {"source": "transformers", "name": str(tmp_path / "encoder"), "max_length": None}
    assert not models.build(**section).trained
    words = (
        r"no trained head of its own; `nsf train` makes it, or name trained weights .*; `nsf init --force --train ...` puts"
    )
    with pytest.raises(MissingFile, match=words):
        models.open_trained(tmp_path / "none", section)


def test_one_sigmoid_output(pretrained: Pretrained) -> None:
    model = build(pretrained("Bert", num_labels=1))
    inputs = batch(model, SAMPLES["text"])
    with torch.no_grad():
        encode, head, _ = models.split(model, inputs)
        score = model.network(**inputs).logits[:, 0]
        weight, bias = artifacts.two_classes(head.weight, head.bias)
        probabilities = torch.softmax(encode(inputs) @ weight.T + bias, dim=1)
    torch.testing.assert_close(probabilities[:, 1], torch.sigmoid(score))
    again = artifacts.one_output(weight, bias)
    assert torch.equal(again[0], head.weight) and torch.equal(again[1], head.bias)


def test_a_regression_is_refused(pretrained: Pretrained) -> None:
    """Its one output is no logit: the threshold would be wrong."""
    folder = pretrained("Bert", num_labels=1, problem_type="regression")
    with pytest.raises(BadModel, match="is a regression model, and nsf repairs classifiers"):
        build(folder)
    assert not build(folder, classes=2).trained


def test_several_sigmoid_outputs_are_refused(pretrained: Pretrained) -> None:
    folder = pretrained("Bert", num_labels=3, problem_type="multi_label_classification")
    with pytest.raises(BadModel, match=r"has 3 sigmoid outputs \(multi-label\), and nsf repairs one choice among classes"):
        build(folder)


def test_what_is_no_classifier_folder(tmp_path: Path, pretrained: Pretrained) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadModel, match="cannot be loaded by transformers"):
        build(tmp_path / "empty")
    with pytest.raises(BadModel, match=r"model\.name: there is no such folder; check /nowhere/model"):
        build(Path("/nowhere/model"))
    folder = pretrained("Bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadModel, match="cannot be loaded by transformers"):
        build(folder)


def test_code_in_a_folder_is_not_run(pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor is anybody asked whether to run it: a script's answer would be whatever comes next on its input."""
    folder = pretrained("Bert")
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(BadModel, match="cannot be loaded by transformers"):
        build(folder)
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[dict[str, object]] = []

    def offline(name: str, **options: object) -> str:
        asked.append(options)
        raise LocalEntryNotFoundError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(BadModel) as caught:
        models.build(source="transformers", name="someone/some-model")
    assert str(caught.value) == (
        "model.name: 'someone/some-model' is no local folder and cannot be fetched from the Hugging Face hub "
        "(no route to host); connect to the internet once, or give the folder of a downloaded model."
    )
    assert asked[0]["local_files_only"] is True and "local_files_only" not in asked[1]


def test_a_hub_id_in_the_cache(monkeypatch: pytest.MonkeyPatch, pretrained: Pretrained) -> None:
    import huggingface_hub

    folder = pretrained("Bert")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert models.build(source="transformers", name="someone/some-model").checkpoint.path == folder
