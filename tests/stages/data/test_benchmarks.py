"""Benchmarks in miniature, each in the layout of its owners: every group, every refusal."""

import json
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.data import open_split
from stages.errors import BadData
from tests.stages.data.conftest import paint

Edit = Callable[[Path], Any]


def replace(file: str, old: str, new: str) -> Edit:
    """Replace the first occurrence of `old`, or with an empty one all the content."""

    def edit(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8")
        assert old in text
        (root / file).write_text(text.replace(old, new, 1) if old else new, encoding="utf-8")

    return edit


def no_images(root: Path) -> None:
    """As where only the lists were unpacked."""
    for path in root.rglob("*.jpg"):
        path.unlink()


def remove(*files: str) -> Edit:
    return lambda root: [(root / file).unlink() for file in files]


def write_csv(path: Path, columns: str, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")


def refused(format: str, root: Path, words: str, split: str = "train", **options: Any) -> None:
    with pytest.raises(BadData, match=words) as caught:
        open_split(split, format=format, root=str(root), **options)
    assert "\n" not in str(caught.value) and str(caught.value).count("; ") <= 1


def assert_travels(split: Any) -> None:
    """Loader workers can take the split along."""
    again = pickle.loads(pickle.dumps(split))
    for position in (0, len(split) - 1):
        assert again.load(position) == split.load(position) and again.locate(position) == split.locate(position)


# ---------------------------------------------------------------------------------------------------------- Waterbirds


@pytest.fixture
def waterbirds(tmp_path: Path) -> Path:
    """Of group y, place there are 1 + 2 y + place in train, one in val, two in test."""
    root = tmp_path / "birds"
    rows: list[tuple[object, ...]] = []
    for y in (0, 1):
        for place in (0, 1):
            for split, count in enumerate((1 + 2 * y + place, 1, 2)):
                for _ in range(count):
                    image = paint(root / f"{y:03d}.Some_Bird/Bird_{len(rows)}.jpg")
                    rows.append((len(rows) + 1, image.relative_to(root), y, split, place, f"/o/ocean/{len(rows)}.jpg"))
    write_csv(root / "metadata.csv", "img_id,img_filename,y,split,place,place_filename", rows)
    return root


def test_waterbirds(waterbirds: Path) -> None:
    train = open_split("train", format="waterbirds", root=str(waterbirds))
    groups = {"landbird/land": 1, "landbird/water": 2, "waterbird/land": 3, "waterbird/water": 4}
    assert train.counts() == {"samples": 10, "classes": {"landbird": 3, "waterbird": 7}, "groups": groups}
    val, test = (open_split(split, format="waterbirds", root=str(waterbirds), on_error="skip") for split in ("val", "test"))
    assert set(val.counts()["groups"].values()) == {1} and set(test.counts()["groups"].values()) == {2}
    assert sorted([*train.ids, *val.ids, *test.ids]) == list(range(22))
    assert train.load(0).size == (12, 8) and train.kind == "image"
    assert train.locate(1) == f"{waterbirds}/000.Some_Bird/Bird_4.jpg (line 6 of {waterbirds}/metadata.csv)"
    assert_travels(train)
    for name in ("waterbird_complete95_forest2water2", "waterbirds_v1.0"):
        waterbirds = waterbirds.rename(waterbirds.with_name(name))
        assert len(open_split("val", format="waterbirds", root=str(waterbirds.parent))) == 4


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (remove("metadata.csv"), r"there is no metadata.csv.*; set data.root to the folder with metadata.csv"),
        (replace("metadata.csv", ",place,", ",where,"), r"metadata.csv: there is no column 'place' \(it has img_id"),
        (replace("metadata.csv", "Bird_0.jpg,0,", "Bird_0.jpg,2,"), "line 2, column 'y': '2' is not 0 or 1"),
        (replace("metadata.csv", "jpg,0,0,0", "jpg,0,0,"), "line 2, column 'place': '' is not 0 or 1"),
        (replace("metadata.csv", "jpg,0,1,", "jpg,0,7,"), "line 3, column 'split': '7' is not train, val or test"),
        (no_images, "line 2 names the image .*Bird_0.jpg, which is not there; unpack"),
        (replace("metadata.csv", "", "img_filename,y,split,place\n"), "the train split holds no sample"),
    ],
)
def test_waterbirds_refused(edit: Edit, words: str, waterbirds: Path) -> None:
    edit(waterbirds)
    refused("waterbirds", waterbirds, words)


