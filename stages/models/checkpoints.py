"""State dicts of other people: .pt, .pth, .bin and .ckpt (read with weights_only), .safetensors; with the usual wrappings.

What is read here can be written back by `patch`: the same file, with some tensors replaced and nothing else touched.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages.errors import BadModel, MissingFile, UserError
from stages.models import find_head, load_state
from stages.tensorfile import COPY_BYTES, header, tensor_bytes, type_names

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")

# Batch norm's count of batches: files of PyTorch before 0.4.1 lack it, and nothing reads it in evaluation.
COUNTER = ".num_batches_tracked"

# Where training scripts put the state dict beside epoch, optimizer and the like.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module")


def is_path(weights: str) -> bool:
    """Whether `weights` names a file rather than one of a library's own weights."""
    return weights.endswith(SUFFIXES) or "/" in weights or Path(weights).is_file()


def read(path: Path) -> "dict[str, Tensor]":
    """The state dict in a file, tensors on the CPU, under the file's own names.

    Raises:
        MissingFile: there is no such file.
        BadModel: it holds no state dict, or several of one network (weights and their running mean, say), or could only
            be read by running code that it contains (pickle).
    """
    content = _read(path)
    state = _state(content)
    if state is None:
        raise BadModel("holds no state dict", where=path, do="save model.state_dict()")
    ours = _layer_names(state)
    copies = [key for key, held in content.items() if _layer_names(held) == ours]
    if len(copies) > 1:
        raise BadModel(
            f"holds the network {len(copies)} times, as {' and '.join(repr(key) for key in copies)}",
            where=path,
            do="save the one that is used alone",
        )
    return {str(name): tensor for name, tensor in state.items() if _is_tensor(tensor)}


def fit(
    make: "Callable[[int], nn.Module]", state: "Mapping[str, Tensor]", classes: int | None, where: Path, name: str
) -> "tuple[nn.Module, dict[str, str]]":
    """A network with these weights: (network, its tensor names -> the file's).

    The file's names may stand behind one prefix ("module.", "model.", "backbone."). Where `classes` is not what the
    weights were trained for, the head keeps its own new values.

    Args:
        make: builds the network for a number of classes.
        state: the file's state dict.
        classes: C; None: the weights' own.
        where: the file, for messages.
        name: the architecture, for messages.

    Raises:
        BadModel: names or shapes differ.
    """
    import torch

    try:
        with torch.device("meta"):
            shell = make(2)
    except NotImplementedError:
        # Some initialise their weights from values, which tensors without memory do not have.
        shell = make(2)
    own = shell.state_dict()
    names = _names(state, list(own), where)
    head = find_head(shell, name)
    trained_for = state[names[f"{head}.weight"]].shape[0]
    network = make(classes or trained_for)
    counters = {name: tensor for name, tensor in network.state_dict().items() if name.endswith(COUNTER)}
    fitted = {**counters, **{ours: state[theirs] for ours, theirs in names.items()}}
    if classes not in (None, trained_for):
        fitted.update({ours: t for ours, t in network.state_dict().items() if ours.rpartition(".")[0] == head})
    load_state(network, fitted, where)
    return network, names


def _names(state: "Mapping[str, Tensor]", own: list[str], where: Path) -> dict[str, str]:
    """The network's tensor names -> the file's."""
    # DenseNet's published files write `norm.1` where torchvision's modules are called `norm1`.
    held = {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name): name for name in state}
    held.update({name: name for name in state})
    anchors = own[:1] + own[-1:]
    prefixes = {name[: -len(anchor)] for anchor in anchors for name in held if name.endswith(anchor)} | {""}
    prefix = max(sorted(prefixes), key=lambda prefix: sum(prefix + name in held for name in own))
    whole = sorted(other for other in prefixes if all(other + name in held for name in own if not name.endswith(COUNTER)))
    if len(whole) > 1:
        raise BadModel(
            f"holds the network {len(whole)} times, behind {' and '.join(repr(other) for other in whole)}",
            where=where,
            do="save the one that is used alone",
        )
    names = {name: held[prefix + name] for name in own if prefix + name in held}
    missing = [name for name in own if name not in names and not name.endswith(COUNTER)]
    taken = set(names.values())
    unknown = [name for name in state if name not in taken]
    if not missing and (prefix or not unknown):
        return names
    if missing:
        what = f"lacks {len(missing)} of the architecture's {len(own)} tensors, '{missing[0]}' first"
        if unknown:
            what += f", and holds {', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''} in their place"
    else:
        what = f"holds {len(unknown)} tensors that the architecture has not, '{min(unknown)}' first"
    do = "check the model's architecture; a model of other layers, such as a head of several, is given as model.function"
    raise BadModel(what, where=where, do=do)


