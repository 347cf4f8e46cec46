"""Models of the user's own, by module:function."""

from pathlib import Path

import pytest
import torch

from stages import models
from stages.errors import BadModel

MODULE = """
import torch
from torch import nn

def prepare(image):
    return torch.full((4,), float(image.getpixel((0, 0))[0]))

def made(classes=None, width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU()), nn.Linear(width, classes or 2), prepare

def fixed():
    return nn.Identity(), nn.Linear(4, 2), prepare

def fails():
    raise KeyError("weights")

def wrong():
    return nn.Identity(), nn.Linear(4, 2)

def headless():
    return nn.Identity(), nn.Identity(), prepare
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The user's module, in the current folder."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def build(function: str, **options: object) -> models.Classifier:
    return models.build(source="callable", function=function, **options)


def test_encoder_head_and_transform(module: str) -> None:
    model = build(f"{module}:made", options={"width": 5})
    assert model.trained and model.checkpoint is None and model.name == f"{module}:made"
    inputs = torch.rand(6, 4)
    encode, head, name = models.split(model, inputs)
    assert name == "head" and encode(inputs).shape == (6, 5)
    torch.testing.assert_close(head(encode(inputs)), model.network(inputs))


def test_a_head_to_train(module: str) -> None:
    model = build(f"{module}:made", classes=7)
    assert not model.trained and model.network.head.out_features == 7
    with pytest.raises(BadModel, match="its head has 2 outputs, and the data 7 classes; give the function a parameter"):
        build(f"{module}:fixed", classes=7)


def test_the_head_in_the_functions_checkpoint_is_found_by_its_values(module: str, tmp_path: Path) -> None:
    head = build(f"{module}:made").network.head
    state = {"backbone.w": torch.zeros(2, 3), "cls.w": head.weight.detach(), "cls.b": head.bias.detach()}
    torch.save({"state_dict": state}, tmp_path / "own.pt")
    model = build(f"{module}:made", checkpoint="own.pt")
    assert model.checkpoint.names == {"head.weight": "cls.w", "head.bias": "cls.b"}
    torch.save({**state, "again": state["cls.w"]}, tmp_path / "twice.pt")
    with pytest.raises(BadModel, match=r"twice\.pt: 2 tensors of this checkpoint equal the weight of the function's head"):
        build(f"{module}:made", checkpoint="twice.pt")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nowhere", "'nowhere' is not of the form module:function"),
        ("no_such_module_here:f", "there is no such module; run nsf in the module's folder"),
        ("{}:nothing", "the module has no function 'nothing'"),
        ("{}:fails", r"the function failed \(KeyError: 'weights'\)"),
        ("{}:wrong", r"the function returned tuple, and \(encoder, head, transform\)"),
        ("{}:headless", r"the function returned \(Identity, Identity, function\); return"),
    ],
)
def test_mistakes(function: str, words: str, module: str) -> None:
    with pytest.raises(BadModel, match=words):
        build(function.format(module))


def test_a_module_that_imports_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    with pytest.raises(BadModel, match="it imports 'not_installed_here', which is missing"):
        build("needs_more:f")