# -------------------------------------------------------------------------------------------------------------- CelebA

FACES = ["5_o_Clock_Shadow", "Blond_Hair", "Male", "Smiling", "Young"]


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Three images of each hair colour, gender and smile, one a split; the smile is the youth, too."""
    root = tmp_path / "faces"
    images, splits = [], []
    for blond in (-1, 1):
        for male in (-1, 1):
            for smile in (-1, 1):
                for split in range(3):
                    name = f"{len(images) + 1:06d}.jpg"
                    paint(root / "img_align_celeba" / name)
                    images.append(f"{name} -1 {blond:2d} {male:2d}  {smile:2d} {smile:2d}")
                    splits.append(f"{name} {split}")
    (root / "list_attr_celeba.txt").write_text("\n".join([str(len(images)), " ".join(FACES) + " ", *images]) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")
    return root


def test_celeba(celeba: Path) -> None:
    train = open_split("train", format="celeba", root=str(celeba))
    groups = {"non-blond/female": 2, "non-blond/male": 2, "blond/female": 2, "blond/male": 2}
    assert train.counts() == {"samples": 8, "classes": {"non-blond": 4, "blond": 4}, "groups": groups}
    assert train.ids.tolist() == list(range(0, 24, 3)) and train.labels.tolist() == [0] * 4 + [1] * 4
    assert train.load(2).mode == "RGB"
    assert train.locate(1) == f"{celeba}/img_align_celeba/000004.jpg (line 6 of {celeba}/list_attr_celeba.txt)"
    assert_travels(train)
    other = open_split("test", format="celeba", root=str(celeba), target="Smiling", attribute="Young")
    assert other.counts()["groups"] == {"not Smiling/not Young": 4, "Smiling/Young": 4}
    same = open_split("test", format="celeba", root=str(celeba), target="Male", attribute="Male")
    assert same.counts()["groups"] == {"female/female": 4, "male/male": 4}
    celeba.rename(celeba.with_name("celeba"))
    assert len(open_split("val", format="celeba", root=str(celeba.parent))) == 8


def as_kaggle(root: Path) -> None:
    """Both lists as CSV, and the images one folder deeper."""
    names, rows = "image_id," + ",".join(FACES), (root / "list_attr_celeba.txt").read_text().splitlines()[2:]
    write_csv(root / "list_attr_celeba.csv", names, [row.split() for row in rows])
    rows = (root / "list_eval_partition.txt").read_text().splitlines()
    write_csv(root / "list_eval_partition.csv", "image_id,partition", [row.split() for row in rows])
    remove("list_attr_celeba.txt", "list_eval_partition.txt")(root)
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba/img_align_celeba")


@pytest.mark.parametrize("folder", ["celebA_v1.0", "data", "celeba"])
def test_celeba_as_kaggle_and_wilds_have_it(folder: str, celeba: Path) -> None:
    before = open_split("val", format="celeba", root=str(celeba))
    as_kaggle(celeba)
    after = open_split("val", format="celeba", root=str(celeba))
    assert after.counts() == before.counts() and after.ids.tolist() == before.ids.tolist()
    images = "img_align_celeba/img_align_celeba"
    assert after.locate(0) == f"{celeba}/{images}/000002.jpg (line 3 of {celeba}/list_attr_celeba.csv)"
    assert after.load(0).size == (12, 8)
    moved = celeba.rename(celeba.with_name(folder))
    (moved / images).rename(moved / "flat")
    (moved / "img_align_celeba").rmdir()
    (moved / "flat").rename(moved / "img_align_celeba")
    assert open_split("val", format="celeba", root=str(moved.parent)).load(0).size == (12, 8)


@pytest.mark.parametrize(
    ("edit", "options", "words"),
    [
        (lambda root: None, {"target": "Blond"}, r"no column 'Blond' \(it has image_id, .*; set data.target"),
        (replace("list_attr_celeba.csv", "2.jpg,-1,-1", "2.jpg,-1,0"), {}, "line 3, column 'Blond_Hair': '0' is not -1 or"),
        (replace("list_eval_partition.csv", "02.jpg,1", "02.jpg,3"), {}, "line 3, column 'partition': '3' is not train"),
        (replace("list_eval_partition.csv", "000002.jpg,1\n", ""), {}, "line 3, .* '000002.jpg' is not in list_eval_part"),
        (remove("list_eval_partition.csv"), {}, "there is no list_eval_partition.txt or list_eval_partition.csv; fetch it"),
        (no_images, {}, "line 2 names the image .*000001.jpg, which is not there; unpack"),
    ],
)
def test_celeba_as_kaggle_has_it_refused(edit: Edit, options: dict[str, str], words: str, celeba: Path) -> None:
    as_kaggle(celeba)
    edit(celeba)
    refused("celeba", celeba, words, **options)


@pytest.mark.parametrize(
    ("edit", "options", "words"),
    [
        (
            remove("list_attr_celeba.txt"),
            {},
            "there is no list_attr_celeba.txt or list_attr_celeba.csv, in it or in celeba or .*; set data.root",
        ),
        (remove("list_eval_partition.txt"), {}, "there is no list_eval_partition.txt or list_eval_partition.csv; fetch it"),
        (lambda root: None, {"target": "Blond"}, r"no attribute 'Blond' \(it has 5_o_Clock_.*; set data.target"),
        (lambda root: None, {"attribute": "x"}, "there is no attribute 'x' .*; set data.attribute"),
        (replace("list_attr_celeba.txt", "24\n", "25\n"), {}, "line 1 says '25' images, and 24 follow; fetch"),
        (
            replace("list_attr_celeba.txt", "2.jpg -1 -1", "2.jpg -1  0"),
            {},
            "line 4, column 'Blond_Hair': '0' is not -1 or 1",
        ),
        (replace("list_attr_celeba.txt", "2.jpg -1 -1 -1  -1 -1", "2.jpg -1"), {}, "line 4, column 'Blond_Hair': '' is not"),
        (replace("list_attr_celeba.txt", "2.jpg -1", "2.jpg -1 -1 1"), {}, "cannot be read as a list .*line 4"),
        (replace("list_attr_celeba.txt", "", ""), {}, r"there is no attribute 'Blond_Hair' \(it has none\)"),
        (replace("list_eval_partition.txt", "02.jpg 1", "02.jpg 3"), {}, "line 2, column 'partition': '3' is not train"),
        (replace("list_eval_partition.txt", "000002.jpg 1\n", ""), {}, "line 4, .* '000002.jpg' is not in list_eval_part"),
        (replace("list_eval_partition.txt", "", ""), {}, "list_eval_partition.txt: cannot be read as a list"),
        (no_images, {}, "line 3 names the image .*000001.jpg, which is not there; unpack"),
    ],
)
def test_celeba_refused(edit: Edit, options: dict[str, str], words: str, celeba: Path) -> None:
    edit(celeba)
    refused("celeba", celeba, words, **options)


# ------------------------------------------------------------------------------------------------------------ MultiNLI

LABELS = ("contradiction", "entailment", "neutral")
# The examples of train, dev_matched and dev_mismatched: (gold label, sentence 2); the first sentence is made from these.
EXAMPLES = [
    [("neutral", 'He said "no".'), ("contradiction", "nobody\u2028came"), ("entailment", "NA")],
    [("-", "unsure"), ("contradiction", 'an " alone'), ("entailment", "never")],
    [("neutral", "weiß — 漢字"), ("-", "no gold"), ("contradiction", "It rains.")],
]
NAMES = ("train", "dev_matched", "dev_mismatched")


def write_multinli(root: Path, layout: str, folder: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    kept, index = [], 0
    for name, examples in zip(NAMES, EXAMPLES, strict=True):
        rows = []
        for gold, text in examples:
            rows.append({"gold_label": gold, "genre": "x", "sentence1": f"On: {text}", "sentence2": text, "label1": gold})
            if gold != "-":
                negation = int(any(word in text.lower() for word in ("no", "never")))
                kept.append((index, LABELS.index(gold), negation, len(kept) % 3))
            index += 1
        if layout == "jsonl":
            content = "".join(json.dumps(row) + "\n" for row in rows)
        else:
            # GLUE has the gold label last, lines that end in \r\n, and no examples without a gold label.
            columns = ["gold_label", *list(rows[0])[1:]] if layout == "txt" else [*list(rows[0])[1:], "gold_label"]
            rows = [row for row in rows if layout == "txt" or row["gold_label"] != "-"]
            end = "\n" if layout == "txt" else "\r\n"
            content = end.join(["\t".join(columns), *("\t".join(row[name] for name in columns) for row in rows)]) + end
        stem = name if layout == "tsv" else f"multinli_1.0_{name}"
        (root / folder / f"{stem}.{layout}").write_bytes(content.encode())
    write_csv(root / "metadata_random.csv", ",gold_label,sentence2_has_negation,split", kept)


@pytest.mark.parametrize(
    ("layout", "folder"),
    [("jsonl", ""), ("jsonl", "multinli_1.0"), ("txt", "data"), ("tsv", "MNLI"), ("tsv", "glue_data/MNLI"), ("tsv", "")],
)
def test_multinli(layout: str, folder: str, tmp_path: Path) -> None:
    write_multinli(tmp_path, layout, folder)
    splits = {split: open_split(split, format="multinli", root=str(tmp_path)) for split in ("train", "val", "test")}
    found = {
        int(identity): (split.class_names[label], split.attribute_names[attribute], split.load(position))
        for split in splits.values()
        for position, (label, attribute, identity) in enumerate(zip(split.labels, split.attributes, split.ids, strict=True))
    }
    texts = [(gold, text) for part in EXAMPLES for gold, text in part if gold != "-"]
    negated = ["negation", "negation", "no negation", "no negation", "negation", "no negation", "no negation"]
    assert [found[row] for row in range(7)] == [
        (gold, negation, (f"On: {text}", text)) for (gold, text), negation in zip(texts, negated, strict=True)
    ]
    assert splits["train"].kind == "text" and splits["train"].ids.tolist() == [0, 3, 6]
    assert splits["train"].counts()["groups"] == {"contradiction/no negation": 2, "neutral/negation": 1}
    assert splits["val"].locate(1) == f"line 6 of {tmp_path}/metadata_random.csv"
    assert_travels(splits["train"])


def test_multinli_as_group_dro_has_it(tmp_path: Path) -> None:
    write_multinli(tmp_path, "tsv", "glue_data/MNLI")
    (tmp_path / "data").mkdir()
    (tmp_path / "metadata_random.csv").rename(tmp_path / "data/metadata_random.csv")
    assert len(open_split("val", format="multinli", root=str(tmp_path))) == 2


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (remove("metadata_random.csv"), "there is no metadata_random.csv, in it or in data"),
        (remove("multinli_1.0_train.jsonl"), "there are not all of multinli_1.0_train.jsonl, .*; put them there, or GLUE's"),
        (replace("metadata_random.csv", "split", "part"), "there is no column 'split'"),
        (replace("metadata_random.csv", "\n0,2,", "\n0,3,"), "line 2, column 'gold_label': '3' is not 0 or 1 or 2"),
        (replace("metadata_random.csv", "\n0,2,1", "\n0,2,x"), "column 'sentence2_has_negation': 'x' is not 0 or 1"),
        (replace("metadata_random.csv", "\n0,2,1,0", ""), "has 6 rows, and multinli_1.0_train.jsonl, .* have 7 examples"),
        (
            replace("metadata_random.csv", "\n4,0,", "\n4,1,"),
            "line 5 says entailment, and line 2 of .*multinli_1.0_dev_matched.jsonl contradiction; fetch both files again",
        ),
        (replace("multinli_1.0_dev_matched.jsonl", "", '{"gold_label": "-", "sentence1": "a"}'), "no column 'sentence2'"),
        (replace("multinli_1.0_dev_matched.jsonl", '"}', '"'), "dev_matched.jsonl: line 1 is not valid JSON"),
    ],
)
def test_multinli_refused(edit: Edit, words: str, tmp_path: Path) -> None:
    write_multinli(tmp_path, "jsonl", "")
    edit(tmp_path)
    refused("multinli", tmp_path, words)


# ------------------------------------------------------------------------------------------------------- CivilComments

SHARES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
COLUMNS = ",".join(["", "id", "comment_text", "split", "toxicity", *SHARES, "asian", "identity_any"])


@pytest.fixture
def civilcomments(tmp_path: Path) -> Path:
    """As WILDS writes it: the first column has no name, and comments hold commas, quotes and newlines."""

    def row(number: int, text: str, split: str, toxicity: float, asian: float = 0.0, **shares: float | str) -> list[object]:
        values = [shares.get(name, 0.0) for name in SHARES]
        quoted = '"' + text.replace('"', '""') + '"'
        return [
            number,
            59000 + number,
            quoted,
            split,
            toxicity,
            *values,
            asian,
            int(max(float(value or 0) for value in [*values, asian]) >= 0.5),
        ]

    rows = [
        row(0, "fine", "train", 0.0, male=""),
        row(1, 'a "quoted", one\nover two lines', "train", 0.4999, black=0.5),
        row(2, "weiß 漢字", "train", 0.5),
        row(3, "NA", "train", 0.9, white=1.0, female=0.2),
        row(4, "", "train", 0.0, asian=1.0),
        row(5, "v", "val", 1.0, male=0.49),
        row(6, "t", "test", 0.0, LGBTQ=1),
    ]
    write_csv(tmp_path / "comments/all_data_with_identities.csv", COLUMNS, rows)
    return tmp_path / "comments"


def test_civilcomments(civilcomments: Path) -> None:
    train = open_split("train", format="civilcomments", root=str(civilcomments))
    groups = {"non-toxic/no identity": 2, "non-toxic/identity": 1, "toxic/no identity": 1, "toxic/identity": 1}
    assert train.counts() == {"samples": 5, "classes": {"non-toxic": 3, "toxic": 2}, "groups": groups}
    texts = ["fine", 'a "quoted", one\nover two lines', "weiß 漢字", "NA", ""]
    assert train.kind == "text" and [train.load(position) for position in range(5)] == texts
    assert train.locate(2) == f"line 5 of {civilcomments}/all_data_with_identities.csv"
    assert_travels(train)
    val, test = (open_split(split, format="civilcomments", root=str(civilcomments)) for split in ("val", "test"))
    assert val.counts()["groups"] == {"toxic/no identity": 1} and val.ids.tolist() == [5]
    assert test.counts()["groups"] == {"non-toxic/identity": 1}


def test_civilcomments_with_other_identities(civilcomments: Path) -> None:
    def groups(*identities: str) -> dict[str, int]:
        options = {"root": str(civilcomments), "identities": list(identities)}
        return open_split("train", format="civilcomments", **options).counts()["groups"]

    assert groups("black") == {"non-toxic/not black": 2, "non-toxic/black": 1, "toxic/not black": 2}
    assert groups("black", "white")["toxic/black+white"] == 1
    # WILDS' own column also counts identities that are none of the eight.
    assert groups("identity_any")["non-toxic/identity_any"] == 2
    refused("civilcomments", civilcomments, "there is no column 'blue' .*; set data.identities", identities=["blue"])
    civilcomments.rename(civilcomments.with_name("civilcomments_v1.0"))
    assert len(open_split("val", format="civilcomments", root=str(civilcomments.parent))) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("toxicity", "toxic", "there is no column 'toxicity'"),
        (",muslim", ",islam", "there is no column 'muslim'"),
        ("train,0.5,", "train,much,", "line 5, column 'toxicity': 'much' is not a share from 0 to 1"),
        ("train,0.5,", "train,1.5,", "line 5, column 'toxicity': '1.5' is not a share from 0 to 1"),
        ("train,0.5,", "train,,", "line 5, column 'toxicity': '' is not a share from 0 to 1"),
        ("train,0.5,", "extra,0.5,", "line 5, column 'split': 'extra' is not train, val or test"),
    ],
)
def test_civilcomments_refused(old: str, new: str, words: str, civilcomments: Path) -> None:
    replace("all_data_with_identities.csv", old, new)(civilcomments)
    refused("civilcomments", civilcomments, words)


def test_civilcomments_without_its_file(tmp_path: Path) -> None:
    refused("civilcomments", tmp_path, "there is no all_data_with_identities.csv, in it or in civilcomments_v1.0")


# ------------------------------------------------------------------------------------------------------------ CheXpert

SEXES, RACES = ("Male", "Female"), ("White, non-Hispanic", "Black or African American", "Asian", "")


def patient(number: int) -> str:
    return f"patient{number:05d}"


@pytest.fixture
def chexpert(tmp_path: Path) -> Path:
    """240 patients with an image each, the last 40 of them in valid.csv; three more are left out."""
    root = tmp_path / "CheXpert-v1.0-small"
    columns = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema"
    rows, races = [], []
    for number in range(240):
        part = "train" if number < 200 else "valid"
        path = f"CheXpert-v1.0-small/{part}/{patient(number)}/study1/view1_frontal.jpg"
        paint(root.parent / path)
        finding = ("", "1.0", "0.0")[number % 3] if part == "valid" else ("", "1.0")[number % 5 == 0]
        rows.append((path, SEXES[number % 2], 60, "Frontal", "AP", finding, -1.0))
        races.append((patient(number), SEXES[number % 2], 60, f'"{RACES[number // 2 % 4]}"', "Unknown"))
    out = "CheXpert-v1.0-small/train/{}/study1/view1_frontal.jpg"
    left_out = [(out.format(patient(900)), "Unknown", 0, "Frontal", "AP", "1.0", ""),
                (out.format(patient(901)), "Male", 0, "Frontal", "AP", "1.0", "")]  # fmt: skip
    write_csv(root / "train.csv", columns, [*left_out, *rows[:200]])
    write_csv(root / "valid.csv", columns, rows[200:])
    write_csv(root / "CHEXPERT DEMO.csv", "PATIENT,GENDER,AGE_AT_CXR,PRIMARY_RACE,ETHNICITY",
              [*races, (patient(900), "Unknown", 0, "White", "")])  # fmt: skip
    return root


def as_excel(root: Path) -> None:
    import pandas

    pandas.read_csv(root / "CHEXPERT DEMO.csv").to_excel(root / "CHEXPERT DEMO.xlsx", index=False)
    (root / "CHEXPERT DEMO.csv").unlink()


def chexpert_splits(root: Path) -> dict[str, Any]:
    return {split: open_split(split, format="chexpert", root=str(root)) for split in ("train", "val", "test")}


def test_chexpert(chexpert: Path) -> None:
    splits = chexpert_splits(chexpert)
    assert {name: len(split) for name, split in splits.items()} == {"train": 179, "val": 25, "test": 36}
    ids = np.concatenate([split.ids for split in splits.values()])
    assert sorted(ids.tolist()) == list(range(2, 242)), "the two rows left out count, and no row is in two splits"
    for split in splits.values():
        assert split.class_names == ("finding", "no finding")
        numbers = split.ids - 2
        races = np.array([0, 1, 2, 2])[numbers // 2 % 4]
        assert split.attributes.tolist() == (2 * races + numbers % 2).tolist()
        there = np.where(numbers < 200, numbers % 5 == 0, numbers % 3 == 1)
        assert split.labels.tolist() == there.astype(int).tolist()
        # Of 240 patients a quarter is white, a quarter black, and half other.
        assert np.abs(np.bincount(split.attributes) - len(split) * np.array([1, 1, 1, 1, 2, 2]) / 8).max() < 1
    names = ["white male", "white female", "black male", "black female", "other male", "other female"]
    train = splits["train"]
    assert list(train.attribute_names) == names
    assert set(train.counts()["groups"]) == {f"{label}/{name}" for label in train.class_names for name in names}
    assert train.load(3).size == (12, 8) and patient(int(train.ids[3]) - 2) in train.locate(3)
    assert_travels(train)


def test_chexpert_splits_are_the_same_each_time(chexpert: Path) -> None:
    """These are the rows, and stay so: another split would make results that cannot be compared."""
    first, again = chexpert_splits(chexpert), chexpert_splits(chexpert)
    assert all(first[name].ids.tolist() == again[name].ids.tolist() for name in first)
    assert first["val"].ids.tolist()[:8] == [5, 13, 15, 24, 26, 27, 61, 71]


def test_chexpert_from_excel_and_under_other_folder_names(chexpert: Path) -> None:
    pytest.importorskip("openpyxl")
    before = chexpert_splits(chexpert)["val"]
    as_excel(chexpert)
    after = chexpert_splits(chexpert)["val"]
    assert after.ids.tolist() == before.ids.tolist() and after.attributes.tolist() == before.attributes.tolist()
    assert len(open_split("val", format="chexpert", root=str(chexpert.parent))) == 25
    moved = chexpert.rename(chexpert.with_name("chest"))
    split = open_split("val", format="chexpert", root=str(moved))
    assert split.load(0).size == (12, 8) and split.locate(0).startswith(f"{moved}/")
    (moved / "CheXpert-v1.0-small").mkdir()
    for part in ("train", "valid"):
        (moved / part).rename(moved / "CheXpert-v1.0-small" / part)
    assert open_split("val", format="chexpert", root=str(moved)).load(0).size == (12, 8)


def test_chexpert_without_openpyxl(chexpert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openpyxl")
    as_excel(chexpert)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    refused(
        "chexpert",
        chexpert,
        r"needs the package 'openpyxl'; pip install 'nsf\[tables\]', or save the table as CHEXPERT DEMO.csv",
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (remove("train.csv"), "there is no train.csv, in it or in CheXpert-v1.0-small"),
        (remove("valid.csv"), "valid.csv: there is no such file; fetch it beside train.csv"),
        (
            remove("CHEXPERT DEMO.csv"),
            "DEMO.xlsx: there is no such file, and it tells the patients' race; fetch it .*DEMO.csv",
        ),
        (replace("train.csv", "No Finding", "Normal"), "train.csv: there is no column 'No Finding'"),
        (replace("valid.csv", "Sex", "Gender"), "valid.csv: there is no column 'Sex'"),
        (replace("CHEXPERT DEMO.csv", "PRIMARY_RACE", "RACE"), "DEMO.csv: there is no column 'PRIMARY_RACE'"),
        (replace("train.csv", "AP,1.0", "AP,-1.0"), "line 2, column 'No Finding': '-1.0' is not 0.0 .* or blank"),
        (replace("valid.csv", "patient00200", "p200"), "valid.csv: line 2, column 'Path': .* is not a patient's, as in pat"),
        (replace("CHEXPERT DEMO.csv", "patient00001", "1"), "line 3, column 'PATIENT': '1' is not a patient's"),
        (replace("CHEXPERT DEMO.csv", "", "PATIENT,PRIMARY_RACE\npatient09999,White\n"), "no row has a sex and a patient"),
        (
            replace("CHEXPERT DEMO.csv", "", "PATIENT,PRIMARY_RACE\npatient00001,White\n"),
            "1 rows cannot be split with every",
        ),
        (lambda root: [path.unlink() for path in root.rglob("*.jpg")], "train/.*jpg: there is no such image; set data.root"),
        (
            lambda root: ((root / "CHEXPERT DEMO.csv").unlink(), (root / "CHEXPERT DEMO.xlsx").write_bytes(b"PK")),
            "DEMO.xlsx: (cannot be read as an Excel table; fetch it again|needs the package 'openpyxl')",
        ),
    ],
)
def test_chexpert_refused(edit: Edit, words: str, chexpert: Path) -> None:
    edit(chexpert)
    refused("chexpert", chexpert, words)


def test_every_benchmark_states_its_published_sizes() -> None:
    """The numbers of the papers stand where the reader is, to be compared with `counts`."""
    sizes = {"waterbirds": "3498, 184, 56, 1057", "celeba": "71629, 66874, 22880, 1387", "multinli": "57498, 11158",
             "civilcomments": "148186, 90337, 12731 and 17784"}  # fmt: skip
    for name, words in sizes.items():
        module = __import__(f"stages.data.{name}", fromlist=["read"])
        assert re.sub(r"\s+", " ", module.__doc__).count(words) == 1, name
