"""Image classifiers: one module per source of backbones, all giving a `Classifier` that splits into encoder and head."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts
from stages.artifacts import Metadata, Outputs
from stages.errors import BadModel

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

# model.source -> the module that builds it.
SOURCES = {"torchvision": "stages.models.torchvision"}

FILE_NAME = "model.safetensors"


@dataclass(frozen=True)
class Classifier:
    """A classifier with its linear head in place, and all that is needed to rebuild it.

    Attributes:
        network: images (b, 3, h, w) float32 -> logits (b, C).
        head_name: the module name of the last linear layer in `network`.
        transform: RGB image -> (3, h, w) float32.
        spec: the arguments of `build` that rebuild the network, without weights.
    """

    network: "nn.Module"
    head_name: str
    transform: "Callable[[Image], Tensor]"
    spec: Mapping[str, Any]

    @property
    def head(self) -> "nn.Linear":
        head: nn.Linear = self.network.get_submodule(self.head_name)  # type: ignore[assignment]
        return head


def build(*, source: str, **spec: Any) -> Classifier:
    """Build a classifier; `spec` goes to the source's own `build`.

    Raises:
        BadModel: unknown name, or weights that do not fit.
    """
    built: Classifier = import_module(SOURCES[source]).build(**spec)
    return built


def save(files: Outputs, folder: Path, model: Classifier, class_names: Sequence[str], metadata: Metadata) -> None:
    """Write the state dict, in the network's own names, and the spec to `folder`/model.safetensors."""
    signed = replace(
        metadata, stage="train", kind="model", class_names=class_names, notes={"model": json.dumps(dict(model.spec))}
    )
    files.tensors(folder / FILE_NAME, model.network.state_dict(), signed)


def load(folder: Path) -> tuple[Classifier, list[str], str]:
    """Rebuild what `save` wrote: the classifier, its class names, and the file's fingerprint.

    Raises:
        MissingFile, WrongArtifact, BadModel: no such model, another file, or weights that do not fit.
    """
    path = Path(folder) / FILE_NAME if Path(folder).is_dir() else Path(folder)
    state, metadata, fingerprint = artifacts.read_model(path)
    spec = json.loads(metadata.notes["model"])
    model = build(**{**spec, "weights": None})
    load_state(model.network, state, path)
    return model, [str(name) for name in metadata.class_names or []], fingerprint


def load_state(network: "nn.Module", state: "Mapping[str, Tensor]", where: Path | str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        BadModel: names or shapes differ; the sentence names the first.
    """
    own = network.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        what = f"lacks {len(missing)} tensors of the architecture" if missing else f"has {len(extra)} tensors too many"
        raise BadModel(f"{what}, '{(missing or extra)[0]}' first", where=where, do="check model.architecture")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise BadModel(
                f"'{name}' has shape {tuple(state[name].shape)}, where the architecture has {tuple(tensor.shape)}",
                where=where,
                do="check model.architecture and the number of classes",
            )
    network.load_state_dict(dict(state))


def find_head(network: "nn.Module", where: str) -> str:
    """The name of the last linear layer, in the order in which the modules were defined.

    Whether it is really the last thing that the network does is checked on data: see `split`.

    Raises:
        BadModel: there is no linear layer.
    """
    from torch import nn

    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name]
    if not names:
        last = [f"{name} ({type(module).__name__})" for name, module in network.named_modules()][-3:]
        raise BadModel(
            f"has no linear layer to rebuild (its last layers are {', '.join(last)})",
            where=where,
            do="choose an architecture that ends in a linear head",
        )
    return str(names[-1])


def split(model: Classifier, images: "Tensor") -> tuple["nn.Module", "nn.Linear"]:
    """Cut the head off: (encoder, head), with head(encoder(x)) equal to the network's own logits.

    The network is changed: in the head's place stands an identity.

    Args:
        images: (b, 3, h, w), on the network's device; a first batch to check the cut on, in float32.

    Raises:
        BadModel: the last linear layer is not what makes the logits, or they are not finite.
    """
    import torch
    from torch import nn

    network, head = model.network, model.head
    with torch.no_grad():
        expected = logits(network(images))
        if not bool(torch.isfinite(expected).all()):
            raise BadModel("the model gives NaN or infinity", where=_name(model), do="check its weights")
        parent, _, attribute = model.head_name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Identity())
        features = logits(network(images))
        fits = features.dim() == 2 and features.shape[1] == head.in_features
        if not fits or not torch.allclose(head(features), expected, rtol=1e-4, atol=1e-4):
            raise BadModel(
                f"its logits are not what the last linear layer '{model.head_name}' makes of the features before it",
                where=_name(model),
                do="choose an architecture that ends in a linear head",
            )
    return network, head


def _name(model: Classifier) -> str:
    return str(model.spec.get("architecture"))


def logits(output: Any) -> "Tensor":
    """The logits in a network's output: itself, or what GoogLeNet and Inception wrap them in while training."""
    result: Tensor = getattr(output, "logits", output)
    return result
