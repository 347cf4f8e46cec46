"""Tiny data sets on disk, as their readers expect them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

# Draws an image file of one color, with the folders above it.
Paint = Callable[..., Path]


def paint(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV with images beside it: `table("a.jpg,0,train,1", columns="path,label,split,place")`."""

    def write(*rows: str, columns: str = "path,label,split", images: bool = True) -> Path:
        path = tmp_path / "metadata.csv"
        path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
        for row in rows if images else ():
            paint(tmp_path / row.split(",")[0])
        return path

    return write
