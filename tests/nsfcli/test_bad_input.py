"""Bad input of every kind: each is told in one sentence with exit code 1, and no file appears or changes."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nsfcli.app import app
from tests.conftest import Done, assert_one_sentence, planted

# The artifacts that each command reads, one option each, and the options that name what it writes.
INPUTS = {
    "identify": ("features", "head"),
    "neutralize": ("features", "identify"),
    "eliminate": ("features", "neutralize"),
    "update": ("features", "identify", "neutralize", "eliminate", "head"),
    "evaluate": ("features", "head", "update"),
}
OUTPUTS = {"eliminate": ("out", "curve"), "evaluate": ("out", "metrics", "groups")}
READS = [(command, option) for command, options in INPUTS.items() for option in options]
WRITES = [(command, option) for command in INPUTS for option in OUTPUTS.get(command, ("out",))]
MAKERS = {"features": "extract", "head": "extract"}
# Another kind of artifact for each, as close to the right one as there is.
OTHERS = {
    "features": "identify", "head": "update", "identify": "neutralize", "neutralize": "identify", "eliminate": "update",
    "update": "eliminate",
}  # fmt: skip

PLANTED = planted()
FEATURES, LABELS = PLANTED["features"], PLANTED["labels"]
PLANTED_TEST = planted(seed=1)
Refuse = Callable[..., None]


def standard(command: str, option: str) -> Path:
    """Where a command finds an input by itself."""
    split = "test" if command == "evaluate" else "val"
    return Path("artifacts/features" if option == "features" else "artifacts") / (
        f"{split if option == 'features' else option}.safetensors"
    )


def changed(tensor: torch.Tensor, *index: int, to: float) -> torch.Tensor:
    """A copy with one other value."""
    copy = tensor.clone()
    copy[index] = to
    return copy


def rewrite(source: Path, target: Path, tensors: Mapping[str, torch.Tensor | None], **metadata: str) -> None:
    """An artifact with some of its tensors replaced (None: left out), by another program."""
    with safe_open(source, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = {**(file.metadata() or {}), **metadata}
    kept = {name: tensor for name, tensor in {**held, **tensors}.items() if tensor is not None}
    save_file(kept, target, metadata=said)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, temporary ones included."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def head_option(command: str) -> list[str]:
    """The standard head, which a command given other features does not take by itself."""
    return ["--head", "artifacts/head.safetensors"] if "head" in INPUTS[command] else []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole chain on the standard paths: what each command reads, and what it would write."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "artifacts/features").mkdir(parents=True)
    for seed, split in enumerate(("val", "test")):
        save_file(planted(seed=seed), folder / f"artifacts/features/{split}.safetensors")
    save_file({"weight": torch.eye(2, 8), "bias": torch.zeros(2)}, folder / "artifacts/head.safetensors")
    (folder / "params.yaml").write_text("eliminate: {steps: 2}\nupdate: {steps: 2}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in INPUTS:
            assert CliRunner().invoke(app, [command, "--quiet"]).output == ""
    return folder


@pytest.fixture(autouse=True)
def chain(made: Path, tmp_path: Path) -> None:
    """A copy of the chain, in the folder where the test calls nsf."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def refuse(nsf: Callable[..., Done], tmp_path: Path) -> Refuse:
    """Call nsf with a mistake: one sentence with these words; existing outputs keep their bytes, new ones do not appear."""

    def call(command: str, arguments: list[object], *words: str) -> None:
        fresh = [word for option in OUTPUTS.get(command, ("out",)) for word in (f"--{option}", f"fresh.{option}")]
        for outputs in [], fresh:
            before = contents(tmp_path)
            assert_one_sentence(nsf(command, *outputs, *arguments), *words)
            assert contents(tmp_path) == before

    return call


# ------------------------------------------------------------------------------------- each input of each command


