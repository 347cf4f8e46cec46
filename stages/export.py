"""export: the repaired model in the format that came in, only its last layer's weight and bias changed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts, models
from stages.artifacts import Artifact, Metadata
from stages.errors import BadModel, Mismatch, MissingFile
from stages.lineage import agree, check_lineage
from stages.loading import collate
from stages.metrics import read_metrics
from stages.models import Classifier, Opened, checkpoints
from stages.outputs import Outputs, outputs

if TYPE_CHECKING:
    from torch import Tensor

HEAD_FILE = "head.safetensors"
CARD_FILE = "MODEL_CARD.md"
ONNX_FILE = "model.onnx"
# The image that a network is traced with for ONNX, before its transform.
TRACED_SIDE = 64


def run(
    *,
    model: Path,
    own_model: Mapping[str, Any] | None,
    head: Path,
    update: Path,
    out: Path,
    metrics: Path | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """Write the repaired model to the folder `out`, and a model card beside it; a copy, where the base head was kept.

    What is written: a copy of the checkpoint that the model came from (nsf's own model.safetensors, somebody's state
    dict, a transformers folder), every tensor but the head's with the same bits; or, for a model whose checkpoint is not
    known, `head.safetensors` with `weight` (C, d) and `bias` (C,).

    Args:
        model: what `nsf train` wrote.
        own_model: the `model` section of params.yaml, used where there is no `model`.
        head, update: the artifacts.
        out: the folder to write.
        metrics: what `nsf evaluate` wrote, for the model card; None where there is none.
        onnx: also write model.onnx.

    Returns:
        A summary: `out`, `format`, `files`, `changed` (the tensors, by the checkpoint's names; none where the base head was
        kept), `kept_because` (why it was, or None), `other_files` (what else lies in the folder).

    Raises:
        Mismatch: the artifacts were made with another model, or the metrics are another head's.
        UserError: an input is missing or wrong, or the format cannot take the new head; nothing is written.
    """
    import torch

    base, new = artifacts.read("head", head), artifacts.read("update", update)
    agree("d", base, new)
    agree("C", base, new)
    check_lineage(new, head=base)
    opened = models.open_trained(model, own_model)
    classifier = opened.classifier
    recorded = base.metadata.inputs.get("model")
    if recorded is not None and recorded != opened.fingerprint:
        raise Mismatch("was extracted from another model", where=head, do="run `nsf extract` and the later stages again")
    head_name = base.metadata.notes.get("head")
    if head_name is None:
        raise Mismatch("does not say where in the model it belongs", where=head, do="run `nsf extract`, which notes it")
    weight, bias = new["folded_weight"], new["folded_bias"]
    # What is as it was keeps its bits, of a type that float32 cannot hold, too.
    other = {"weight": not torch.equal(weight, base["weight"]), "bias": not torch.equal(bias, base["bias"])}
    if base.metadata.notes.get("single_output") == "true":
        weight, bias = artifacts.one_output(weight, bias)
    repaired = {"weight": weight, "bias": bias}
    changes = {f"{head_name}.{name}": part for name, part in repaired.items() if other[name]}
    # A head on its own is written with a bias all the same.
    whole = classifier.checkpoint is not None or onnx
    if whole and other["bias"] and f"{head_name}.bias" not in classifier.network.state_dict():
        raise BadModel(
            f"its head '{head_name}' has no bias, and the repaired one needs one",
            where=classifier.name,
            do=f"use folded_weight and folded_bias of {update} directly, or give the model's head a bias of zeros",
        )
    result = read_metrics(metrics) if metrics is not None else None
    if result is not None and result.get("update", [new.fingerprint]) != [new.fingerprint]:
        raise Mismatch("the metrics are those of another head", where=metrics, do="run `nsf evaluate` again")
    kept_because = new.metadata.notes.get("kept_because") or None
    with outputs(head, update, metrics) as files:
        form, written, changed = _write(files, opened, repaired, changes, out)
        if onnx:
            files.file(out / ONNX_FILE).write(_onnx(classifier, changes))
            written.append(ONNX_FILE)
        files.text(out / CARD_FILE, _card(opened, base, new, form, written, changed, kept_because, result))
    written.append(CARD_FILE)
    others = sorted(path.name for path in out.iterdir() if path.name not in written)
    return {
        "out": str(out),
        "format": form,
        "files": written,
        "changed": changed,
        "kept_because": kept_because,
        "other_files": others,
    }


def _write(
    files: Outputs, opened: Opened, head: "Mapping[str, Tensor]", changes: "Mapping[str, Tensor]", out: Path
) -> tuple[str, list[str], list[str]]:
    """Write the model; returns the format in words, the files' names, and the changed tensors' names in them.

    Args:
        head: the `weight` and `bias` to write where there is no checkpoint.
        changes: those of them that are other than they were, by their names in the network.
    """
    classifier = opened.classifier
    checkpoint = classifier.checkpoint
    if checkpoint is None:
        metadata = Metadata(stage="export", kind="head", inputs={"model": opened.fingerprint})
        files.tensors(out / HEAD_FILE, head, metadata)
        changed = sorted(name.rpartition(".")[2] for name in changes)
        return "the head alone, for head.load_state_dict", [HEAD_FILE], changed
    named = {checkpoint.names.get(name, name): tensor for name, tensor in changes.items()}
    if checkpoint.path.is_file():
        files.inputs(checkpoint.path)
        checkpoints.patch(checkpoint.path, files.file(out / checkpoint.path.name), named)
        for name, content in classifier.assets.items():
            files.file(out / name).write(content)
        form = "a transformers folder" if classifier.assets else f"a state dict ({checkpoint.path.suffix})"
        return form, [checkpoint.path.name, *sorted(classifier.assets)], sorted(named)
    return "a transformers folder", _transformers_folder(files, checkpoint.path, named, out), sorted(named)


def _transformers_folder(files: Outputs, folder: Path, named: "Mapping[str, Tensor]", out: Path) -> list[str]:
    """A copy of a transformers folder with some tensors replaced; its README, of another model, stays out."""
    from stages.models.transformers import weights_files

    weights = weights_files(folder)
    if not weights:
        raise MissingFile("there are no weights in this folder", where=folder, do="give the folder of a trained model")
    left = dict(named)
    written = []
    for path in sorted(folder.iterdir()):
        # Its README tells of the model before; other formats of the weights would still be that model's.
        other = path.suffix in checkpoints.SUFFIXES and path not in weights
        if path.is_dir() or other or path.name.startswith(".") or path.name.upper().startswith(("README", CARD_FILE[:10])):
            continue
        files.inputs(path)
        target = files.file(out / path.name)
        written.append(path.name)
        if path in weights:
            held = checkpoints.read(path)
            checkpoints.patch(path, target, {name: left.pop(name) for name in list(left) if name in held})
        else:
            target.write(path.read_bytes())
    if left:
        raise BadModel(f"the weights hold no '{next(iter(left))}'", where=folder, do="export to the model it came from")
    return written


def _onnx(classifier: Classifier, changes: "Mapping[str, Tensor]") -> bytes:
    """The repaired classifier as ONNX, for a batch of any size (and texts of any length)."""
    import torch

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadModel(
            "torch's exporter needs the packages onnx and onnxscript", where="option --onnx", do="pip install 'nsf[onnx]'"
        ) from error
    network = classifier.network.cpu().eval()
    state = network.state_dict()
    network.load_state_dict({**state, **{name: tensor.to(state[name].dtype) for name, tensor in changes.items()}})
    inputs = _example(classifier)
    names = list(inputs) if isinstance(inputs, Mapping) else ["input"]

    class Logits(torch.nn.Module):
        """The network with inputs in order and a plain tensor as output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            batch = dict(zip(names, tensors, strict=True)) if isinstance(inputs, Mapping) else tensors[0]
            return models.logits(models.call(self.network, batch))

    tensors = tuple(inputs.values()) if isinstance(inputs, Mapping) else (inputs,)
    try:
        with torch.no_grad():
            Logits().eval()(*tensors)
    except RuntimeError as error:
        raise BadModel(
            f"the network does not take what it is traced with for ONNX, its transform of a {TRACED_SIDE} x {TRACED_SIDE} "
            f"image or of a short text ({str(error).splitlines()[0]})",
            where=classifier.name,
            do="have the transform bring samples of any size to one that the network takes",
        ) from error
    axes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if isinstance(inputs, Mapping):
        axes[1] = torch.export.Dim.DYNAMIC
    try:
        # Failures are told below, in one sentence and not in a log of tracebacks.
        logging.disable(logging.CRITICAL)
        program: Any = torch.onnx.export(
            Logits().eval(), tensors, input_names=names, output_names=["logits"],
            dynamic_shapes=(tuple(axes for _ in names),), dynamo=True, verbose=False,
        )  # fmt: skip
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise BadModel(f"torch cannot write it as ONNX ({type(error).__name__}: {text})", where=classifier.name) from error
    finally:
        logging.disable(logging.NOTSET)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _example(classifier: Classifier) -> Any:
    """A batch of two made-up samples, to trace the network with."""
    from PIL import Image

    image = Image.new("RGB", (TRACED_SIDE, TRACED_SIDE))
    texts = ["a text", "another text, a little longer"]
    samples = texts if classifier.kind == "text" else [image, image]
    try:
        return collate(classifier.collate, [(classifier.transform(sample), 0) for sample in samples])[0]
    except Exception:
        if classifier.kind != "any":
            raise
        return collate(classifier.collate, [(classifier.transform(text), 0) for text in texts])[0]


def _card(
    opened: Opened,
    base: Artifact,
    new: Artifact,
    form: str,
    written: list[str],
    changed: list[str],
    kept_because: str | None,
    result: Mapping[str, Any] | None,
) -> str:
    """The model card, in markdown, from stages/templates/model_card.md."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md").render(
        model=opened.classifier.name,
        source=opened.classifier.spec["source"],
        classes=new.class_names(len(new["folded_weight"])),
        parameters=new.metadata.parameters,
        kept_because=kept_because,
        remedy=new.metadata.notes.get("remedy"),
        samples=len(new["rescued"]),
        rescued=int(new["rescued"].sum()),
        conforming=int(new["conforming"].sum()),
        fingerprints={"model": opened.fingerprint, "head": base.fingerprint, "update": new.fingerprint},
        form=form,
        written=written,
        changed=changed,
        result=result,
    )