def patch(source: Path, target: IO[bytes], changes: "Mapping[str, Tensor]") -> None:
    """Write a copy of a checkpoint with some tensors replaced, under the file's names; every other tensor keeps its bits.

    A .safetensors file is copied byte by byte, the new values in place of the old; a PyTorch file is saved anew with the
    same contents around them. New values take the type that the file holds.

    Raises:
        BadModel: a tensor is not there, of another shape, or beyond what the file's type holds.
    """
    if source.suffix == ".safetensors":
        _patch_safetensors(source, target, changes)
        return
    import torch

    content = _read(source)
    places = _places(content)
    for name, tensor in changes.items():
        holder, key = places.get(name, ({}, name))
        _fits(name, tuple(holder[key].shape) if name in places else None, tensor, source)
        # A new tensor in the old one's place: storage shared with others must not change under them.
        holder[key] = _as_held(name, tensor, holder[key].dtype, source).clone()
    torch.save(content, target)


def _patch_safetensors(source: Path, target: IO[bytes], changes: "Mapping[str, Tensor]") -> None:
    import shutil

    types = {name: dtype for dtype, name in type_names().items() if dtype.is_floating_point and dtype.itemsize > 1}
    with source.open("rb") as file:
        shutil.copyfileobj(file, target, COPY_BYTES)
    _, places = header(source)
    for name, tensor in changes.items():
        _fits(name, places[name].shape if name in places else None, tensor, source)
        place = places[name]
        if place.dtype not in types:
            raise BadModel(f"'{name}' is of type {place.dtype}, which holds no new weights", where=source)
        target.seek(place.start)
        target.write(tensor_bytes(_as_held(name, tensor, types[place.dtype], source)))
    target.seek(0, 2)


def _fits(name: str, shape: tuple[int, ...] | None, tensor: "Tensor", where: Path) -> None:
    if shape != tuple(tensor.shape):
        what = "is not there" if shape is None else f"has shape {shape}, and the new one {tuple(tensor.shape)}"
        raise BadModel(f"'{name}' {what}", where=where, do="export to the checkpoint that the features came from")


def _as_held(name: str, tensor: "Tensor", dtype: "dtype", where: Path) -> "Tensor":
    """A new tensor as the file holds the old one."""
    import torch

    held = tensor.detach().cpu().to(dtype)
    if not bool(torch.isfinite(held).all()):
        raise BadModel(
            f"'{name}' has new values beyond {str(dtype).removeprefix('torch.')}, which the file holds it in",
            where=where,
            do="save the checkpoint in float32, and export to that",
        )
    return held


def _read(path: Path) -> Any:
    """A file's whole content."""
    import pickle

    import torch
    from safetensors.torch import load_file

    if not path.exists():
        raise MissingFile("there is no such file", where=path, do="check the model's weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        _check_magic(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadModel(
            "can only be read by running code that it holds (a pickled model, or other objects), which nsf does not do",
            where=path,
            do="save its state dict: torch.save(model.state_dict(), ...)",
        ) from error
    except UserError:
        raise
    except Exception as error:  # whatever of PyTorch's or safetensors' a damaged file meets first
        raise BadModel(
            f"cannot be read as a checkpoint ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            where=path,
        ) from error


def _check_magic(path: Path) -> None:
    """Refuse what torch.save has never written, by its first bytes: PyTorch would take it for a pickle.

    Raises:
        BadModel: as said.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise BadModel("is a pointer of Git LFS, not the weights", where=path, do="fetch them: git lfs pull")
    # A zip archive, or (before PyTorch 1.6) a pickle.
    if not start.startswith((b"PK", b"\x80")):
        raise BadModel("is no file that torch.save writes", where=path, do="name the file with the weights")


def _state(content: Any) -> "dict[str, Tensor] | None":
    """The state dict in a file's content, as `_places` finds it."""
    return {name: holder[key] for name, (holder, key) in _places(content).items()} or None


def _layer_names(held: Any) -> list[str]:
    """The names of the tensors in a state dict or in a container of one, without DataParallel's prefix."""
    return sorted(name.removeprefix("module.") for name, (holder, key) in _places(held).items() if _is_tensor(holder[key]))


def _places(content: Any) -> "dict[str, tuple[dict[str, Any], str]]":
    """Where each value of the state dict in a file's content lies: (the dictionary, its key there).

    The state dict is the content itself, what lies in one of CONTAINERS, or several of them in a dictionary of the user's
    own, whose keys then come first in the names: "head.weight" for {"head": {"weight": ...}}.
    """
    if not isinstance(content, dict):
        return {}
    # These first: other tensors may lie beside them, such as PyTorch's own examples' `best_acc1`.
    for key in CONTAINERS:
        if found := _places(content.get(key)):
            return found
    if any(_is_tensor(value) for value in content.values()):
        return {str(key): (content, key) for key in content}
    return {
        f"{outer}.{key}": (held, key)
        for outer, held in content.items()
        if isinstance(held, dict) and any(_is_tensor(value) for value in held.values())
        for key in held
    }


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
