"""Every stage computes on the device that it is asked for, and nowhere else: on a GPU that is pretended.

tests/test_cuda.py compares numbers, where there is one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages import auto, models
from stages.auto import EVENED, GROUPS, repair
from stages.eliminate import eliminate
from stages.identify import assess, identify
from stages.neutralize import neutralize
from stages.passes import predict
from stages.rows import Rows
from stages.update import select, update
from tests.conftest import Done, photos
from tests.pretended import Pretended, pretended_cuda
from tests.stages.planted import WIDTH, biased_head, spurious, too_sure, uneven


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with pretended_cuda(monkeypatch):
        yield torch.device("cuda", 0)


def test_what_the_pretended_device_refuses(cuda: torch.device) -> None:
    here, there = torch.ones(3, device=cuda), torch.ones(3)
    assert here.device == cuda and there.device.type == "cpu" and torch.equal(here.cpu(), there)
    assert (here * 2).device == cuda and (here + torch.tensor(1.0)).device == cuda and here[:2].device == cuda
    for mixed in (lambda: here + there, lambda: there @ here, lambda: there[here.long()], lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="on the same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        here.numpy()
    moved = here.cpu()
    moved += 1
    assert here.tolist() == [1.0] * 3


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_stages(dtype: torch.dtype, streamed: bool, cuda: torch.device) -> None:
    features, labels, _ = spurious(900, classes=3)
    parts = Rows(features.to(dtype).split([500, 400]))
    given = Rows(parts.parts, device=cuda) if streamed else parts.to(cuda)
    y, head = labels.to(cuda), tuple(each.to(cuda) for each in biased_head(3))
    found = identify(given, y)
    assert assess(given, y, found, head).mirror is not None
    centers = neutralize(given, y, found.minority)
    learned = eliminate(given, y, centers, steps=5)
    chosen = select(given, y, found.minority, centers, learned.scale, learned.shift)
    new = update(given, y, *chosen, learned.scale, learned.shift, classes=3, steps=5)
    assert all(isinstance(each, Pretended) for each in (found.nearest, centers, learned.scale, *chosen, new.folded_weight))
    assert predict(given, new.folded_weight, new.folded_bias).device == cuda


@pytest.mark.parametrize(
    ("case", "remedy"),
    [
        ((*spurious(500, bias=0.9)[:2], biased_head()), GROUPS),
        ((*spurious(500, bias=0.5)[:2], biased_head()), GROUPS),
        ((*spurious(600, bias=0.9, classes=3)[:2], biased_head(3)), GROUPS),
        ((*spurious(660, bias=0.8, classes=11)[:2], biased_head(11)), GROUPS),
        (uneven(3000, seed=2), EVENED),
        (too_sure(), GROUPS),
        ((*spurious(600, bias=0.9)[:2], None), GROUPS),
    ],
    ids=["two", "even", "three", "eleven", "uneven", "too sure", "no head"],
)
def test_solver_auto(case: tuple, remedy: str, cuda: torch.device) -> None:
    features, labels, base = case
    head = None if base is None else tuple(each.to(cuda) for each in base)
    done = repair(features.to(cuda), labels.to(cuda), head)
    assert isinstance(done.weight, Pretended) and isinstance(done.bias, Pretended)
    assert done.remedy == remedy


@pytest.mark.parametrize("classes", [2, 3])
def test_solver_auto_on_a_draw(classes: int, cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of features that are streamed to the device, as are those of the training split."""
    monkeypatch.setattr(auto, "SELECTION_VALUES", 400 * WIDTH)
    monkeypatch.setattr(auto, "LEAST_SELECTION", 1)
    given, training = (
        (Rows(features.split(250), device=cuda), labels.to(cuda))
        for features, labels, _ in (spurious(600, classes=classes, seed=seed) for seed in (0, 1))
    )
    done = repair(*given, tuple(each.to(cuda) for each in biased_head(classes)), training=training)
    assert done.remedy == GROUPS and isinstance(done.weight, Pretended)
    assert done.evidence is not None and done.evidence.lost is not None


@pytest.mark.parametrize("solver", ["auto", "published"])
@pytest.mark.usefixtures("cuda")
def test_the_commands(solver: str, nsf: Callable[..., Done], own_features: Callable[..., Path], tmp_path: Path) -> None:
    own_features("val")
    own_features("test")
    made = {name: f"{name}.st" for name in ("identify", "neutralize", "eliminate", "update")}
    reads = {"identify": (), "neutralize": ("identify",), "eliminate": ("neutralize",),
             "update": ("identify", "neutralize", "eliminate"), "evaluate": ("update",)}  # fmt: skip
    for command, inputs in reads.items():
        features = "test" if command == "evaluate" else "val"
        extra = {"update": ["--solver", solver], "eliminate": ["--steps", 5], "evaluate": ["--metrics", "e.json"]}
        given = [word for name in inputs for word in (f"--{name}", made[name])]
        done = nsf(command, "--device", "cuda", "--features", f"{features}.safetensors", *given,
                   "--out", made.get(command, "evaluate.st"), *extra.get(command, []))  # fmt: skip
        assert done.code == 0, done.stderr


@pytest.mark.usefixtures("cuda")
def test_doctor_and_extract(nsf: Callable[..., Done], tmp_path: Path) -> None:
    """Of a network that is moved to the device, batches after it."""
    photos(tmp_path / "photos", {"val": 5, "test": 3}, size=24, noise=160, lift=90)
    network = models.build(source="torchvision", architecture="resnet18", weights=None, image_size=24, classes=2).network
    torch.save(network.state_dict(), "own.pt")
    where = ("--model-weights", "own.pt", "--model-image-size", 24)
    data = ("--data-format", "folder", "--data-root", "photos")
    for command in ("doctor", "extract"):
        done = nsf(
            command, "--device", "cuda", *where, *data, "--workers" if command == "extract" else "--extract-workers", 0
        )
        assert done.code == 0, done.stderr
    assert load_file("artifacts/features/val.safetensors")["features"].shape == (10, 512)
