"""Where and how a stage runs: device, seeds, determinism, progress."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.errors import BadParameter

if TYPE_CHECKING:
    import torch

# progress(what, done, total): called as a stage goes on; whoever calls the stage decides what to show.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


def resolve_device(name: str = "auto") -> "torch.device":
    """The torch device that "auto", "cpu", "cuda" or "cuda:1" means on this machine.

    Raises:
        BadParameter: an unknown name, or a GPU that is not there.
    """
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or name == "cpu:":
        raise BadParameter(f"'{name}' is no device", where="option --device", do="use auto, cpu, cuda or cuda:INDEX")
    if kind == "cuda" and int(index or 0) >= available:
        raise BadParameter(
            f"'{name}' is not there: PyTorch sees {available} CUDA devices",
            where="option --device",
            do="use auto or cpu",
        )
    return torch.device(name)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Same seed, same bytes: seeds torch's global generator and asks for deterministic kernels, for the time of a block."""
    import torch

    # cuBLAS reads this when it is first used; without it deterministic algorithms are refused on CUDA.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
