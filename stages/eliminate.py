"""eliminate: one elementwise affine map that pulls every sample to its class's center (NSF, section 3.3, step 3)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages import artifacts, distributed
from stages.adam import Adam
from stages.artifacts import Metadata
from stages.lineage import agree, check_labels, check_lineage
from stages.outputs import check_computed, outputs
from stages.passes import blocks, compiled, spread
from stages.runtime import Progress, begin, reproducible, silent

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stages.rows import Features

# The reference's constants (tests/golden/README.md): weight of the mean scale in the loss, and what torch's pairwise
# distance adds to every difference.
SCALE_PENALTY = 10.0
DISTANCE_EPS = 1e-6

# steps "auto": ends when the loss has fallen by less than this share over so many steps, and at the latest after MOST_STEPS.
SETTLED = 0.01
LOOK_BACK = 10
MOST_STEPS = 350
# What to do where T is not finite.
DIVERGED = "lower eliminate.learning_rate or eliminate.steps, or scale features down that are far above 1"


@dataclass(frozen=True)
class Map:
    """T(x) = (x + shift) * scale - shift: scale and shift (d,) float32; loss (steps,) float32, before each step."""

    scale: "Tensor"
    shift: "Tensor"
    loss: "Tensor"


def transform(features: "Tensor", scale: "Tensor", shift: "Tensor") -> "Tensor":
    """T(x) = (x + shift) * scale - shift of rows (b, d)."""
    return (features + shift) * scale - shift


def eliminate(
    features: "Features",
    labels: "Tensor",
    centers: "Tensor",
    *,
    steps: int | Literal["auto"],
    learning_rate: float = 1e-3,
    progress: Progress = silent,
) -> Map:
    """Learn T by full-batch AdamW (no weight decay) from scale 1, shift 0.

    Loss: mean over samples of ||T(x_i) - centers[y_i] + 1e-6||_2, plus 10 * mean(scale).

    The gradient is written out, so that each step reads every row once and keeps no graph and no copy of the features.
    With the residual r_i = T(x_i) - centers[y_i] + 1e-6 and u_i = r_i / (n ||r_i||):
    d loss / d scale = sum u_i * (x_i + shift) + 10 / d, and d loss / d shift = (scale - 1) * sum u_i.

    Args:
        features: (n, d).
        labels: (n,) int64 in [0, C).
        centers: (C, d) float32, from `neutralize`.
        steps: how many steps, at least 1; "auto" ends where LOOK_BACK of them lower the loss by less than SETTLED.
        learning_rate: AdamW's.
    """
    import torch

    most = MOST_STEPS if steps == "auto" else steps
    width, device = features.shape[1], centers.device
    samples = distributed.count(features.shape[0])
    scale, shift = torch.ones(width, device=device), torch.zeros(width, device=device)
    optimizer = Adam([scale, shift], learning_rate)
    losses = torch.empty(most, device=device)
    pass_over = _compiled_pull if compiled(features) else _pull
    for step in range(most):
        # T(x) - center + eps = x * scale + offset[class]
        offsets = shift * scale - shift - centers + DISTANCE_EPS
        totals = distributed.summed(pass_over(features, labels, scale, offsets, samples))
        directions, products = totals[:-1].view(2, width).to(torch.float32)
        losses[step] = totals[-1] / samples + SCALE_PENALTY * scale.mean()
        optimizer.step([products + shift * directions + SCALE_PENALTY / width, (scale - 1) * directions])
        progress("eliminate", step + 1, most)
        if steps == "auto" and _settled(losses[: step + 1]):
            progress("eliminate", most, most)
            return Map(scale, shift, losses[: step + 1].clone())
    return Map(scale, shift, losses)


def _pull(features: "Features", labels: "Tensor", scale: "Tensor", offsets: "Tensor", samples: int) -> "Tensor":
    """Over the rows, (2 d + 1,) float64: sum u_i, sum u_i * x_i, and sum ||r_i||; see `eliminate`."""
    import torch

    width = len(scale)
    totals = torch.zeros(2 * width + 1, dtype=torch.float64, device=scale.device)
    for rows, members in blocks(features, labels):
        residual = torch.addcmul(offsets[members], rows, scale)
        norms = residual.norm(dim=1)
        # A sample that lies on its center pulls nowhere; its gradient is taken as zero, as torch.norm does.
        weights = torch.where(norms > 0, 1 / (samples * norms), 0.0)
        totals[:width] += weights @ residual
        totals[width:-1] += weights @ residual.mul_(rows)
        totals[-1] += norms.sum(dtype=torch.float64)
    return totals


def _compiled_pull(features: "Features", labels: "Tensor", scale: "Tensor", offsets: "Tensor", samples: int) -> "Tensor":
    """`_pull` by the compiled loop."""
    from stages import kernels

    width = len(scale)
    members, stretch, moves = labels.numpy(), scale.numpy(), offsets.numpy()

    def pull(x: "np.ndarray", first: int, out: "np.ndarray") -> None:
        sums = out[:-1].reshape(2, width)
        out[-1] += kernels.pull(x, first, members[first : first + len(x)], stretch, moves, 1 / samples, sums)

    return spread(features, pull, 2 * width + 1)


def _settled(losses: "Tensor") -> bool:
    """Whether the loss fell by less than a share of SETTLED over the last LOOK_BACK steps; looked at every so many."""
    if len(losses) <= LOOK_BACK or len(losses) % LOOK_BACK != 1:
        return False
    before, now = float(losses[-1 - LOOK_BACK]), float(losses[-1])
    return before - now < SETTLED * before


def run(
    *,
    features: Path,
    neutralize: Path,
    out: Path,
    steps: int | Literal["auto"],
    learning_rate: float = 1e-3,
    curve: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The stage on files: read features and centers, write `out` and, where asked, the loss `curve` as CSV.

    Returns:
        A summary: `out`, `steps`, the first and the last loss, and the range of the scale.

    Raises:
        UserError: an input is missing, wrong, or does not fit; nothing is written.
    """
    target = begin(device)
    data = artifacts.read("features", features)
    neutral = artifacts.read("neutralize", neutralize)
    agree("d", data, neutral)
    check_lineage(neutral, features=data)
    classes = check_labels(data, neutral.sizes["C"], source=neutral)
    with outputs(features, neutralize) as files, reproducible(0):
        files.check(out, curve)
        learned = eliminate(
            data.rows.to(target),
            data.own("labels").to(target),
            neutral["centers"].to(target),
            steps=steps,
            learning_rate=learning_rate,
            progress=progress,
        )
        check_computed(out, vars(learned), do=DIVERGED)
        metadata = Metadata(
            parameters={"steps": steps, "learning_rate": learning_rate},
            inputs={"features": data.fingerprint, "neutralize": neutral.fingerprint},
            class_names=data.class_names(classes),
        )
        files.artifact("eliminate", out, vars(learned), metadata)
        losses = learned.loss.tolist()
        if curve is not None:
            files.table(curve, [("step", "loss"), *((step, f"{loss:.6g}") for step, loss in enumerate(losses))])
    return {
        "out": str(out),
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "scale_min": float(learned.scale.min()),
        "scale_max": float(learned.scale.max()),
    }
