"""benchmarks/startup.py: what nsf takes before and beside its work."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import startup
from tests.conftest import planted, run_process


def test_a_small_stage_imports_no_more_than_it_needs(own_features: Callable[..., Path], tmp_path: Path) -> None:
    """PyTorch's compiler takes longer to import than PyTorch, and it hides behind much: any torch.optim, for one."""
    (tmp_path / "artifacts/features").mkdir(parents=True)
    for seed, split in enumerate(("val", "test")):
        own_features(f"artifacts/features/{split}", **planted(seed=seed))
    code = """
import sys
from nsfcli.app import app
heavy = ("torch._dynamo", "torch._inductor", "numba", "pandas", "sklearn", "scipy", "torchvision", "transformers", "dvc")
for stage in ("identify", "neutralize", "eliminate", "update", "evaluate"):
    try:
        app([stage, "--quiet"])
    except SystemExit as end:
        assert end.code == 0, stage
    assert not set(heavy) & set(sys.modules), (stage, set(heavy) & set(sys.modules))
    others = {name for name in ("init", "train", "extract", "compare", "export") if f"nsfcli.{name}" in sys.modules}
    assert not others, (stage, others)
"""
    run_process("python", "-c", code, cwd=tmp_path, check=True)


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_openmp_s_threads_sleep_while_they_wait(
    given: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to be said before PyTorch is imported: OpenMP shows what it has read."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = "import sys; from nsfcli.app import main; sys.argv[1:] = ['identify', '--features', 'nowhere']; main()"
    done = run_process("python", "-c", code, cwd=tmp_path, OMP_DISPLAY_ENV="true", **given)
    assert f"OMP_WAIT_POLICY = '{expected}'" in done.stderr and "nsf: nowhere" in done.stderr


@pytest.mark.slow
def test_every_command_of_the_measurement_runs() -> None:
    """What they may take is asserted by `make bench`, on a machine that does nothing else."""
    found = startup.measure(runs=1)
    stages = {f"{what} {stage}" for what in ("overhead", "computing") for stage in startup.STAGES}
    assert set(found) == {"import torch", "help", "dvc repro", "dvc repro adds"} | stages
    assert min(found["import torch"], found["help"], found["dvc repro"]) > 0
    assert all(any(what.startswith(prefix) for what in found) for prefix in startup.MOST)


def test_an_overhead_is_what_neither_pytorch_nor_the_computation_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([[1.0, 0.25, *[1.5] * 5, *[1.75] * 5], [2.0, 1.5]])
    monkeypatch.setattr(startup, "medians", lambda *commands, runs: next(taken))
    monkeypatch.setattr(startup, "_at_rest", lambda folder: folder)
    found = startup.measure(runs=1)
    assert found["help"] == 0.25 and found["dvc repro adds"] == 0.5
    assert {found[f"overhead {stage}"] for stage in startup.STAGES} == {0.25}
    assert {found[f"computing {stage}"] for stage in startup.STAGES} == {0.25}
