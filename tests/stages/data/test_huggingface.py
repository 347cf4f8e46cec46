"""Data sets that Hugging Face `datasets` saved to disk: images and texts, ClassLabel and plain columns."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.data import open_split
from stages.errors import BadData

datasets = pytest.importorskip("datasets")


def save(folder: Path, features: dict[str, Any] | None = None, **splits: dict[str, list[Any]]) -> str:
    made = {name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()}
    if features is not None:
        made = {name: data.cast(datasets.Features({**data.features, **features})) for name, data in made.items()}
    datasets.DatasetDict(made).save_to_disk(folder / "set")
    return str(folder / "set")


def test_images_with_class_labels(tmp_path: Path) -> None:
    images = [Image.new(mode, (12, 8 + n)) for n, mode in enumerate(("RGB", "L", "RGBA"))]
    labels = {"label": datasets.ClassLabel(names=["dog", "cat"]), "place": datasets.ClassLabel(names=["sea", "land"])}
    train = {"image": images[:1], "label": [0], "place": [0]}
    root = save(tmp_path, labels, train=train, validation={"image": images, "label": [1, 0, 1], "place": [1, -1, 1]})
    val = open_split("val", format="huggingface", root=root, attribute_column="place")
    assert val.class_names == ["dog", "cat"] and val.labels.tolist() == [1, 0, 1] and val.ids.tolist() == [0, 1, 2]
    assert val.attribute_names == ["sea", "land"] and val.attributes.tolist() == [1, -1, 1]
    assert [(val.load(n).mode, val.load(n).size) for n in range(3)] == [("RGB", (12, 8 + n)) for n in range(3)]
    assert val.counts() == {"samples": 3, "classes": {"dog": 1, "cat": 2}, "groups": {"cat/land": 2}}
    assert pickle.loads(pickle.dumps(val)).load(2).size == (12, 10) and "row 2 (from 0)" in val.locate(2)


def test_texts_with_plain_columns(tmp_path: Path) -> None:
    """Classes and attributes are numbered over all splits; several attributes make one."""
    columns = ("text", "second", "label", "male", "young")
    train = dict(zip(columns, (["a"], ["b"], ["ant"], [True], [1]), strict=True))
    test = dict(zip(columns, (["é\n漢", "c"], ["", "d"], ["dog", "cat"], [False, True], [None, 0]), strict=True))
    options = {"format": "huggingface", "root": save(tmp_path, train=train, test=test), "text_column": "text"}
    split = open_split("test", **options, attribute_column=["male", "young"])
    assert split.class_names == ["ant", "cat", "dog"] and split.labels.tolist() == [2, 1]
    assert split.attribute_names == ["true+0", "true+1"] and split.attributes.tolist() == [-1, 0]
    assert (split.kind, split.load(0)) == ("text", "é\n漢")
    with pytest.raises(BadData, match=r"row 0 \(from 0\), column 'second': the text is empty; .*data.drop_empty"):
        open_split("test", **options, second_text_column="second")
    pairs = open_split("test", **options, second_text_column="second", drop_empty=True)
    assert pairs.load(0) == ("c", "d") and pairs.ids.tolist() == [1] and pairs.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"text_column": "text", "label_column": "y"},
            r"there is no column 'y' \(it has text, label, other\); set data.lab",
        ),
        ({"text_column": "t"}, "there is no column 't' .*; set data.text_column"),
        ({}, "there is no column 'image' .*; set data.image_column"),
        ({"image_column": "text"}, "column 'text' holds Value.*, no images; cast the column to datasets.Image"),
        ({"text_column": "text", "label_column": "other"}, r"row 1 \(from 0\), column 'other': there is no class"),
        ({"text_column": "text", "attribute_column": "z"}, "there is no column 'z' .*; set data.attribute_column"),
        ({"second_text_column": "text"}, "data.second_text_column: is set, and data.text_column is not"),
        ({"text_column": "text", "class_names": ["x"]}, "data.class_names: names 1 values, and the table has 2"),
        ({"text_column": "text", "class_names": ["x", "x"]}, "data.class_names: names two values 'x'; give every value a"),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    root = save(tmp_path, dev={"text": ["a", "b"], "label": [0, 1], "other": [0, None]})
    with pytest.raises(BadData, match=words):
        open_split("val", format="huggingface", root=root, **options)


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = save(tmp_path, train={"text": ["a"], "label": [0]})
    with pytest.raises(BadData, match=r"there is no val split \(it has train\); name it one of val, valid, validation, dev"):
        open_split("val", format="huggingface", root=root, text_column="text")
    with pytest.raises(BadData, match="is a single Dataset, without splits"):
        open_split("train", format="huggingface", root=f"{root}/train", text_column="text")
    with pytest.raises(BadData, match=r"cannot be read as a data set .*; set data.root"):
        open_split("train", format="huggingface", root=str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadData, match=r"needs the package 'datasets'; pip install 'nsf\[datasets\]'"):
        open_split("train", format="huggingface", root=root)


def test_an_image_that_is_gone(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(image)
    made = datasets.Dataset.from_dict({"image": [{"path": str(image), "bytes": None}, None], "label": [0, 1]})
    made = made.cast_column("image", datasets.Image())
    root = tmp_path / "set"
    datasets.DatasetDict(test=made).save_to_disk(root)
    split = open_split("test", format="huggingface", root=str(root))
    assert split.load(0).size == (4, 4)
    with pytest.raises(BadData, match=r"row 1 \(from 0\) cannot be read as an image; replace it"):
        split.load(1)
