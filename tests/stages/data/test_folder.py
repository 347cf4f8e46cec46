"""An image folder tree: classes over all splits, usual split names, other files passed over."""

from pathlib import Path

import pytest
from PIL import Image

from stages.data import open_split
from stages.errors import BadData
from tests.stages.data.conftest import paint


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split in ("train", "valid", "test"):
        for name, images in (("dog", 2), ("cat", 3)):
            for index in range(images):
                paint(tmp_path / split / name / f"{index}.jpg")
    return tmp_path


def test_classes_labels_and_ids(tree: Path) -> None:
    split = open_split("val", format="folder", root=str(tree))
    assert split.class_names == ["cat", "dog"]
    assert split.labels.tolist() == [0, 0, 0, 1, 1] and split.ids.tolist() == [0, 1, 2, 3, 4]
    assert split.attributes is None
    assert split.locate(3) == str(tree / "valid/dog/0.jpg")
    assert split.load(3).size == (12, 8) and split[3][1:] == (1, None, 3)
    assert "valid/" in split.ids_are


def test_a_class_missing_from_one_split_keeps_its_number(tree: Path) -> None:
    paint(tree / "train/ant/0.png")
    split = open_split("test", format="folder", root=str(tree))
    assert split.class_names == ["ant", "cat", "dog"] and set(split.labels.tolist()) == {1, 2}


def test_other_files_hidden_files_and_deeper_folders(tree: Path) -> None:
    (tree / "test/cat/notes.txt").write_text("x")
    paint(tree / "test/cat/.hidden.jpg")
    paint(tree / "test/.cache/0.jpg")
    paint(tree / "test/cat/deeper/é.PNG".replace(".PNG", ".png"))
    split = open_split("test", format="folder", root=str(tree))
    assert split.class_names == ["cat", "dog"] and len(split) == 6
    assert split.load(3).mode == "RGB" and split.locate(3).endswith("deeper/é.png")


def test_a_link_that_leads_nowhere_is_no_file_of_another_type(tree: Path) -> None:
    """As git-annex and DVC leave them where the data has not been fetched."""
    (tree / "test/cat/1.jpg").unlink()
    (tree / "test/cat/1.jpg").symlink_to(tree / "nowhere.jpg")
    split = open_split("test", format="folder", root=str(tree))
    assert len(split) == 5
    with pytest.raises(BadData, match=r"cat/1\.jpg: there is no such image"):
        split.load(1)
    (tree / "test/emu").symlink_to(tree / "nowhere")
    with pytest.raises(BadData, match=r"test/emu: is a link that leads nowhere; bring its data here"):
        open_split("test", format="folder", root=str(tree))


def test_what_is_missing(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"there is no folder for the val split; name it one of val, valid, validation"):
        open_split("val", format="folder", root=str(tree / "train"))
    (tmp_path / "bare/val").mkdir(parents=True)
    with pytest.raises(BadData, match="holds no class folders; lay the images out as root/split/class/image"):
        open_split("val", format="folder", root=str(tmp_path / "bare"))
    (tmp_path / "bare/val/cat").mkdir()
    with pytest.raises(BadData, match="holds no images"):
        open_split("val", format="folder", root=str(tmp_path / "bare"))


def test_an_image_that_is_none(tree: Path) -> None:
    (tree / "test/cat/0.jpg").write_bytes(b"not an image")
    split = open_split("test", format="folder", root=str(tree))
    with pytest.raises(BadData, match=r"0\.jpg: cannot be read as an image"):
        split.load(0)
    (tree / "test/cat/1.jpg").unlink()
    with pytest.raises(BadData, match=r"1\.jpg: there is no such image"):
        split.load(1)


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I", "tif"), ("F", "tif")])
def test_an_image_of_more_than_8_bits(mode: str, suffix: str, tree: Path) -> None:
    """Pillow would make it all white."""
    Image.new(mode, (4, 4), 300).save(tree / f"test/cat/0.{suffix}")
    split = open_split("test", format="folder", root=str(tree))
    deep = next(index for index in range(len(split.ids)) if split.locate(index).endswith(f"0.{suffix}"))
    with pytest.raises(BadData, match=rf"0\.{suffix}: an image has more than 8 bits a channel .*; convert it to 8 bits"):
        split.load(deep)
