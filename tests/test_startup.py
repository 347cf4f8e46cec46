"""benchmarks/startup.py: what nsf takes before and beside its work."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import startup
from tests.conftest import planted, run_process

# How much more than the limit a machine that is busy with other tests may take.
BUSY = 1.5


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
def test_startup_is_within_its_limits() -> None:
    found = startup.measure(runs=2)
    assert {f"overhead {stage}" for stage in startup.STAGES} <= set(found)
    for what, seconds in found.items():
        limit = startup.MOST.get(what, startup.MOST.get(what.split()[0]))
        assert limit is None or seconds < limit * BUSY, (what, seconds)
