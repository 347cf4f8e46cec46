"""Dominoes: deterministic, balanced as asked for, no image in two splits, damage told in one sentence."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.data import open_split
from stages.data.dominoes import read_idx
from stages.errors import BadData
from tests.conftest import REPOSITORY

ROOT = str(REPOSITORY / "data/dominoes")
SIZES = {"train_size": 400, "val_size": 200, "test_size": 100}


def dominoes(split: str, **options: object):
    return open_split(split, format="dominoes", **{"root": ROOT, **SIZES, **options})


@pytest.mark.parametrize(("split", "samples", "bias"), [("train", 400, 0.99), ("val", 200, 0.9), ("test", 100, 0.5)])
def test_sizes_and_bias(split: str, samples: int, bias: float) -> None:
    made = dominoes(split)
    assert len(made) == samples
    assert np.bincount(made.labels).tolist() == [samples // 2] * 2
    for label in range(2):
        agrees = made.attributes[made.labels == label] == label
        assert agrees.mean() == pytest.approx(bias, abs=1 / samples)
    assert made.class_names == ["coat", "dress"] and made.attribute_names == ["zero", "one"]


def test_same_arguments_same_dominoes_and_another_seed_others() -> None:
    first, again, other = dominoes("val"), dominoes("val"), dominoes("val", seed=1)
    for name in ("labels", "attributes", "ids"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    images = [[split.load(position).tobytes() for position in range(20)] for split in (first, again, other)]
    assert images[0] == images[1] != images[2]


def test_train_and_val_share_no_item_and_no_digit() -> None:
    seen = []
    for split in ("train", "val"):
        made = dominoes(split, train_size=6000, val_size=2000)
        words = [made.locate(position).split() for position in range(len(made))]
        assert [int(word[1]) for word in words] == made.ids.tolist(), "an id is the item's place in its file"
        seen.append(({word[1] for word in words}, {word[6] for word in words}))
    assert not seen[0][0] & seen[1][0] and not seen[0][1] & seen[1][1]


def test_a_domino_is_its_digit_above_its_item() -> None:
    made = dominoes("test")
    image = np.asarray(made.load(7))
    assert image.shape == (56, 28, 3)
    _, item, _, _, _, _, digit, *_ = made.locate(7).split()
    raw = Path(ROOT)
    digits = read_idx(raw / "MNIST/raw/t10k-images-idx3-ubyte")
    items = read_idx(raw / "FashionMNIST/raw/t10k-images-idx3-ubyte")
    assert np.array_equal(image[:28, :, 0], digits[int(digit)]) and np.array_equal(image[28:, :, 1], items[int(item)])
    sample, label, attribute, identity = made[7]
    assert (np.asarray(sample).tolist(), label, attribute, identity) == (
        image.tolist(), made.labels[7], made.attributes[7], int(item)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"items": ["coat", "hat"]}, "'hat' is no item of Fashion-MNIST"),
        ({"items": ["coat", "dress", "bag"]}, "3 items and 2 digits do not pair off"),
        ({"digits": [1, 1]}, "do not pair off"),
        ({"items": ["coat", "bag"]}, "no image of class 8"),
        ({"val_size": 50000}, "set data.val_size between"),
        ({"val_size": 1}, "0 images of coat are asked for"),
        ({"root": "/nowhere"}, "there is no such file, gzipped or not"),
    ],
)
def test_what_cannot_be_made(options: dict[str, object], words: str) -> None:
    with pytest.raises(BadData, match=words):
        dominoes("val", **options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x00\x00\x08\x01\x00\x00\x00\x05\x01\x02", "is cut short"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "is no idx file of unsigned bytes"),
        (b"", "is no idx file"),
    ],
)
def test_a_damaged_idx_file(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(BadData, match=words):
        read_idx(tmp_path / "labels")
    (tmp_path / "labels").unlink()
    (tmp_path / "labels.gz").write_bytes(gzip.compress(content))
    with pytest.raises(BadData, match=words):
        read_idx(tmp_path / "labels")


def test_a_download_cut_off(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "copy")
    file = next((tmp_path / "copy/MNIST/raw").glob("train-images*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadData, match="cannot be read or unzipped; fetch the file again"):
        dominoes("val", root=str(tmp_path / "copy"))
