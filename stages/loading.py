"""Batches of samples for training and extraction: loader workers, in a fixed order, with errors that stay sentences."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from stages.data import Split
from stages.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Samples:
    """A split as torch's DataLoader takes it: position -> (transformed sample, position), or the error that it met.

    An exception that crosses from a worker arrives as a traceback in a string; as a value it stays what it is.
    """

    def __init__(self, split: Split, transform: Callable[[Any], "Tensor"]):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> "tuple[Tensor, int] | UserError":
        try:
            return self.transform(self.split.load(position)), position
        except UserError as error:
            return error


def collate(samples: list[Any]) -> "tuple[Tensor, Tensor] | UserError":
    """Stack (sample, position) pairs; one error stands for the whole batch."""
    import torch

    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    return torch.stack([sample for sample, _ in samples]), torch.tensor([position for _, position in samples])


def worker_count(workers: int | str) -> int:
    """How many loader processes `workers` means: itself, or for "auto" the cores less one, at most eight.

    One core is left to the process that computes; past eight, decoding is seldom what a forward pass waits for.
    """
    if isinstance(workers, int):
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores - 1))


def batches(
    split: Split,
    transform: Callable[[Any], "Tensor"],
    *,
    batch_size: int,
    workers: int | str,
    device: "torch.device",
    order: "Tensor | None" = None,
) -> "Iterator[tuple[Tensor, Tensor]]":
    """Batches (images (b, ...), positions (b,)) on `device`, in `order` (default: as the split has them).

    Raises:
        UserError: a sample could not be loaded.
    """
    from torch.utils.data import DataLoader

    positions = range(len(split)) if order is None else order.tolist()
    loader: Any = DataLoader(
        Samples(split, transform),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=positions,
        num_workers=worker_count(workers),
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        images, chosen = batch
        yield images.to(device, non_blocking=True), chosen
