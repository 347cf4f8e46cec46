"""Classifiers: one module per source of backbones, all giving a `Classifier` that splits into encoder and linear head."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

from stages import artifacts
from stages.artifacts import Metadata
from stages.errors import BadModel, MissingFile
from stages.outputs import Outputs
from stages.runtime import reproducible

if TYPE_CHECKING:
    from torch import Tensor, nn

# model.source -> the module that builds it.
SOURCES = {
    "torchvision": "stages.models.torchvision",
    "timm": "stages.models.timm",
    "transformers": "stages.models.transformers",
    "callable": "stages.models.callable",
}

FILE_NAME = "model.safetensors"

# The features times the head must be the model's own logits, this closely.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Checkpoint:
    """Where a classifier's weights come from: a file, or a transformers folder.

    `names` maps the network's tensor names to the file's, which may carry a prefix ("module.fc.weight").
    """

    path: Path
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Classifier:
    """A classifier with its linear head in place, and all that is needed to rebuild it.

    Attributes:
        network: a batch -> logits (b, C); (b, 1) or (b,) of one sigmoid output stand for two classes.
        transform: a sample as the data gives it -> what `collate` takes: (3, h, w) float32 for an RGB image.
        spec: the arguments of `build` that rebuild the network, without weights.
        kind: "image" or "text": what `transform` takes.
        collate: transformed samples -> a batch for the network, a tensor or a dictionary of tensors; None stacks.
        class_names: where the model brings its own.
        checkpoint: where its trained weights come from; None where it has none (random, or an encoder with a new head).
        trained: whether the head has been trained; if not, `nsf train` comes first.
        assets: other files of the model's own format, by name (a transformers folder's config and tokenizer).
    """

    network: "nn.Module"
    transform: Callable[[Any], Any]
    spec: Mapping[str, Any]
    kind: str = "image"
    collate: Callable[[list[Any]], Any] | None = None
    class_names: Sequence[str] | None = None
    checkpoint: Checkpoint | None = None
    trained: bool = False
    assets: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return next(str(self.spec[key]) for key in ("architecture", "name", "function") if key in self.spec)


@dataclass(frozen=True)
class Opened:
    """A trained classifier as a stage takes it, with the names of its classes (empty: unknown) and its fingerprint.

    `by_nsf`: whether `nsf train` made it, on classes that must then be the data's.
    """

    classifier: Classifier
    class_names: list[str]
    fingerprint: str
    by_nsf: bool


def build(*, source: str, classes: int | None = None, **spec: Any) -> Classifier:
    """Build a classifier; `spec` goes to the source's own `build`.

    Args:
        source: a key of SOURCES.
        classes: C of a head to train; None takes the model as it is, with its own trained head.

    Raises:
        BadModel: unknown name, weights that cannot be had or do not fit, or no trained head where one is needed.
    """
    built: Classifier = import_module(SOURCES[source]).build(classes=classes, **spec)
    return built


def save(files: Outputs, folder: Path, model: Classifier, class_names: Sequence[str], metadata: Metadata) -> None:
    """Write the state dict, in the network's own names, and the spec to `folder`/model.safetensors; assets beside it."""
    # transformers reads `format`.
    notes = {"model": json.dumps(dict(model.spec)), "format": "pt"}
    signed = replace(metadata, stage="train", kind="model", class_names=class_names, notes=notes)
    files.tensors(folder / FILE_NAME, model.network.state_dict(), signed)
    assets = dict(model.assets)
    if "config.json" in assets:
        # transformers keeps the classes' names in its configuration.
        config = json.loads(assets["config.json"])
        config["id2label"] = {str(index): name for index, name in enumerate(class_names)}
        config["label2id"] = {name: index for index, name in enumerate(class_names)}
        assets["config.json"] = json.dumps(config, indent=2).encode()
    for name, content in assets.items():
        files.file(folder / name).write(content)


def load(folder: Path) -> Opened:
    """Rebuild what `save` wrote.

    Raises:
        MissingFile, WrongArtifact, BadModel: no such model, another file, or weights that do not fit.
    """
    path = _file_in(folder)
    state, metadata, fingerprint = artifacts.read_model(path)
    spec = json.loads(metadata.notes["model"])
    names = [str(name) for name in metadata.class_names or []]
    module = import_module(SOURCES[spec.pop("source")])
    model: Classifier = module.rebuild(folder=path.parent, **spec)
    load_state(model.network, state, path)
    checkpoint = Checkpoint(path, {name: name for name in state})
    return Opened(replace(model, checkpoint=checkpoint, trained=True), names, fingerprint, True)


def trained_with(folder: Path, section: Mapping[str, Any]) -> bool:
    """Whether `nsf train` was given this `model` section when it wrote `folder`, or the file does not say."""
    path = _file_in(folder)
    given = Metadata.from_strings(artifacts.peek(path), path).parameters.get("model")
    return given is None or _as_written(given) == _as_written(section)


def _as_written(section: Any) -> str:
    """A section as metadata hold it: JSON knows keys of text alone."""
    return json.dumps(json.loads(json.dumps(section)), sort_keys=True)


