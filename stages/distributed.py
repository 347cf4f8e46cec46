"""One stage in several processes: each holds a range of the samples, and what they sum up is added over all of them.

torchrun starts the processes and says so in the environment (RANK, WORLD_SIZE); without it there is one process, and every
function here gives back what it is given. gloo carries CPU tensors, nccl CUDA's.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from stages.errors import BadParameter, WorkerLost

if TYPE_CHECKING:
    from torch import Tensor


# How long a process waits for another. A process that ends closes its connections, which the others notice at once; only a
# machine that vanishes from the network is waited for as long as this. Shares may take their time: in a resumed extract one
# process may have nothing left to do and another all of it.
TIMEOUT = timedelta(hours=2)

# How long it waits for the others to come at first: those of a machine whose start takes long, too.
JOINING = timedelta(minutes=10)

# What gloo, nccl and the store say where a connection broke or was not to be had.
BROKEN = re.compile(r"gloo|nccl|connect|socket|peer|time[d ]*out|network|address", re.IGNORECASE)

# Whether this process works on its own for now; see `alone`.
_alone = False


def rank() -> int:
    """The number of this process, from 0; process 0 alone writes and prints."""
    return _number("RANK", 0) if size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return _number("LOCAL_RANK", 0) if size() > 1 else 0


def size() -> int:
    """How many processes work together.

    Raises:
        BadParameter: WORLD_SIZE is no whole number.
    """
    return 1 if _alone else max(1, _number("WORLD_SIZE", 1))


def local_size() -> int:
    """How many processes there are on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1))


def _number(name: str, default: int) -> int:
    """A whole number of the environment, where the launcher puts them; empty is as if it were not there."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise BadParameter(f"'{text}' is no whole number", where=name, do="leave it to torchrun, or unset it")
    return int(text)


@contextmanager
def alone() -> Iterator[None]:
    """For the time of a block, this process works on its own: all do the same with the same samples."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def share(samples: int, unit: int) -> tuple[int, int]:
    """The range [start, stop) of the samples that this process works on; ranges begin at multiples of `unit`.

    A block of `unit` rows is computed by one process, and alike by any, so that the results do not depend on how many
    processes there are but for the order in which float64 sums of blocks are added.
    """
    units = -(-samples // unit)
    start, stop = (units * part // size() * unit for part in (rank(), rank() + 1))
    return min(start, samples), min(stop, samples)


def start(device: Any) -> None:
    """Join the other processes, once; nothing to do where there is one.

    Raises:
        BadParameter: the environment says that there are others, and not how to find them.
        WorkerLost: they cannot be reached.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if size() == 1 or dist.is_initialized():
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing or rank() >= size():
        wrong = f"{missing[0]} is not set" if missing else f"RANK is {rank()}"
        raise BadParameter(
            f"is {size()}, as if this were one of several processes, and {wrong}",
            where="WORLD_SIZE",
            do="start the processes with torchrun, or unset it",
        )
    # Python's own handlers wait for C++ here, which waits for long.
    with _lost(), signals(signal.SIG_DFL):
        store, number, others = next(rendezvous("env://", rank(), size(), timeout=JOINING))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=others, timeout=TIMEOUT)


@contextmanager
def signals(handler: Any) -> Iterator[None]:
    """For the time of a block, what is done about SIGINT and SIGTERM; nothing is changed in a thread beside the main one."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before: dict[signal.Signals, Any] = {}
    try:
        for number in numbers:
            # One that was set outside of Python could not be put back.
            if (known := signal.getsignal(number)) is not None:
                before[number] = known
                signal.signal(number, handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unstopped() -> Iterator[None]:
    """For the time of a block, SIGINT and SIGTERM wait for its end; then the first that came is delivered.

    Handlers and no mask: the other threads of the process, PyTorch's among them, would take a signal that one thread blocks.
    """
    came: list[int] = []
    try:
        with signals(lambda number, frame: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


def summed(tensor: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes, in place.

    Raises:
        WorkerLost: another process has ended.
    """
    if size() > 1:
        import torch.distributed as dist

        with _lost():
            dist.all_reduce(tensor)
    return tensor


def gathered(value: Any) -> list[Any]:
    """What each process has, by rank: any picklable value between processes of one run (never from a file).

    Raises:
        WorkerLost: another process has ended.
    """
    if size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    with _lost():
        dist.all_gather_object(values, value)
    return values


def count(value: int) -> int:
    """The sum of a number over all processes.

    Raises:
        WorkerLost: another process has ended.
    """
    return sum(gathered(value))


def rows_of_all(rows: "Tensor") -> "Tensor":
    """The rows of all processes, by rank one after the other, on this process's device.

    Raises:
        WorkerLost: another process has ended.
    """
    if size() == 1:
        return rows
    import torch
    import torch.distributed as dist

    counts = [0] * size()
    with _lost():
        dist.all_gather_object(counts, len(rows))
        # Of one length, as gloo and nccl want them; a boolean travels as a byte.
        sent = torch.zeros(max(counts), *rows.shape[1:], dtype=torch.uint8 if rows.dtype == torch.bool else rows.dtype,
                           device=rows.device)  # fmt: skip
        sent[: len(rows)] = rows
        received = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(received, sent)
    return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)]).to(rows.dtype)


def wait() -> None:
    """Until all processes are here.

    Raises:
        WorkerLost: another process has ended.
    """
    if size() > 1:
        import torch.distributed as dist

        with _lost():
            dist.barrier()


@contextmanager
def _lost() -> Iterator[None]:
    """What torch.distributed says of a connection that broke, as a sentence; other failures stay what they are."""
    try:
        yield
    except RuntimeError as error:
        if not BROKEN.search(str(error)):
            raise
        # "[its/source/file.cc:545] Connection closed by peer [127.0.0.1]:9640. This is typically ..."
        said = re.sub(r"^\[\S*\] ", "", " ".join(str(error).split())).split(". ")[0]
        raise WorkerLost(
            f"another process of this run has ended or cannot be reached ({said})",
            where=f"process {rank()} of {size()}",
            do="see what that process says (one that was killed says nothing), and run the same command again",
        ) from error
