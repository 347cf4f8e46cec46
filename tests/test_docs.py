"""docs/: every command runs as it stands, and every example of params.yaml is valid."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from nsfcli import params
from nsfcli.presets import PRESETS
from stages import models
from stages.runtime import reproducible
from tests.conftest import REPOSITORY, photos, planted, run_process
from tests.stages.models.conftest import TEXT_WORDS, Pretrained, pretrained

__all__ = ["pretrained"]

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs").glob("*.md")}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def run_block(text: str, folder: Path) -> str:
    """Run the lines of a block in bash, in `folder`."""
    binaries = Path(sys.executable).parent
    script = f"set -euo pipefail\nexport PATH={binaries}:$PATH\n{text}"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def resnet(architecture: str, classes: int) -> dict[str, torch.Tensor]:
    with reproducible(seed=0):
        return models.build(source="torchvision", architecture=architecture, classes=classes).network.state_dict()


@pytest.mark.slow
def test_own_model_images(tmp_path: Path) -> None:
    photos(tmp_path / "photos", {"val": 20, "test": 20}, lift=40, suffix="jpg")
    torch.save(resnet("resnet18", 2), tmp_path / "best.pt")
    said = run_block(blocks("own-model", "sh")[0], tmp_path)
    assert "right on" in said and "accuracy" in said and "predictions changed" in said
    assert (tmp_path / "artifacts/export/MODEL_CARD.md").exists() and (tmp_path / "artifacts/export/best.pt").exists()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 41


@pytest.mark.slow
def test_own_model_texts(tmp_path: Path, pretrained: Pretrained) -> None:
    random = np.random.RandomState(0)
    rows = ["text,label,source,split"]
    for split in ("val", "test"):
        for index in range(60):
            label, source = index % 2, (index // 2) % 2 if index % 5 == 0 else index % 2
            words = [*random.choice(TEXT_WORDS, 5), ["bad", "good"][label], *["film"] * (3 * source)]
            rows.append(f"{' '.join(words)},{['NEG', 'POS'][label]},{['press', 'film'][source]},{split}")
    (tmp_path / "reviews.csv").write_text("\n".join(rows) + "\n")
    pretrained("Bert", "classifier", id2label={0: "NEG", 1: "POS"})
    said = run_block(blocks("own-model", "sh")[1], tmp_path)
    assert "texts of 2 classes (NEG, POS)" in said and "a good film" in said
    assert (tmp_path / "artifacts/export/config.json").exists()


def test_own_model_function(tmp_path: Path) -> None:
    [code] = blocks("own-model", "python")
    (tmp_path / "mine.py").write_text(code)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 16))
    head = torch.nn.Linear(16, 2)
    torch.save({"encoder": encoder.state_dict(), "head": head.state_dict()}, tmp_path / "mine.pt")
    photos(tmp_path / "photos", {"val": 20, "test": 20}, lift=40, suffix="jpg")
    [section] = [text for text in blocks("own-model", "yaml") if "callable" in text]
    (tmp_path / "params.yaml").write_text(f"data: {{format: folder, root: photos}}\n{section}")
    assert "features of width 16" in run_process("nsf", "doctor", cwd=tmp_path, check=True).stdout


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "yaml")])
def test_examples_of_params_are_valid(text: str) -> None:
    content = YAML(typ="safe").load(text)
    assert set(content) <= {"data", "model"}
    params.check(content, "docs")


@pytest.mark.slow
def test_own_features(tmp_path: Path) -> None:
    for seed, split in enumerate(("val", "test")):
        save_file(planted(seed=seed), tmp_path / f"{split}.safetensors")
    save_file({"weight": torch.eye(2, 8), "bias": torch.zeros(2)}, tmp_path / "head.safetensors")
    pipeline, commands = blocks("own-features", "sh")
    run_block(pipeline, tmp_path)
    run_block(commands, tmp_path)
    by_dvc, by_hand = (json.loads((tmp_path / path).read_text()) for path in ("metrics/evaluate.json", "evaluate.json"))
    assert by_dvc == by_hand
    [making] = blocks("own-features", "python")
    run_process("python", "-c", making, cwd=tmp_path, check=True)
    files = ["--features", "mine.safetensors", "--head", "mine-head.safetensors", "--out", "mine-identify.safetensors"]
    assert "of 200 samples" in run_process("nsf", "identify", *files, cwd=tmp_path, check=True).stdout


@pytest.mark.slow
def test_benchmarks(tmp_path: Path) -> None:
    """Waterbirds' preset on a miniature of its data, one epoch instead of a hundred, and random weights as ImageNet's."""
    random = np.random.RandomState(0)
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for index in range(36):
        label, split = index % 2, index % 3
        place = 1 - label if (index // 2) % 4 == 0 else label
        name = f"00{label}.Bird/{index}.jpg"
        path = tmp_path / "work/data/waterbirds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
        lines.append(f"{index},{name},{label},{split},{place},x")
    (tmp_path / "work/data/waterbirds/metadata.csv").write_text("\n".join(lines) + "\n")
    hub = tmp_path / "torch/hub/checkpoints"
    hub.mkdir(parents=True)
    torch.save(resnet("resnet50", 1000), hub / "resnet50-0676ba61.pth")
    [block] = blocks("benchmarks", "sh")
    quickly = f"sed -i 's/epochs: 100 /epochs: 1 /' params.yaml\nexport TORCH_HOME={tmp_path}/torch\ndvc repro"
    block = block.replace("dvc repro", quickly)
    said = run_block(block, tmp_path / "work")
    assert "landbird/land" in said and "adjusted mean" in said
    assert (tmp_path / "work/artifacts/export/model.safetensors").exists()


def test_every_preset_stands_on_the_page(tmp_path: Path) -> None:
    page = PAGES["benchmarks"]
    for preset, sections in PRESETS.items():
        steps = f"| {sections['eliminate']['steps']} / {sections['update']['steps']} |"
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{preset}` |")]
        assert row.endswith(steps)
        [theirs] = [line for line in page.splitlines() if f"`nsf init --preset {preset}` and `dvc repro` |" in line]
        assert f"ssc.py {preset}" in theirs
        target = tmp_path / preset
        run_process("nsf", "init", target, "--preset", preset, cwd=tmp_path, check=True)
        assert (target / "dvc.yaml").exists()


def test_links_lead_somewhere() -> None:
    pages = {f"docs/{name}.md": text for name, text in PAGES.items()} | {"README.md": (REPOSITORY / "README.md").read_text()}
    for page, text in pages.items():
        for link in re.findall(r"\]\(((?!http)[^)#]+)", text):
            assert ((REPOSITORY / page).parent / link).exists(), (page, link)
