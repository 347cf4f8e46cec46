"""Where and how a stage runs: device, threads, memory, seeds, determinism, progress."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import distributed
from stages.errors import BadParameter

if TYPE_CHECKING:
    import torch

# progress(what, done, total): called as a stage goes on; whoever calls the stage decides what to show.
Progress = Callable[[str, int, int], None]


# More than any machine has cores; of far more, PyTorch's pool cannot be made.
MOST_THREADS = 1024

# For glibc's mallopt (malloc.h): an allocation of at least so many bytes is the kernel's own (32 MiB at most), and
# so much that is free stays with the process.
MMAP_THRESHOLD, TRIM_THRESHOLD = (-3, 32 << 20), (-1, 1 << 30)


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


def resolve_device(name: str = "auto") -> "torch.device":
    """The torch device that "auto", "cpu", "cuda" or "cuda:1" means on this machine.

    Raises:
        BadParameter: an unknown name, or a GPU that is not there.
    """
    check_device(name)
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= available:
        raise BadParameter(
            f"'{name}' is not there: PyTorch sees {available} CUDA devices",
            where="option --device",
            do="use auto or cpu",
        )
    return torch.device(name)


def check_device(name: str) -> None:
    """Refuse what is the name of no device, on whatever machine.

    Raises:
        BadParameter: an unknown name.
    """
    kind, _, index = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda") or (index and not index.isdigit()) or name == "cpu:"):
        raise BadParameter(f"'{name}' is no device", where="option --device", do="use auto, cpu, cuda or cuda:INDEX")


def begin(device: str = "auto") -> "torch.device":
    """What a stage does first: the device of this process, which joins the others where torchrun has started several.

    Sets how many threads the process computes with: see `thread_count`.

    Raises:
        BadParameter: as `resolve_device` and `thread_count`.
        WorkerLost: another process cannot be reached.
    """
    import torch

    torch.set_num_threads(thread_count())
    target = resolve_device(device)
    if target.type == "cuda" and target.index is None and distributed.size() > 1:
        target = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    if target.type == "cuda" and target.index is not None:
        # Events, collectives and questions about the GPU are of the current one.
        torch.cuda.set_device(target)
    distributed.start(target)
    return target


@contextmanager
def reproducible(seed: int, *, strict: bool = True) -> Iterator[None]:
    """Same seed, same bytes: seeds torch's global generator and asks for deterministic kernels, for the time of a block.

    Args:
        strict: whether a kernel that PyTorch has no deterministic form of is an error; otherwise PyTorch warns of it.
    """
    import torch

    # cuBLAS reads this when it is first used; without it deterministic algorithms are refused on CUDA.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    before, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    filled = memory.fill_uninitialized_memory
    # As use_deterministic_algorithms(True), which also tells PyTorch's compiler and to that end imports it: 1.3 s of CPU.
    torch.set_deterministic_debug_mode("error" if strict else "warn")
    torch.backends.cudnn.benchmark = False
    # NaN in all new memory finds code that reads what it has not written, and takes a third of a small model's time.
    memory.fill_uninitialized_memory = False
    try:
        # By default every GPU that the driver counts is started for it, on a CPU too.
        started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng([torch.cuda.current_device()] if started else []):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.backends.cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = filled


def threads() -> int:
    """How many threads this process computes with: PyTorch's number, which `begin` sets."""
    import torch

    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a network's layers free and allocate again; does nothing under another C library.

    It would give the memory back after a layer and fetch it for the next, which the kernel then fills with zeros: a tenth of
    ResNet-18's time. Where the environment sets anything of glibc's allocator, all is left to that.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for setting in (MMAP_THRESHOLD, TRIM_THRESHOLD):
        mallopt(*setting)


def thread_count() -> int:
    """How many threads this process should compute with: NSF_THREADS, else OMP_NUM_THREADS, else its share of the cores.

    Where torchrun starts several processes on a machine, OMP_NUM_THREADS=1 is taken for torchrun's own, which it sets where
    nobody has; one thread for each process is NSF_THREADS=1.

    Raises:
        BadParameter: NSF_THREADS is no whole number from 1 to MOST_THREADS.
    """
    given = os.environ.get("NSF_THREADS", "")
    if given:
        if not given.isdecimal() or not 1 <= int(given) <= MOST_THREADS:
            raise BadParameter(
                f"'{given}' is no number of threads",
                where="NSF_THREADS",
                do=f"set it to a whole number from 1 to {MOST_THREADS}, or unset it for one thread a core",
            )
        return int(given)
    processes = distributed.local_size()
    # May be a list, one number for each level of nested loops.
    common = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if common.isdecimal() and int(common) > 0 and not (processes > 1 and common == "1"):
        return int(common)
    return max(1, cores() // processes)


def cores() -> int:
    """How many cores this process may use: by its affinity, hyperthreads of a core counted once, and its cgroups' quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    available = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
        available.add(siblings or str(cpu))
    # Rounded down: a thread beyond the quota stops all others with it.
    return max(1, min(len(available), int(quota())))


def quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The cores that the cgroups of this process, version 1 or 2, let it use; many where they set no limit.

    Args:
        groups: where cgroups are mounted.
        own: the file with the process's place in each hierarchy, lines "number:controllers:path".
    """
    limits = [float(1 << 20)]
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 is one hierarchy at the top, or in "unified" beside version 1's, which has a folder for each controller.
        tops = [groups / controllers, groups / "cpu"] if controllers else [groups, groups / "unified"]
        for top in tops:
            place = Path(path.lstrip("/"))
            # Each group up to the top may set a limit. In a container the path may be the host's: then the top is its own.
            for folder in (top / place, *(top / parent for parent in place.parents), top):
                with suppress(ValueError, ZeroDivisionError):
                    if controllers:
                        most, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
                    else:
                        most, period = _read(folder / "cpu.max").split()
                    if int(most) > 0:
                        limits.append(int(most) / int(period))
    return min(limits)


def _read(path: Path) -> str:
    """A file of the kernel's; empty where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