@pytest.mark.parametrize(("command", "option"), READS)
@pytest.mark.parametrize(
    "damage", ["missing", "no safetensors", "empty", "cut off", "header cut off", "folder", "other stage"]
)
def test_an_input_is_not_what_it_should_be(damage: str, command: str, option: str, refuse: Refuse) -> None:
    wrong, right = Path("wrong.safetensors"), standard(command, option).read_bytes()
    maker = f"`nsf {MAKERS.get(option, option)}` makes it"
    if damage == "folder":
        wrong.mkdir()
    elif damage == "other stage":
        wrong.write_bytes((Path("artifacts") / f"{OTHERS[option]}.safetensors").read_bytes())
    elif damage != "missing":
        wrong.write_bytes(
            {"no safetensors": b"label,x,y\n" * 9, "empty": b"", "cut off": right[:-1]}.get(damage, right[:20])
        )
    what = {
        "missing": "there is no such file",
        "folder": "is a folder",
        "other stage": f"is the {OTHERS[option]} artifact of `nsf {OTHERS[option]}`, where the",
    }
    refuse(command, [f"--{option}", wrong], "wrong.safetensors", what.get(damage, "cannot be read as a safetensors"), maker)


def test_standard_paths_are_missing(nsf: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for command in (*INPUTS, "metrics"):
        maker = "evaluate" if command == "metrics" else "extract"
        assert_one_sentence(nsf(command), "there is no such file", f"`nsf {maker}` makes it")
    assert contents(tmp_path / "empty") == {}


def test_a_head_is_missed_where_nsf_extracted(nsf: Callable[..., Done]) -> None:
    """Only features of another program may come without one."""
    for split in ("val", "test"):
        path = Path(f"artifacts/features/{split}.safetensors")
        rewrite(path, path, {}, schema_version="1", kind="features", stage="extract", parameters="{}", inputs="{}")
    Path("artifacts/head.safetensors").unlink()
    for command in ("identify", "update", "evaluate"):
        assert_one_sentence(nsf(command), "artifacts/head.safetensors", "there is no such file")
        same = str(Path("artifacts/features/val.safetensors" if command != "evaluate" else path).resolve())
        assert_one_sentence(nsf(command, "--features", same), "artifacts/head.safetensors", "there is no such file")


@pytest.mark.parametrize("spelled", ["./artifacts/features/../features/val.safetensors", "absolute", "index"])
def test_the_standard_features_by_another_name_have_the_standard_head(spelled: str, nsf: Callable[..., Done]) -> None:
    path = Path("artifacts/features/val.safetensors")
    if spelled == "index":
        index = {"metadata": {}, "weight_map": {"features.00001": "val-00001-of-00001.safetensors"}}
        path.rename(path.with_name("val-00001-of-00001.safetensors"))
        path = path.with_name("val.safetensors.index.json")
        path.write_text(json.dumps(index))
    name = {"absolute": str(path.resolve()), "index": str(path)}.get(spelled, spelled)
    done = nsf("identify", "--json", "--features", name)
    assert all(row["base_accuracy_on_minority"] is not None for row in done.json["classes"]), done.stderr


def test_update_says_that_there_is_nothing_to_fall_back_on(nsf: Callable[..., Done]) -> None:
    # Nothing spurious in them.
    noise = torch.randn(SAMPLES, WIDTH // 2, generator=torch.Generator().manual_seed(0))
    save_file({"features": torch.cat([noise, FEATURES[:, WIDTH // 2 :]], dim=1), "labels": LABELS}, "other.safetensors")
    for command in ("identify", "neutralize", "eliminate", "update"):
        done = nsf(command, "--features", "other.safetensors")
        assert (done.code, "none is given (--head)" in done.stderr) == (0, command == "update"), done.stderr
    assert "Doubtful: " in done.stderr


def test_attributes_of_any_kind_are_left_alone_before_evaluate(nsf: Callable[..., Done]) -> None:
    path = Path("artifacts/features/val.safetensors")
    before = Path("artifacts/update.safetensors").read_bytes()
    for attributes in (LABELS - 100, LABELS.float(), LABELS[:7].clone()):
        rewrite(path, path, {"attributes": attributes})
        for command in ("identify", "neutralize", "eliminate", "update"):
            assert nsf(command).code == 0
        assert Path("artifacts/update.safetensors").read_bytes() == before


def test_a_head_of_one_sigmoid_output(nsf: Callable[..., Done]) -> None:
    """It is the head of two classes whose logits differ by its output."""
    weight, bias = FEATURES[:1].clone(), torch.tensor([0.5])
    for first in (weight, torch.cat([torch.zeros_like(weight), weight])):
        save_file({"weight": first, "bias": bias if len(first) == 1 else torch.tensor([0.0, 0.5])}, "one.safetensors")
        assert nsf("update", "--head", "one.safetensors").code == 0
        done = nsf("evaluate", "--json", "--head", "one.safetensors")
        expected = (PLANTED_TEST["features"] @ weight[0] + bias > 0).long()
        assert torch.equal(load_file("artifacts/evaluate.safetensors")["base_predictions"], expected), done.stderr


@pytest.mark.parametrize("noted", ["{", "3", '{"0/0": "many"}'])
def test_damaged_group_sizes(noted: str, refuse: Refuse) -> None:
    path = standard("evaluate", "features")
    rewrite(path, path, {}, schema_version="1", kind="features", stage="extract", train_groups=noted)
    refuse("evaluate", [], "holds damaged metadata ('train_groups')", "run `nsf extract` again")


def test_more_class_names_than_classes(refuse: Refuse) -> None:
    names = {"schema_version": "1", "class_names": '["a", "b", "c"]'}
    rewrite(Path("artifacts/features/val.safetensors"), Path("named.safetensors"), {}, **names)
    refuse("identify", ["--features", "named.safetensors"], "names 3 classes", "its labels are 0 to 1")
    head = ["--features", "named.safetensors", "--head", "artifacts/head.safetensors"]
    refuse("identify", head, "names 3 classes", "artifacts/head.safetensors has 2")
    rewrite(Path("artifacts/features/val.safetensors"), Path("named.safetensors"), {}, **{**names, "class_names": '["a"]'})
    refuse("identify", ["--features", "named.safetensors"], "names 1 classes", "its labels are 0 to 1")


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_test_features_that_number_the_classes_in_another_order(
    command: str, refuse: Refuse, nsf: Callable[..., Done]
) -> None:
    """Whose labels mean other classes than the head's outputs: the accuracies would be wrong without a word."""
    test, update = Path("artifacts/features/test.safetensors"), Path("artifacts/update.safetensors")

    def named(path: Path, *names: str) -> None:
        rewrite(path, path, {}, schema_version="1", class_names=json.dumps(names))

    source = update if command == "evaluate" else Path("artifacts/head.safetensors")
    named(source, "cat", "dog")
    named(test, "dog", "cat")
    refuse(command, [], "features/test.safetensors", f"calls class 0 'dog', and {source} calls it 'cat'", "same order")
    named(test, "cat", "dog", "wolf")
    refuse(command, [], "features/test.safetensors", "names 3 classes", f"{source} has 2")
    # The same names in other letters, or numbers in place of names, are no others.
    for names in (("Cat", "DOG"), ("0", "1")):
        named(test, *names)
        assert nsf(command, *(["--methods", "erm"] if command == "compare" else [])).code == 0


@pytest.mark.parametrize("names", ["[1, null]", '{"0": "cat"}'])
def test_class_names_that_are_no_names(names: str, refuse: Refuse) -> None:
    path = standard("identify", "features")
    rewrite(path, path, {}, schema_version="1", class_names=names)
    refuse("identify", [], "holds damaged metadata ('class_names')")


def test_a_pipe_in_place_of_an_artifact(refuse: Refuse) -> None:
    os.mkfifo("pipe.safetensors")
    refuse("identify", ["--features", "pipe.safetensors"], "is no regular file (a pipe, perhaps)")


# -------------------------------------------------------------------------------------------- one file on its own

SAMPLES, WIDTH = FEATURES.shape
BAD_TENSORS = {
    # what: (command, option, tensors replaced, words)
    "no features": ("identify", "features", {"features": None}, "no tensor 'features' (it holds attributes, labels)"),
    "no labels": ("identify", "features", {"labels": None}, "no tensor 'labels'"),
    "no head weight": ("identify", "head", {"weight": None}, "no tensor 'weight'"),
    "no minority": ("neutralize", "identify", {"minority": None}, "no tensor 'minority'"),
    "no folded head": ("evaluate", "update", {"folded_weight": None}, "no tensor 'folded_weight'"),
    "float labels": ("identify", "features", {"labels": LABELS.float()}, "'labels' holds float"),
    "boolean labels": ("identify", "features", {"labels": LABELS.bool()}, "'labels' holds boolean"),
    "integer features": ("identify", "features", {"features": FEATURES.long()}, "'features' holds integer"),
    "complex features": ("identify", "features", {"features": FEATURES.to(torch.complex64)}, "'features' holds complex"),
    "float attributes": ("evaluate", "features", {"attributes": LABELS.float()}, "'attributes' holds float"),
    "integer head": ("update", "head", {"bias": torch.zeros(2, dtype=torch.int64)}, "'bias' holds integer"),
    "integer minority": ("update", "identify", {"minority": LABELS}, "'minority' holds integer"),
    "vector features": ("identify", "features", {"features": FEATURES[:, 0].contiguous()}, "shape (200,)", "(n, d)"),
    "image features": ("identify", "features", {"features": FEATURES.reshape(SAMPLES, 2, -1)}, "has shape (200, 2, 4)"),
    "one-hot labels": ("identify", "features", {"labels": torch.eye(2).long()[LABELS]}, "shape (200, 2)", "(n)"),
    "column of labels": ("identify", "features", {"labels": LABELS.unsqueeze(1)}, "'labels' has shape (200, 1)"),
    "head bias as column": ("evaluate", "head", {"bias": torch.zeros(2, 1)}, "'bias' has shape (2, 1)", "(C)"),
    "scalar scale": ("update", "eliminate", {"scale": torch.tensor(1.0)}, "'scale' has shape ()", "(d)"),
    "fewer labels": ("identify", "features", {"labels": LABELS[:-1].clone()}, "'labels' has 199 samples", "200"),
    "fewer attributes": ("evaluate", "features", {"attributes": LABELS[:-1].clone()}, "'attributes' has 199 samples", "200"),
    "fewer ids": ("identify", "features", {"ids": LABELS[:-1].clone()}, "'ids' has 199 samples", "200"),
    "short bias": ("identify", "head", {"bias": torch.zeros(3)}, "'bias' has 3 classes", "2"),
    "short minority": ("neutralize", "identify", {"minority": torch.ones(3).bool()}, "'minority' has 3 samples", "200"),
    "short shift": ("update", "eliminate", {"shift": torch.zeros(7)}, "'shift' has 7 features", "8"),
    "narrow folded head": ("evaluate", "update", {"folded_weight": torch.eye(2, 7)}, "'folded_weight' has 7 features", "8"),
    "empty split": ("identify", "features", {name: t[:0] for name, t in PLANTED.items()}, "is empty", "no samples"),
    "no width": ("identify", "features", {"features": FEATURES[:, :0]}, "'features' is empty", "no features"),
    "one class": ("identify", "features", {"labels": torch.zeros_like(LABELS)}, "one class only", "at least two"),
    "class with no sample": ("identify", "features", {"labels": 2 * LABELS}, "there is no sample of class 1"),
    "negative label": ("identify", "features", {"labels": changed(LABELS, 7, to=-1)}, "'labels' holds -1 in row 7"),
    "negative attribute": ("evaluate", "features", {"attributes": changed(LABELS, 7, to=-2)}, "'attributes' holds -2"),
    "NaN": ("identify", "features", {"features": changed(FEATURES, 42, 3, to=torch.nan)}, "in 1 of 200 rows", "row 42"),
    "infinity": ("evaluate", "features", {"features": changed(FEATURES, 0, 3, to=torch.inf)}, "infinity", "row 0"),
    "two infinities": (
        "identify",
        "features",
        {"features": changed(changed(FEATURES, 9, 0, to=torch.inf), 8, 0, to=-torch.inf)},
        "in 2 of 200 rows",
        "row 8",
    ),
    "float64 beyond float32": (
        "identify", "features", {"features": changed(FEATURES.double(), 5, 0, to=1e300)}, "infinity", "row 5"
    ),
    "NaN in the head": ("identify", "head", {"weight": changed(torch.eye(2, 8), 1, 3, to=torch.nan)}, "'weight'", "row 1"),
    "NaN in the bias": ("evaluate", "head", {"bias": torch.tensor([0.0, torch.nan])}, "'bias'", "row 1"),
    "NaN in the scale": ("update", "eliminate", {"scale": changed(torch.ones(8), 2, to=torch.nan)}, "'scale'", "row 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_tensor_is_wrong(what: str, refuse: Refuse) -> None:
    command, option, tensors, *words = BAD_TENSORS[what]
    rewrite(standard(command, option), Path("wrong.safetensors"), tensors)
    refuse(command, [f"--{option}", "wrong.safetensors"], "wrong.safetensors", *words)


@pytest.mark.parametrize("command", ["identify", "neutralize", "eliminate", "update", "evaluate"])
def test_every_command_checks_the_values_it_reads(command: str, refuse: Refuse, own_features: Callable[..., Path]) -> None:
    path = own_features("wrong", features=changed(FEATURES, 42, 0, to=torch.nan))
    refuse(command, ["--features", path], "'features' holds NaN, infinity or what is beyond float32", "row 42")


@pytest.mark.parametrize("label", [10**12, 2**62])
@pytest.mark.parametrize("head", [[], head_option("identify")])
def test_a_label_beyond_all_memory(head: list[str], label: int, refuse: Refuse, own_features: Callable[..., Path]) -> None:
    """Somebody's sample ids, say."""
    path = own_features("wrong", labels=changed(LABELS, 7, to=label))
    refuse("identify", ["--features", path, *head], "wrong.safetensors", "class" if head == [] else f"label {label}")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"schema_version": "2"}, ("schema version 2", "install the nsf that wrote it")),
        ({"parameters": "{"}, ("damaged metadata",)),
        ({"inputs": "None"}, ("damaged metadata",)),
    ],
)
def test_metadata_cannot_be_read(metadata: dict[str, str], words: tuple[str, ...], refuse: Refuse) -> None:
    rewrite(Path("artifacts/identify.safetensors"), Path("wrong.safetensors"), {}, **metadata)
    refuse("neutralize", ["--identify", "wrong.safetensors"], "wrong.safetensors", *words)


# ------------------------------------------------------------------------------------------ files that do not fit


def test_features_of_another_width(refuse: Refuse, own_features: Callable[..., Path]) -> None:
    narrow = own_features("narrow", features=FEATURES[:, :5].contiguous())
    for command in INPUTS:
        refuse(command, ["--features", narrow, *head_option(command)], "8 features", "narrow.safetensors has 5")


def test_another_number_of_samples(refuse: Refuse, own_features: Callable[..., Path]) -> None:
    fewer = own_features("fewer", **planted(samples=100))
    for command in ("neutralize", "update"):
        refuse(command, ["--features", fewer], "200 samples", "fewer.safetensors has 100")


def test_labels_beyond_the_classes(refuse: Refuse, own_features: Callable[..., Path]) -> None:
    third = own_features("third", labels=torch.arange(200) % 3)
    refuse(
        "identify",
        ["--features", third, "--head", "artifacts/head.safetensors"],
        "label 2",
        "head.safetensors has 2 classes",
    )
    refuse("evaluate", ["--features", third], "label 2", "update.safetensors has 2 classes")


def test_a_head_of_other_classes(refuse: Refuse) -> None:
    save_file({"weight": torch.eye(3, 8), "bias": torch.zeros(3)}, "three.safetensors")
    refuse("identify", ["--head", "three.safetensors"], "there is no sample of class 2, and three.safetensors has 3 classes")
    for command in ("update", "evaluate"):
        refuse(command, ["--head", "three.safetensors"], "2 classes", "three.safetensors has 3")


@pytest.mark.parametrize("command", ["neutralize", "eliminate", "update"])
@pytest.mark.parametrize("change", ["features", "labels"])
def test_other_features_than_those_identify_read(
    command: str, change: str, refuse: Refuse, own_features: Callable[..., Path]
) -> None:
    """One value differs, and everything still fits: only lineage tells."""
    other = own_features("other", **{change: changed(PLANTED[change], 5, to=1 - int(LABELS[5]))})
    again = "neutralize" if command == "eliminate" else "identify"
    refuse(
        command, ["--features", other], "was made from other features than", "other.safetensors", f"run `nsf {again}` again"
    )


def test_artifacts_of_another_chain(refuse: Refuse, nsf: Callable[..., Done]) -> None:
    rewrite(Path("artifacts/neutralize.safetensors"), Path("n.safetensors"), {"centers": torch.zeros(2, 8)})
    refuse(
        "update",
        ["--neutralize", "n.safetensors"],
        "eliminate.safetensors: was made from other neutralize than n.safetensors",
    )
    rewrite(Path("artifacts/identify.safetensors"), Path("i.safetensors"), {"minority": LABELS.bool()})
    refuse(
        "update", ["--identify", "i.safetensors"], "neutralize.safetensors: was made from other identify than i.safetensors"
    )
    rewrite(Path("artifacts/head.safetensors"), Path("h.safetensors"), {"bias": torch.ones(2)})
    assert nsf("update", "--quiet", "--head", "artifacts/head.safetensors").code == 0
    refuse("evaluate", ["--head", "h.safetensors"], "update.safetensors: was made from other head than h.safetensors")


# ------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(("command", "output"), WRITES)
@pytest.mark.parametrize("spelling", ["plain", "roundabout", "link"])
def test_an_output_that_is_an_input(command: str, output: str, spelling: str, refuse: Refuse) -> None:
    for option in INPUTS[command]:
        path = standard(command, option)
        if spelling == "roundabout":
            path = Path("artifacts/features/../..") / path
        elif spelling == "link":
            Path(f"{option}.link").symlink_to(path)
            path = Path(f"{option}.link")
        words = ("is an input of this command", "name another file")
        refuse(command, [*head_option(command), f"--{output}", path], *words)


@pytest.mark.parametrize(("command", "output"), WRITES)
def test_an_output_in_an_unwritable_place(command: str, output: str, refuse: Refuse) -> None:
    Path("file").write_text("no folder")
    Path("folder").mkdir()
    refuse(command, [f"--{output}", "file/out"], "file/out: cannot be written", "name a folder you may write to")
    refuse(command, [f"--{output}", "file/deeper/out"], "file/deeper/out: cannot be written")
    refuse(command, [f"--{output}", "folder"], "folder: is a folder", "name a file")
    refuse(command, [f"--{output}", "x" * 300], "File name too long")


@pytest.mark.parametrize(("command", "output"), WRITES)
def test_an_output_that_is_no_file(command: str, output: str, refuse: Refuse) -> None:
    """A device would be replaced by a file: /dev/null, for whoever may write there."""
    os.mkfifo("pipe")
    refuse(command, [f"--{output}", "pipe"], "pipe: is a device or a pipe", "name a file")
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize(("command", "output"), WRITES)
def test_the_parameters_are_no_output(command: str, output: str, refuse: Refuse) -> None:
    refuse(command, [f"--{output}", "./params.yaml"], "'params.yaml' holds the parameters", f"option --{output}")
    Path("other.yaml").write_text("")
    refuse(command, [f"--{output}", "other.yaml", "--params", "other.yaml"], "'other.yaml' holds the parameters")


def test_that_a_file_may_not_be_read_is_told_by_who_reads_it(
    nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typer would look first, at outputs too, and end in a page of usage. (Root may read everything.)"""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for command in INPUTS:
        # A second time: what it writes is there.
        for _ in range(2):
            done = nsf(command, "--params", "params.yaml")
            assert done.code == 0, (command, done.stderr)
    assert nsf("metrics").code == 0
    assert nsf("init", "artifacts", "--features", "features/val.safetensors", "--head", "head.safetensors").code == 0


@pytest.mark.parametrize("folder", [".", "", "artifacts"])
def test_a_folder_is_no_artifact(folder: str, refuse: Refuse) -> None:
    refuse("identify", ["--features", folder], "is a folder, and the features artifact is a file")


def test_a_file_that_may_not_be_looked_at(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists

    def locked(self: Path, **options: bool) -> bool:
        if "locked" in self.parts:
            raise PermissionError(13, "Permission denied")
        return exists(self, **options)

    monkeypatch.setattr(Path, "exists", locked)
    words = "locked/val.safetensors: cannot be read (Permission denied)", "check who may read it"
    refuse("identify", ["--features", "locked/val.safetensors"], *words)
    refuse("identify", ["--params", "locked/params.yaml"], "locked/params.yaml: cannot be read (Permission denied)")


@pytest.mark.parametrize(("command", "option"), [case for case in READS if case[1] == "head"])
def test_a_head_of_another_model(command: str, option: str, refuse: Refuse) -> None:
    """nsf writes into both files which model they are of."""
    path = standard(command, "features")
    for name, target, model in ((path, "features", "sha256:a"), (Path("artifacts/head.safetensors"), "head", "sha256:b")):
        rewrite(name, name, {}, schema_version="1", kind=target, stage="extract", inputs=json.dumps({"model": model}))
    words = "is the head of another model than the one that", "give features and head of one model"
    refuse(command, ["--features", path, "--head", "artifacts/head.safetensors"], *words)


def test_an_update_of_another_model(refuse: Refuse) -> None:
    """Without a base head beside them, too, the update and the features say which model they are of."""
    test, update = standard("evaluate", "features"), Path("artifacts/update.safetensors")
    for path, kind, stage, model in ((test, "features", "extract", "sha256:a"), (update, "update", "update", "sha256:b")):
        rewrite(path, path, {}, schema_version="1", kind=kind, stage=stage, inputs=json.dumps({"model": model}))
    Path("elsewhere.safetensors").write_bytes(test.read_bytes())
    words = "update.safetensors: is the head of another model than the one that elsewhere.safetensors was extracted with"
    refuse("evaluate", ["--features", "elsewhere.safetensors"], words)


def test_links_in_a_circle(refuse: Refuse) -> None:
    Path("one").symlink_to("other")
    Path("other").symlink_to("one")
    refuse("identify", ["--features", "one"], "one: there is no such file")


@pytest.mark.parametrize(("command", "output"), [case for case in WRITES if case[1] != "out"])
def test_two_outputs_on_one_path(command: str, output: str, refuse: Refuse) -> None:
    Path("both").write_bytes(b"yesterday's")
    refuse(command, ["--out", "both", f"--{output}", "./both"], "both")


def test_no_empty_folder_is_left(refuse: Refuse) -> None:
    refuse("eliminate", ["--out", "new/folder/out", "--curve", "artifacts/neutralize.safetensors"], "is an input")
    assert not Path("new").exists()
    # The outer folder is made first.
    refuse(
        "evaluate", ["--out", "new/out", "--metrics", "new/folder/out", "--groups", "artifacts/head.safetensors"], "an input"
    )
    assert not Path("new").exists()


def test_a_list_in_a_sentence_ends(refuse: Refuse, own_features: Callable[..., Path]) -> None:
    labels = torch.arange(200) * 0
    labels[:100] = 31
    own_features("artifacts/features/val", **{**planted(), "labels": labels})
    save_file({"weight": torch.zeros(32, 8), "bias": torch.zeros(32)}, "artifacts/head.safetensors")
    refuse("identify", [], "no sample of class 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more")


# ------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("command", INPUTS)
def test_a_device_that_is_not_there(command: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", "cuda:7"):
        refuse(command, ["--device", device], "option --device", f"'{device}' is not there", "use auto or cpu")
    for device in ("gpu", "cuda:x", "cpu:", "mps", ""):
        refuse(command, ["--device", device], "option --device", f"'{device}' is no device", "auto, cpu, cuda or cuda:INDEX")


def test_a_command_that_needs_neither_device_nor_parameters(nsf: Callable[..., Done]) -> None:
    assert_one_sentence(nsf("metrics", "--device", "gpu"), "option --device", "'gpu' is no device")
    assert_one_sentence(nsf("metrics", "--params", "none.yaml"), "none.yaml", "there is no such file")


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("steps", "abc", "a whole number"),
        ("steps", "-5", "at least 1"),
        ("steps", "0", "at least 1"),
        ("steps", "1.5", "a whole number"),
        ("learning-rate", "0", "above 0"),
        ("learning-rate", "fast", "a number"),
    ],
)
@pytest.mark.parametrize("command", ["eliminate", "update"])
def test_an_option_s_value(command: str, option: str, value: str, allowed: str, refuse: Refuse) -> None:
    refuse(command, [f"--{option}", value], f"option --{option}", f"{command}.{option}".replace("-", "_"), value, allowed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", 5], "--steps has no effect with --solver auto; it applies to --solver published."),
        (["--learning-rate", 0.1], "--learning-rate has no effect with --solver auto"),
        (["--solver", "published", "--regularization", 3], "--regularization has no effect with --solver published"),
        (
            ["--solver", "published", "--force"],
            "--force has no effect with --solver published; it applies to --solver auto.",
        ),
        (
            ["--solver", "published", "--force", "--train-features", "val.safetensors"],
            "--force and --train-features have no effect with --solver published; they apply to --solver auto.",
        ),
        (["--solver", "published", "--steps", 5, "--seed", 1], ""),
    ],
)
def test_an_option_of_the_other_solver(options: list[object], words: str, nsf: Callable[..., Done]) -> None:
    """It is left out, and not without a word: whoever gives it expects it to change something."""
    done = nsf("update", *options)
    assert done.code == 0 and words in done.stderr and ("no effect" in done.stderr) == bool(words)


def test_a_training_split_that_does_not_fit(refuse: Refuse) -> None:
    for tensors, words in (
        (PLANTED, "holds the samples that the new head is fitted to"),
        ({**PLANTED_TEST, "features": PLANTED_TEST["features"][:, :5].clone()}, "has 5 features, where"),
        ({**PLANTED_TEST, "labels": 0 * PLANTED_TEST["labels"]}, "there is no sample of class 1"),
        ({**PLANTED_TEST, "labels": changed(PLANTED_TEST["labels"], 3, to=7)}, "holds label 7"),
    ):
        save_file(tensors, "train.safetensors")
        refuse("update", ["--train-features", "train.safetensors"], "train.safetensors", words)
    refuse(
        "update", ["--train-features", "nowhere.st"], "nowhere.st", "no such file", "a file of your own (--train-features)"
    )
    for path, tensors, names in (
        ("artifacts/features/val.safetensors", PLANTED, '["cat", "dog"]'),
        ("train.safetensors", PLANTED_TEST, '["dog", "cat"]'),
    ):
        save_file(tensors, path, metadata={"schema_version": "1", "class_names": names})
    refuse("update", ["--train-features", "train.safetensors"], "train.safetensors", "calls class 0 'dog'", "calls it 'cat'")
    shutil.copyfile("artifacts/features/val.safetensors", "mine.safetensors")
    save_file(PLANTED_TEST, "train.safetensors")
    arguments: list[object] = ["--features", "mine.safetensors", "--train-features", "train.safetensors"]
    refuse("update", arguments, "option --train-features", "compares the new head with the base head", "give --head")


def test_more_steps_than_there_can_be(refuse: Refuse) -> None:
    refuse("eliminate", ["--steps", "100000000000000000000"], "eliminate.steps", "below 2147483648")


def test_a_loss_that_rises_is_told(nsf: Callable[..., Done]) -> None:
    for rate, told in (("0.001", False), ("100", True)):
        done = nsf("eliminate", "--out", "fresh", "--learning-rate", rate, "--steps", 3)
        assert done.code == 0 and ("The loss has risen: lower eliminate.learning_rate." in done.stderr) == told


@pytest.mark.parametrize("command", ["eliminate", "update"])
def test_a_learning_rate_at_which_it_diverges(command: str, refuse: Refuse) -> None:
    solver = ["--solver", "published"] if command == "update" else []
    refuse(
        command, [*solver, "--learning-rate", "1e38", "--steps", "9"], "NaN or infinity", f"lower {command}.learning_rate"
    )


@pytest.mark.parametrize("command", ["eliminate", "update"])
def test_a_learning_rate_beyond_float32(command: str, refuse: Refuse) -> None:
    refuse(command, ["--learning-rate", "1e39", "--steps", "1"], "learning_rate")


# ------------------------------------------------------------------------------------------------------- metrics


REPORT = """{"nsf": {"worst_group_accuracy": null, "mean_accuracy": 1, "groups": {}, "classes": {"a": 1, "b": 1}},
 "samples": {SAMPLES}}"""


def test_metrics_of_classes_alone(nsf: Callable[..., Done]) -> None:
    Path("right.json").write_text(REPORT.replace("SAMPLES", '"a": 3, "b": 4'))
    assert nsf("metrics", "--json", "--metrics", "right.json").json["samples"] == {"a": 3, "b": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("accuracy: 1", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        ("[1]", "holds no metrics"),
        ('{"accuracy": 1}', "holds no metrics"),
        ('{"nsf": 1, "samples": 2}', "holds no metrics"),
        (REPORT.replace("SAMPLES", '"a": 3'), "holds no metrics"),
        (10**5 * "[", "cannot be read as JSON"),
        (REPORT.replace("SAMPLES", '"a": 3, "b": "4"'), "holds no metrics"),
        (REPORT.replace("SAMPLES", '"a": 3, "b": 4').replace('"a": 1', '"a": [1]'), "holds no metrics"),
        (REPORT.replace("SAMPLES", '"a": 3, "b": 4').replace("null", '"x"'), "holds no metrics"),
        (REPORT.replace("SAMPLES", '"a": 3, "b": 4').replace('"samples"', '"notes": [1], "samples"'), "holds no metrics"),
    ],
)  # fmt: skip
def test_metrics_that_evaluate_did_not_write(text: str | bytes | None, words: str, nsf: Callable[..., Done]) -> None:
    path = Path("wrong.json")
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert_one_sentence(nsf("metrics", "--metrics", path), "wrong.json", words, "`nsf evaluate` makes it")
    assert_one_sentence(nsf("metrics", "--metrics", "."), "cannot be read (Is a directory)")
