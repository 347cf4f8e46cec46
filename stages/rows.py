"""Features as they lie in memory or in mapped files, in one piece or many, and the share of them that this process has."""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from stages import distributed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Features: TypeAlias = "Tensor | Rows"

# Rows of a block: small enough for temporaries to stay in cache, large enough that Python's share of the time vanishes.
# Shares of processes and fingerprints begin at multiples of it.
BLOCK_ROWS = 1024
# On a GPU a block is as large as this, for each launch of a kernel costs microseconds.
DEVICE_BLOCK_BYTES = 1 << 28
# Bytes: what PyTorch aligns its own memory to, on a CPU.
ALIGNMENT = 64
# How far ahead of the rows at work the operating system is asked to read.
AHEAD_BYTES = 1 << 26


@dataclass(frozen=True)
class Rows:
    """Features (n, d) in float32, float16 or bfloat16, read block by block as float32.

    What a stage's function on tensors takes beside a tensor: the whole of them is never in memory at once.

    Args:
        parts: tensors (k, d) of rows one after the other, of one width and type, mapped from files or in memory.
        start, stop: the rows of all parts that these are; by default all.
        device: where blocks are given.
    """

    parts: "Sequence[Tensor]"
    start: int = 0
    stop: int = -1
    device: Any = "cpu"

    @classmethod
    def of(cls, features: "Features") -> "Rows":
        """Features as they are given to a stage's function: a tensor (n, d) in memory, or Rows already."""
        return features if isinstance(features, Rows) else cls([features], device=features.device)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d) of this share."""
        return len(self), int(self.parts[0].shape[1])

    @property
    def dtype(self) -> "torch.dtype":
        """What they are stored as."""
        return self.parts[0].dtype

    def __len__(self) -> int:
        total = sum(len(part) for part in self.parts)
        return (total if self.stop < 0 else self.stop) - self.start

    def share(self) -> "Rows":
        """The rows of this process where several work together."""
        start, stop = distributed.share(len(self), BLOCK_ROWS)
        return Rows(self.parts, self.start + start, self.start + stop, self.device)

    def to(self, device: Any) -> "Rows":
        """The same on a device; on a GPU they are moved at once where they take up less than half of its free memory."""
        import torch

        target = torch.device(device)
        if target.type == "cuda" and len(self):
            free, _ = torch.cuda.mem_get_info(target)
            if 2 * len(self) * self.shape[1] * self.dtype.itemsize < free:
                held = torch.cat([values.to(target) for _, values in self.spans()])
                return Rows([held], device=target)
        return Rows(self.parts, self.start, self.start + len(self), target)

    def spans(self, start: int = 0, stop: int | None = None, size: int | None = None) -> "Iterator[tuple[int, Tensor]]":
        """The rows [start, stop) as stored, (first row, rows (k, d)): `size` at most at a time, and of one part each."""
        stop = len(self) if stop is None else stop
        size = size or max(1, AHEAD_BYTES // (self.shape[1] * self.dtype.itemsize))
        before = -self.start
        for part in self.parts:
            end = min(stop, before + len(part))
            for first in range(max(start, before), end, size):
                last = min(first + size, end)
                _read_ahead(part, first - before, last - before)
                yield first, part[first - before : last - before]
            before += len(part)

    def blocks(self) -> "Iterator[tuple[int, Tensor]]":
        """(first row, rows (k, d) float32 on the device), BLOCK_ROWS at a time, on a GPU more, whatever part they lie in.

        What is added up block by block then does not depend on where files end, nor, as shares begin at multiples of
        BLOCK_ROWS, on how many processes there are.
        """
        import torch

        size = BLOCK_ROWS
        if torch.device(self.device).type == "cuda":
            size = max(BLOCK_ROWS, DEVICE_BLOCK_BYTES // (4 * self.shape[1]) // BLOCK_ROWS * BLOCK_ROWS)
        for first in range(0, len(self), size):
            pieces = [values for _, values in self.spans(first, min(first + size, len(self)), size)]
            block = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            yield first, block.to(self.device, torch.float32)

    def held(self, rows: "Tensor") -> "Iterator[tuple[Tensor, Tensor, Tensor]]":
        """Where the rows (k,) int64 lie: of each part that has some, (which of the k, the part, their numbers in it)."""
        import torch

        before = -self.start
        for part in self.parts:
            if len(self.parts) == 1:
                yield torch.arange(len(rows), device=rows.device), part, rows - before
            elif len(inside := ((rows >= before) & (rows < before + len(part))).nonzero().flatten()):
                yield inside, part, rows[inside] - before
            before += len(part)

    def take(self, rows: "Tensor") -> "Tensor":
        """The rows (k,) int64 of these, in their order: (k, d) float32 on the device."""
        import torch

        taken = torch.empty(len(rows), self.shape[1], device=self.device)
        for inside, part, numbers in self.held(rows):
            taken[inside.to(taken.device)] = part[numbers.to(part.device)].to(self.device, torch.float32)
        return taken

    def tensor(self) -> "Tensor":
        """All of them, (n, d) float32 on the device: in memory, or as mapped where they are stored so and well aligned.

        Products round as their operands are aligned: where a file's header puts the rows must not show in their last bit.
        """
        import torch

        held = [values.to(self.device, torch.float32) for _, values in self.spans(size=max(1, len(self)))]
        if not held:
            return torch.empty(self.shape, device=self.device)
        whole = held[0] if len(held) == 1 else torch.cat(held)
        return whole if whole.data_ptr() % ALIGNMENT == 0 else whole.clone()


def _read_ahead(part: "Tensor", start: int, stop: int) -> None:
    """Ask the operating system for as much as the rows [start, stop) are, AHEAD_BYTES further on, so that the disk works.

    Nothing is asked twice in a pass; what is in memory already costs a look.
    """
    advise = _madvise()
    if advise is None or part.device.type != "cpu":
        return
    row = part.stride(0) * part.element_size()
    base, end = part.data_ptr(), part.data_ptr() + len(part) * row
    first = (base + stop * row + max(0, AHEAD_BYTES - (stop - start) * row)) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < end:
        advise(first, min(end - first, (stop - start) * row), mmap.MADV_WILLNEED)


@cache
def _madvise() -> Any:
    """The system's madvise(address, bytes, advice), or None where there is none."""
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function if hasattr(mmap, "MADV_WILLNEED") else None
