"""A CSV with a row per image, Waterbirds' metadata.csv among them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.data import open_split
from stages.errors import BadData

Table = Callable[..., Path]


def test_waterbirds_own_table(table: Table) -> None:
    """group_DRO's metadata.csv, with its other columns."""
    path = table(
        "001.Albatross/a.jpg,1,0,0,x",
        "001.Albatross/b.jpg,1,1,1,x",
        "002.Sparrow/c.jpg,0,1,1,x",
        "002.Sparrow/d.jpg,0,2,0,x",
        columns="img_filename,y,split,place,place_filename",
    )
    columns = {"path_column": "img_filename", "label_column": "y", "attribute_column": "place"}
    val = open_split("val", format="csv", file=str(path), **columns, class_names=["landbird", "waterbird"])
    assert val.labels.tolist() == [1, 0] and val.attributes.tolist() == [1, 1] and val.ids.tolist() == [1, 2]
    assert val.class_names == ["landbird", "waterbird"] and val.attribute_names == ["0", "1"]
    assert val.load(0).size == (12, 8)
    assert val.locate(1) == f"{path.parent}/002.Sparrow/c.jpg (line 4 of {path})"


def test_words_as_labels_and_unknown_attributes(table: Table) -> None:
    path = table(
        "a.png,wolf,Train,snow", "b.png,dog,VALID,", "c.png,wolf,dev,grass", "d.png,cat,testing,snow",
        columns="path,label,split,scene",
    )  # fmt: skip
    val = open_split("val", format="csv", file=str(path), attribute_column="scene")
    assert val.class_names == ["cat", "dog", "wolf"] and val.labels.tolist() == [1, 2]
    assert val.attribute_names == ["grass", "snow"] and val.attributes.tolist() == [-1, 0]


def test_images_in_another_folder(table: Table, tmp_path: Path) -> None:
    path = table("images/a.png,0,val", "images/b.png,1,val")
    moved = path.rename(tmp_path / "images" / "list.csv")
    with pytest.raises(BadData, match=r"line 2 names the image .*images/images/a\.png, which is not there; set data\.root"):
        open_split("val", format="csv", file=str(moved))
    assert len(open_split("val", format="csv", file=str(moved), root=str(tmp_path))) == 2


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (("a.png,0,val", "b.png,1,holdout"), {}, "line 3, column 'split': 'holdout' is not train, val or test"),
        (("a.png,,val",), {}, "line 2, column 'label': '' is not a class"),
        (("a.png,0,val",), {"label_column": "y"}, "there is no column 'y' .*; set data.label_column"),
        (("a.png,0,val",), {"attribute_column": "z"}, "there is no column 'z' .*; set data.attribute_column"),
        (("a.png,0,train",), {}, "the val split holds no sample"),
        (("a.png,0,val", "b.png,1,val"), {"class_names": ["one"]}, "data.class_names: names 1 values, and the table has 2"),
    ],
)
def test_what_cannot_be_used(rows: tuple[str, ...], options: dict[str, object], words: str, table: Table) -> None:
    with pytest.raises(BadData, match=words):
        open_split("val", format="csv", file=str(table(*rows)), **options)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"x'])
def test_a_file_that_is_no_table(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(BadData, match=r"t\.csv: "):
        open_split("val", format="csv", file=str(tmp_path / "t.csv"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"there is no such file; check data\.file"):
        open_split("val", format="csv", file=str(tmp_path / "none.csv"))
