"""What nsf takes before and beside its work: `python -m benchmarks.startup` prints it.

CPU seconds of whole processes, children included: the median of several runs by turns. A stage's overhead is what
`nsf STAGE` takes on 200 samples of width 8, less the import of PyTorch, less what the same stage takes when the process runs
it a second time: the computation.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = ("identify", "neutralize", "eliminate", "update", "evaluate")
RUNS = 7
# A stage run twice by one process.
TWICE = """
import sys
from nsfcli.app import app
for _ in range(2):
    try:
        app([sys.argv[1], "--quiet"])
    except SystemExit as end:
        assert not end.code, end.code
"""

# What must hold (issue 6), in CPU seconds.
MOST = {"help": 0.3, "overhead": 0.3, "dvc repro adds": 1.0}


def measure(runs: int = RUNS) -> dict[str, float]:
    """CPU seconds: "import torch", "help", "overhead" and "computing STAGE" of five stages, "dvc repro", "dvc repro adds".

    The last is what nsf's pipeline adds to one of as many stages and files of a line each.

    Args:
        runs: of each command; the median counts.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _features(folder)
        python = [sys.executable]
        alone, page, *stages = medians(
            ([*python, "-c", "import torch"], folder),
            ([*python, "-m", "nsfcli", "--help"], folder),
            *(([*python, "-m", "nsfcli", stage, "--quiet"], folder) for stage in STAGES),
            *(([*python, "-c", TWICE, stage], folder) for stage in STAGES),
            runs=runs,
        )
        found = {"import torch": alone, "help": page}
        half = len(STAGES)
        for stage, once, twice in zip(STAGES, stages[:half], stages[half:], strict=True):
            found |= {f"overhead {stage}": once - alone - (twice - once), f"computing {stage}": twice - once}
        repro = [*python, "-m", "dvc", "repro", "--quiet"]
        ours, bare = medians((repro, _pipeline(folder / "ours")), (repro, _bare_pipeline(folder / "bare")), runs=runs)
        found |= {"dvc repro": ours, "dvc repro adds": ours - bare}
    return {what: round(seconds, 3) for what, seconds in found.items()}


def medians(*commands: tuple[list[str], Path], runs: int) -> list[float]:
    """The CPU seconds of commands, each in a folder: user and system, the median of some runs.

    By turns, so that all meet the same machine, after a first run of each, which fills the caches.

    Raises:
        CalledProcessError: one fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    seconds: list[list[float]] = [[] for _ in commands]
    for _ in range(runs + 1):
        for (command, folder), taken in zip(commands, seconds, strict=True):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return [median(taken[1:]) for taken in seconds]


def _features(folder: Path) -> None:
    """val and test features with a planted attribute, where every stage finds them."""
    (folder / "artifacts/features").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for split in ("val", "test"):
        labels = torch.arange(200) % 2
        attributes = torch.where(torch.rand(200, generator=generator) < 0.9, labels, 1 - labels)
        features = torch.randn(200, 8, generator=generator)
        features[:, :4] += 3.0 * (2 * attributes - 1).unsqueeze(1)
        features[:, 4:] += 1.5 * (2 * labels - 1).unsqueeze(1)
        tensors = {"features": features, "labels": labels, "attributes": attributes}
        save_file(tensors, folder / f"artifacts/features/{split}.safetensors")


def _pipeline(folder: Path) -> Path:
    """The demo's pipeline at rest: its code and data as they are, its outputs as if they had been made."""
    for part in ("nsfcli", "stages", "data"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / part, folder / part)
    return _at_rest(folder)


def _bare_pipeline(folder: Path) -> Path:
    """As many stages, with as many inputs and outputs, each of them a file of one line."""
    folder.mkdir()
    pipeline = _yaml().load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))
    pipeline.pop("plots", None)
    for stage in pipeline["stages"].values():
        for part in ("deps", "outs", "metrics"):
            if part in stage:
                stage[part] = [_renamed(entry) for entry in stage[part]]
        for dependency in stage["deps"]:
            (folder / dependency).parent.mkdir(parents=True, exist_ok=True)
            (folder / dependency).write_text(f"{dependency}\n")
    with (folder / "dvc.yaml").open("w") as file:
        _yaml().dump(pipeline, file)
    shutil.copy(REPOSITORY / "params.yaml", folder)
    return _at_rest(folder)


def _renamed(entry: Any) -> Any:
    # A folder becomes a file.
    return {f"{path}.txt": how for path, how in entry.items()} if isinstance(entry, dict) else f"{entry}.txt"


def _at_rest(folder: Path) -> Path:
    for stage in _yaml().load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values():
        for entry in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path = folder / (next(iter(entry)) if isinstance(entry, dict) else entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made\n")
    for arguments in (["init", "--no-scm"], ["commit", "--force"]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments, "--quiet"], cwd=folder, check=True)
    return folder


def _yaml() -> Any:
    return YAML(typ="safe", pure=True)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))  # noqa: T201
