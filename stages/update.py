"""update: a new linear head on T(x), each batch half rescued and half conforming samples (NSF, section 3.4, step 4)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages import artifacts, distributed
from stages.adam import Adam
from stages.artifacts import Artifact, Metadata
from stages.auto import PLAIN, repair
from stages.errors import BadValues
from stages.evidence import LEAST_OF_CLASS, Evidence
from stages.identify import Identified
from stages.lineage import agree, check_labels, check_lineage, check_model, check_training
from stages.logistic import cross_entropy
from stages.outputs import check_computed, outputs
from stages.passes import best
from stages.runtime import Progress, begin, reproducible, silent

if TYPE_CHECKING:
    from torch import Tensor

    from stages.rows import Features


@dataclass(frozen=True)
class Updated:
    """The new head, on T(x) (`weight`, `bias`) and folded to work on x itself: (C, d) and (C,) float32."""

    weight: "Tensor"
    bias: "Tensor"
    folded_weight: "Tensor"
    folded_bias: "Tensor"


def select(
    features: "Features", labels: "Tensor", minority: "Tensor", centers: "Tensor", scale: "Tensor", shift: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """The rescued and the conforming samples, (n,) bool each.

    Rescued: nearest centroid wrong on x (the minority), nearest center right on T(x). Conforming: nearest centroid
    right on x.

    Args:
        features: (n, d).
        labels: (n,) int64 in [0, C).
        minority: (n,) bool, from `identify`.
        centers: (C, d), from `neutralize`.
        scale, shift: (d,), from `eliminate`.
    """
    import torch

    # The center nearest to T(x) has the highest T(x).c - ||c||^2 / 2, which is a linear head on T(x), folded onto x.
    points, stretch, move = (tensor.to(torch.float64) for tensor in (centers, scale, shift))
    offsets = points @ (stretch * move - move) - points.square().sum(dim=1) / 2
    [closest] = best(features, [(points * stretch, offsets)], what="select", only=minority)
    return closest == labels, ~minority


def update(
    features: "Features",
    labels: "Tensor",
    rescued: "Tensor",
    conforming: "Tensor",
    scale: "Tensor",
    shift: "Tensor",
    *,
    classes: int,
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Progress = silent,
) -> Updated:
    """Train a new linear head on T(x) by the published procedure.

    Each step takes B = min(|rescued|, |conforming|) samples of each kind, all of the smaller kind and a draw with
    replacement from the larger; loss = CE(rescued) + CE(conforming); AdamW without weight decay from PyTorch's default
    initialisation of a linear layer. All randomness comes from one CPU generator, so that every device draws alike, and
    every process.

    T is affine: the head on T(x) is evaluated as the folded head on x, and its gradient follows from that of the folded
    head, so that no T(x) is kept.

    Args:
        features: (n, d).
        labels: (n,) int64 in [0, classes).
        rescued, conforming: (n,) bool, from `select`; neither may be empty.
        scale, shift: (d,), from `eliminate`.
        classes: C, the rows of the new head.
        steps: how many steps, at least 1.
        learning_rate: AdamW's.
        seed: of the initialisation and the draws.
    """
    import torch

    device, width = labels.device, features.shape[1]
    generator = torch.Generator().manual_seed(seed)
    # torch.nn.Linear's own: uniform in +-1/sqrt(d), weight first, then bias.
    bound = width**-0.5
    weight = torch.empty(classes, width).uniform_(-bound, bound, generator=generator).to(device)
    bias = torch.empty(classes).uniform_(-bound, bound, generator=generator).to(device)
    optimizer = Adam([weight, bias], learning_rate)
    kinds = sorted((_numbered(kind) for kind in (rescued, conforming)), key=lambda kind: kind[2])
    size = kinds[0][2]
    move = scale * shift - shift
    for step in range(steps):
        drawn = []
        for members, before, count in kinds:
            if count > size:
                # Numbers over all processes, of which this one takes its own; sorted, for memory is read in order.
                numbers = torch.randint(count, (size,), generator=generator).sort().values - before
                members = members[numbers[(numbers >= 0) & (numbers < len(members))].to(device)]
            drawn.append(members)
        rows = torch.cat(drawn)
        shares = torch.full((len(rows),), 1 / size, dtype=torch.float64, device=device)
        folded, folded_bias = weight * scale, bias + weight @ move
        _, gradient = cross_entropy(features, labels, rows, shares, folded, folded_bias)
        of_bias = gradient[:, -1].to(torch.float32)
        optimizer.step([gradient[:, :-1].to(torch.float32) * scale + of_bias.unsqueeze(1) * move, of_bias])
        progress("update", step + 1, steps)
    return Updated(weight, bias, *fold(weight, bias, scale, shift))


def _numbered(kind: "Tensor") -> tuple["Tensor", int, int]:
    """This process's samples of a kind, how many the processes before it have, and how many there are in all."""
    members = kind.nonzero().flatten()
    counts = distributed.gathered(len(members))
    return members, sum(counts[: distributed.rank()]), sum(counts)


