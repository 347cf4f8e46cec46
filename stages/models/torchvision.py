"""torchvision's image classifiers, by name."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import BadModel
from stages.models import Checkpoint, Classifier, checkpoints, find_head

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

# What all of torchvision's ImageNet weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# An image is resized to this multiple of the crop before the center crop: ImageNet's usual 256 / 224.
RESIZE_RATIO = 256 / 224


def build(
    *,
    architecture: str,
    classes: int | None = None,
    weights: str | None = None,
    image_size: int | Sequence[int] = 224,
) -> Classifier:
    """A torchvision classifier with a head for `classes` classes.

    Args:
        architecture: as in `torchvision.models.list_models()`.
        classes: C; None: as many as the weights have.
        weights: a file with a state dict, or a torchvision weight name ("DEFAULT", "IMAGENET1K_V2"), downloaded by
            torchvision; None starts from random weights (from torch's global generator). The head is new wherever C is
            not the weights' own.
        image_size: an edge (resize the shorter side to 256/224 of it, crop its center), or [height, width] (resize to
            just that).

    Raises:
        MissingFile, BadModel: unknown architecture or weight name, no linear head, or weights that cannot be had or do
            not fit.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        near = get_close_matches(architecture, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "torchvision.models.list_models() lists them"
        raise BadModel(f"torchvision has no image classifier '{architecture}'", where="model.architecture", do=hint)
    checkpoint: Checkpoint | None = None
    if weights is None:
        network = _network(architecture, classes or 2)
    else:
        state, where = _weights(architecture, weights)
        network, names = checkpoints.fit(partial(_network, architecture), state, classes, where, architecture)
        checkpoint = Checkpoint(where, names)
    find_head(network, architecture)
    spec = {
        "source": "torchvision",
        "architecture": architecture,
        "classes": classes,
        "image_size": image_size if isinstance(image_size, int) else list(image_size),
    }
    return Classifier(
        network, partial(prepare, size=image_size), spec, checkpoint=checkpoint, trained=checkpoint is not None
    )


def rebuild(*, folder: Path, **spec: Any) -> Classifier:
    """The classifier that `nsf train` saved to `folder`, before its weights are loaded: they are not filled in at random."""
    import torch

    # RegNet works its widths out with tensors, for which there must be numbers.
    with suppress(NotImplementedError), torch.device("meta"):
        model = build(**spec)
        if model.network.state_dict().keys() >= {name for name, _ in model.network.named_buffers()}:
            model.network.to_empty(device="cpu")
            return model
    return build(**spec)


def _network(architecture: str, classes: int) -> "nn.Module":
    from torchvision import models

    # The auxiliary classifiers of these two serve training from scratch at full size; the head is the same without.
    extra = {"aux_logits": False} if architecture in ("googlenet", "inception_v3") else {}
    if architecture == "googlenet":
        extra["init_weights"] = True
    network: nn.Module = models.get_model(architecture, weights=None, num_classes=classes, **extra)
    return network


def _weights(architecture: str, weights: str) -> "tuple[dict[str, Tensor], Path]":
    """A state dict, and the file that it lies in."""
    if checkpoints.is_path(weights):
        return checkpoints.read(Path(weights)), Path(weights)
    import pickle

    import torch
    from torchvision.models import get_model_weights

    choices = get_model_weights(architecture)
    if weights != "DEFAULT" and weights not in choices.__members__:
        raise BadModel(
            f"{architecture} has no weights '{weights}'",
            where="model.weights",
            do=f"use null, the path of a state dict, DEFAULT or {', '.join(choices.__members__)}",
        )
    chosen = choices[weights]
    file = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
    try:
        # torchvision alone would unpickle what lies in its cache; the hash is of what is downloaded.
        state: Mapping[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadModel(
            f"is not the state dict that torchvision publishes for {architecture}", where=file, do="remove it, and run again"
        ) from error
    except OSError as error:
        raise BadModel(
            f"the weights of {architecture} cannot be downloaded ({error})",
            where="model.weights",
            do="connect to the internet once, or give the path of a state dict",
        ) from error
    kept = {name: tensor for name, tensor in state.items() if not name.lower().startswith("aux")}
    return kept, file


def prepare(image: "Image", size: int | Sequence[int]) -> "Tensor":
    """RGB image -> (3, h, w) float32, normalised as ImageNet; bilinear with antialiasing, as torchvision's presets."""
    import numpy as np
    import torch
    from torchvision.transforms import functional

    if isinstance(size, int):
        image = functional.center_crop(functional.resize(image, [round(size * RESIZE_RATIO)]), [size, size])
    elif [image.height, image.width] != list(size):
        image = functional.resize(image, list(size))
    # torchvision's to_tensor and normalize, step for step, without the copies in between: half the time.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean, std = _moments()
    return pixels.sub_(mean).div_(std)


@cache
def _moments() -> tuple["Tensor", "Tensor"]:
    """MEAN and STD as (3, 1, 1): to make them anew for each image takes half the time of a small one."""
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return mean, std
