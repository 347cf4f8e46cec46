"""update: a new linear head on T(x), each batch half rescued and half conforming samples (NSF, section 3.4, step 4)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import artifacts
from stages.artifacts import Metadata
from stages.eliminate import transform
from stages.errors import BadValues
from stages.passes import blocks, nearest
from stages.runtime import Progress, resolve_device, silent

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Updated:
    """The new head, on T(x) (`weight`, `bias`) and folded to work on x itself: (C, d) and (C,) float32."""

    weight: "Tensor"
    bias: "Tensor"
    folded_weight: "Tensor"
    folded_bias: "Tensor"


def select(
    features: "Tensor", labels: "Tensor", minority: "Tensor", centers: "Tensor", scale: "Tensor", shift: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """The rescued and the conforming samples, (n,) bool each.

    Rescued: nearest centroid wrong on x (the minority), nearest center right on T(x). Conforming: nearest centroid
    right on x.

    Args:
        features: (n, d) float32.
        labels: (n,) int64 in [0, C).
        minority: (n,) bool, from `identify`.
        centers: (C, d), from `neutralize`.
        scale, shift: (d,), from `eliminate`.
    """
    import torch

    drawn_away = minority.nonzero().flatten()
    right = [nearest(transform(features[rows], scale, shift), centers) == labels[rows] for (rows,) in blocks(drawn_away)]
    rescued = torch.zeros_like(minority)
    if right:
        rescued[drawn_away] = torch.cat(right)
    return rescued, ~minority


def update(
    features: "Tensor",
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
    initialisation of a linear layer. All randomness comes from one CPU generator, so that every device draws alike.

    Args:
        features: (n, d) float32.
        labels: (n,) int64 in [0, classes).
        rescued, conforming: (n,) bool, from `select`; neither may be empty.
        scale, shift: (d,), from `eliminate`.
        classes: C, the rows of the new head.
        steps: how many steps, at least 1.
        learning_rate: AdamW's.
        seed: of the initialisation and the draws.
    """
    import torch
    from torch.nn.functional import cross_entropy

    device, width = features.device, features.shape[1]
    generator = torch.Generator().manual_seed(seed)
    # torch.nn.Linear's own: uniform in +-1/sqrt(d), weight first, then bias.
    bound = width**-0.5
    weight = torch.empty(classes, width).uniform_(-bound, bound, generator=generator).to(device).requires_grad_()
    bias = torch.empty(classes).uniform_(-bound, bound, generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias], lr=learning_rate, weight_decay=0.0)
    kinds = [rescued.nonzero().flatten(), conforming.nonzero().flatten()]
    size = min(len(members) for members in kinds)
    # The smaller kind is the same in every batch: gathered and mapped once.
    fixed = {
        position: (transform(features[members], scale, shift), labels[members])
        for position, members in enumerate(kinds)
        if len(members) == size
    }
    for step in range(steps):
        loss = torch.zeros((), device=device)
        for position, members in enumerate(kinds):
            if position in fixed:
                mapped, targets = fixed[position]
            else:
                drawn = members[torch.randint(len(members), (size,), generator=generator).to(device)]
                mapped, targets = transform(features[drawn], scale, shift), labels[drawn]
            loss = loss + cross_entropy(mapped @ weight.T + bias, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress("update", step + 1, steps)
    new_weight, new_bias = weight.detach(), bias.detach()
    return Updated(new_weight, new_bias, *fold(new_weight, new_bias, scale, shift))


def fold(weight: "Tensor", bias: "Tensor", scale: "Tensor", shift: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The head on x that equals the head (C, d), (C,) on T(x): T is affine, so it melts into the weights.

    In float64: weight * scale, and bias + weight @ (scale * shift - shift).
    """
    import torch

    wide, stretch, move = weight.to(torch.float64), scale.to(torch.float64), shift.to(torch.float64)
    folded_bias = bias.to(torch.float64) + wide @ (stretch * move - move)
    return (wide * stretch).to(torch.float32), folded_bias.to(torch.float32)


def unfold(weight: "Tensor", bias: "Tensor", scale: "Tensor", shift: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The head on T(x) that equals the head (C, d), (C,) on x: `fold` undone, where no scale is zero."""
    import torch

    wide, stretch, move = weight.to(torch.float64), scale.to(torch.float64), shift.to(torch.float64)
    on_map = wide / stretch
    on_map_bias = bias.to(torch.float64) - on_map @ (stretch * move - move)
    return on_map.to(torch.float32), on_map_bias.to(torch.float32)


def run(
    *,
    features: Path,
    identify: Path,
    neutralize: Path,
    eliminate: Path,
    out: Path,
    head: Path | None = None,
    solver: str = "published",
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The stage on files: read features, the three artifacts before this one and, where there is one, the base head.

    Where no sample is rescued there is nothing to learn from, and the base head is kept.

    Returns:
        A summary: `out`, the numbers of rescued and conforming samples, and `base_head_kept`.

    Raises:
        UserError: an input is missing, wrong, or does not fit, or no sample is rescued and there is no head to keep;
            nothing is written.
    """
    target = resolve_device(device)
    data = artifacts.read("features", features)
    found = artifacts.read("identify", identify)
    neutral = artifacts.read("neutralize", neutralize)
    learned = artifacts.read("eliminate", eliminate)
    base = artifacts.read("head", head) if head is not None else None
    artifacts.agree("n", data, found)
    artifacts.agree("d", data, found, neutral, learned, base)
    classes = artifacts.agree("C", base, found, neutral)
    artifacts.check_lineage(found, features=data)
    artifacts.check_lineage(neutral, features=data, identify=found)
    artifacts.check_lineage(learned, features=data, neutralize=neutral)
    artifacts.check_labels(data, classes, source=base or found)
    with artifacts.outputs(features, identify, neutralize, eliminate, head) as files:
        x, labels = data["features"].to(target), data["labels"].to(target)
        scale, shift = learned["scale"].to(target), learned["shift"].to(target)
        rescued, conforming = select(x, labels, found["minority"].to(target), neutral["centers"].to(target), scale, shift)
        trainable = bool(rescued.any()) and bool(conforming.any())
        if trainable:
            new = update(
                x, labels, rescued, conforming, scale, shift,
                classes=classes, steps=steps, learning_rate=learning_rate, seed=seed, progress=progress,
            )  # fmt: skip
        elif base is not None:
            weight, bias = base["weight"].to(target), base["bias"].to(target)
            new = Updated(*unfold(weight, bias, scale, shift), weight, bias)
        else:
            raise BadValues(
                f"{int(rescued.sum())} samples are rescued and {int(conforming.sum())} conforming, so there is nothing "
                "to train a new head on",
                where=features,
                do="give the base head (--head) to keep it",
            )
        artifacts.check_computed(out, vars(new), do="lower update.learning_rate")
        inputs = {"features": data, "identify": found, "neutralize": neutral, "eliminate": learned, "head": base}
        metadata = Metadata(
            parameters={"solver": solver, "steps": steps, "learning_rate": learning_rate, "seed": seed},
            inputs={name: artifact.fingerprint for name, artifact in inputs.items() if artifact is not None},
            class_names=data.class_names(classes),
            notes={"base_head_kept": str(not trainable).lower()},
        )
        files.artifact("update", out, {"rescued": rescued, "conforming": conforming, **vars(new)}, metadata)
    return {
        "out": str(out),
        "solver": solver,
        "minority": int(found["minority"].sum()),
        "rescued": int(rescued.sum()),
        "conforming": int(conforming.sum()),
        "base_head_kept": not trainable,
    }