def fold(weight: "Tensor", bias: "Tensor", scale: "Tensor", shift: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The head on x that equals the head (C, d), (C,) on T(x): T is affine, so it melts into the weights.

    In float64: weight * scale, and bias + weight @ (scale * shift - shift).
    """
    import torch

    wide, stretch, move = weight.to(torch.float64), scale.to(torch.float64), shift.to(torch.float64)
    folded_bias = bias.to(torch.float64) + wide @ (stretch * move - move)
    return (wide * stretch).to(torch.float32), folded_bias.to(torch.float32)


def unfold(weight: "Tensor", bias: "Tensor", scale: "Tensor", shift: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The head on T(x) that equals the head (C, d), (C,) on x: `fold` undone.

    A feature of scale zero is the same for all samples in T(x), and has no say there.
    """
    import torch

    wide, stretch, move = weight.to(torch.float64), scale.to(torch.float64), shift.to(torch.float64)
    on_map = torch.where(stretch == 0, 0.0, wide / stretch)
    on_map_bias = bias.to(torch.float64) - on_map @ (stretch * move - move)
    return on_map.to(torch.float32), on_map_bias.to(torch.float32)


@dataclass(frozen=True)
class _Given:
    """What both solvers work on, where it is computed.

    Attributes:
        features, labels: (n, d), (n,) int64, this process's samples.
        rescued, conforming: (n,) bool, see `select`.
        scale, shift: (d,), T's.
        base: the base head (C, d), (C,); None where none is given.
        class_names: C of them.
        training: features (m, d), labels (m,) of the training split; None where it is not given.
    """

    features: "Features"
    labels: "Tensor"
    rescued: "Tensor"
    conforming: "Tensor"
    scale: "Tensor"
    shift: "Tensor"
    base: "tuple[Tensor, Tensor] | None"
    class_names: list[str]
    training: "tuple[Features, Tensor] | None" = None

    def unfolded(self, head: "tuple[Tensor, Tensor]") -> Updated:
        """A head on x, and what it is on T(x)."""
        return Updated(*unfold(*head, self.scale, self.shift), *head)


@dataclass(frozen=True)
class _Outcome:
    """What a solver makes of it.

    Attributes:
        head: the new head, or the base one.
        kept: why it is the base one, in words; None where it is not.
        attributes: pseudo-attributes (n,), where groups are behind the head.
        parameters, summary: of this solver alone, for metadata and for the command.
    """

    head: Updated
    kept: str | None
    attributes: "Tensor | None"
    parameters: dict[str, Any]
    summary: dict[str, Any]


def _by_auto(
    given: _Given, found: Artifact, *, regularization: float | Literal["auto"], force: bool, seed: int, progress: Progress
) -> _Outcome:
    columns = (found["centroids"], found.own("nearest"), found.own("minority"))
    repaired = repair(
        given.features, given.labels, given.base,
        found=Identified(*(column.to(given.labels.device) for column in columns)), training=given.training,
        classes=len(given.class_names),
        regularization=None if regularization == "auto" else regularization,
        force=force, seed=seed, progress=progress,
    )  # fmt: skip
    again = repaired.retrained
    attributes = again.attributes if again is not None and repaired.remedy != PLAIN else None
    pseudo_minority = None if attributes is None else distributed.count(int((attributes != given.labels).sum()))
    summary = {
        "doubt": repaired.doubt,
        "verdict": repaired.verdict.bias,
        "verdict_of_identify": found.metadata.notes.get("verdict"),
        "mirror": repaired.verdict.mirror,
        **_numbers(repaired.evidence or Evidence()),
        "remedy": repaired.remedy,
        "groups_refused": repaired.refused,
        "neglected_class": None if repaired.neglected is None else given.class_names[repaired.neglected],
        "pseudo_minority": pseudo_minority,
        "penalty": again.penalty if again is not None else None,
    }
    head = given.unfolded((repaired.weight, repaired.bias))
    return _Outcome(head, repaired.kept, attributes, {"regularization": regularization, "force": force}, summary)


def _numbers(evidence: Evidence) -> dict[str, float | None]:
    """What speaks for a repair, rounded for the summary."""
    measures = {
        "mirror_of_completed": evidence.mirror,
        "recovered": evidence.recovered,
        "gained": evidence.gained,
        "shared": evidence.shared,
        "better": evidence.better,
        "wrong": evidence.wrong,
        "errors": evidence.errors,
        "unused": evidence.unused,
        "lost": evidence.lost,
        "raised": evidence.raised,
        "broken": evidence.broken,
        "neglected": evidence.neglected,
    }
    return {name: None if value is None else round(value, 6) for name, value in measures.items()}


def _by_published(
    given: _Given, where: Path, *, steps: int, learning_rate: float, seed: int, progress: Progress
) -> _Outcome:
    rescued, conforming = (distributed.count(int(kind.sum())) for kind in (given.rescued, given.conforming))
    parameters = {"steps": steps, "learning_rate": learning_rate}
    if rescued and conforming:
        new = update(
            given.features, given.labels, given.rescued, given.conforming, given.scale, given.shift,
            classes=len(given.class_names), steps=steps, learning_rate=learning_rate, seed=seed, progress=progress,
        )  # fmt: skip
        return _Outcome(new, None, None, parameters, {})
    nothing = f"{rescued} samples are rescued and {conforming} conforming, so there is nothing to"
    if given.base is None:
        raise BadValues(f"{nothing} train a new head on", where=where, do="give the base head (--head) to keep it")
    return _Outcome(given.unfolded(given.base), f"{nothing} learn from", None, parameters, {})


def run(
    *,
    features: Path,
    identify: Path,
    neutralize: Path,
    eliminate: Path,
    out: Path,
    head: Path | None = None,
    training: Path | None = None,
    solver: Literal["auto", "published"] = "auto",
    regularization: float | Literal["auto"] = "auto",
    steps: int = 500,
    learning_rate: float = 1e-3,
    seed: int = 0,
    force: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The stage on files: read features, the three artifacts before this one and, where there is one, the base head.

    solver "auto" retrains as `stages.auto.repair` does, and keeps the base head where the verdict is not "biased",
    cross-validation shows no reliable gain, or the new head is worse on `training`, unless `force`d; "published" trains as
    `update` does, and keeps it where no sample is rescued, for there is nothing to learn from. `rescued` and `conforming`
    are written by either, `pseudo_attributes` where solver "auto" looked for groups and did not give them up.

    Args:
        training: features of samples that the model was trained on, with which solver "auto" compares base and new head.
        solver: "auto" (with `regularization`, see `auto.repair`) or "published" (with `steps`, `learning_rate`).
        seed: of the folds, or of initialisation and draws.
        force: return the new head of solver "auto" whatever speaks against it.

    Returns:
        A summary: `out`, `solver`, `minority`, `rescued`, `conforming`, `base_head_kept`, `kept_because`, `small_classes`
        ({name: samples} of those under `evidence.LEAST_OF_CLASS`); of solver "auto" `doubt` (why the base head would have
        been kept, where it is not), `verdict`, `verdict_of_identify`, `mirror` (of that verdict), the other numbers of
        `stages.evidence.Evidence`, `remedy` and `groups_refused` (what the head came of, and why of no pseudo-groups, see
        `stages.auto.Repaired`), `neglected_class` (where that is why), `pseudo_minority` and `penalty` too, None where they
        were not needed.

    Raises:
        UserError: an input is missing, wrong, or does not fit, or no sample is rescued and there is no head to keep;
            nothing is written.
    """
    target = begin(device)
    data = artifacts.read("features", features)
    found = artifacts.read("identify", identify)
    neutral = artifacts.read("neutralize", neutralize)
    learned = artifacts.read("eliminate", eliminate)
    base = artifacts.read("head", head) if head is not None else None
    agree("n", data, found)
    agree("d", data, found, neutral, learned, base)
    check_model(data, base)
    classes = agree("C", base, found, neutral)
    check_lineage(found, features=data)
    check_lineage(neutral, features=data, identify=found)
    check_lineage(learned, features=data, neutralize=neutral)
    check_labels(data, classes, source=base or found)
    trained = None
    if training is not None and solver == "auto":
        trained = artifacts.read("features", training, option="--train-features")
        check_training(trained, data, base, classes, source=base or found)
    names = data.class_names(classes)
    with outputs(features, identify, neutralize, eliminate, head, training) as files, reproducible(seed):
        files.check(out)
        x, labels = data.rows.to(target), data.own("labels").to(target)
        scale, shift = learned["scale"].to(target), learned["shift"].to(target)
        minority, centers = found.own("minority").to(target), neutral["centers"].to(target)
        rescued, conforming = select(x, labels, minority, centers, scale, shift)
        base_head = base.head(target) if base is not None else None
        seen = (trained.rows.to(target), trained.own("labels").to(target)) if trained is not None else None
        given = _Given(x, labels, rescued, conforming, scale, shift, base_head, names, seen)
        if solver == "auto":
            done = _by_auto(given, found, regularization=regularization, force=force, seed=seed, progress=progress)
        else:
            done = _by_published(given, features, steps=steps, learning_rate=learning_rate, seed=seed, progress=progress)
        remedy = "lower update.learning_rate" if solver == "published" else "scale the features down"
        check_computed(out, vars(done.head), do=remedy)
        inputs = {"features": data, "identify": found, "neutralize": neutral, "eliminate": learned, "head": base,
                  "training": trained}  # fmt: skip
        fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items() if artifact is not None}
        if "model" in data.metadata.inputs:
            fingerprints["model"] = data.metadata.inputs["model"]
        metadata = Metadata(
            parameters={"solver": solver, "seed": seed, **done.parameters},
            inputs=fingerprints,
            class_names=names,
            notes={
                "base_head_kept": str(done.kept is not None).lower(),
                "kept_because": done.kept or "",
                "remedy": done.summary.get("remedy") or "",
            },
        )
        tensors = {
            "rescued": rescued, "conforming": conforming, "pseudo_attributes": done.attributes, **vars(done.head)
        }  # fmt: skip
        files.artifact("update", out, tensors, metadata)
        counts = data.class_sizes(classes).tolist()
        return {
            "out": str(out),
            "solver": solver,
            "minority": int(found["minority"].sum()),
            "rescued": distributed.count(int(rescued.sum())),
            "conforming": distributed.count(int(conforming.sum())),
            "base_head_kept": done.kept is not None,
            "kept_because": done.kept,
            "small_classes": {name: count for name, count in zip(names, counts, strict=True) if count < LEAST_OF_CLASS},
            **done.summary,
        }
