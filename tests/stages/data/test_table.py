"""Tables with a row per image or text: CSV, Waterbirds' metadata.csv among them, Parquet and JSON lines."""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from stages.data import number, open_split
from stages.errors import BadData
from tests.stages.data.conftest import paint

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


def test_numbers_with_leading_zeros_are_names() -> None:
    """ "01" and "1" are two classes, and "01" and "02" are not the second and third of three."""
    numbers, names = number(["1", "01", "1"])
    assert (numbers.tolist(), names) == ([1, 0, 1], ["01", "1"])
    assert number(["02", "01"])[1] == ["01", "02"]
    assert number(["2", "1"])[1] == ["0", "1", "2"]


def test_whole_numbers_that_pandas_wrote_as_fractions(table: Table) -> None:
    """A column with gaps is one of floats: 10.0 is class 10, not the one after 1.0."""
    rows = [f"{n}.png,{n}.0,val,{'' if n == 3 else f'{n % 2}.0'}" for n in range(12)]
    path = table(*rows, columns="path,label,split,scene")
    val = open_split("val", format="csv", file=str(path), attribute_column="scene")
    assert val.labels.tolist() == list(range(12)) and val.class_names[10] == "10"
    assert val.attributes.tolist() == [-1 if n == 3 else n % 2 for n in range(12)] and val.attribute_names == ["0", "1"]
    others = open_split("val", format="csv", file=str(table("a.png,0.5,val", "b.png,1.0,val")))
    assert others.class_names == ["0.5", "1.0"]


def test_a_row_without_a_path(table: Table) -> None:
    path = table("a.png,0,val", "b.png,1,val")
    path.write_text(path.read_text().replace("b.png", " "))
    with pytest.raises(BadData, match=r"line 3, column 'path': '.*' is not a path"):
        open_split("val", format="csv", file=str(path))
    path.write_text(path.read_text().replace("1,val", "1,test"))
    assert len(open_split("val", format="csv", file=str(path))) == 1


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


# ------------------------------------------------------------------------------------------------- what CSV files hold


def test_a_row_longer_than_the_header_does_not_shift(tmp_path: Path) -> None:
    """pandas takes the first field for an index, and the others for the columns beside them."""
    for content in ("text,label,split\nwell, yes,1,val\n", "text,label,split\nyes,1,val\nwell, no,0,val\n"):
        (tmp_path / "t.csv").write_text(content)
        with pytest.raises(
            BadData, match=r"t\.csv: (the first row has more fields than the header; put texts|.*line 3, saw 4)"
        ):
            open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("rows", ["a;1;val\n", "a;1;val\nb, c;0;val\n", "b, c;0;val\n"])
