"""Text and image classifiers of Hugging Face transformers, from a local folder or by hub id."""

import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import BadModel
from stages.models import FILE_NAME, Checkpoint, Classifier

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

# What a classifier's folder holds beside its weights: configuration, tokenizer, image processor.
ASSETS = ("*.json", "*.txt", "*.model")
INDEX_SUFFIX = ".index.json"

# A tokenizer that knows no limit gives a number above this one; where the network knows none either, texts are cut at what
# most can read.
NO_LIMIT = 1_000_000
USUAL_LENGTH = 512

# A folder that brings code of its own is refused, where transformers by itself would ask on the terminal and run it.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}


def build(*, name: str, classes: int | None = None, max_length: int | None = None) -> Classifier:
    """A sequence or image classification model with its tokenizer or image processor.

    Args:
        name: a folder that `save_pretrained` wrote, or an id of the Hugging Face hub (downloaded unless cached).
        classes: C of a head to train, new where the model's own has another number; None: the model's own head.
        max_length: tokens a text (both of a pair together), longer ones are cut; None: what tokenizer and network allow.

    Raises:
        BadModel: no such folder or id, no network, a model of another task, several sigmoid outputs (multi-label), a
            regression, or files that cannot be loaded.
    """
    return _build(_folder(name), classes, {"source": "transformers", "name": name, "max_length": max_length})


def rebuild(*, folder: Path, **spec: Any) -> Classifier:
    """The classifier that `nsf train` saved to `folder`."""
    return _build(folder, spec["classes"], {"source": "transformers", **spec})


def _build(folder: Path, classes: int | None, spec: dict[str, Any]) -> Classifier:
    # Loader workers are forked from this process: its tokenizer must not have started threads of its own.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Its functions and Auto classes carry no types.
    transformers: Any = import_module("transformers")
    from transformers.models.auto import modeling_auto

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    where = spec["name"]
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **NO_CODE)
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"cannot be loaded by transformers ({_first_line(error)})", where=where) from error
    if type(config) in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        kind, auto = "image", transformers.AutoModelForImageClassification
    elif type(config) in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        kind, auto = "text", transformers.AutoModelForSequenceClassification
    else:
        raise BadModel(
            f"transformers has no text or image classifier of type {config.model_type}",
            where=where,
            do="give a model of sequence or image classification",
        )
    if classes is None and config.problem_type == "multi_label_classification" and config.num_labels > 1:
        raise BadModel(
            f"has {config.num_labels} sigmoid outputs (multi-label), and nsf repairs one choice among classes",
            where=where,
            do="give a model with one output, or train a head for one label at a time",
        )
    if classes is None and config.problem_type == "regression":
        raise BadModel("is a regression model, and nsf repairs classifiers", where=where, do="give a classifier")
    options: dict[str, Any] = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    try:
        network, report = auto.from_pretrained(folder, output_loading_info=True, dtype="float32", **NO_CODE, **options)
        transform, collate = _preparation(folder, kind, spec["max_length"], network)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise BadModel(f"cannot be loaded by transformers ({_first_line(error)})", where=where) from error
    trained = not report["missing_keys"] and not report["mismatched_keys"]
    names = [config.id2label[index] for index in range(config.num_labels)] if trained and config.num_labels > 1 else None
    if names == [f"LABEL_{index}" for index in range(config.num_labels)]:
        names = None
    # What transformers itself would save: the new head's number of classes among it.
    assets = {path.name: path.read_bytes() for pattern in ASSETS for path in sorted(folder.glob(pattern))}
    assets = {file: content for file, content in assets.items() if not file.endswith(INDEX_SUFFIX)}
    assets["config.json"] = network.config.to_json_string(use_diff=True).encode()
    return Classifier(
        network, transform, {**spec, "classes": classes}, kind, collate, names,
        Checkpoint(folder, {key: key for key in network.state_dict()}) if trained else None, trained, assets,
    )  # fmt: skip


def _preparation(folder: Path, kind: str, max_length: int | None, network: "nn.Module") -> tuple[Any, Any]:
    """(transform, collate) of a text or an image model."""
    transformers: Any = import_module("transformers")
    if kind == "image":
        return partial(_prepare_image, transformers.AutoImageProcessor.from_pretrained(folder, **NO_CODE)), None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **NO_CODE)
    limits = [length for length in (tokenizer.model_max_length, *_positions(network)) if length < NO_LIMIT]
    wanted = max_length or (NO_LIMIT if limits else USUAL_LENGTH)
    return _as_it_is, partial(_tokenize, tokenizer, min([wanted, *limits]))


def _positions(network: "nn.Module") -> list[int]:
    """How many tokens each table of learned positions has a row for; empty where positions are relative."""
    from torch import nn

    tables = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
    ]
    # RoBERTa's begin behind the padding's number, BART's behind an offset.
    return [
        table.num_embeddings - int(getattr(table, "offset", 0)) - (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
    ]


def _as_it_is(sample: Any) -> Any:
    return sample


def _tokenize(tokenizer: Any, max_length: int, texts: Sequence[Any]) -> "dict[str, Tensor]":
    """Texts, or pairs of texts -> token ids, attention mask and the like, (b, longest) int64 each."""
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    first = [pair[0] for pair in pairs]
    second = [pair[1] for pair in pairs] if pairs and pairs[0][1] is not None else None
    return dict(tokenizer(first, second, padding=True, truncation=True, max_length=max_length, return_tensors="pt"))


def _prepare_image(processor: Any, image: "Image") -> "Tensor":
    pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
    return pixels


def _folder(name: str) -> Path:
    """The local folder of a model: itself, or the hub's copy in the cache, downloaded where it is not there."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BadModel("there is no such folder", where="model.name", do=f"check {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [*ASSETS, "*.safetensors"]
    try:
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
            if (folder / "config.json").exists():
                return folder
        except LocalEntryNotFoundError:
            pass
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*ASSETS, "pytorch_model*.bin"]))
        return folder
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BadModel(
            f"'{name}' is no local folder and cannot be fetched from the Hugging Face hub ({_first_line(error)})",
            where="model.name",
            do="connect to the internet once, or give the folder of a downloaded model",
        ) from error


def weights_files(folder: Path) -> list[Path]:
    """The files with a transformers model's weights: safetensors where there are any, PyTorch's otherwise."""
    found = [folder / FILE_NAME] if (folder / FILE_NAME).exists() else sorted(folder.glob("model-*.safetensors"))
    return found or sorted(folder.glob("pytorch_model*.bin"))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].partition(". ")[0].rstrip(".") if text else type(error).__name__
