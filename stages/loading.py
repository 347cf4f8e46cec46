"""Batches of samples for training and extraction: loader workers, in a fixed order, with errors that stay sentences."""

import errno
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.data import Split
from stages.distributed import local_size
from stages.errors import BadData, BadModel, CannotWrite, Mismatch, UserError, WorkerLost
from stages.models import Classifier
from stages.runtime import cores

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Samples:
    """A split as torch's DataLoader takes it: position -> (transformed sample, position), or the error that it met.

    An exception that crosses from a worker arrives as a traceback in a string; as a value it stays what it is.
    """

    def __init__(self, split: Split, transform: Callable[[Any], Any]):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> "tuple[Any, int] | UserError":
        try:
            return self.transform(self.split.load(position)), position
        except UserError as error:
            return error
        except Exception as error:
            # A transform of the user's own, or an image that decodes into something odd.
            return BadData(
                f"cannot be prepared for the model ({type(error).__name__}: {error})", where=self.split.locate(position)
            )


def unreadable(split: str, samples: int, errors: "list[UserError]") -> BadData:
    """What to say where none of a split's samples can be read."""
    return BadData(
        f"none of the {samples} samples can be read, the first: {errors[0].what}",
        where=f"{split} split, {errors[0].where}",
        do="check data.root and the files",
    )


def collate(together: "Callable[[list[Any]], Any] | None", samples: list[Any]) -> "tuple[Any, Tensor, list[UserError]]":
    """(batch, positions, errors): the samples that could be loaded, put together, and what the others met.

    A loader process puts them into shared memory at once: what fails when its queue does so is lost, and waited for forever.
    """
    import torch
    from torch.utils.data import get_worker_info

    errors = [sample for sample in samples if isinstance(sample, UserError)]
    loaded = [sample for sample in samples if not isinstance(sample, UserError)]
    positions = torch.tensor([position for _, position in loaded], dtype=torch.int64)
    try:
        batch = (together or torch.stack)([sample for sample, _ in loaded]) if loaded else None
    except (RuntimeError, TypeError, ValueError) as error:
        failed = BadModel(
            f"the samples of a batch cannot be put together ({error})",
            where="model",
            do="have the transform give tensors of one size and type, or give a fourth value that collates them",
        )
        return None, positions.new_empty(0), [failed]
    if get_worker_info() is not None:
        try:
            _share((batch, positions))
        except (RuntimeError, OSError) as error:
            return None, positions.new_empty(0), [_no_room(error)]
    return batch, positions, errors


def _share(batch: Any) -> None:
    """Move all tensors of a batch to shared memory, in place."""
    import torch

    if isinstance(batch, torch.Tensor):
        batch.share_memory_()  # type: ignore[no-untyped-call]
    elif isinstance(batch, Mapping | list | tuple):
        for each in batch.values() if isinstance(batch, Mapping) else batch:
            _share(each)


def _no_room(error: Exception) -> CannotWrite:
    return CannotWrite(
        f"shared memory has no room for the batches of the loader processes ({error})",
        where="/dev/shm",
        do="set workers: 0 or a smaller batch_size, or give the container more (docker run --shm-size 8g)",
    )


@contextmanager
def attended() -> Iterator[None]:
    """For the time of a block that loads batches: a loader process that is killed is told of in a sentence.

    PyTorch raises that from a signal's handler, wherever in the block the process is.

    Raises:
        WorkerLost: as said.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerLost(
            f"a loader process has ended before its time, perhaps killed for want of memory ({str(error).strip(' .')})",
            where="workers",
            do="set fewer workers or a smaller batch_size",
        ) from error


def worker_count(workers: int | str) -> int:
    """How many loader processes `workers` means: itself, or for "auto" the process's share of the cores less one.

    One core is left to the process that computes. At most sixteen: what they hold ready takes memory, two batches each.
    """
    if isinstance(workers, int):
        return workers
    share = cores() // local_size()
    return max(1, min(16, share - 1))


def batches(
    split: Split,
    model: Classifier,
    *,
    batch_size: int,
    workers: int | str,
    device: "torch.device",
    order: "Tensor | None" = None,
    skipped: list[UserError] | None = None,
) -> "Iterator[tuple[Any, Tensor]]":
    """Batches (inputs of the model's network, positions (b,)) on `device`, in `order` (default: as the split has them).

    Args:
        skipped: where given, a sample that cannot be loaded is left out and its error added here.

    Raises:
        Mismatch: the model takes texts and the data holds images, or the other way round.
        CannotWrite: shared memory has no room for a batch.
        UserError: a sample could not be loaded, and `skipped` is None.
    """
    check_kind(split, model)
    for batch, chosen, errors in _begun(
        Samples(split, model.transform),
        batch_size=batch_size,
        sampler=range(len(split)) if order is None else order.tolist(),
        num_workers=worker_count(workers),
        collate_fn=partial(collate, model.collate),
        pin_memory=device.type == "cuda",
    ):
        fatal = [error for error in errors if skipped is None or isinstance(error, BadModel | CannotWrite)]
        if fatal:
            raise fatal[0]
        if skipped is not None:
            skipped += errors
        if batch is not None:
            yield move(batch, device), chosen


def _begun(samples: Samples, **options: Any) -> Iterator[Any]:
    """The batches of torch's DataLoader, whose processes are started."""
    from torch.utils.data import DataLoader

    with warnings.catch_warnings():
        # More processes than cores are the user's own choice.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        try:
            return iter(DataLoader(samples, **options))  # type: ignore[arg-type]
        except OSError as error:
            # The semaphores of its queues lie in shared memory, too.
            if error.errno != errno.ENOSPC:
                raise
            raise _no_room(error) from error


def check_kind(split: Split, model: Classifier) -> None:
    """Raise Mismatch where a model of texts meets images, or one of images texts."""
    if model.kind not in ("any", split.kind):
        raise Mismatch(
            f"takes {model.kind}s, and the data holds {split.kind}s", where=model.name, do="check sections data and model"
        )


def move(batch: Any, device: "torch.device") -> Any:
    """A batch, a tensor or a dictionary of tensors, on another device."""
    if isinstance(batch, Mapping):
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return batch.to(device, non_blocking=True)
