"""Models of the user's own, by module:function."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from stages import models
from stages.errors import BadModel
from tests.conftest import Done

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

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 6)

    def forward(self, ids, mask):
        return (self.table(ids) * mask.unsqueeze(2)).sum(dim=1)

def collate(texts):
    lengths = [[ord(letter) % 100 for letter in text] for text in texts]
    longest = max(map(len, lengths))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in lengths])
    return {"ids": ids, "mask": torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in lengths])}

def words(classes=None):
    torch.manual_seed(0)
    return Words(), nn.Linear(6, 2), str, collate

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


BROKEN = """
import numpy, sys, torch
from torch import nn

print("hello from the module")
ENCODER = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

def narrow(): return ENCODER, nn.Linear(5, 2), prepare
def raises(): return ENCODER, nn.Linear(4, 2), refuse
def arrays(): return ENCODER, nn.Linear(4, 2), numpy.asarray
def sizes(): return ENCODER, nn.Linear(4, 2), varied
def halves(): return ENCODER.half(), nn.Linear(4, 2).half(), prepare
def leaves(): sys.exit(3)

def prepare(image): return torch.from_numpy(numpy.array(image)).float()
def refuse(image): raise ValueError("cannot transform")
def varied(image): return torch.zeros(int(numpy.asarray(image)[0, 0, 0]) % 7 + 1)
"""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("narrow", ("fails on the first batch (RuntimeError",)),
        ("raises", ("0.png", "cannot be prepared for the model (ValueError: cannot transform)")),
        ("arrays", ("the samples of a batch cannot be put together", "fourth value")),
        ("sizes", ("the samples of a batch cannot be put together",)),
        ("halves", ()),
        ("leaves", ("the function failed (SystemExit: 3)",)),
    ],
)
def test_a_module_that_does_not_work(
    function: str, words: tuple[str, ...], tmp_path: Path, nsf: Callable[..., Done]
) -> None:
    (tmp_path / f"broken_{function}.py").write_text(BROKEN)
    for split in ("val", "test"):
        for name in ("a", "b"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for index in range(5):
                Image.new("RGB", (8, 8), (index * 11, 3, 200)).save(tmp_path / "photos" / split / name / f"{index}.png")
    (tmp_path / "params.yaml").write_text(
        "data: {format: folder, root: photos}\nextract: {workers: 0}\n"
        f"model: {{source: callable, function: 'broken_{function}:{function}'}}\n"
    )
    done = nsf("extract", "--json")
    if not words:
        assert done.code == 0 and done.json["width"] == 4
        return
    assert done.code == 1 and done.stdout == "" and "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("nsf: ") and all(word in sentence for word in words), sentence
    assert not (tmp_path / "artifacts").exists()


def test_texts_by_a_collate_of_the_users_own(module: str) -> None:
    """A batch may be a dictionary of tensors, which goes to the encoder by names."""
    from stages.loading import collate

    model = build(f"{module}:words")
    inputs = collate(model.collate, [(model.transform(text), 0) for text in ("a", "longer")])[0]
    assert inputs["ids"].shape == (2, 6)
    encode, head, _ = models.split(model, inputs)
    torch.testing.assert_close(head(encode(inputs)), model.network(**inputs))


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
        ("{}:wrong", r"the function returned a tuple of 2, and \(encoder, head, transform\)"),
        ("{}:headless", r"the function returned \(Identity, Identity, function\); return"),
    ],
)
def test_mistakes(function: str, words: str, module: str) -> None:
    with pytest.raises(BadModel, match=words):
        build(function.format(module))


def test_a_module_that_fails(tmp_path: Path) -> None:
    (tmp_path / "fails_itself.py").write_text("import numpy\n\nnumpy.float\n\n\ndef f():\n    pass\n")
    with pytest.raises(
        BadModel, match=r"the module cannot be imported \(AttributeError: module 'numpy' has no attribute 'float'"
    ):
        build("fails_itself:f")


def test_a_module_that_imports_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    with pytest.raises(BadModel, match="it imports 'not_installed_here', which is missing"):
        build("needs_more:f")
