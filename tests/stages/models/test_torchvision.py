"""torchvision's classifiers: the head is found and cut off, weights come and go unchanged, mistakes are one sentence."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from stages import models
from stages.artifacts import Metadata
from stages.errors import BadModel, UserError
from stages.outputs import outputs
from stages.runtime import reproducible

# One architecture of each family, the smallest; in some the head is `fc`, in others the last of several layers, or `head`.
FAMILIES = {
    "resnet18": ("fc", 64), "alexnet": ("classifier.6", 64), "vgg11_bn": ("classifier.6", 32),
    "mobilenet_v3_small": ("classifier.3", 32), "densenet121": ("classifier", 32), "efficientnet_b0": ("classifier.1", 32),
    "convnext_tiny": ("classifier.2", 32), "shufflenet_v2_x0_5": ("fc", 32), "swin_t": ("head", 32),
    "vit_b_16": ("heads.head", 224), "mnasnet0_5": ("classifier.1", 32), "regnet_y_400mf": ("fc", 32),
    "googlenet": ("fc", 64),
}  # fmt: skip


def build(architecture: str = "resnet18", **options: object) -> models.Classifier:
    with reproducible(seed=0):
        return models.build(**{"source": "torchvision", "architecture": architecture, "classes": 3, **options})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_head_makes_the_logits_of_the_features(architecture: str) -> None:
    name, size = FAMILIES[architecture]
    model = build(architecture, image_size=size)
    assert models.find_head(model.network, architecture) == name
    network = model.network.eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
        encode, head, found = models.split(model, images)
        features = encode(images)
    assert found == name and head.out_features == 3
    assert features.shape == (2, head.in_features)
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-4)


def test_an_architecture_without_a_linear_head() -> None:
    with pytest.raises(BadModel, match=r"squeezenet1_0: has no linear layer to rebuild \(its last layers are .*; choose"):
        build("squeezenet1_0")


def test_a_linear_layer_that_is_not_the_last_thing_done() -> None:
    model = build()
    network = torch.nn.Sequential(model.network, torch.nn.Softmax(dim=1)).eval()
    wrapped = replace(model, network=network)
    with pytest.raises(
        BadModel, match=r"resnet18: no linear layer makes its logits .* \(the last that ran: 0\.fc \(2, 3\)\)"
    ):
        models.split(wrapped, torch.randn(2, 3, 32, 32))


def test_a_near_name_is_named() -> None:
    with pytest.raises(BadModel, match=r"model\.architecture: torchvision has no image classifier 'resnet19'; did you mean"):
        build("resnet19")
    with pytest.raises(BadModel, match="list_models"):
        build("???")


def test_weights_that_do_not_exist() -> None:
    with pytest.raises(
        BadModel,
        match=r"model\.weights: resnet18 has no weights 'V9'; use null, the path of a state dict, DEFAULT or IMAGENET1K_V1",
    ):
        build(weights="V9")


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(BadModel, match=r"cannot be downloaded \(no route to host\); connect to the internet once"):
        build(weights="DEFAULT")


def test_nothing_in_torchvisions_cache_is_unpickled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that lies there already is neither downloaded nor held against its hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return partial(Path.touch), (tmp_path / "ran",)

    torch.save(Evil(), cache / "resnet18-f37072fd.pth")
    with pytest.raises(BadModel, match=r"-f37072fd\.pth: is not the state dict that torchvision publishes for resnet18"):
        build(weights="DEFAULT")
    assert not (tmp_path / "ran").exists()


def test_pretrained_weights_with_another_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the head comes from torchvision's file; the head is new."""
    from torchvision.models import ResNet18_Weights

    source = build(classes=1000).network.state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: source)
    three = build(weights="DEFAULT").network.state_dict()
    assert three["fc.weight"].shape == (3, 512)
    assert all(torch.equal(tensor, source[name]) for name, tensor in three.items() if not name.startswith("fc."))
    assert torch.equal(build(weights="DEFAULT", classes=1000).network.fc.weight, source["fc.weight"])


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "regnet_y_400mf"])
def test_saved_and_loaded_bit_by_bit(tmp_path: Path, architecture: str) -> None:
    model = build(architecture, image_size=[40, 32])
    with outputs() as files:
        models.save(files, tmp_path, model, ["a", "b", "c"], Metadata())
    opened = models.load(tmp_path)
    again, names, fingerprint = opened.classifier, opened.class_names, opened.fingerprint
    assert names == ["a", "b", "c"] and fingerprint.startswith("sha256:")
    state = model.network.state_dict()
    assert state.keys() == again.network.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())
    image = Image.new("RGB", (50, 60), (9, 99, 199))
    assert torch.equal(model.transform(image), again.transform(image)) and again.transform(image).shape == (3, 40, 32)


def test_what_is_loaded_is_not_made_at_random_first(tmp_path: Path) -> None:
    model = build()
    with outputs() as files:
        models.save(files, tmp_path, model, ["a", "b", "c"], Metadata())
    before = torch.get_rng_state()
    network = models.load(tmp_path).classifier.network
    assert torch.equal(torch.get_rng_state(), before)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}


def test_a_state_that_does_not_fit(tmp_path: Path) -> None:
    network = build().network
    state = network.state_dict()
    with pytest.raises(BadModel, match=r"w: lacks 1 tensors of the architecture, 'fc\.bias' first"):
        models.load_state(network, {name: t for name, t in state.items() if name != "fc.bias"}, "w")
    with pytest.raises(BadModel, match="w: has 1 tensors too many, 'more' first"):
        models.load_state(network, {**state, "more": torch.zeros(1)}, "w")
    with pytest.raises(BadModel, match=r"'fc\.bias' has shape \(4,\), where the architecture has \(3,\)"):
        models.load_state(network, {**state, "fc.bias": torch.zeros(4)}, "w")
    (tmp_path / "model.safetensors").write_bytes(b"no")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="`nsf train` makes it"):
            models.load(path)


@pytest.mark.parametrize(("size", "shape"), [(32, (32, 32)), ([56, 28], (56, 28))])
def test_the_transform(size: object, shape: tuple[int, int]) -> None:
    transform = build(image_size=size).transform
    tensor = transform(Image.new("RGB", (100, 70), (255, 255, 255)))
    assert tensor.shape == (3, *shape) and tensor.dtype == torch.float32
    # White, normalised as ImageNet.
    torch.testing.assert_close(
        tensor[:, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


def test_several_threads_may_cut_batches_at_once() -> None:
    classifier = models.build(source="torchvision", architecture="resnet18", weights=None, image_size=32, classes=2)
    images = torch.randn(40, 3, 32, 32)
    encode, head, _ = models.split(classifier, images[:2])
    with torch.no_grad():
        expected = [encode(image) for image in images.split(1)]

    def made(image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return encode(image)

    with ThreadPoolExecutor(4) as threads:
        for found, wanted in zip(threads.map(made, images.split(1)), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not head._forward_pre_hooks
