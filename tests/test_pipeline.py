"""dvc.yaml: what each stage lists is what it uses, and the whole runs on a tiny data set as a person would run it."""

import ast
import hashlib
import inspect
import json
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from nsfcli.app import COMMANDS
from tests.conftest import REPOSITORY, leftovers, run_process

PIPELINE = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"]
# What stands around the pipeline: run by hand, and not by the demo.
AROUND = ("init", "doctor", "metrics", "export", "predict")
STAGES = [name for name in COMMANDS if name not in AROUND]


def imported(module: Path) -> set[Path]:
    """The modules of `stages` that one imports, directly or through others; a package counts as a whole."""
    found: set[Path] = set()
    queue = [module]
    while queue:
        for node in ast.walk(ast.parse(queue.pop().read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stages":
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                path = REPOSITORY / name.replace(".", "/")
                if path != REPOSITORY / "stages" and path.is_dir() and path not in found:
                    found.add(path)
                    queue += path.glob("*.py")
                elif path.with_suffix(".py").is_file() and path.with_suffix(".py") not in found:
                    found.add(path.with_suffix(".py"))
                    queue.append(path.with_suffix(".py"))
    packages = {path for path in found if path.is_dir()}
    return {path for path in found if not packages & set(path.parents)}


def test_stages_are_the_commands_in_order() -> None:
    assert list(PIPELINE) == STAGES
    for name, stage in PIPELINE.items():
        assert stage["cmd"].split()[:2] == ["nsf", name]


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_the_code_that_runs(name: str) -> None:
    run = REPOSITORY / f"stages/{name}.py"
    expected = {REPOSITORY / f"nsfcli/{name}.py", run, *imported(run)}
    listed = {REPOSITORY / dep for dep in PIPELINE[name]["deps"] if dep.startswith(("stages", "nsfcli"))}
    assert listed == expected


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_that_the_command_uses(name: str) -> None:
    command = getattr(import_module(f"nsfcli.{name}"), name)
    used = {parameter.split("__")[0] for parameter in inspect.signature(command).parameters if "__" in parameter}
    assert set(PIPELINE[name].get("params", [])) == used


def test_lock_is_of_this_code() -> None:
    """dvc.lock, metrics/ and the README's table belong to the code and parameters beside them: `make demo`, then commit."""
    status = json.loads(run_process("dvc", "status", "--json", cwd=REPOSITORY, check=True).stdout)
    stale = [
        f"{stage}: {path} {how}"
        for stage, changes in status.items()
        for change in changes
        if isinstance(change, dict)
        for paths in change.values()
        for path, how in paths.items()
        # A fresh clone has no artifacts yet.
        if not path.startswith("artifacts/")
    ]
    assert not stale, "run `make demo`, then commit dvc.lock, metrics/ and the README's table"


def test_demo_gains_15_points() -> None:
    """What the demo promises, of the last `make demo` in this checkout; .ci/run calls this test right after it."""
    metrics = json.loads((REPOSITORY / "metrics/evaluate.json").read_text())
    assert metrics["nsf"]["worst_group_accuracy"] >= metrics["base"]["worst_group_accuracy"] + 0.15


class Project:
    """A copy of the repository's pipeline with a tiny data set, under git, as a person would have it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        for name in ("nsfcli", "stages", "data", ".dvc"):
            ignore = shutil.ignore_patterns("__pycache__", "cache", "tmp")
            shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
        for name in ("dvc.yaml", ".gitignore", ".dvcignore", "params.yaml"):
            shutil.copy(REPOSITORY / name, folder / name)
        for key, value in {
            "data.train_size": 200, "data.val_size": 200, "data.test_size": 80, "train.epochs": 1,
            "update.solver": "published", "update.steps": 20, "compare.methods": ["erm", "last-layer", "auto"],
            "compare.seeds": 1,
        }.items():  # fmt: skip
            self.set(key, value)
        self.run("git", "init", "--quiet")
        self.commit("a tiny demo")

    def run(self, *arguments: str, check: bool = True) -> str:
        if arguments[0] == "git":
            identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
            done = subprocess.run(
                ["git", *identity, *arguments[1:]], cwd=self.folder, capture_output=True, text=True, check=True
            )
            return done.stdout
        result = run_process(*arguments, cwd=self.folder, check=check)
        return result.stdout + result.stderr

    def set(self, key: str, value: object) -> None:
        section, name = key.split(".")
        yaml = YAML()
        params = yaml.load(self.folder / "params.yaml")
        params[section][name] = value
        yaml.dump(params, self.folder / "params.yaml")

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def stages_run(self, output: str) -> list[str]:
        return [name for name in STAGES if f"Running stage '{name}'" in output]

    def artifacts(self) -> dict[str, str]:
        files = sorted((self.folder / "artifacts").rglob("*.safetensors"))
        return {str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_pipeline_as_a_person_runs_it(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    assert project.stages_run(project.run("dvc", "repro")) == STAGES
    first = project.artifacts()
    assert len(first) == 9
    assert project.run("git", "status", "--short", "artifacts") == ""
    project.commit("first run")

    # Nothing has changed: nothing runs, and status says so.
    assert project.stages_run(project.run("dvc", "repro")) == []
    assert "up to date" in project.run("dvc", "status")
    assert all(name in project.run("dvc", "dag") for name in STAGES)

    # A wrong value stops update with one sentence and leaves its output alone; a right one resumes there.
    project.set("update.steps", -1)
    failed = project.run("dvc", "repro", check=False)
    assert "update.steps is -1, and allowed is a whole number at least 1" in failed
    assert project.stages_run(failed) == ["update"]
    assert not leftovers(project.folder)
    project.set("update.steps", 40)
    assert project.stages_run(project.run("dvc", "repro")) == ["update", "evaluate"]
    differs = {path for path, digest in project.artifacts().items() if first[path] != digest}
    assert "artifacts/update.safetensors" in differs
    assert differs <= {"artifacts/update.safetensors", "artifacts/evaluate.safetensors"}

    params = project.run("dvc", "params", "diff")
    assert "update.steps" in params and "20" in params and "40" in params
    assert "nsf.mean_accuracy" in project.run("dvc", "metrics", "show")
    project.run("dvc", "metrics", "diff")
    assert "index.html" in project.run("dvc", "plots", "show")

    # An experiment, and back to the first run: the cache has it, save for the metrics, which git keeps instead.
    assert project.stages_run(project.run("dvc", "exp", "run", "-S", "update.solver=auto")) == ["update", "evaluate"]
    automatic = project.artifacts()
    project.set("update.steps", 20)
    project.set("update.solver", "published")
    assert project.stages_run(project.run("dvc", "repro")) == ["evaluate"]
    assert project.artifacts() == first

    # A second run from scratch elsewhere gives the same bytes.
    other = Project(tmp_path / "other")
    other.run("dvc", "repro")
    assert other.artifacts() == first
    other.set("update.solver", "auto")
    other.set("update.steps", 40)
    other.run("dvc", "repro")
    assert other.artifacts() == automatic
