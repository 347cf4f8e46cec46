"""params.yaml and the options beside it: what is read, which one wins, and what a mistake is told."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsfcli.app import COMMANDS
from nsfcli.params import load, option_name
from nsfcli.sections import (
    SECTIONS,
    CallableModel,
    CelebAData,
    CheXpertData,
    CivilCommentsData,
    CsvData,
    DominoesData,
    FolderData,
    HuggingFaceData,
    JsonlData,
    MultiNLIData,
    ParquetData,
    TimmModel,
    TorchvisionModel,
    TransformersModel,
    WaterbirdsData,
)
from stages.errors import BadParameter, MissingFile
from tests.conftest import REPOSITORY, Done, assert_one_sentence

# The sections that each command with parameters uses.
USED = {
    "train": ("train", "model", "data"),
    "extract": ("extract", "model", "data"),
    "export": ("model",),
    "predict": ("model",),
    **{name: (name,) for name in ("identify", "neutralize", "eliminate", "update", "evaluate", "compare")},
}
# A section that lacks nothing, for each variant of data and model.
VARIANTS = {
    TorchvisionModel: "{source: torchvision}",
    TimmModel: "{source: timm, architecture: resnet18}",
    TransformersModel: "{source: transformers, name: folder}",
    CallableModel: "{source: callable, function: module:function}",
    DominoesData: "{format: dominoes}",
    FolderData: "{format: folder, root: images}",
    CsvData: "{format: csv, file: images.csv}",
    ParquetData: "{format: parquet, file: images.parquet}",
    JsonlData: "{format: jsonl, file: images.jsonl}",
    HuggingFaceData: "{format: huggingface, root: folder}",
    WaterbirdsData: "{format: waterbirds, root: folder}",
    CelebAData: "{format: celeba, root: folder}",
    MultiNLIData: "{format: multinli, root: folder}",
    CivilCommentsData: "{format: civilcomments, root: folder}",
    CheXpertData: "{format: chexpert, root: folder}",
}
# Every parameter's option: command, section, key, and a params.yaml with which the key may stand.
OPTIONS = [
    pytest.param(
        command, section, key, f"{section}: {VARIANTS.get(kind, '')}\n", id=f"{command}{option_name(section, key, command)}"
    )
    for command, sections in USED.items()
    for section in sections
    for key, kind in {key: kind for kind in SECTIONS[section] for key in kind.model_fields}.items()
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, without a params.yaml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(command: str, text: str | bytes | None, *words: str, **options: str) -> None:
    """Loading is refused in one sentence that holds these words; `text` is params.yaml, or None where there is none."""
    if text is not None:
        Path("params.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BadParameter) as caught:
        load(command, {f"{section}__steps": None for section in USED[command]} | options)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    for word in words:
        assert word in sentence, (word, sentence)


# ---------------------------------------------------------------------------------------------------- what is read


def test_without_a_file_the_defaults_hold() -> None:
    sections = load("update", {"update__seed": None})
    assert list(sections) == ["update"]
    values = sections["update"].model_dump()
    assert values.keys() == {"solver", "regularization", "steps", "learning_rate", "seed"}
    assert (values["solver"], values["learning_rate"], values["seed"]) == ("auto", 1e-3, 0)
    assert values["steps"] >= 1


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "update:\n", "update: {}\n"])
def test_an_empty_file_or_section_is_the_defaults(text: str, folder: Path) -> None:
    before = load("update", {})["update"]
    (folder / "params.yaml").write_text(text)
    assert load("update", {})["update"] == before


def test_values_come_from_the_file(folder: Path) -> None:
    (folder / "params.yaml").write_text("eliminate:\n  steps: 350\ndata: {format: folder, root: images}\n")
    sections = load("eliminate", {"eliminate__steps": None, "eliminate__learning_rate": None})
    assert sections["eliminate"].model_dump() == {"steps": 350, "learning_rate": 1e-3}
    assert sections["data"].model_dump() == {"format": "folder", "root": "images", "on_error": "stop"}


def test_another_file_can_be_named(folder: Path) -> None:
    (folder / "params.yaml").write_text("eliminate: {steps: 1}\n")
    (folder / "other.yaml").write_text("eliminate: {steps: 2}\n")
    assert load("eliminate", {}, Path("other.yaml"))["eliminate"].model_dump()["steps"] == 2


def test_options_win_over_the_file(folder: Path) -> None:
    (folder / "params.yaml").write_text("eliminate: {steps: 350, learning_rate: 0.5}\n")
    section = load("eliminate", {"eliminate__steps": "7", "eliminate__learning_rate": None})["eliminate"]
    assert section.model_dump() == {"steps": 7, "learning_rate": 0.5}


def test_one_word_is_a_list_of_one(folder: Path) -> None:
    assert load("compare", {"compare__methods": "erm"})["compare"].methods == ["erm"]
    for spelled in ("erm,auto", "erm, auto", "[erm, auto]"):
        assert load("compare", {"compare__methods": spelled})["compare"].methods == ["erm", "auto"]
    (folder / "params.yaml").write_text("compare: {methods: erm}\n")
    with pytest.raises(BadParameter, match=r"compare\.methods is 'erm', and allowed is a list") as caught:
        load("compare", {})
    assert "did you mean" not in str(caught.value)


def test_1e_3_is_a_number(folder: Path) -> None:
    """YAML 1.1 reads text here, and so would PyYAML."""
    (folder / "params.yaml").write_text("eliminate: {learning_rate: 1e-4}\n")
    assert load("eliminate", {})["eliminate"].model_dump()["learning_rate"] == 0.0001
    assert load("eliminate", {"eliminate__learning_rate": "1e-3"})["eliminate"].model_dump()["learning_rate"] == 0.001


TEXT, LIST = "data__root", "data__class_names"
READINGS = {
    "text": (TEXT, "photos #2", "photos #2"),
    "text that YAML takes for a number": (TEXT, "2024", "2024"),
    "text that YAML takes for null": (TEXT, "~", "~"),
    "text that YAML takes for a map": (TEXT, "a: b", "a: b"),
    "text that YAML takes for a list": (TEXT, "[old]", "[old]"),
    "text that YAML takes for a comment": (TEXT, "#x", "#x"),
    "no date": (TEXT, "2024-13-45", "2024-13-45"),
    "null where text or null will do": ("data__text_column", "null", None),
    "null where only text will do": (TEXT, "null", "null"),
    "a list": (LIST, "[yes, no]", ["yes", "no"]),
    "words": (LIST, "yes, no", ["yes", "no"]),
    "one word": (LIST, "yes", ["yes"]),
    "no list": (LIST, "null", None),
    "a text or a list of them": ("data__attribute_column", "sex", "sex"),
    "a list of texts or a text": ("data__attribute_column", "[sex, race]", ["sex", "race"]),
    "a truth": ("data__drop_empty", "true", True),
    "a number": ("train__epochs", "2", 2),
    "a number or a word": ("train__workers", "auto", "auto"),
    "numbers": ("model__image_size", "32, 48", [32, 48]),
    "a number or numbers": ("model__image_size", "64", 64),
}


@pytest.mark.parametrize(("option", "text", "value"), READINGS.values(), ids=READINGS)
def test_an_option_is_read_as_its_parameter_wants_it(option: str, text: str, value: Any) -> None:
    options = {"data__format": "huggingface", "data__root": "r", option: text}
    section, key = option.split("__")
    assert getattr(load("train", options)[section], key) == value


def test_numbers_with_commas_are_a_list() -> None:
    options = {"data__format": "dominoes", "data__items": "bag,boot", "data__digits": "4,5", "data__test_bias": "null"}
    section = load("train", options)["data"].model_dump()
    assert (section["items"], section["digits"], section["test_bias"]) == (["bag", "boot"], [4, 5], None)


# ------------------------------------------------------------------------------------------- mistakes in params.yaml

MISTAKES = {
    "unknown key": ("eliminate: {stepps: 3}", "'eliminate.stepps'", "'steps'"),
    "unknown key, none near": ("eliminate: {q: 3}", "'eliminate.q'", "known keys: steps, learning_rate"),
    "unknown section": ("elimnate: {steps: 3}", "'elimnate'", "'eliminate'"),
    "unknown section, none near": ("q: 3", "'q'", "known sections: data, model, train"),
    "wrong type": ("eliminate: {steps: many}", "eliminate.steps", "'many'", "a whole number"),
    "a fraction": ("eliminate: {steps: 2.5}", "eliminate.steps", "2.5", "a whole number"),
    "null": ("eliminate: {steps: null}", "eliminate.steps", "a whole number"),
    "a list": ("eliminate: {steps: [1]}", "eliminate.steps", "a whole number"),
    "number for text": ("model: {architecture: 18}", "model.architecture", "18", "text"),
    "below its range": ("eliminate: {steps: 0}", "eliminate.steps", "0", "at least 1"),
    "above its range": ("update: {seed: 2147483648}", "update.seed", "at least 0", "below 2147483648"),
    "an open end": ("eliminate: {learning_rate: 0}", "eliminate.learning_rate", "above 0"),
    "nan": ("eliminate: {learning_rate: .nan}", "eliminate.learning_rate", "a number above 0"),
    "bool for int": ("eliminate: {steps: true}", "eliminate.steps", "True", "a whole number"),
    "bool for float": ("eliminate: {learning_rate: true}", "eliminate.learning_rate", "True", "a number"),
    "wrong choice": ("update: {solver: publishd}", "update.solver", "'publishd'", "did you mean published?"),
    "wrong choice in a list": ("extract: {splits: [val, tst]}", "extract.splits", "'tst'", "did you mean test?"),
    "text for a list": ("extract: {splits: val}", "extract.splits", "a list"),
    "a list too short": ("model: {image_size: [3]}", "model.image_size", "a list of 2"),
    "wrong data format": ("data: {format: dominos}", "data.format", "'dominos'", "'dominoes'"),
    "another format's key": ("data: {format: folder, root: a, file: b}", "'data.file'", "known keys: format, root"),
    "missing key": ("data: {format: csv}", "'data.file'", "--data-file"),
    "missing data format": ("data: {root: x}", "'format'", "--data-format", "dominoes, folder, csv"),
    "bad YAML": ("eliminate:\n  steps: 1\nupdate: [\n", "not valid YAML", "line 4"),
    "a section given twice": ("update: {}\nupdate: {}\n", 'not valid YAML in line 2 (found duplicate key "update").'),
    "no date": ("update: {seed: 2024-13-45}", "not valid YAML", "month", "in quotes"),
    "deeply nested": ("update: " + 5000 * "[", "nested too deeply"),
    "a tab": ("eliminate:\n\tsteps: 3", "not valid YAML", "line 2"),
    "a key given twice": ("eliminate:\n  steps: 1\n  steps: 2\n", "line 3", "duplicate key", "steps"),
    "two documents": ("eliminate: {}\n---\nupdate: {}\n", "not valid YAML", "line 2"),
    "a Python object": ("eliminate: !!python/object:os.system x", "not valid YAML", "line 1"),
    "a key that is no text": ("eliminate: {3: 4}", "key 3 of section 'eliminate' is no text", "put it in quotes"),
    "a key of an option that is no text": (
        "model: {source: callable, function: 'a:b', options: {3: 4}}",
        "key 3 of model.options is no text",
        "put it in quotes",
    ),
    "a format that is a list": ("data: {format: [folder], root: x}", "data.format is ['folder']"),
    "a section that is a number": ("eliminate: 3", "'eliminate'", "3", "indent its keys"),
    "a section that is a list": ("eliminate: [steps, 3]", "'eliminate'", "indent its keys"),
    "a file that is a list": ("- steps\n", "holds no sections", "data, model, train"),
    "a file that is text": ("steps", "holds no sections", "data, model, train"),
    "no text": (b"\xff\xfe\x00", "is no text in UTF-8", "save it as UTF-8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_file_key_and_what_is_allowed(mistake: str) -> None:
    text, *words = MISTAKES[mistake]
    refuse("eliminate", text, "params.yaml", *map(str, words))


def test_a_named_file_is_missing() -> None:
    with pytest.raises(MissingFile, match=r"^nowhere\.yaml: .*--params\.$"):
        load("eliminate", {}, Path("nowhere.yaml"))


def test_a_link_that_leads_nowhere_is_no_missing_file(folder: Path) -> None:
    (folder / "params.yaml").symlink_to("nowhere.yaml")
    refuse("eliminate", None, "params.yaml: cannot be read (No such file or directory)")


def test_a_pipe_is_read_by_no_one(folder: Path) -> None:
    """What starts the processes of a stage has read it before the stage does."""
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadParameter, match=r"^pipe: is a pipe, and can be read only once; name a file\.$"):
        load("eliminate", {}, Path("pipe"))


def test_a_folder_is_no_file(folder: Path) -> None:
    with pytest.raises(BadParameter, match="cannot be read"):
        load("eliminate", {}, folder)


@pytest.mark.parametrize("command", USED)
def test_a_typo_is_found_by_every_command(command: str, folder: Path, nsf: Callable[..., Done]) -> None:
    """Also in a section that the command does not use, and before any data is asked for."""
    wrong = "extract" if command == "train" else "train"
    (folder / "params.yaml").write_text(f"data: {{format: folder, root: x}}\n{wrong}: {{batchsize: 3}}\n")
    assert_one_sentence(nsf(command), "params.yaml", f"'{wrong}.batchsize'", "'batch_size'")


# --------------------------------------------------------------------------------------------- mistakes in an option


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("eliminate", {"eliminate__steps": "abc"}, ("option --steps", "eliminate.steps", "'abc'", "a whole number")),
        ("eliminate", {"eliminate__steps": "-5"}, ("option --steps", "-5", "at least 1")),
        ("eliminate", {"eliminate__steps": "[1"}, ("option --steps", "'[1'", "a whole number")),
        ("eliminate", {"eliminate__steps": ""}, ("option --steps", "a whole number")),
        ("eliminate", {"eliminate__steps": "true"}, ("option --steps", "a whole number")),
        ("update", {"update__solver": "publish"}, ("option --solver", "update.solver", "did you mean published?")),
        (
            "compare",
            {"compare__methods": "erm,aftr"},
            ("option --methods", "compare.methods is 'aftr'", "did you mean afr?"),
        ),
        (
            "train",
            {"data__format": "folder", "data__root": "a", "train__weight_decay": ".inf"},
            ("option --weight-decay", "at most 100"),
        ),
        ("train", {"data__format": "cvs"}, ("--data-format", "data.format", "'cvs'", "'csv'")),
        ("train", {"data__format": "csv"}, ("'data.file'", "--data-file")),
        ("train", {}, ("no data is named", "--data-format")),
        ("train", {"data__format": "folder", "data__root": "a", "data__file": "b"}, ("option --data-file", "'data.file'")),
    ],
)
def test_a_mistake_names_the_option(command: str, options: dict[str, str], words: tuple[str, ...]) -> None:
    refuse(command, None, *words, **options)


def test_a_right_option_mends_a_wrong_file(folder: Path) -> None:
    (folder / "params.yaml").write_text("eliminate: {steps: many}\n")
    assert load("eliminate", {"eliminate__steps": "5"})["eliminate"].model_dump()["steps"] == 5


# ------------------------------------------------------------------------------------- every parameter has its option


def test_every_section_is_used_by_a_command() -> None:
    """But distributed, which says how commands are started."""
    assert {section for sections in USED.values() for section in sections} == set(SECTIONS) - {"distributed"}
    assert set(USED) <= set(COMMANDS)


@pytest.mark.parametrize("command", USED)
def test_options_stand_on_the_help_page(command: str, nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    page = nsf(command, "--help").stdout
    for section in USED[command]:
        for key, field in {key: field for kind in SECTIONS[section] for key, field in kind.model_fields.items()}.items():
            line = next((line for line in page.splitlines() if f"{option_name(section, key, command)} " in line), "")
            assert field.description and field.description in line, (key, line)


@pytest.mark.parametrize(("command", "section", "key", "text"), OPTIONS)
def test_every_parameter_has_an_option(
    command: str, section: str, key: str, text: str, folder: Path, nsf: Callable[..., Done]
) -> None:
    """An empty value, which no parameter allows, is refused under the option's name: so it has arrived."""
    (folder / "params.yaml").write_text(text if text.startswith("data") else f"data: {{format: dominoes}}\n{text}")
    name = option_name(section, key, command)
    assert_one_sentence(nsf(command, name, ""), f"{name}:", f"{section}.{key} is ''")


def test_the_demo_s_file_lists_every_key() -> None:
    """What stands in params.yaml is what `dvc params diff` shows."""
    from ruamel.yaml import YAML

    content = YAML(typ="safe", pure=True).load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    assert set(content) == set(SECTIONS)
    for name, section in load("train", {}, REPOSITORY / "params.yaml").items():
        assert set(content[name]) == set(type(section).model_fields), name
