"""Any model of the user's own: a function `module:function` that returns (encoder, head, transform)."""

import inspect
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.errors import BadModel
from stages.models import Checkpoint, Classifier, checkpoints


def build(
    *, function: str, classes: int | None = None, options: Mapping[str, Any] | None = None, checkpoint: str | None = None
) -> Classifier:
    """A classifier made of what the function returns.

    The function gives (encoder, head, transform) or (encoder, head, transform, collate): an nn.Module from a batch to
    features (b, d), an nn.Linear from (b, d) to logits (b, C), a picklable callable from a sample (an RGB PIL image, a
    text, or a pair of texts) to a tensor, or to what the fourth takes: from a list of those to a batch, a tensor or a
    dictionary of tensors (default: torch.stack). If it takes a parameter `classes`, it gets the number of classes that
    `nsf train` needs, or None. Modules in half or double precision are taken in float32.

    Args:
        function: "module:function"; the module is found on Python's path and in the current folder.
        classes: C of a head to train; None: the function's own trained head.
        options: keyword arguments for the function.
        checkpoint: the file that the function reads its weights from, for `nsf export` to write a repaired copy of.

    Raises:
        BadModel: no such module or function, a call that fails, or a return value of another shape.
    """
    module_name, _, name = function.partition(":")
    if not module_name or not name:
        raise BadModel(f"'{function}' is not of the form module:function", where="model.function")
    # A console script does not look into the current folder by itself.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        # What the module prints is not ours to put on stdout.
        with redirect_stdout(sys.stderr):
            module = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = "there is no such module" if error.name == module_name else f"it imports '{error.name}', which is missing"
        raise BadModel(f"{missing}", where=f"model.function {function}", do="run nsf in the module's folder") from error
    except (Exception, SystemExit) as error:
        where = f"model.function {function}"
        raise BadModel(f"the module cannot be imported ({type(error).__name__}: {error})", where=where) from error
    made = getattr(module, name, None)
    if not callable(made):
        raise BadModel(f"the module has no function '{name}'", where=f"model.function {function}")
    arguments = dict(options or {})
    if "classes" in inspect.signature(made).parameters:
        arguments.setdefault("classes", classes)
    try:
        with redirect_stdout(sys.stderr):
            returned = made(**arguments)
    except (Exception, SystemExit) as error:
        raise BadModel(
            f"the function failed ({type(error).__name__}: {error})", where=f"model.function {function}"
        ) from error
    return _classifier(returned, function, classes, options, checkpoint)


def rebuild(*, folder: Path, **spec: Any) -> Classifier:
    """The classifier that `nsf train` saved to `folder`, before its weights are loaded."""
    return build(**spec)


def _classifier(
    returned: Any, function: str, classes: int | None, options: Mapping[str, Any] | None, checkpoint: str | None
) -> Classifier:
    from torch import nn

    where = f"model.function {function}"
    wanted = "(encoder, head, transform) or (encoder, head, transform, collate)"
    if not isinstance(returned, tuple) or len(returned) not in (3, 4):
        found = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
        raise BadModel(f"the function returned {found}, and {wanted} belongs there", where=where)
    encoder, head, transform, collate = (*returned, None)[:4]
    if not isinstance(encoder, nn.Module) or not isinstance(head, nn.Linear) or not callable(transform):
        kinds = ", ".join(type(part).__name__ for part in returned)
        raise BadModel(
            f"the function returned ({kinds})", where=where, do=f"return {wanted}: an nn.Module, an nn.Linear, callables"
        )
    if classes is not None and head.out_features != classes:
        raise BadModel(
            f"its head has {head.out_features} outputs, and the data {classes} classes",
            where=where,
            do="give the function a parameter `classes`, the outputs of the head to train",
        )

    class Joined(nn.Module):
        """Encoder and head as one network; a dictionary of tensors goes to the encoder by its names."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder, head

        def forward(self, *inputs: Any, **named: Any) -> Any:
            return self.head(self.encoder(*inputs, **named))

    # A function may give a model on its GPU; the stages move it where they compute.
    network = Joined().float().cpu()
    spec = {
        "source": "callable",
        "function": function,
        "classes": classes,
        "options": dict(options or {}),
        "checkpoint": checkpoint,
    }
    source: Checkpoint | None = None
    if checkpoint is not None:
        source = Checkpoint(Path(checkpoint), _head_names(head, Path(checkpoint)))
    # The data says whether samples are images or texts; the function takes either.
    return Classifier(network, transform, spec, "any", collate, None, source, trained=classes is None)


def _head_names(head: Any, path: Path) -> dict[str, str]:
    """The head's tensors in a checkpoint whose names the function alone knows: found by their values."""
    import torch

    state = checkpoints.read(path)
    names: dict[str, str] = {}
    for ours, tensor in head.state_dict().items():
        equal = [name for name, held in state.items() if held.shape == tensor.shape and torch.equal(held.float(), tensor)]
        if len(equal) != 1:
            raise BadModel(
                f"{len(equal)} tensors of this checkpoint equal the {ours} of the function's head, and one should",
                where=path,
                do="name the checkpoint that the function loads, or leave model.checkpoint out",
            )
        names[f"head.{ours}"] = equal[0]
    return names
