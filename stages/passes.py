"""The passes over the features that several stages make, block by block of rows: no copy of all features."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.runtime import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

# Rows that a pass over the features takes at once: small enough for temporaries to stay in cache, large enough that
# Python's share of the time vanishes.
BLOCK_ROWS = 1024

# Groups beyond which one-hot rows would be larger than the features.
MANY_GROUPS = 256


def blocks(*tensors: "Tensor", what: str = "", progress: Progress = silent) -> Iterator[tuple["Tensor", ...]]:
    """The tensors' rows, BLOCK_ROWS at a time, as views; `progress` counts them under the name `what`."""
    samples = tensors[0].shape[0]
    for start in range(0, samples, BLOCK_ROWS):
        progress(what, start, samples)
        yield tuple(tensor[start : start + BLOCK_ROWS] for tensor in tensors)
    progress(what, samples, samples)


def group_means(features: "Tensor", groups: "Tensor", count: int, *, progress: Progress = silent) -> "Tensor":
    """Means (count, d) float32 of the rows of each group, summed in float64; a group without rows gets zeros.

    Args:
        features: (n, d).
        groups: (n,) int64 in [0, count).
    """
    import torch

    sums = torch.zeros(count, features.shape[1], dtype=torch.float64, device=features.device)
    for rows, members in blocks(features, groups, what="means", progress=progress):
        if count > MANY_GROUPS:
            # On CUDA this is deterministic where `runtime.reproducible` asks for it, and slow.
            sums.index_add_(0, members, rows.to(torch.float64))
        else:
            # A product with one-hot rows is deterministic everywhere, and fast.
            sums += torch.nn.functional.one_hot(members, count).T.to(torch.float64) @ rows.to(torch.float64)
    sizes = torch.bincount(groups, minlength=count).clamp(min=1)
    return (sums / sizes.unsqueeze(1)).to(torch.float32)


def nearest(features: "Tensor", points: "Tensor", *, progress: Progress = silent) -> "Tensor":
    """Index (n,) int64 of the point (C, d) that is nearest (L2) to each row of features (n, d).

    ||x - p||^2 = ||x||^2 - 2 x.p + ||p||^2, and ||x||^2 is the same for all points. In float64, so that the
    cancellation does not decide between two near points.
    """
    import torch

    target = points.to(torch.float64)
    half_norms = target.square().sum(dim=1) / 2
    result = torch.empty(features.shape[0], dtype=torch.int64, device=features.device)
    for rows, out in blocks(features, result, what="nearest", progress=progress):
        out.copy_((rows.to(torch.float64) @ target.T - half_norms).argmax(dim=1))
    return result


def predict(features: "Tensor", weight: "Tensor", bias: "Tensor", *, progress: Progress = silent) -> "Tensor":
    """Classes (m,) int64 that a linear head (C, d), (C,) gives to features (m, d)."""
    import torch

    batches = blocks(features, what="predict", progress=progress)
    return torch.cat([(rows @ weight.T + bias).argmax(dim=1) for (rows,) in batches])
