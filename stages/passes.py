"""The passes over the features that several stages make, each reading every row once and keeping no copy of them.

Features are a tensor (n, d) or `Rows` of files. Where several processes work together each holds a share of the samples:
`features`, `labels` and what is (n,) are the process's own, and sums and counts are over all of them.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

from stages import distributed
from stages.rows import BLOCK_ROWS, Rows
from stages.runtime import Progress, silent, threads

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stages.rows import Features

# Values of the features from which on the compiled loops are worth importing, and the groups or points of a pass beyond
# which a matrix product is faster than they are.
KERNEL_VALUES = 1 << 22
MANY = 64
# Shares of threads begin at multiples of so many rows, as those of processes do at multiples of BLOCK_ROWS: `kernels.CHUNK`.
UNIT = 256
# Columns of a block that are summed together, where that takes a float64 copy of them.
COLUMNS = 256
# Groups beyond which one-hot rows would be larger than the features.
MANY_GROUPS = 256


def blocks(
    features: "Features", *columns: "Tensor", what: str = "", progress: Progress = silent
) -> "Iterator[tuple[Tensor, ...]]":
    """Rows (k, d) float32 and the columns' rows, block by block; `progress` counts them under the name `what`."""
    rows = Rows.of(features)
    for start, block in rows.blocks():
        progress(what, start, len(rows))
        yield block, *(column[start : start + len(block)] for column in columns)
    progress(what, len(rows), len(rows))


def chosen(features: "Features", rows: "Tensor") -> "Iterator[tuple[Tensor, Tensor]]":
    """Some rows (k,) int64 of the features, block by block: (the rows' numbers, rows (b, d) float32)."""
    for start in range(0, len(rows), BLOCK_ROWS):
        part = rows[start : start + BLOCK_ROWS]
        yield part, Rows.of(features).take(part)


def compiled(features: "Features") -> bool:
    """Whether a pass over these features takes the loops of `kernels`: on a CPU, and large over all processes."""
    import torch

    rows = Rows.of(features)
    if str(rows.device) != "cpu" or rows.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    whole = all(part.is_contiguous() for part in rows.parts)
    # The rows of all processes, where they share mapped files: a block is computed alike by whichever has it.
    return whole and sum(len(part) for part in rows.parts) * rows.shape[1] >= KERNEL_VALUES


