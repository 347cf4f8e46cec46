"""predict: classes and probabilities of new samples, by the base and the repaired head side by side."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages import artifacts, models
from stages.data import Split, is_utf8, open_image, unreadable_file
from stages.data.folder import SUFFIXES
from stages.data.table import ROWS, Reader
from stages.encoding import compute_dtype, cut, encoded, head_tensors
from stages.errors import BadData, Mismatch, MissingFile
from stages.loading import attended
from stages.outputs import named_in, outputs
from stages.runtime import Progress, begin, reproducible, silent

if TYPE_CHECKING:
    from torch import Tensor

TABLES = {f".{format}": reader for format, reader in ROWS.items()}


def run(
    *,
    paths: Sequence[Path],
    texts: Sequence[str],
    model: Path,
    own_model: Mapping[str, Any] | None,
    update: Path,
    out: Path | None = None,
    text_column: str = "text",
    second_text_column: str | None = None,
    batch_size: int = 64,
    workers: int | str = 0,
    precision: str = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Predict every sample given; write one CSV line each to `out`.

    Args:
        paths: images, or folders of them; for a model of texts, files of texts: .txt with a text a line, or a
            .csv, .jsonl or .parquet file with a text column.
        texts: texts themselves.
        model, own_model: the base classifier, as for `extract`.
        update: the artifact that holds the repaired head.
        out: a CSV file, or None.
        text_column, second_text_column: of tables of texts.

    Returns:
        `classes` (names); `samples`: for each {"sample", "base", "base_probability", "nsf", "nsf_probability"}: the class
        that is predicted and its probability by either head; `empty_lines`: of .txt files, left out.

    Raises:
        UserError: nothing to predict, a file that cannot be read, or a model that the update does not belong to.
    """
    import torch

    target = begin(device)
    new = artifacts.read("update", update)
    opened = models.open_trained(model, own_model)
    classifier = opened.classifier
    is_text = classifier.kind == "text" or (classifier.kind == "any" and not _images(paths))
    empty = 0
    if is_text:
        found, empty = _texts(paths, texts, text_column, second_text_column)
    else:
        found = _image_files(paths, texts)
    names = new.class_names(len(new["folded_weight"]))
    split = _unlabelled(found, names, kind="text" if is_text else "image")
    with outputs(update) as files, reproducible(seed=0), attended():
        if out is not None:
            images = [content for _, content in found if isinstance(content, Path)]
            files.inputs(model, *named_in(own_model or {}), *paths, *images)
            files.check(out)
        encode, head, _ = cut(classifier, split, target)
        weight, bias = head_tensors(head)
        if weight.shape != new["folded_weight"].shape:
            raise Mismatch(
                f"holds a head of shape {tuple(new['folded_weight'].shape)}, and the model has {tuple(weight.shape)}",
                where=update,
                do="give the model that the features were extracted from",
            )
        given = {"model": opened.fingerprint, "head": artifacts.fingerprint({"bias": bias.cpu(), "weight": weight.cpu()})}
        if any(new.metadata.inputs.get(name, found) != found for name, found in given.items()):
            raise Mismatch("was made for another model", where=update, do="run `nsf extract` and the later stages again")
        heads = {"base": (weight, bias), "nsf": (new["folded_weight"].to(target), new["folded_bias"].to(target))}
        made: dict[str, list[Any]] = {name: [] for name in heads}
        batches = encoded(
            encode, classifier, split,
            batch_size=batch_size, workers=workers, device=target, dtype=compute_dtype(precision, target),
            what="predict", progress=progress,
        )  # fmt: skip
        with closing(batches):
            for features, _ in batches:
                for name, (rows, offset) in heads.items():
                    made[name].append(torch.softmax(features @ rows.T + offset, dim=1).cpu())
        probabilities = {name: torch.cat(parts) for name, parts in made.items()}
        samples = []
        for position, (sample, _) in enumerate(found):
            row: dict[str, Any] = {"sample": sample}
            for name in heads:
                highest = probabilities[name][position].max(dim=0)
                row[name] = names[int(highest.indices)]
                row[f"{name}_probability"] = round(float(highest.values), 6)
            samples.append(row)
        if out is not None:
            files.table(out, _table(samples, probabilities, names))
    return {"classes": names, "samples": samples, "empty_lines": empty}