def test_columns_that_other_marks_separate(mark: str, rows: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(("text;label;split\n" + rows).replace(";", mark))
    words = "its first line has (tabs|';') and no comma; separate the columns by commas"
    with pytest.raises(BadData, match=words):
        open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")


def test_lines_are_right_past_newlines_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label,split\n"two\nlines",1,val\n\n  \n"say ""no""",0,val\nx,,val\n')
    with pytest.raises(BadData, match=r"line 7, column 'label': '' is not a class"):
        open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")
    (tmp_path / "t.csv").write_text(
        'text,label,split\n"two\nlines",1,val\n\n"say ""no""",0,val\n' + f"{'x' * 200000},1,val\n"
    )
    val = open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")
    assert [val.locate(position) for position in range(3)] == [f"line {n} of {tmp_path}/t.csv" for n in (2, 5, 6)]
    assert [val.load(position) for position in range(2)] == ["two\nlines", 'say "no"'] and val.ids.tolist() == [0, 1, 2]


def test_rows_are_the_same_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.data.PART", 2)
    rows = [f"{n},{n % 2},{'val' if n else 'train'},{'x' * n}\n" for n in range(5)]
    (tmp_path / "t.csv").write_text("text, label ,split,other\n" + "".join(rows))
    val = open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")
    assert [val.load(n) for n in range(4)] == ["1", "2", "3", "4"] and val.ids.tolist() == [1, 2, 3, 4]
    assert val.locate(3) == f"line 6 of {tmp_path}/t.csv"
    (tmp_path / "t.csv").write_text("text,label,split,other\n" + "".join(rows[:4]) + "4, 4,0,val,x\n")
    with pytest.raises(BadData, match="line 6, saw 5"):
        open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")


def test_bom_spaces_in_the_header_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text, label ,split\r\n„Größe“ — 漢字,1,val\r\nNA,0,val\r\n".encode("utf-8-sig"))
    val = open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")
    assert [val.load(0), val.load(1)] == ["„Größe“ — 漢字", "NA"] and val.labels.tolist() == [1, 0]


@pytest.mark.parametrize("header", ["text,label,split,text", "text,label,split, text"])
def test_a_column_that_is_there_twice(header: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{header},,\na,1,val,b,,\n")
    with pytest.raises(BadData, match=r"t\.csv: has 2 columns 'text'; rename or remove all but one"):
        open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text")
    (tmp_path / "t.csv").write_text("text,label,split,other,other\na,1,val,b,c\n")
    assert open_split("val", format="csv", file=str(tmp_path / "t.csv"), text_column="text").load(0) == "a"


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl"])
def test_the_line_that_is_no_utf8_is_told(name: str, tmp_path: Path) -> None:
    rows = ['{"text": "a"}', '{"text": "caf\xe9"}'] if "jsonl" in name else ["text,label,split", "a,1,val", "caf\xe9,0,val"]
    content = "\n".join(rows).encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(BadData, match=rf"{name}: line {len(rows)} is no text in UTF-8; save the file as UTF-8"):
        open_split("val", format=name.split(".")[1], file=str(tmp_path / name), text_column="text")


def test_a_missing_image_is_named_when_it_is_loaded_and_a_wrong_root_at_once(table: Table) -> None:
    path = table(*(f"{n}.png,0,val" for n in range(103)))
    (path.parent / "7.png").unlink()
    val = open_split("val", format="csv", file=str(path))
    with pytest.raises(BadData, match=r"7\.png: there is no such image"):
        val.load(7)
    for each in range(100):
        (path.parent / f"{each}.png").unlink(missing_ok=True)
    with pytest.raises(BadData, match=r"line 2 names the image .*0\.png"):
        open_split("val", format="csv", file=str(path))


def test_a_column_of_ids_is_no_class(table: Table) -> None:
    with pytest.raises(BadData, match="a class or attribute is 123456789012, and numbers are allowed up to 99999"):
        open_split("val", format="csv", file=str(table("a.png,123456789012,val")))


# ------------------------------------------------------------------------------------------------------ three formats

ROWS = [
    {"text": 'Grüße, „x“\n"quoted"', "second": "", "label": 1, "split": "train", "male": True, "young": 0.0},
    {"text": "it's", "second": "b", "label": 0, "split": "valid", "male": False, "young": 1.0},
    {"text": " two  spaces ", "second": "漢字", "label": 1, "split": "val", "male": None, "young": 1.0},
    {"text": "NA", "second": "null", "label": 1, "split": "val", "male": True, "young": None},
    {"text": "1" * 5000, "second": "d", "label": 1, "split": "dev", "male": True, "young": 0.0},
]


def write(folder: Path, format: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"table.{format}"
    if format == "csv":
        words = [{key: "" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}"
                  if isinstance(value, float) else value for key, value in row.items()} for row in rows]  # fmt: skip
        pandas.DataFrame(words, dtype=object).to_csv(path, index=False)
    elif format == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        pytest.importorskip("pyarrow")
        pandas.DataFrame(rows).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_texts_are_the_same_in_every_format(format: str, tmp_path: Path) -> None:
    options = {"file": write(tmp_path, format, ROWS), "text_column": "text"}
    train, val = (open_split(split, format=format, **options, attribute_column="male") for split in ("train", "val"))
    assert (train.kind, train.load(0)) == ("text", ROWS[0]["text"])
    assert [val.load(position) for position in range(4)] == [row["text"] for row in ROWS[1:]]
    assert val.class_names == ["0", "1"] and val.labels.tolist() == [0, 1, 1, 1] and val.ids.tolist() == [1, 2, 3, 4]
    assert val.attribute_names == ["false", "true"] and val.attributes.tolist() == [0, -1, 1, 1]
    assert val.counts() == {
        "samples": 4, "classes": {"0": 1, "1": 3}, "groups": {"0/false": 1, "1/true": 2}
    }  # fmt: skip
    again = pickle.loads(pickle.dumps(val))
    assert again[1] == (" two  spaces ", 1, -1, 2) and again.locate(1) == val.locate(1)


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_pairs_and_several_attributes(format: str, tmp_path: Path) -> None:
    options = {"file": write(tmp_path, format, ROWS[1:]), "text_column": "text", "second_text_column": "second"}
    val = open_split("val", format=format, **options, attribute_column=["male", "young"], class_names=["no", "yes"])
    assert val.load(0) == ("it's", "b") and val.load(2) == ("NA", "null")
    assert val.attribute_names == ["false+1", "true+0"] and val.attributes.tolist() == [0, -1, -1, 1]
    assert val.counts()["groups"] == {"no/false+1": 1, "yes/true+0": 1}
    rows = [{"text": "t", "label": 1, "split": "val", "a": a, "b": b} for a, b in (("q+r", "s"), ("q", "r+s"))]
    options["file"] = write(tmp_path, format, rows)
    with pytest.raises(BadData, match=r"the attributes \('q\+r', 's'\) and \('q', 'r\+s'\) would both be 'q\+r\+s'; rename"):
        open_split("val", format=format, file=options["file"], text_column="text", attribute_column=["a", "b"])


@pytest.mark.parametrize(("format", "place"), [("csv", "line 3"), ("jsonl", "line 2"), ("parquet", r"row 1 \(from 0\)")])
def test_an_empty_text_is_refused_or_left_out(format: str, place: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": label, "split": "val"} for text, label in (("a", 0), (" ", 1), ("c", 1))]
    options = {"format": format, "file": write(tmp_path, format, rows), "text_column": "text"}
    with pytest.raises(BadData, match=f"{place}, column 'text': ' ' is not a text; .*set data.drop_empty to true"):
        open_split("val", **options)
    val = open_split("val", **options, drop_empty=True)
    assert val.labels.tolist() == [0, 1] and val.ids.tolist() == [0, 2] and val.load(1) == "c"
    assert "row 1" not in val.locate(1) and val.locate(1) != val.locate(0)


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_one_file_per_split(format: str, tmp_path: Path) -> None:
    """A class that one split lacks keeps its number, and so does an attribute."""
    parts = {"train": [("a", "dog", "x"), ("b", "cat", "y")], "valid": [("c", "dog", "y")], "test": [("d", "ant", "")]}
    for name, rows in parts.items():
        write(tmp_path, format, [dict(zip(("text", "label", "place"), row, strict=True)) for row in rows])
        (tmp_path / f"table.{format}").rename(tmp_path / f"{name}.{format}")
    options = {"file": str(tmp_path / f"{{split}}.{format}"), "text_column": "text", "attribute_column": "place"}
    val, test = (open_split(split, format=format, **options) for split in ("val", "test"))
    assert val.class_names == ["ant", "cat", "dog"] and val.labels.tolist() == [2] and val.attributes.tolist() == [1]
    assert (val.load(0), val.ids.tolist(), test.attributes.tolist()) == ("c", [0], [-1])
    assert f"valid.{format}" in val.locate(0) and f"valid.{format}" in val.ids_are
    (tmp_path / f"valid.{format}").unlink()
    with pytest.raises(BadData, match="there is no file for the val split; put one of val, valid, validation, dev for"):
        open_split("val", format=format, **options)
    assert open_split("train", format=format, **options).class_names == ["ant", "cat", "dog"]


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_tables_that_gzip_packed(format: str, tmp_path: Path) -> None:
    """Read as they are, and what is wrong with them is told with its line."""
    packed = tmp_path / f"table.{format}.gz"
    options = {"format": format, "file": str(packed), "text_column": "text", "drop_empty": False}
    packed.write_bytes(gzip.compress(Path(write(tmp_path, format, ROWS)).read_bytes()))
    val = open_split("val", **options)
    assert val.load(0) == "it's" and val.locate(0) == f"line {4 if format == 'csv' else 2} of {packed}"
    packed.write_bytes(gzip.compress(Path(write(tmp_path, format, [*ROWS, {**ROWS[2], "text": ""}])).read_bytes()))
    with pytest.raises(BadData, match=f"line {8 if format == 'csv' else 6}, column 'text': '' is not a text"):
        open_split("val", **options)
    for damaged in (packed.read_bytes()[:-20], b"text,label,split\n", packed.read_bytes()[:40] + b"x" * 40, b""):
        packed.write_bytes(damaged)
        with pytest.raises(BadData, match=r"cannot be read as|there is no column"):
            open_split("val", **options)


def test_images_from_json_lines(tmp_path: Path) -> None:
    paint(tmp_path / "images/é.png")
    rows = [{"path": "images/é.png", "label": 3, "split": 1}]
    val = open_split("val", format="jsonl", file=write(tmp_path, "jsonl", rows), on_error="skip")
    assert val.kind == "image" and val.load(0).size == (12, 8) and val.labels.tolist() == [3]
    assert val.counts() == {"samples": 1, "classes": {"3": 1}, "groups": {}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a", "label": 0, "split": "val"}\n\n{"text": \n', r"line 3 is not valid JSON"),
        ('{"text": "a", "label": 0, "split": "val"}\n["a", 0, "val"]\n', r"line 2 is no JSON object"),
        (10**5 * "[", r"line 1 is not valid JSON"),
        ('\n{"text": "a", "label": {"x": 1}, "split": "val"}\n', r"line 2, column 'label': \{'x': 1\} is not text"),
        ('{"text": "a", "split": "val"}\n', r"there is no column 'label' \(it has text, split\); set data.label_column"),
        ('{"text": "a", "label": 1, "split": "val"}\n\n{"text": "a", "split": "val"}', r"line 3, column 'label': '' is not"),
        ("", r"there is no column 'text' \(it has none\)"),
        (b"\xff\xfe", "line 1 is no text in UTF-8; save the file as UTF-8"),
        ('{"text": "bad \\ud800", "label": 1, "split": "val"}\n', r"line 1, column 'text': 'bad \\ud800' is not text"),
    ],
)
def test_json_lines_that_cannot_be_used(content: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadData, match=words):
        open_split("val", format="jsonl", file=str(path), text_column="text")


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadData, match=r"t\.parquet: cannot be read as Parquet"):
        open_split("val", format="parquet", file=str(tmp_path / "t.parquet"))
    file = write(tmp_path, "parquet", [{"path": "a", "label": [1, 2], "split": "val"}])
    with pytest.raises(BadData, match=r"row 0 \(from 0\), column 'label': \[1, 2\] is not text, a number"):
        open_split("val", format="parquet", file=file)
    with pytest.raises(BadData, match=r"there is no column 'y' \(it has path, label, split\); set data.label_column"):
        open_split("val", format="parquet", file=file, label_column="y")


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_a_second_text_alone_and_no_file(format: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"data\.second_text_column: is set, and data.text_column is not"):
        open_split("val", format=format, file="x", second_text_column="b")
    with pytest.raises(BadData, match=r"there is no such file; check data\.file"):
        open_split("val", format=format, file=str(tmp_path / "none"), text_column="a")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(BadData, match=r"Parquet needs the package 'pyarrow'; pip install 'nsf\[tables\]'"):
        open_split("val", format="parquet", file="t.parquet")