def _file_in(folder: Path) -> Path:
    """The model's file: in this folder, or this file itself."""
    return Path(folder) / FILE_NAME if Path(folder).is_dir() else Path(folder)


def open_trained(folder: Path, section: Mapping[str, Any] | None) -> Opened:
    """The trained classifier: what `nsf train` wrote to `folder`, or where there is none, the `model` section's own.

    So too where `nsf train` was given another section: what it wrote then is left from earlier work in this folder.

    Raises:
        MissingFile: neither is there.
        UserError: as `load` and `build`.
    """
    # Where weights are filled in at random first, the same ones each time.
    with reproducible(seed=0):
        if section is None or (folder.exists() and trained_with(folder, section)):
            return load(folder)
        model = build(**section, classes=None)
    if not model.trained:
        found = "was trained with another section 'model'" if folder.exists() else "there is no such model"
        raise MissingFile(
            f"{found}, and the model of params.yaml has no trained head of its own",
            where=folder,
            do="`nsf train` makes it, or name trained weights in section 'model'; "
            "`nsf init --force --train ...` puts training first",
        )
    names = [str(name) for name in model.class_names or []]
    return Opened(model, names, artifacts.fingerprint(model.network.state_dict()), False)


def load_state(network: "nn.Module", state: "Mapping[str, Tensor]", where: Path | str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        BadModel: names or shapes differ; the sentence names the first.
    """
    own = network.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        what = f"lacks {len(missing)} tensors of the architecture" if missing else f"has {len(extra)} tensors too many"
        raise BadModel(f"{what}, '{(missing or extra)[0]}' first", where=where, do="check the model's architecture")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise BadModel(
                f"'{name}' has shape {tuple(state[name].shape)}, where the architecture has {tuple(tensor.shape)}",
                where=where,
                do="check the model's architecture and the number of classes",
            )
    # Some architectures ask for the version of a state dict, which none of our files holds: it is this network's.
    versioned = OrderedDict(state)
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned)


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


def split(model: Classifier, inputs: Any) -> "tuple[Callable[[Any], Tensor], nn.Linear, str]":
    """Cut the head off: (encoder, head, the head's module name), with head(encoder(x)) equal to the network's own logits.

    The head is the linear layer that ran last and made the logits of a first batch. The encoder gives exactly what
    enters it, (b, d); what lies before it, other layers of a deeper head among them, belongs to the encoder.

    Args:
        inputs: a first batch, on the network's device, to find the head and to check the cut on, in float32.

    Raises:
        BadModel: no linear layer makes the logits, or they are not finite.
    """
    import torch
    from torch import nn

    network = model.network.eval()
    ran: list[tuple[str, nn.Linear, Tensor, Tensor]] = []
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        find_head(network, model.name)
    hooks = [
        module.register_forward_hook(
            lambda layer, args, output, name=name: ran.append((name, layer, args[0].detach(), output.detach()))
        )
        for name, module in linear
    ]
    try:
        with torch.no_grad():
            expected = logits(call(network, inputs))
    except Exception as error:
        # A network of the user's own may raise anything.
        text = " ".join(str(error).split())[:300]
        raise BadModel(
            f"fails on the first batch ({type(error).__name__}: {text})",
            where=model.name,
            do="check that transform, encoder and head fit each other",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not bool(torch.isfinite(expected).all()):
        raise BadModel("the model gives NaN or infinity", where=model.name, do="check its weights")
    for name, layer, features, output in reversed(ran):
        if features.dim() == 2 and output.shape == expected.shape:
            with torch.no_grad():
                made = layer(features)
            if torch.allclose(made, expected, rtol=TOLERANCE, atol=TOLERANCE):
                return _encoder(network, layer), layer, name
    seen = ", ".join(f"{name} {tuple(output.shape)}" for name, _, _, output in ran[-5:]) or "none"
    raise BadModel(
        f"no linear layer makes its logits {tuple(expected.shape)} (the last that ran: {seen})",
        where=model.name,
        do="give a classifier that ends in a linear head, applied to one feature vector a sample",
    )


def _encoder(network: "nn.Module", head: "nn.Linear") -> "Callable[[Any], Tensor]":
    """What enters the head: the network runs as it is, and its last product costs next to nothing.

    Several threads may call it at once where they may call the network.
    """
    # Hooks are numbered by a counter that threads would trip over.
    numbering = Lock()

    def encode(inputs: Any) -> "Tensor":
        entered: list[Tensor] = []
        caller = get_ident()

        def note(_: "nn.Module", args: "tuple[Tensor, ...]") -> None:
            # Every thread's hook is called for each thread's batch.
            if get_ident() == caller:
                entered.append(args[0])

        with numbering:
            hook = head.register_forward_pre_hook(note)
        try:
            call(network, inputs)
        finally:
            with numbering:
                hook.remove()
        return entered[-1]

    return encode


def call(network: "nn.Module", inputs: Any) -> Any:
    """Run a network on a batch: a tensor, or a dictionary of named ones."""
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def logits(output: Any) -> "Tensor":
    """The logits (b, C) in a network's output: itself, or what transformers, GoogLeNet and Inception wrap them in."""
    result: Tensor = getattr(output, "logits", output)
    return result.unsqueeze(1) if result.dim() == 1 else result
