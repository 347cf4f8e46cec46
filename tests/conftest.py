"""What all tests share: golden cases, small planted features, and ways to call nsf."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# One thread per process: tests run side by side, and torch processes that share cores slow each other down ten times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
GOLDEN_CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


@dataclass(frozen=True)
class Golden:
    """One golden case: its tensors, and its metadata as numbers (see tests/golden/README.md)."""

    name: str
    tensors: dict[str, torch.Tensor]
    numbers: dict[str, float]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@pytest.fixture(params=GOLDEN_CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden case in turn."""
    return load_golden(request.param)


def load_golden(name: str) -> Golden:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        numbers = {key: float(value) for key, value in file.metadata().items()}
    return Golden(name, load_file(path), numbers)


@pytest.fixture
def own_features(tmp_path: Path) -> Callable[..., Path]:
    """Write another program's features file (no nsf metadata): `own_features("val", features=..., labels=...)`.

    By default 200 samples of two classes with a planted spurious attribute, which agrees with the label for 90 %.
    """

    def write(name: str = "val", **tensors: torch.Tensor | None) -> Path:
        path = tmp_path / f"{name}.safetensors"
        chosen = {**planted(), **tensors}
        save_file({key: tensor for key, tensor in chosen.items() if tensor is not None}, path)
        return path

    return write


def planted(samples: int = 200, width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Features whose first half tells the attribute loudly and whose second half tells the label softly."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    agrees = torch.rand(samples, generator=generator) < 0.9
    attributes = torch.where(agrees, labels, 1 - labels)
    features = torch.randn(samples, width, generator=generator)
    features[:, : width // 2] += 3.0 * (2 * attributes - 1).unsqueeze(1)
    features[:, width // 2 :] += 1.5 * (2 * labels - 1).unsqueeze(1)
    return {"features": features, "labels": labels, "attributes": attributes}


def photos(
    root: Path, counts: dict[str, int], *, size: int = 32, noise: int = 200, lift: int = 50, suffix: str = "png"
) -> Path:
    """Write a tree of noisy images of two classes, root/split/{cold,warm}/00.png: cold ones are bluer, warm ones redder.

    Args:
        counts: split -> images of each class.
        size: edge in pixels.
        noise, lift: the noise's highest value, and what is added to the class's color.
    """
    random = np.random.RandomState(0)
    for split, count in counts.items():
        for label, name in enumerate(("cold", "warm")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.randint(0, noise, (size, size, 3), dtype=np.uint8)
                pixels[..., 0 if label else 2] += lift
                Image.fromarray(pixels).save(root / split / name / f"{index:02}.{suffix}")
    return root


@dataclass(frozen=True)
class Done:
    """How a call of nsf ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict:
        return json.loads(self.stdout)


@pytest.fixture
def nsf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Call the app in this process, in tmp_path, through Typer's runner: `nsf("identify", "--features", path)`."""
    from typer.testing import CliRunner

    from nsfcli.app import app

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Done(result.exit_code, result.stdout, result.stderr)

    return call


def run_process(*arguments: object, cwd: Path, check: bool = False, **environment: str) -> Done:
    """Run a program of this environment (`nsf`, `dvc`, `python`) as a real process."""
    binaries = Path(sys.executable).parent
    result = subprocess.run(
        [str(binaries / str(arguments[0])), *map(str, arguments[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", **environment},
    )
    if check and result.returncode != 0:
        raise AssertionError(f"{arguments} failed:\n{result.stdout}\n{result.stderr}")
    return Done(result.returncode, result.stdout, result.stderr)


def assert_one_sentence(done: Done, *words: str) -> None:
    """The call failed as a user's mistake: exit code 1, one line on stderr that holds these words, no traceback."""
    assert done.code == 1, (done.code, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("nsf: ") and lines[0].endswith((".", "?"))
    for word in words:
        assert word in lines[0], (word, lines[0])


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a failed command should have removed."""
    return [str(path) for path in folder.rglob(".*.tmp")]
