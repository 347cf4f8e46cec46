"""The README's promises: its table is the committed run's, its own-features example runs as it stands."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_process

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str, section: str) -> list[str]:
    """The code blocks of a language in a section of the README."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", README, flags=re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def committed(path: str) -> dict:
    """Metrics of the commit, not of the working tree: on another machine a demo may come out a little differently."""
    shown = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        pytest.skip(f"not a git checkout with a committed {path}")
    return json.loads(shown.stdout)


def test_demo_table_is_the_committed_run() -> None:
    metrics = committed("metrics/evaluate.json")
    base, new = metrics["base"], metrics["nsf"]
    rows = [
        ("worst group", "-", base["worst_group_accuracy"], new["worst_group_accuracy"]),
        ("mean", "-", base["mean_accuracy"], new["mean_accuracy"]),
        ("adjusted mean", "-", base["adjusted_mean_accuracy"], new["adjusted_mean_accuracy"]),
        *((name, metrics["samples"][name], base["groups"][name], new["groups"][name]) for name in new["groups"]),
    ]
    expected = [f"| {name} | {n} | {erm:.3f} | {nsf:.3f} | {nsf - erm:+.3f} |" for name, n, erm, nsf in rows]
    table = README.split("<!-- demo table")[1].split("\n\n")[0].splitlines()[3:]
    assert table == expected


def test_compare_table_is_the_committed_run() -> None:
    found = committed("metrics/compare.json")["methods"]
    rows = []
    for method, selections in found.items():
        cells = [method]
        for selection in ("group-free", "group labels"):
            row = selections.get(selection)
            shown = [(row[key], row[f"{key}_std"]) for key in ("worst_group_accuracy", "mean_accuracy")] if row else []
            cells += [f"{mean:.3f} ± {std:.3f}" for mean, std in shown] or ["-", "-"]
        rows.append(f"| {' | '.join(cells)} |")
    assert README.split("<!-- compare table")[1].split("\n\n")[0].splitlines()[3:] == rows


def test_demos_table_is_the_committed_runs() -> None:
    rows = []
    for demo in ("text", "image"):
        metrics = committed(f"demos/{demo}/metrics/evaluate.json")
        shown = [metrics[model][key] for key in ("worst_group_accuracy", "mean_accuracy") for model in ("base", "nsf")]
        rows.append(f"| {demo} | {' | '.join(f'{value:.3f}' for value in shown)} |")
    assert README.split("<!-- demos table")[1].split("\n\n")[0].splitlines()[3:] == rows


@pytest.mark.slow
def test_own_features_example(tmp_path: Path) -> None:
    """As a new user would: the blocks in order, in an empty folder."""
    make, functions = blocks("python", "Your own features")
    [commands] = blocks("sh", "Your own features")
    run_process("python", "-c", f"import torch; torch.manual_seed(0)\n{make}", cwd=tmp_path, check=True)
    for command in commands.splitlines():
        run_process(*command.split(), cwd=tmp_path, check=True)
    metrics = json.loads((tmp_path / "evaluate.json").read_text())
    assert metrics["nsf"]["worst_group_accuracy"] > metrics["base"]["worst_group_accuracy"] + 0.1
    assert "tensor" in run_process("python", "-c", functions, cwd=tmp_path, check=True).stdout
