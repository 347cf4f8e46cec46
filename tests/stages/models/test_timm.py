"""timm's classifiers, where timm is installed."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from stages import models
from stages.errors import BadModel
from stages.runtime import reproducible

FAMILIES = {
    "resnet18": 32, "vit_tiny_patch16_224": 224, "convnext_atto": 32, "mobilenetv3_small_050": 32,
    "efficientnet_lite0": 32, "regnetx_002": 32, "swin_tiny_patch4_window7_224": 224,
}  # fmt: skip


def build(architecture: str = "resnet18", **options: object) -> models.Classifier:
    pytest.importorskip("timm")
    with reproducible(seed=0):
        return models.build(**{"source": "timm", "architecture": architecture, "classes": 3, **options})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_head_makes_the_logits_of_the_features(architecture: str) -> None:
    size = FAMILIES[architecture]
    model = build(architecture)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    network = model.network.eval()
    with torch.no_grad():
        expected = network(images)
        encode, head, _ = models.split(model, images)
        torch.testing.assert_close(head(encode(images)), expected, rtol=1e-4, atol=1e-4)
    assert head.out_features == 3


@pytest.mark.parametrize(("size", "shape"), [(None, (224, 224)), (48, (48, 48)), ([40, 32], (40, 32))])
def test_the_transform_is_timms(size: object, shape: tuple[int, int]) -> None:
    assert build(image_size=size).transform(Image.new("RGB", (300, 260))).shape == (3, *shape)


def test_weights_from_a_file(tmp_path: Path) -> None:
    source = build(classes=4).network.state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in source.items()}}, tmp_path / "w.pt")
    model = build(classes=None, weights=str(tmp_path / "w.pt"))
    assert model.trained and model.checkpoint.names["fc.weight"] == "module.fc.weight"
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.network.state_dict().items())


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadModel, match=r"timm has no image classifier 'resnet19'; did you mean resnet"):
        build("resnet19")
    with pytest.raises(BadModel, match=r"model\.weights: 'V1' is no file; give the path of a state dict, DEFAULT or null"):
        build(weights="V1")
    import timm

    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BadModel, match=r"cannot be had \(no route to host\); connect to the internet once"):
        build(weights="DEFAULT")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BadModel, match=r"needs the package timm, which is not installed; pip install 'nsf\[timm\]'"):
        models.build(source="timm", architecture="resnet18", classes=2)
