"""Other people's state dicts: wrappings, prefixes, and copies in which a few tensors are replaced."""

import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stages.errors import BadModel, MissingFile
from stages.models import checkpoints


def make(classes: int) -> nn.Module:
    network = nn.Sequential()
    network.add_module("body", nn.Linear(3, 4))
    network.add_module("norm", nn.BatchNorm1d(4))
    network.add_module("head", nn.Linear(4, classes))
    return network


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return make(5).state_dict()


def fit(path: Path, classes: int | None = None) -> tuple[nn.Module, dict[str, str]]:
    return checkpoints.fit(make, checkpoints.read(path), classes, path, "toy")


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.", "backbone."])
@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict"])
def test_prefixes_and_containers(prefix: str, container: str | None, state: dict, tmp_path: Path) -> None:
    named = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(named if container is None else {"epoch": 3, container: named, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    network, names = fit(tmp_path / "w.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert names == {name: prefix + name for name in state}


def test_another_number_of_classes_keeps_all_but_the_head(state: dict, tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    network, _ = fit(tmp_path / "w.safetensors", classes=2)
    assert network.head.weight.shape == (2, 4)
    assert torch.equal(network.body.weight, state["body.weight"])


def test_two_copies_of_the_network(state: dict, tmp_path: Path) -> None:
    twice = {f"{prefix}.{name}": tensor for name, tensor in state.items() for prefix in ("ema", "model")}
    torch.save({"state_dict": twice}, tmp_path / "w.pt")
    with pytest.raises(BadModel, match=r"holds the network 2 times, behind 'ema\.' and 'model\.'; save the one"):
        fit(tmp_path / "w.pt")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_beside_their_running_mean(prefix: str, state: dict, tmp_path: Path) -> None:
    """As timm's and others' training scripts save them: which of them is the model that is used, the file does not say."""
    mean = {prefix + name: tensor + 1 for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": state, "state_dict_ema": mean, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    with pytest.raises(BadModel, match="holds the network 2 times, as 'state_dict' and 'state_dict_ema'; save the one"):
        fit(tmp_path / "w.pt")
    # Of another network: a teacher, say.
    torch.save({"model": state, "teacher": {"layer.weight": torch.zeros(1)}}, tmp_path / "w.pt")
    network, _ = fit(tmp_path / "w.pt")
    assert torch.equal(network.body.weight, state["body.weight"])


def test_a_head_of_several_layers(state: dict, tmp_path: Path) -> None:
    """Sequential(Dropout, Linear) in place of Linear: the sentence shows the names that fit nothing."""
    torch.save({name.replace("head.", "head.1."): tensor for name, tensor in state.items()}, tmp_path / "w.pt")
    words = (
        r"lacks 2 of .* 'head\.weight' first, and holds head\.1\.weight, head\.1\.bias in their place; .* model\.function"
    )
    with pytest.raises(BadModel, match=words):
        fit(tmp_path / "w.pt")


def test_batch_counters_may_be_missing(state: dict, tmp_path: Path) -> None:
    torch.save({name: tensor for name, tensor in state.items() if "tracked" not in name}, tmp_path / "w.pt")
    network, _ = fit(tmp_path / "w.pt")
    assert torch.equal(network.norm.running_mean, state["norm.running_mean"])


def test_densenets_old_names(state: dict) -> None:
    old = {"features.denselayer1.norm.1.weight": torch.zeros(1), "classifier.weight": torch.zeros(1)}
    names = checkpoints._names(old, ["features.denselayer1.norm1.weight", "classifier.weight"], Path("w"))
    assert names["features.denselayer1.norm1.weight"] == "features.denselayer1.norm.1.weight"


def test_mistakes(state: dict, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(MissingFile, match="there is no such file; check the model's weights"):
        fit(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(BadModel, match="holds no state dict"):
        fit(path)
    for content in (b"no checkpoint", b"a,b\n1,2\n", b"import torch\n", b"\x1f\x8b\x08\x00", b"<html>", b""):
        path.write_bytes(content)
        with pytest.raises(BadModel, match=r"w\.pt: is no file that torch\.save writes; name the file with the weights"):
            fit(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(BadModel, match=r"w\.pt: cannot be read as a checkpoint"):
        fit(path)
    # An opcode that PyTorch's unpickler meets with an error of its own kind.
    for content in (b"\x80\x02.", b"\x80\x02}q\x00(u.", b"\x80\x02h\x07."):
        path.write_bytes(content)
        with pytest.raises(BadModel, match=r"w\.pt: (cannot be read as a checkpoint|can only be read by running)"):
            fit(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BadModel, match="is a pointer of Git LFS, not the weights; fetch them: git lfs pull"):
        fit(path)
    torch.save({name: tensor for name, tensor in state.items() if "body" not in name}, path)
    with pytest.raises(
        BadModel, match=r"lacks 2 of the architecture's 9 tensors, 'body\.weight' first; check the model's architecture"
    ):
        fit(path)
    torch.save({**state, "more": torch.zeros(1)}, path)
    with pytest.raises(BadModel, match="holds 1 tensors that the architecture has not, 'more' first"):
        fit(path)
    torch.save({**state, "body.weight": torch.zeros(4, 9)}, path)
    with pytest.raises(BadModel, match=r"'body\.weight' has shape \(4, 9\), where the architecture has \(4, 3\)"):
        fit(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A whole pickled model, and a file that would run code."""
    torch.save(make(2), tmp_path / "whole.pt")

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return partial(Path.touch), (tmp_path / "ran",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("whole.pt", "evil.pt"):
        with pytest.raises(BadModel, match=r"running code that it holds .* save its state dict"):
            checkpoints.read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_state_dicts_of_one_s_own_arrangement(state: dict, tmp_path: Path) -> None:
    """Encoder and head apart, as a function of the user's own may save them."""
    path, copy = tmp_path / "mine.pt", tmp_path / "copy.pt"
    torch.save({"epoch": 3, "encoder": {"weight": torch.ones(3)}, "head": {"weight": state["head.weight"]}}, path)
    assert checkpoints.read(path).keys() == {"encoder.weight", "head.weight"}
    with copy.open("wb") as file:
        checkpoints.patch(path, file, {"head.weight": torch.zeros_like(state["head.weight"])})
    held = torch.load(copy, weights_only=True)
    assert held["epoch"] == 3 and torch.equal(held["encoder"]["weight"], torch.ones(3)) and not held["head"]["weight"].any()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_patch_changes_nothing_else(suffix: str, state: dict, tmp_path: Path) -> None:
    path, copy = tmp_path / f"w{suffix}", tmp_path / f"copy{suffix}"
    state["norm.weight"] = state["norm.weight"].to(torch.bfloat16)
    state["head.bias"] = state["head.bias"].half()
    if suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        save_file(state, path, metadata={"format": "pt", "note": "kept"})
    new = {"head.weight": torch.full((5, 4), 0.5), "head.bias": torch.arange(5.0)}
    with copy.open("wb") as file:
        checkpoints.patch(path, file, new)
    held = checkpoints.read(copy)
    assert list(held) == list(checkpoints.read(path))
    for name, tensor in state.items():
        assert held[name].dtype == tensor.dtype
        assert torch.equal(held[name], new[name].to(tensor.dtype) if name in new else tensor), name
    if suffix == ".pt":
        assert torch.load(copy, weights_only=True)["epoch"] == 3
    else:
        with safe_open(copy, framework="pt") as file:
            assert file.metadata() == {"format": "pt", "note": "kept"}
    for wrong in ({"head.w": torch.zeros(1)}, {"head.bias": torch.zeros(7)}):
        with (tmp_path / "other").open("wb") as file, pytest.raises(BadModel, match="export to the checkpoint that"):
            checkpoints.patch(path, file, wrong)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_values_beyond_the_file_s_type(suffix: str, state: dict, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state["head.bias"] = state["head.bias"].half()
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    refused = pytest.raises(BadModel, match=r"'head\.bias' has new values beyond float16, which the file holds it in; save")
    with (tmp_path / "copy").open("wb") as file, refused:
        checkpoints.patch(path, file, {"head.bias": torch.full((5,), 1e5)})


def test_tensors_beside_the_state_dict(state: dict, tmp_path: Path) -> None:
    """As PyTorch's own ImageNet example writes them."""
    torch.save({"epoch": 3, "state_dict": state, "best_acc1": torch.tensor(71.0)}, tmp_path / "w.pt")
    network, _ = fit(tmp_path / "w.pt")
    assert torch.equal(network.head.weight, state["head.weight"])
