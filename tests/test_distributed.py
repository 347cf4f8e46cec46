"""The stages in several processes: the same artifacts as in one, or none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import artifacts
from tests.conftest import REPOSITORY, planted
from tests.stages.planted import biased_head, spurious, uneven
from tests.stages.test_passes import shards

# Every stage on features one after the other, in processes that torchrun starts once.
STAGES = """
import os
import sys
from pathlib import Path
from stages import auto, evaluate, eliminate, identify, neutralize, update
features, head, out = (Path(argument) for argument in sys.argv[1:4])
auto.SELECTION_VALUES, auto.LEAST_SELECTION = int(sys.argv[4]), 1
i, n, e = (out / f"{name}.safetensors" for name in ("identify", "neutralize", "eliminate"))
identify.run(features=features, head=head, out=i)
neutralize.run(features=features, identify=i, out=n)
eliminate.run(features=features, neutralize=n, steps=30, out=e)
for solver in ("published", "auto"):
    u = out / f"update-{solver}.safetensors"
    done = update.run(features=features, identify=i, neutralize=n, eliminate=e, head=head,
                      training=features.with_name("train.st"),
                      out=u, solver=solver, steps=30, force=sys.argv[5] == "force")
    (out / f"{solver}-lost.txt").write_text(str(done.get("lost")))
    evaluate.run(features=features, head=head, update=u, out=out / f"evaluate-{solver}.safetensors",
                 metrics_out=out / f"{solver}.json", groups_out=out / f"{solver}.csv")
# As nsfcli.launch.work ends: taken down with Python, gloo's connections to processes that have gone may abort this one.
os._exit(0)
"""


def run(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The script in so many processes, one thread each, from the repository."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NSF_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, *launcher, *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features in three shards that end within blocks, a biased head, and the script."""
    folder = tmp_path_factory.mktemp("inputs")
    shards(folder, planted(samples=5000, width=24), [1700, 1, 3299])
    weight = torch.zeros(2, 24)
    weight[1, :12], weight[0, :12] = 1.0, -1.0
    save_file({"weight": weight, "bias": torch.zeros(2)}, folder / "head.safetensors")
    save_file(planted(samples=3001, width=24, seed=1), folder / "train.st")
    (folder / "every_stage.py").write_text(STAGES)
    # Of three classes, where solver auto learns from several readings of the pseudo-attributes.
    names, tensors = ("features", "labels", "attributes"), spurious(5000, bias=0.95, classes=3)
    (folder / "three").mkdir()
    shards(folder / "three", dict(zip(names, tensors, strict=True)), [1700, 1, 3299])
    weight, bias = biased_head(3)
    save_file({"weight": weight, "bias": bias}, folder / "three/head.safetensors")
    save_file(dict(zip(names, spurious(3001, bias=0.97, classes=3, seed=1), strict=True)), folder / "three/train.st")
    # Of a base head that neglects a class, and is not kept for it.
    features, labels, (weight, bias) = uneven(5000, seed=2)
    (folder / "rare").mkdir()
    shards(folder / "rare", {"features": features, "labels": labels, "attributes": torch.arange(5000) % 2}, [1700, 1, 3299])
    save_file({"weight": weight, "bias": bias}, folder / "rare/head.safetensors")
    save_file(dict(zip(names, uneven(3001, seed=3)[:2], strict=False)), folder / "rare/train.st")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "values"), [("", 1 << 27), ("", 40_000), ("three", 40_000), ("rare", 40_000)])
def test_artifacts_do_not_depend_on_the_number_of_processes(inputs: Path, tmp_path: Path, kind: str, values: int) -> None:
    """With the selection on all samples, and on a draw of a third (of three classes and the rare one: a fifth) of them."""
    given, force = inputs / kind, "force" if kind != "rare" else "-"
    made = {}
    for processes in (1, 2, 4):
        out = tmp_path / str(processes)
        head = given / "head.safetensors"
        done = run(processes, inputs / "every_stage.py", given / "val.safetensors", head, out, values, force)
        assert done.returncode == 0, done.stderr
        made[processes] = {path.name: path for path in sorted(out.iterdir())}
        assert not [name for name in made[processes] if name.endswith(".tmp")]
    remedy = artifacts.read("update", made[1]["update-auto.safetensors"]).metadata.notes["remedy"]
    assert remedy == ("groups" if force == "force" else "evened")
    lost = made[1]["auto-lost.txt"].read_text()
    assert lost == "None" if kind == "rare" else abs(float(lost)) < 1
    for processes in (2, 4):
        assert made[processes].keys() == made[1].keys()
        for name, path in made[1].items():
            if path.suffix != ".safetensors":
                assert made[processes][name].read_text() == path.read_text()
                continue
            one, many = load_file(path), load_file(made[processes][name])
            assert one.keys() == many.keys()
            for key, tensor in one.items():
                if tensor.is_floating_point():
                    torch.testing.assert_close(many[key], tensor, rtol=1e-6, atol=1e-6 * float(tensor.abs().max()))
                else:
                    assert torch.equal(many[key], tensor), (name, key)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_writes_nothing(inputs: Path, tmp_path: Path) -> None:
    script = inputs / "dies.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from stages import distributed, identify\n"
        "from stages.errors import UserError\n"
        # torchrun ends all when one has ended; what the CLI says then is test_launch's. Here the stage itself shall notice.
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "def progress(what, done, total):\n"
        "    if distributed.rank() == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "try:\n"
        "    identify.run(features=Path(sys.argv[1]), out=Path(sys.argv[2]), progress=progress)\n"
        "except UserError as error:\n"
        "    sys.exit(f'told: {error}')\n"
    )
    out = tmp_path / "out" / "identify.safetensors"
    done = run(2, script, inputs / "val.safetensors", out)
    assert done.returncode != 0 and "another process of this run has ended" in done.stderr
    assert not out.exists() and not list(tmp_path.rglob("*.tmp"))