def spread(features: "Features", work: "Callable[[np.ndarray, int, np.ndarray], None]", *shape: int) -> "Tensor":
    """A pass of a loop of `kernels` over the rows, by several threads: the float64 sum of what each has added to.

    Each thread begins with zeros of `shape`, and calls work(x, first, its own): x (k, d) as stored, first the row of the
    features that x begins with. The sum is always made in the same order.
    """
    import numpy as np
    import torch

    rows = Rows.of(features)
    count = threads()
    units = -(-len(rows) // UNIT)

    def part(index: int) -> "np.ndarray":
        made = np.zeros(shape)
        start, stop = (min(len(rows), units * at // count * UNIT) for at in (index, index + 1))
        for first, values in rows.spans(start, stop):
            work(as_numpy(values), first, made)
        return made

    made = [part(0)] if count == 1 else list(pool(count).map(part, range(count)))
    return torch.from_numpy(sum(made[1:], made[0]))


@cache
def pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def as_numpy(values: "Tensor") -> "np.ndarray":
    """Values as the loops of `kernels` take them: the bits of float16 as uint16, of bfloat16 as int16."""
    import torch

    views = {torch.float16: torch.uint16, torch.bfloat16: torch.int16}
    array: np.ndarray = values.detach().view(views.get(values.dtype, values.dtype)).numpy()
    return array


def group_means(features: "Features", groups: "Tensor", count: int, *, progress: Progress = silent) -> "Tensor":
    """Means (count, d) float32 of the rows of each group, summed in float64; a group without rows gets zeros.

    Args:
        features: (n, d).
        groups: (n,) int64 in [0, count).
    """
    import torch

    sums = group_sums(features, groups, count, progress=progress)
    sizes = distributed.summed(torch.bincount(groups, minlength=count)).clamp(min=1)
    return (sums / sizes.unsqueeze(1)).to(torch.float32)


def group_sums(
    features: "Features",
    groups: "Tensor",
    count: int,
    *,
    weights: "Tensor | None" = None,
    progress: Progress = silent,
) -> "Tensor":
    """Sums (count, d) float64 of the rows of each group, times `weights` (n,); rows whose group is below 0 are left out."""
    import torch

    width = features.shape[1]
    if weights is None and count <= MANY_GROUPS and compiled(features):
        from stages import kernels

        numbers = groups.numpy()

        def add(x: "np.ndarray", first: int, out: "np.ndarray") -> None:
            kernels.sums(x, first, numbers[first : first + len(x)], out)

        return distributed.summed(spread(features, add, count, width))
    sums = torch.zeros(count, width, dtype=torch.float64, device=groups.device)
    columns = (groups,) if weights is None else (groups, weights)
    for rows, members, *times in blocks(features, *columns, what="means", progress=progress):
        inside = members >= 0
        if not bool(inside.all()):
            rows, members, times = rows[inside], members[inside], [each[inside] for each in times]
        if count > MANY_GROUPS:
            wide = rows.to(torch.float64)
            for each in times:
                wide *= each.unsqueeze(1)
            # On CUDA this is deterministic where `runtime.reproducible` asks for it, and slow.
            sums.index_add_(0, members, wide)
        else:
            # A product with one-hot rows is deterministic everywhere, and fast.
            shares = torch.nn.functional.one_hot(members, count).T.to(torch.float64)
            for each in times:
                shares *= each
            for part, own in zip(torch.split(rows, COLUMNS, dim=1), torch.split(sums, COLUMNS, dim=1), strict=True):
                own += shares @ part.to(torch.float64)
    return distributed.summed(sums)


def nearest(features: "Features", points: "Tensor", *, progress: Progress = silent) -> "Tensor":
    """Index (n,) int64 of the point (C, d) that is nearest (L2) to each row of features (n, d).

    ||x - p||^2 = ||x||^2 - 2 x.p + ||p||^2, and ||x||^2 is the same for all points. In float64 and from the first point on,
    so that the cancellation does not decide between two near points, nor a feature that they share.
    """
    import torch

    target = points.to(torch.float64)
    apart = target - target[:1]
    [closest] = best(features, [(apart, -(apart * (target + target[:1])).sum(dim=1) / 2)], what="nearest", progress=progress)
    return closest


def predict(features: "Features", weight: "Tensor", bias: "Tensor", *, progress: Progress = silent) -> "Tensor":
    """Classes (n,) int64 that a linear head (C, d), (C,) gives to features (n, d)."""
    [classes] = best(features, [(weight, bias)], what="predict", progress=progress)
    return classes


def best(
    features: "Features",
    heads: "list[tuple[Tensor, Tensor]]",
    *,
    what: str,
    only: "Tensor | None" = None,
    progress: Progress = silent,
) -> "list[Tensor]":
    """For each linear head (C, d), (C,), the output (n,) int64 that is highest for each row; all heads in one pass.

    `only` (n,) bool: the rows that are asked for; the others get -1, and the compiled loops do not read them.
    """
    import torch

    classes = len(heads[0][1])
    weight = torch.cat([weight for weight, _ in heads]).to(torch.float64)
    bias = torch.cat([bias for _, bias in heads]).to(torch.float64)
    result = torch.full((len(heads), features.shape[0]), -1, device=weight.device)
    asked = torch.ones_like(result[0], dtype=torch.bool) if only is None else only
    if len(bias) <= MANY and compiled(features):
        from stages import kernels

        out, mask, on_rows, offsets = result.numpy(), asked.numpy(), weight.contiguous().numpy(), bias.numpy()
        apart = (weight.view(len(heads), classes, -1) - weight.view(len(heads), classes, -1)[:, :1]).flatten(0, 1)
        # A sum of d products in at least 8 lanes, each addition and rounding off by 2^-24 of |x|.|w| <= ||x|| ||w||.
        rounding = (features.shape[1] / 8 + 16) * 2.0**-24
        doubt = (rounding * apart.norm(dim=1).view(len(heads), classes).amax(dim=1)).numpy()
        near = apart.to(torch.float32).numpy()

        def choose(x: "np.ndarray", first: int, nothing: "np.ndarray") -> None:
            part = slice(first, first + len(x))
            kernels.best(x, mask[part], on_rows, offsets, classes, near, doubt, out[:, part])

        spread(features, choose, 0)
        return list(result)
    for rows, inside, out_rows in blocks(features, asked, result.T, what=what, progress=progress):
        wide = rows[inside].to(torch.float64)
        out_rows[inside] = (wide @ weight.T + bias).view(-1, len(heads), classes).argmax(dim=2)
    return list(result)