def _table(
    samples: Sequence[Mapping[str, Any]], probabilities: "Mapping[str, Tensor]", names: Sequence[str]
) -> Iterator[Sequence[Any]]:
    """A line a sample: its class by either head, and the probabilities (n, C) of all classes."""
    yield ["sample", "base", "nsf", *(f"{head}:{name}" for head in probabilities for name in names)]
    for position, row in enumerate(samples):
        shares = [round(float(p), 6) for rows in probabilities.values() for p in rows[position]]
        yield [row["sample"], row["base"], row["nsf"], *shares]


def table_reader(path: Path) -> Reader | None:
    """What reads a file of this name as a table; None where it is none."""
    return TABLES.get(Path(path.name.removesuffix(".gz")).suffix)


def _images(paths: Sequence[Path]) -> bool:
    return any(path.is_dir() or path.suffix.lower() in SUFFIXES for path in paths)


def _image_files(paths: Sequence[Path], texts: Sequence[str]) -> list[tuple[str, Any]]:
    """(name, file) of every image named, those in folders in sorted order."""
    if texts:
        raise BadData("the model takes images, and a text was given", where="option --text", do="name image files")
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not inside:
                raise BadData("holds no images", where=path)
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise MissingFile("there is no such file", where=path, do="name image files, or folders of them")
    if not found:
        raise BadData("nothing to predict", where="predict", do="name image files, or folders of them")
    return [(str(path), path) for path in found]


def _texts(
    paths: Sequence[Path], texts: Sequence[str], column: str, second: str | None
) -> tuple[list[tuple[str, Any]], int]:
    """(the text, the text or pair of texts) of everything named, and how many empty lines are left out."""
    if any(not text.strip() for text in texts):
        raise BadData("is empty", where="option --text", do="give a text")
    if not all(map(is_utf8, texts)):
        raise BadData("is no text in UTF-8", where="option --text", do="give a text in UTF-8")
    single = next((path for path in paths if path.suffix == ".txt"), "option --text" if texts else None)
    if second is not None and single is not None:
        raise BadData(
            f"one text a sample, and the model takes pairs (column '{second}' has the second)", where=single,
            do="give a table with both columns",
        )  # fmt: skip
    found: list[tuple[str, Any]] = [(text, text) for text in texts]
    empty = 0
    for path in paths:
        if path.is_dir():
            raise BadData("is a folder, and the model takes texts", where=path, do="name files of texts, or use --text")
        if not path.is_file():
            raise MissingFile("there is no such file", where=path, do="name files of texts, or use --text")
        reader = table_reader(path)
        if path.suffix != ".txt" and reader is None:
            raise BadData(f"is no .txt, {', '.join(TABLES)} file, and the model takes texts", where=path)
        if reader is None:
            try:
                # By line ends alone: `splitlines` breaks at marks that a text may hold, too.
                lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
            except (OSError, ValueError) as error:
                raise unreadable_file(path, "text", error) from error
            held = [line for line in lines if line.strip()]
            found += [(line, line) for line in held]
            empty += len(lines) - len(held)
            continue
        wanted = {column: "set --text-column", **({second: "set --second-text-column"} if second else {})}
        table = reader(path, wanted)
        for name in wanted:
            table.refuse(table.rows[name].str.strip() == "", name, "a text")
        first = table.rows[column].tolist()
        pairs = zip(first, table.rows[second].tolist(), strict=True) if second else None
        found += [(" | ".join(pair), pair) for pair in pairs] if pairs else [(text, text) for text in first]
    if not found:
        raise BadData("nothing to predict", where="predict", do="name files of texts, or use --text")
    return found, empty


def _unlabelled(found: Sequence[tuple[str, Any]], names: Sequence[str], kind: str) -> Split:
    return Split(
        labels=np.zeros(len(found), dtype=np.int64),
        ids=np.arange(len(found), dtype=np.int64),
        load=partial(_load, [content for _, content in found]),
        locate=partial(_name, [name for name, _ in found]),
        class_names=names,
        ids_are="sample to predict, from 0",
        kind=kind,
    )


def _load(contents: list[Any], position: int) -> Any:
    content = contents[position]
    return open_image(content) if isinstance(content, Path) else content


def _name(names: list[str], position: int) -> str:
    return names[position]
