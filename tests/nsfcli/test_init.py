"""init and doctor: a folder set up in every way runs to its end; what is there already is left alone."""

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from nsfcli import params
from nsfcli.presets import PRESETS
from nsfcli.sections import SECTIONS
from stages import artifacts, models
from stages.runtime import reproducible
from tests.conftest import Done, assert_one_sentence, photos, planted, run_process

Nsf = Callable[..., Done]

# The published steps and recipes, as issue and paper give them: eliminate, update, batch size, epochs.
PUBLISHED = {
    "waterbirds": (10, 500, 32, 100),
    "celeba": (350, 110, 100, 20),
    "multinli": (1200, 1500, 16, 10),
    "civilcomments": (300, 100, 16, 10),
    "chexpert": (650, 10000, 100, 20),
}


def read_yaml(path: Path) -> dict:
    return YAML(typ="safe").load(path)


@pytest.fixture(name="photos")
def some_photos(tmp_path: Path) -> Path:
    """Ten noisy images of each of two classes in each split."""
    return photos(tmp_path / "photos", {"train": 10, "val": 10, "test": 10})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_experiments(preset: str, nsf: Nsf, tmp_path: Path) -> None:
    assert nsf("init", "--preset", preset, "--quiet").code == 0
    written = read_yaml(tmp_path / "params.yaml")
    eliminate, update, batch_size, epochs = PUBLISHED[preset]
    assert (written["eliminate"]["steps"], written["update"]["steps"]) == (eliminate, update)
    assert (written["train"]["batch_size"], written["train"]["epochs"]) == (batch_size, epochs)
    assert written["data"] == {"format": preset, "root": f"data/{preset}", "on_error": "stop"} | {
        key: value for key, value in written["data"].items() if key in ("target", "attribute", "identities")
    }
    recipe = {key: written["train"][key] for key in ("optimizer", "learning_rate", "schedule")}
    if preset in ("multinli", "civilcomments"):
        assert written["model"]["name"] == "bert-base-uncased"
        assert recipe == {"optimizer": "adamw", "learning_rate": 1e-5, "schedule": "linear"}
    else:
        assert (written["model"]["architecture"], written["train"]["weight_decay"]) == ("resnet50", 1e-4)
        assert recipe == {"optimizer": "sgd", "learning_rate": 3e-3, "schedule": "cosine"}
    # Every key is there, explained, and read back as it stands.
    loaded = params.load("train", {"model__source": None, "data__format": None}, tmp_path / "params.yaml")
    assert set(loaded) == set(SECTIONS)
    for name, section in loaded.items():
        assert set(written[name] or {}) == set(type(section).model_fields)
    text = (tmp_path / "params.yaml").read_text()
    for section in loaded.values():
        assert all(field.description in text for field in type(section).model_fields.values())
    assert_one_sentence(nsf("doctor"), f"data/{preset}")


def test_a_preset_whose_data_lies_elsewhere(nsf: Nsf, tmp_path: Path) -> None:
    assert nsf("init", "--preset", "celeba", "--root", "/mnt/my data/celeba", "--quiet").code == 0
    assert read_yaml(tmp_path / "params.yaml")["data"]["root"] == "/mnt/my data/celeba"
    stages = read_yaml(tmp_path / "dvc.yaml")["stages"]
    assert "/mnt/my data/celeba" in stages["train"]["deps"] and "/mnt/my data/celeba" in stages["extract"]["deps"]


def test_what_a_parameter_is_stays_beside_it(nsf: Nsf, tmp_path: Path) -> None:
    """Whatever DVC makes of the file: `dvc exp run -S` writes lists anew."""
    from dvc.utils.hydra import apply_overrides

    save_file(planted(), tmp_path / "val.safetensors")
    assert nsf("init", "--features", "val.safetensors", "--test-features", "val.safetensors").code == 0
    path = tmp_path / "params.yaml"
    before = path.read_text()
    apply_overrides(path, ["update.solver=published"])
    after = path.read_text().splitlines()
    comments = [line.strip() for line in before.splitlines() if line.strip().startswith("#")]
    assert [line.strip() for line in after if line.strip().startswith("#")] == comments
    at = after.index("  # Which methods to compare.")
    assert after[at + 1] == "  methods:" and after[at + 2] == "  - erm"
    titles = [options["title"] for plot in read_yaml(tmp_path / "dvc.yaml")["plots"] for options in plot.values()]
    # There is no head that the model had before.
    assert titles == ["eliminate's loss by step", "accuracy by group, NSF"]


