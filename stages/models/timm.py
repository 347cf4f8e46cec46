"""timm's image classifiers, by name. timm is optional: pip install 'nsf[timm]'."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import BadModel
from stages.models import Checkpoint, Classifier, checkpoints, find_head

if TYPE_CHECKING:
    from torch import nn


def build(
    *,
    architecture: str,
    classes: int | None = None,
    weights: str | None = None,
    image_size: int | Sequence[int] | None = None,
) -> Classifier:
    """A timm classifier with a head for `classes` classes, and timm's own evaluation transform for it.

    Args:
        architecture: as in `timm.list_models()`, with or without a weight tag ("resnet50.a1_in1k").
        classes: C; None: as many as the weights have.
        weights: a file with a state dict, or "DEFAULT" for timm's pretrained ones (downloaded); None is random.
        image_size: an edge or [height, width]; None: what the weights were trained on.

    Raises:
        MissingFile, BadModel: timm is not installed, unknown architecture, no linear head, weights that cannot be had.
    """
    timm = _timm()
    if not timm.is_model(architecture):
        near = get_close_matches(architecture.split(".")[0], timm.list_models(), n=1)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models() lists them"
        raise BadModel(f"timm has no image classifier '{architecture}'", where="model.architecture", do=hint)
    checkpoint: Checkpoint | None = None
    if weights is None:
        network = _network(architecture, classes or 2)
    elif checkpoints.is_path(weights):
        state = checkpoints.read(Path(weights))
        network, names = checkpoints.fit(partial(_network, architecture), state, classes, Path(weights), architecture)
        checkpoint = Checkpoint(Path(weights), names)
    elif weights == "DEFAULT":
        network = _pretrained(architecture, classes)
    else:
        raise BadModel(f"'{weights}' is no file", where="model.weights", do="give the path of a state dict, DEFAULT or null")
    find_head(network, architecture)
    size = [image_size, image_size] if isinstance(image_size, int) else image_size and list(image_size)
    config = timm.data.resolve_model_data_config(network)
    if size:
        config["input_size"] = (3, *size)
    transform = timm.data.create_transform(**config, is_training=False)
    spec = {"source": "timm", "architecture": architecture, "classes": classes, "image_size": size}
    return Classifier(network, transform, spec, checkpoint=checkpoint, trained=weights is not None)


def rebuild(*, folder: Path, **spec: Any) -> Classifier:
    """The classifier that `nsf train` saved to `folder`, before its weights are loaded."""
    return build(**spec)


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise BadModel(
            "needs the package timm, which is not installed", where="model.source timm", do="pip install 'nsf[timm]'"
        ) from error
    return timm


def _network(architecture: str, classes: int) -> "nn.Module":
    network: nn.Module = _timm().create_model(architecture, pretrained=False, num_classes=classes)
    return network


def _pretrained(architecture: str, classes: int | None) -> "nn.Module":
    options: Mapping[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        network: nn.Module = _timm().create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        raise BadModel(
            f"the weights of {architecture} cannot be had ({str(error).splitlines()[0]})",
            where="model.weights",
            do="connect to the internet once, or give the path of a state dict",
        ) from error
    return network
