"""torchvision's image classifiers, by name."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

from stages.errors import BadModel
from stages.models import Classifier, find_head, load_state

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
    classes: int,
    weights: str | None = None,
    image_size: int | Sequence[int] = 224,
) -> Classifier:
    """A torchvision classifier with a head for `classes` classes.

    Args:
        architecture: as in `torchvision.models.list_models()`.
        classes: C.
        weights: a torchvision weight name ("DEFAULT", "IMAGENET1K_V2"), downloaded by torchvision; None starts from
            random weights (from torch's global generator). The head is new wherever C is not the weights' own.
        image_size: an edge (resize the shorter side to 256/224 of it, crop its center), or [height, width] (resize to
            just that).

    Raises:
        BadModel: unknown architecture or weight name, no linear head, or weights that cannot be fetched.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        near = get_close_matches(architecture, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "torchvision.models.list_models() lists them"
        raise BadModel(f"torchvision has no image classifier '{architecture}'", where="model.architecture", do=hint)
    # The auxiliary classifiers of these two serve training from scratch at full size; the head is the same without.
    extra = {"aux_logits": False} if architecture in ("googlenet", "inception_v3") else {}
    if architecture == "googlenet":
        extra["init_weights"] = True
    network = models.get_model(architecture, weights=None, num_classes=classes, **extra)
    head_name = find_head(network, architecture)
    if weights is not None:
        load_state(network, _pretrained(architecture, weights, network, head_name), f"model.weights {weights}")
    spec = {
        "source": "torchvision",
        "architecture": architecture,
        "classes": classes,
        "image_size": image_size if isinstance(image_size, int) else list(image_size),
    }
    return Classifier(network, head_name, partial(prepare, size=image_size), spec)


def _pretrained(architecture: str, weights: str, network: "nn.Module", head_name: str) -> "dict[str, Tensor]":
    """The weights' state dict, with the network's own head where the number of classes differs."""
    from torchvision.models import get_model_weights

    choices = get_model_weights(architecture)
    if weights != "DEFAULT" and weights not in choices.__members__:
        raise BadModel(
            f"{architecture} has no weights '{weights}'",
            where="model.weights",
            do=f"use null, DEFAULT or {', '.join(choices.__members__)}",
        )
    try:
        state = dict(choices[weights].get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise BadModel(
            f"the weights of {architecture} cannot be downloaded ({error})",
            where="model.weights",
            do="connect to the internet once, or put the file into torch's hub cache",
        ) from error
    own = network.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.lower().startswith(("aux", "auxlogits"))}
    for name in (f"{head_name}.weight", f"{head_name}.bias"):
        if state[name].shape != own[name].shape:
            state[name] = own[name]
    return state


def prepare(image: "Image", size: int | Sequence[int]) -> "Tensor":
    """RGB image -> (3, h, w) float32, normalised as ImageNet; bilinear with antialiasing, as torchvision's presets."""
    from torchvision.transforms import functional

    if isinstance(size, int):
        image = functional.center_crop(functional.resize(image, [round(size * RESIZE_RATIO)]), [size, size])
    elif [image.height, image.width] != list(size):
        image = functional.resize(image, list(size))
    tensor: Tensor = functional.normalize(functional.to_tensor(image), list(MEAN), list(STD))
    return tensor