@pytest.mark.slow
def test_own_features_run_to_the_end_without_git(nsf: Nsf, tmp_path: Path) -> None:
    for seed, split in enumerate(("val", "test", "train")):
        save_file(planted(seed=seed), tmp_path / f"my {split}.safetensors")
    save_file({"weight": torch.eye(2, 8), "bias": torch.zeros(2)}, tmp_path / "head.safetensors")
    options = ["--features", "my val.safetensors", "--test-features", "my test.safetensors", "--head", "head.safetensors",
               "--train-features", "my train.safetensors"]  # fmt: skip
    done = nsf("init", *options)
    assert done.code == 0 and "`dvc repro` runs everything" in done.stdout and "doctor" not in done.stdout
    assert set(read_yaml(tmp_path / "params.yaml")) == {
        "identify", "neutralize", "eliminate", "update", "evaluate", "compare", "distributed",
    }  # fmt: skip
    run_process("dvc", "repro", cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "metrics/evaluate.json").read_text())["base"] is not None
    assert "training" in artifacts.read("update", tmp_path / "artifacts/update.safetensors").metadata.inputs
    assert "up to date" in run_process("dvc", "status", cwd=tmp_path, check=True).stdout


@pytest.mark.slow
def test_own_images_and_model_run_to_the_end_in_a_folder_of_a_git_repository(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    work = tmp_path / "work here"
    work.mkdir()
    with reproducible(seed=0):
        network = models.build(source="torchvision", architecture="resnet18", classes=2).network
    torch.save(network.state_dict(), work / "best.pt")
    shutil.move(photos, work / "photos")
    options = ["--architecture", "resnet18", "--weights", "best.pt", "--extract-train"]
    done = nsf("init", work, "--images", "photos", *options, "--json")
    assert done.json == {
        "folder": str(work), "written": ["params.yaml", "dvc.yaml", ".gitignore", ".dvc"], "trains": False
    }  # fmt: skip
    stages = read_yaml(work / "dvc.yaml")["stages"]
    assert "train" not in stages and set(stages["extract"]["deps"]) == {"photos", "best.pt"}
    run_process("dvc", "repro", cwd=work, check=True)
    before, after = (torch.load(work / path, weights_only=True) for path in ("best.pt", "artifacts/export/best.pt"))
    assert before.keys() == after.keys() and torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert torch.equal(after["fc.weight"], load_file(work / "artifacts/update.safetensors")["folded_weight"])
    assert load_file(work / "artifacts/features/train.safetensors")["labels"].shape == (20,)
    assert "training" in artifacts.read("update", work / "artifacts/update.safetensors").metadata.inputs
    ignored = subprocess.run(["git", "status", "--short"], cwd=work, capture_output=True, text=True, check=True).stdout
    assert "artifacts" not in ignored


@pytest.mark.parametrize("weights", [None, "DEFAULT", "IMAGENET1K_V1"])
def test_an_untrained_model_is_trained_first(weights: str | None, photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    assert nsf("init", "--images", "photos", *(["--weights", weights] if weights else []), "--quiet").code == 0
    written = read_yaml(tmp_path / "params.yaml")
    assert written["model"]["architecture"] == "resnet50" and written["model"]["weights"] == (weights or "DEFAULT")
    stages = read_yaml(tmp_path / "dvc.yaml")["stages"]
    assert next(iter(stages)) == "train" and stages["train"]["deps"] == ["photos"]
    assert "artifacts/model" in stages["extract"]["deps"]


def test_tables(nsf: Nsf, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "x", "y": 1}\n')
    for name in ("a-train.csv", "a-val.csv", "a-test.csv"):
        (tmp_path / name).write_text("text,label\n")
    options = ["--text-column", "body", "--label-column", "y", "--split-column", "fold", "--name", "someone/classifier"]
    assert nsf("init", "--csv", "rows.jsonl", *options, "--quiet").code == 0
    data = read_yaml(tmp_path / "params.yaml")["data"]
    assert (data["format"], data["text_column"], data["label_column"], data["split_column"]) == (
        "jsonl",
        "body",
        "y",
        "fold",
    )
    assert "train" not in read_yaml(tmp_path / "dvc.yaml")["stages"], "a hub id names a trained classifier"
    (tmp_path / "rows.jsonl").rename(tmp_path / "rows.jsonl.gz")
    assert nsf("init", "--csv", "rows.jsonl.gz", *options, "--force", "--quiet").code == 0
    data = read_yaml(tmp_path / "params.yaml")["data"]
    assert (data["format"], data["file"]) == ("jsonl", "rows.jsonl.gz")
    options = ["--text-column", "text", "--name", "someone/encoder", "--train", "--force", "--quiet"]
    assert nsf("init", "--csv", "a-{split}.csv", *options).code == 0
    written = read_yaml(tmp_path / "params.yaml")
    assert written["data"]["file"] == "a-{split}.csv" and written["train"]["optimizer"] == "adamw"
    assert read_yaml(tmp_path / "dvc.yaml")["stages"]["train"]["deps"] == ["a-test.csv", "a-train.csv", "a-val.csv"]
    (tmp_path / "tables").mkdir()
    (tmp_path / "a-val.csv").rename(tmp_path / "tables/a-val.csv")
    assert nsf("init", "--csv", "tables/a-{split}.csv", *options).code == 0
    assert read_yaml(tmp_path / "dvc.yaml")["stages"]["train"]["deps"] == ["tables"], "those that are still to come, too"


def test_a_data_set_of_hugging_face(nsf: Nsf, tmp_path: Path) -> None:
    """Saved to disk it is a folder, too, and no tree of images."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
    options = ["--images", "../saved", "--force"]
    assert nsf("init", "work", *options, "--label-column", "y", "--attribute-column", "place").code == 0
    data = read_yaml(tmp_path / "work/params.yaml")["data"]
    assert (data["format"], data["root"], data["label_column"]) == ("huggingface", "../saved", "y")
    assert (data["attribute_column"], data["text_column"]) == ("place", None)
    assert read_yaml(tmp_path / "work/dvc.yaml")["stages"]["train"]["deps"] == ["../saved"]
    assert_one_sentence(nsf("init", "work", *options, "--text-column", "body"), "no model of texts is named")
    assert nsf("init", "work", *options, "--text-column", "body", "--name", "someone/classifier").code == 0
    assert read_yaml(tmp_path / "work/params.yaml")["data"]["text_column"] == "body"
    for option in ("--path-column", "--split-column", "--root"):
        assert_one_sentence(nsf("init", "work", *options, option, "x"), f"option {option}", "says nothing with --images")


def test_a_table_of_texts_needs_a_model_of_texts(nsf: Nsf, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label,split\n")
    for options, words in (
        ([], "no model of texts is named"),
        (["--architecture", "resnet18"], "torchvision has models of images"),
    ):
        done = nsf("init", "--csv", "rows.csv", "--text-column", "text", *options)
        assert_one_sentence(done, words, "give --name (a transformers folder or hub id) or --function")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_what_is_there_is_left_alone(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    (tmp_path / ".gitignore").write_text("/secret/\n")
    assert_one_sentence(nsf("init", "--images", "photos"), "params.yaml", "is there already", "--force")
    assert not (tmp_path / "dvc.yaml").exists() and not (tmp_path / ".dvc").exists()
    assert nsf("init", "--images", "photos", "--force", "--quiet").code == 0
    assert "mine" not in (tmp_path / "params.yaml").read_text()
    assert (tmp_path / ".gitignore").read_text().splitlines() == ["/secret/", "/artifacts/", "/dvc_plots/"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and ".dvc/tmp" not in str(path)}
    assert nsf("init", "--images", "photos", "--force", "--quiet").code == 0
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("answers", "data", "model"),
    [
        ("photos\n\n\n", {"format": "folder", "root": "photos"}, {"architecture": "resnet50", "weights": "DEFAULT"}),
        ("photos\nresnet18\nbest.pt\n", {"format": "folder"}, {"architecture": "resnet18", "weights": "best.pt"}),
        (
            "rows.csv\nbody\nsomeone/classifier\n",
            {"format": "csv", "text_column": "body"},
            {"source": "transformers", "name": "someone/classifier"},
        ),
        (
            "saved\nbody\nsomeone/classifier\n",
            {"format": "huggingface", "root": "saved", "text_column": "body"},
            {"name": "someone/classifier"},
        ),
        ("rows.csv\n\nmine:made\n", {"file": "rows.csv"}, {"source": "callable", "function": "mine:made"}),
    ],
)
def test_without_options_it_asks(
    answers: str, data: dict, model: dict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from nsfcli.app import app

    (tmp_path / "rows.csv").write_text("path,label,split\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_dict.json").write_text("{}")
    (tmp_path / "best.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nsfcli.init._is_terminal", lambda: True)
    done = CliRunner().invoke(app, ["init"], input=answers)
    assert done.exit_code == 0, done.output
    written = read_yaml(tmp_path / "params.yaml")
    assert data.items() <= written["data"].items() and model.items() <= written["model"].items()


def test_questions_are_not_the_result(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from nsfcli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nsfcli.init._is_terminal", lambda: True)
    done = CliRunner().invoke(app, ["init", "--json"], input="photos\nresnet18\n\n")
    # The runner shows the answers on stdout, as a terminal would.
    assert json.loads(done.stdout.splitlines()[-1])["trains"] is True
    assert "Model: " in done.stderr and "Model: " not in done.stdout
    # Nobody answers.
    ended = CliRunner().invoke(app, ["init", "new"], input="")
    assert ended.exit_code == 130 and "interrupted" in ended.stderr and not (tmp_path / "new").exists()


def test_paths_from_a_folder_that_is_not_there_yet(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "best.pt")
    done = nsf("init", "repair", "--images", "../photos", "--architecture", "resnet18", "--weights", "../best.pt", "--quiet")
    assert done.code == 0, done.stderr
    assert read_yaml(tmp_path / "repair/dvc.yaml")["stages"]["extract"]["deps"] == ["../photos", "../best.pt"]


@pytest.mark.parametrize(
    ("table", "root", "expected"),
    [
        ("rows.csv", None, ["rows.csv", "photos"]),
        ("rows.csv", "photos", ["rows.csv", "photos"]),
        ("photos/rows.csv", None, ["photos/rows.csv", "photos"]),
    ],
)
def test_the_images_of_a_table_are_watched(
    table: str, root: str | None, expected: list[str], photos: Path, nsf: Nsf, tmp_path: Path
) -> None:
    (tmp_path / table).write_text("path,label,split\nphotos/val/cold/00.png,cold,val\nphotos/val/warm/00.png,warm,val\n")
    options = ["--root", root] if root else []
    assert nsf("init", "--csv", table, *options, "--quiet").code == 0
    assert read_yaml(tmp_path / "dvc.yaml")["stages"]["train"]["deps"] == expected


def watched(nsf: Nsf, folder: Path, paths: list[str], name: str = "rows.csv", *options: str) -> tuple[list[str], str]:
    """What `nsf init` has DVC watch for a table of these images, and what it says."""
    rows = pandas.DataFrame({"path": paths, "label": "cold", "split": "val"})
    table = folder / name.replace("{split}", "valid")
    table.parent.mkdir(exist_ok=True)
    {
        ".csv": partial(rows.to_csv, index=False),
        ".parquet": rows.to_parquet,
        ".jsonl": partial(rows.to_json, orient="records", lines=True),
    }[table.suffix](table)
    for path in paths:
        (table.parent / path).parent.mkdir(parents=True, exist_ok=True)
    done = nsf("init", "work", "--csv", f"../{name}", *options, "--force")
    assert done.code == 0, done.stderr
    deps = read_yaml(folder / "work/dvc.yaml")["stages"]["extract"]["deps"]
    return [dep for dep in deps if not dep.endswith((table.suffix, "artifacts/model"))], " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows-{split}.csv", "rows-{split}.jsonl"])
def test_the_images_of_every_kind_of_table_are_watched(name: str, nsf: Nsf, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    deps, said = watched(nsf, tmp_path, ["a/0.png", "b/c/1.png", "work/d/2.png"], name)
    assert deps == ["../a", "../b", "d"] and "does not watch" not in said


def test_images_with_absolute_paths_are_watched(nsf: Nsf, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By their common folder, or where the pipeline writes in that by several."""
    other = tmp_path_factory.mktemp("other")
    apart = [f"{other}/a/b/c/0.png", f"{other}/a/b/d/1.png"]
    assert watched(nsf, tmp_path, apart)[0] == [f"{other}/a/b"]
    assert watched(nsf, tmp_path, apart, "tables/rows.csv")[0] == [f"{other}/a/b"]
    assert watched(nsf, tmp_path, [*apart, "e/2.png"], "tables/rows.csv")[0] == ["../tables", f"{other}/a/b"]
    two = [f"{other}/a/0.png", "../b/1.png"]
    assert watched(nsf, tmp_path, two, "tables/rows.csv")[0] == [f"{other}/a", f"{tmp_path}/b"]


def test_images_above_their_table_are_watched(nsf: Nsf, tmp_path: Path) -> None:
    assert watched(nsf, tmp_path, ["../a/0/0.png", "../a/1/0.png", "../b/1/1.png"], "tables/rows.csv")[0] == [
        "../a",
        "../b/1",
    ]


def test_images_that_cannot_be_watched_are_told(nsf: Nsf, tmp_path: Path) -> None:
    deps, said = watched(nsf, tmp_path, ["0.png", "a/1.png"])
    assert deps == ["../a"] and "does not watch the images right in '..'" in said and "deps of extract and train." in said
    for table, options in (
        ("t.csv", ["--root", ".."]),
        ("work/t.csv", []),
        ("t.csv", ["--root", str(tmp_path), "--no-train"]),
    ):
        assert "does not watch the images right in" in watched(nsf, tmp_path, ["0.png"], table, *options)[1]
    # A column that is not there, or no folder that is.
    deps, said = watched(nsf, tmp_path, ["a/1.png"], "rows.csv", "--path-column", "file")
    assert deps == [] and "does not watch the images; add their folder to the deps of extract and train." in said
    deps, said = watched(nsf, tmp_path, ["a/1.png"], "rows.csv", "--root", "../..")
    assert deps == [] and "does not watch the images; add" in said


def test_a_table_around_the_folder(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    """Its own folder holds what the pipeline writes."""
    (tmp_path / "rows.csv").write_text("path,label,split\nphotos/val/cold/00.png,cold,val\n")
    assert nsf("init", "work", "--csv", "../rows.csv", "--quiet").code == 0
    assert read_yaml(tmp_path / "work/dvc.yaml")["stages"]["train"]["deps"] == ["../rows.csv", "../photos"]


@pytest.mark.slow
def test_shards_are_watched(nsf: Nsf, tmp_path: Path) -> None:
    names = ["val-00001-of-00002.safetensors", "val-00002-of-00002.safetensors"]
    for name in names:
        save_file(planted(), tmp_path / name)
    index = tmp_path / "val.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {f"features.{at}": name for at, name in enumerate(names)}}))
    assert nsf("init", "--features", index.name, "--quiet").code == 0
    stages = read_yaml(tmp_path / "dvc.yaml")["stages"]
    for stage in ("identify", "neutralize", "eliminate", "update"):
        assert stages[stage]["deps"][:3] == [index.name, *names]
    run_process("dvc", "repro", cwd=tmp_path, check=True)
    save_file({**planted(), "features": planted()["features"] * 3}, tmp_path / names[0])
    assert "Running stage 'identify'" in run_process("dvc", "repro", cwd=tmp_path, check=True).stdout


@pytest.mark.parametrize("file", ["mine.py", "mine/__init__.py", None])
def test_what_a_function_reads_is_said_to_be_unwatched(file: str | None, photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    done = nsf("init", "--images", "photos", "--function", "mine:made")
    told = f"watches {file}; add what else mine:made reads" if file else "does not watch the code of mine:made, which is not"
    assert done.code == 0 and f"dvc.yaml {told}" in " ".join(done.stderr.split())
    deps = read_yaml(tmp_path / "dvc.yaml")["stages"]["extract"]["deps"]
    assert [name for name in deps if "mine" in name] == [file] * (file is not None)


def test_a_path_of_the_wrong_kind(nsf: Nsf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    save_file(planted(), tmp_path / "val.safetensors")
    assert_one_sentence(nsf("init", "file", "--features", tmp_path / "val.safetensors"), "file: is no folder; name another")
    assert_one_sentence(nsf("init", "--features", "folder"), "folder: is a folder; name a file")
    save_file(planted(), tmp_path / "caf\udce9.safetensors")
    assert_one_sentence(
        nsf("init", "new", "--features", "../caf\udce9.safetensors"), r"caf\udce9.safetensors", "no text in UTF-8"
    )
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{architecture: resnet19}", ("no image classifier 'resnet19'", "did you mean resnet1")),
        ("{source: timm, architecture: resnet19}", ("'resnet19'",)),
    ],
)
def test_doctor_knows_architectures_before_there_is_a_model(
    model: str, words: tuple[str, ...], photos: Path, nsf: Nsf, tmp_path: Path
) -> None:
    text = f"data: {{format: folder, root: photos}}\nmodel: {model}\ntrain: {{epochs: 4}}\n"
    (tmp_path / "params.yaml").write_text(text)
    assert_one_sentence(nsf("doctor"), *words)


def test_doctor_tells_texts_from_images_before_there_is_a_model(nsf: Nsf, tmp_path: Path) -> None:
    rows = [f"{word},{label},{split}" for split in ("train", "val", "test") for label, word in enumerate(("bad", "good"))]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,split", *rows]) + "\n")
    (tmp_path / "params.yaml").write_text(
        "data: {format: csv, file: rows.csv, text_column: text}\nmodel: {architecture: resnet18}\ntrain: {epochs: 4}\n"
    )
    assert_one_sentence(nsf("doctor"), "resnet18: takes images, and the data holds texts")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ("no data is named", "--preset (waterbirds, celeba", "--features FILE")),
        (["--images", "a", "--csv", "b.csv"], ("--images and --csv exclude each other",)),
        (["--images", "nowhere"], ("nowhere", "is not there")),
        (["--csv", "nowhere.csv"], ("nowhere.csv", "is not there")),
        (["--csv", "nowhere-{split}.csv"], ("nowhere-{split}.csv", "is not there")),
        (["--images", "photos", "--weights", "nowhere.pt"], ("nowhere.pt", "is not there")),
        (["--images", "photos", "--weights", "nowhere"], ("nowhere", "is not there")),
        (["--images", "photos", "--text-column", "x"], ("option --text-column", "says nothing with --images")),
        (["--preset", "waterbirds", "--architecture", "vgg16"], ("option --architecture", "says nothing with --preset")),
        (["--features", "v.safetensors", "--train"], ("option --train", "says nothing with --features")),
        (["--features", "v.safetensors", "--extract-train"], ("option --extract-train", "says nothing with --features")),
        (["--images", "photos", "--train-features", "t"], ("option --train-features", "says nothing with --images")),
        (["--features", "v.safetensors", "--train-features", "t"], ("option --train-features", "give --head, too")),
        (["--csv", "photos"], ("ends in none of .csv, .parquet, .jsonl", "--csv")),
        (["--features", "nowhere.safetensors"], ("nowhere.safetensors", "is not there")),
        (["--images", "photos", "--source", "timm", "--function", "a:b"], ("unknown key 'model.function'",)),
    ],
)
def test_mistakes(options: list[str], words: tuple[str, ...], photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    assert_one_sentence(nsf("init", *options), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize("name", ["v #1", "v: 1", "\U0001f600", "a${b}", "2024", "é 'q' \"d\"", "null", "-x"])
def test_odd_names_stand_in_dvc_yaml_as_they_are(name: str, nsf: Nsf, tmp_path: Path) -> None:
    save_file(planted(), tmp_path / f"{name}.safetensors")
    assert nsf("init", "--features", f"{name}.safetensors", "--quiet").code == 0
    (tmp_path / name).mkdir()
    stage = read_yaml(tmp_path / "dvc.yaml")["stages"]["identify"]
    assert stage["deps"][0] == f"{name}.safetensors".replace("${", "\\${")
    listed = run_process("dvc", "stage", "list", "--all", cwd=tmp_path, check=True)
    assert "identify" in listed.stdout
    assert nsf("init", "--images", f"./{name}" if name == "-x" else name, "--force", "--quiet").code == 0
    assert isinstance(read_yaml(tmp_path / "dvc.yaml")["stages"]["train"]["deps"][0], str)


@pytest.mark.parametrize("obstacle", ["a file .dvc", "a .gitignore of bytes", "a folder .gitignore"])
def test_nothing_is_left_where_version_control_cannot_be_set_up(
    obstacle: str, photos: Path, nsf: Nsf, tmp_path: Path
) -> None:
    if obstacle == "a file .dvc":
        (tmp_path / ".dvc").write_text("")
    elif obstacle == "a .gitignore of bytes":
        (tmp_path / ".gitignore").write_bytes(b"\xff\xfe")
    else:
        (tmp_path / ".gitignore").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert_one_sentence(nsf("init", "--images", "photos"), obstacle.split()[-1] if ".dvc" in obstacle else ".gitignore")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_git_ignores(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("work/\n")
    (tmp_path / "work").mkdir()
    shutil.move(photos, tmp_path / "work/photos")
    assert nsf("init", "work", "--images", "photos", "--quiet").code == 0
    assert (tmp_path / "work/.dvc").is_dir()


def test_git_that_comes_after(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    """Without git DVC works alone; when there is git, its cache stays out of it, and `--force` has DVC see it."""
    assert nsf("init", "--images", "photos", "--quiet").code == 0
    assert run_process("dvc", "config", "core.no_scm", cwd=tmp_path, check=True).stdout == "True\n"
    (tmp_path / ".dvc/cache").mkdir(exist_ok=True)
    (tmp_path / ".dvc/cache/file").write_text("large")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    command = ["git", "status", "--short", "-uall", ".dvc"]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["??", ".dvc/.gitignore", "??", ".dvc/config"]
    assert ".dvc" in nsf("init", "--images", "photos", "--force", "--json").json["written"]
    assert run_process("dvc", "params", "diff", cwd=tmp_path).stderr == ""
    assert "no_scm" not in (tmp_path / ".dvc/config").read_text()


def test_an_unknown_preset_is_wrong_usage(nsf: Nsf) -> None:
    done = nsf("init", "--preset", "waterbird")
    assert done.code == 2 and "waterbirds" in done.stderr


def test_classes_that_are_numbered_from_1(photos: Path, nsf: Nsf, tmp_path: Path) -> None:
    """Told before the work, for `nsf identify` needs a sample of every class."""
    rows = [f"photos/{split}/{name}/00.png,{number},{split}" for split in ("train", "val", "test")
            for number, name in ((1, "cold"), (2, "warm"))]  # fmt: skip
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    (tmp_path / "params.yaml").write_text(
        "data: {format: csv, file: all.csv}\nmodel: {architecture: resnet18, image_size: 32}\ntrain: {epochs: 1}\n"
    )
    assert "the val split has no sample of class 0, and `nsf identify` needs every class" in nsf("doctor").stdout
    done = nsf("train")
    assert done.code == 0 and "The train split has no sample of class 0: number the classes 0, 1, 2" in done.stderr


def test_doctor_before_and_after_training(photos: Path, nsf: Nsf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(
        "data: {format: folder, root: photos}\nmodel: {architecture: resnet18, image_size: 32}\ntrain: {epochs: 4}\n"
    )
    done = nsf("doctor")
    assert done.code == 0, done.stderr
    assert "images of 2 classes (cold, warm)" in done.stdout and "`nsf train` comes first" in done.stdout
    assert nsf("train", "--quiet").code == 0
    before = sorted(tmp_path.rglob("*"))
    said = nsf("doctor", "--json").json
    assert said["splits"]["val"] == {"samples": 20, "classes": {"cold": 10, "warm": 10}, "groups": {}}
    model = said["model"]
    assert (model["head"], model["width"], model["classes"], model["class_names"]) == ("fc", 512, 2, ["cold", "warm"])
    assert model["tried"] == 20 and model["samples_per_second"] > 0 and model["seconds"] >= 0
    for splits in (["val", "test"], ["train", "val", "test"]):
        said = nsf("doctor", "--json", "--extract-splits", json.dumps(splits)).json["model"]
        assert said["seconds"] == pytest.approx(20 * len(splits) / said["samples_per_second"], abs=0.15)
        assert f" s for {' and '.join(splits)}, " in nsf("doctor", "--extract-splits", json.dumps(splits)).stdout
    assert "features of width 512" in nsf("doctor").stdout and "no better than chance" not in nsf("doctor").stdout
    assert (model["classes_matched_by"], model["bias"]) == ("name", True)
    assert sorted(tmp_path.rglob("*")) == before, "doctor writes nothing"
    shutil.rmtree(tmp_path / "photos/test")
    assert "no test split" in nsf("doctor").stdout
    # Of the samples that it tries none can be read.
    monkeypatch.setattr("stages.doctor.TRIED", 1)
    (tmp_path / "photos/val/cold/00.png").write_bytes(b"not an image")
    assert_one_sentence(nsf("doctor"), "none of the 1 samples can be read", "00.png", "check data.root")
    shutil.rmtree(tmp_path / "photos/val")
    assert_one_sentence(nsf("doctor"), "there is no folder for the val split")
