"""Every stage on a GPU gives what it gives on the CPU. Skipped where there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.auto import repair
from stages.eliminate import eliminate
from stages.identify import assess, identify
from stages.neutralize import neutralize
from stages.passes import predict
from stages.rows import Rows
from stages.update import select, update
from tests.conftest import REPOSITORY, Done, planted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

CHAIN = ("identify", "neutralize", "eliminate", "update", "evaluate")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_stages_agree_with_the_cpu(device: str, nsf: Callable[..., Done], own_features: Callable[..., Path]) -> None:
    own_features("val")
    own_features("test")
    made = {}
    for name in ("cpu", device):
        out = {command: f"{name.replace(':', '')}/{command}.safetensors" for command in CHAIN}
        for command, reads in {
            "identify": (), "neutralize": ("identify",), "eliminate": ("neutralize",),
            "update": ("identify", "neutralize", "eliminate"), "evaluate": ("update",),
        }.items():  # fmt: skip
            features = "test" if command == "evaluate" else "val"
            inputs = [word for stage in reads for word in (f"--{stage}", out[stage])]
            extra = ["--metrics", f"{name}.json"] if command == "evaluate" else []
            extra += ["--solver", "published"] if command == "update" else []
            done = nsf(
                command, "--device", name, "--features", f"{features}.safetensors", *inputs, "--out", out[command], *extra
            )
            assert done.code == 0, done.stderr
        made[name] = {command: load_file(path) for command, path in out.items()}
    for command in CHAIN:
        for tensor, expected in made["cpu"][command].items():
            torch.testing.assert_close(made[device][command][tensor], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("resident", [True, False])
def test_large_features_agree_with_the_compiled_loops(dtype: torch.dtype, resident: bool) -> None:
    """On the GPU as a whole, and streamed to it from two parts; on the CPU by `kernels`."""
    tensors = planted(40_000, 128)
    x, y = tensors["features"].to(dtype), tensors["labels"]
    parts = Rows(x.split([15_001, 24_999]))
    found = {}
    for device in ("cpu", "cuda"):
        given = x if device == "cpu" else parts.to("cuda") if resident else Rows(parts.parts, device=torch.device("cuda"))
        labels = y.to(device)
        seen = identify(given, labels)
        centers = neutralize(given, labels, seen.minority)
        learned = eliminate(given, labels, centers, steps=40)
        chosen = select(given, labels, seen.minority, centers, learned.scale, learned.shift)
        head = update(given, labels, *chosen, learned.scale, learned.shift, classes=2, steps=20)
        mirror = assess(given, labels, seen).mirror
        found[device] = [seen.minority, *chosen, centers, learned.scale, learned.shift, head.folded_weight, head.folded_bias]
        found[device].append(torch.tensor(mirror))
    for cpu, gpu in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-3, atol=1e-4)


def test_auto_agrees_with_the_cpu() -> None:
    """L-BFGS on a GPU takes other last digits, and so other steps: the heads predict alike."""
    tensors = planted(2000, 64)
    x, y = tensors["features"], tensors["labels"]
    cpu, gpu = (repair(x.to(device), y.to(device), None) for device in ("cpu", "cuda"))
    assert cpu.verdict.bias == gpu.verdict.bias
    guesses = [predict(x.to(done.weight.device), done.weight, done.bias).cpu() for done in (cpu, gpu)]
    assert float((guesses[0] == guesses[1]).double().mean()) > 0.99


def test_train_and_extract(nsf: Callable[..., Done], tmp_path: Path) -> None:
    data = [
        "--data-format", "dominoes", "--data-root", REPOSITORY / "data/dominoes",
        "--data-train-size", 200, "--data-val-size", 100, "--data-test-size", 100,
    ]  # fmt: skip
    image = ["--model-image-size", "[56, 28]", "--epochs", 1]
    assert nsf("train", "--device", "cuda", *data, *image).code == 0
    for device in ("cpu", "cuda"):
        done = nsf("extract", "--device", device, *data, "--precision", "float32", "--out", device)
        assert done.code == 0, done.stderr
    cpu, gpu = (load_file(tmp_path / device / "val.safetensors") for device in ("cpu", "cuda"))
    assert torch.equal(cpu["labels"], gpu["labels"])
    difference = (cpu["features"] - gpu["features"]).norm() / cpu["features"].norm()
    assert float(difference) < 1e-2
    assert nsf("extract", "--device", "cuda", *data, "--out", "mixed").code == 0
