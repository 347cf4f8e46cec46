"""The parts of a split's features: what extract has finished, so that a run that was killed goes on where it was.

A split is cut into segments of so many positions each. A finished segment is a file in a hidden folder beside the features
(`features/.val.parts/00003.safetensors`: `features` (rows, d) and `positions` (rows,)), and says what it was made from;
one that was made from anything else than what is there now is made again. manifest.json says the same to people.
A segment's bytes depend on its own batches alone: not on what was resumed, nor on how many processes share the segments.
"""

import ast
import errno
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages import distributed
from stages.artifacts import Metadata
from stages.data import Split
from stages.errors import BadData, CannotWrite, UserError, WrongArtifact
from stages.tensorfile import RowWriter, header, tensor_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Batches that may wait for the disk: what the forward pass makes while a segment is flushed.
AHEAD = 4


@dataclass(frozen=True)
class Part:
    """A finished segment.

    Attributes:
        rows, skipped: samples that are in it, and that could not be loaded.
        first_skipped: what the first of the latter met, as the arguments of an error.
        features, positions: the first byte of either tensor.
        mark: what it was made from, as a digest.
    """

    path: Path
    rows: int
    skipped: int
    first_skipped: Mapping[str, Any]
    features: int
    positions: int
    mark: str

    @property
    def error(self) -> UserError:
        """What the first skipped sample met."""
        return BadData(**self.first_skipped)


class Parts:
    """The segments of one split, dealt to the processes in turn.

    Args:
        path: the features file that they are for.
        split: its samples; those of this process's segments are looked up (a file's size and time, say), not loaded.
        segment: samples a segment, a multiple of the batch size.
        width, dtype: of the features.
        made_from: all that decides on the features, beside the samples; JSON.
        skip: whether segments that lack samples which could not be loaded will do.
    """

    def __init__(
        self,
        path: Path,
        split: Split,
        segment: int,
        width: int,
        dtype: "torch.dtype",
        made_from: Mapping[str, Any],
        *,
        skip: bool = True,
    ):
        self._skip = skip
        self.folder = folder_for(path)
        self.samples, self.segment, self.width, self.dtype, self.made_from = len(split), segment, width, dtype, made_from
        self.segments = -(-len(split) // segment)
        self.marks = {k: self._mark(split, k) for k in range(distributed.rank(), self.segments, distributed.size())}
        self.finished = {k: part for k in self.marks if (part := self._read(k)) is not None}
        self.pending = [k for k in self.marks if k not in self.finished]

    def span(self, segment: int) -> range:
        """The positions of a segment."""
        return range(segment * self.segment, min((segment + 1) * self.segment, self.samples))

    def order(self) -> "Tensor":
        """The positions that this process has to compute, (n,) int64: batches of them are batches of one segment each."""
        import torch

        spans = [self.span(k) for k in self.pending]
        return torch.cat([torch.arange(span.start, span.stop) for span in spans]) if spans else torch.arange(0)

    def make(self, batches: "Iterable[tuple[Tensor, Tensor]]", skipped: Sequence[UserError]) -> None:
        """Write the pending segments as the features (b, d) and positions (b,) of `order` come.

        A thread copies from the GPU, writes and flushes; the forward pass goes on meanwhile.

        Args:
            skipped: the errors of samples that are left out; it grows as `batches` goes on.
        """
        making, waiting = _Making(self, skipped), deque[Future[None]]()
        with ThreadPoolExecutor(1) as thread:
            try:
                for features, positions in batches:
                    copied, ready = features.to("cpu", non_blocking=True), None
                    if features.device.type == "cuda":
                        import torch

                        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
                        ready.record()
                    waiting.append(thread.submit(making.rows, copied, ready, positions))
                    if len(waiting) > AHEAD:
                        waiting.popleft().result()
                for written in waiting:
                    written.result()
                thread.submit(making.rest).result()
            except BaseException:
                thread.submit(making.give_up).result()
                raise

    def collect(self) -> None:
        """Wait for the other processes: `finished` then holds the segments of all.

        Raises:
            CannotWrite: another process's parts are not to be seen from here.
            WorkerLost: another process has ended.
        """
        for finished in distributed.gathered(self.finished):
            self.finished.update(finished)
        lost = [part.path for part in self.finished.values() if not part.path.exists()] if distributed.rank() == 0 else []
        if lost:
            raise CannotWrite(
                "another process wrote this part of the features, and it is not there",
                where=lost[0],
                do="give a folder that all machines share",
            )

    @property
    def ordered(self) -> list[Part]:
        return [self.finished[k] for k in range(self.segments)]

    @property
    def rows(self) -> int:
        """Of all finished segments."""
        return sum(part.rows for part in self.finished.values())

    def positions(self) -> "Tensor":
        """The sample of each row, (rows,) int64."""
        import torch

        held = bytearray()
        for part in self.ordered:
            with part.path.open("rb") as file:
                file.seek(part.positions)
                held += file.read(8 * part.rows)
        return torch.frombuffer(held, dtype=torch.int64) if held else torch.empty(0, dtype=torch.int64)

    def copy(self, writer: RowWriter, start: int, stop: int) -> None:
        """Append the rows [start, stop) of the split to a features file."""
        before, row = 0, self.width * self.dtype.itemsize
        for part in self.ordered:
            first, last = max(start - before, 0), min(stop - before, part.rows)
            if first < last:
                with part.path.open("rb") as file:
                    writer.copy(file, part.features + first * row, last - first)
            before += part.rows

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def describe(self) -> None:
        """Write the manifest; process 0 does, and counts the segments of all."""
        if distributed.rank() == 0:
            done = sum(1 for path in self.folder.iterdir() if re.fullmatch(r"\d{5,}\.safetensors", path.name))
            content = {
                "what": "finished parts of features; `nsf extract` goes on from here, or makes anew what does not fit",
                "samples": self.samples,
                "segment_samples": self.segment,
                "segments": self.segments,
                "finished": done,
                "made_from": self.made_from,
            }
            temporary = self.folder / f".manifest.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            temporary.replace(self.folder / "manifest.json")

    def path(self, segment: int) -> Path:
        return self.folder / f"{segment:05}.safetensors"

    def _mark(self, split: Split, segment: int) -> str:
        """SHA-256 of all that a segment is made from: the samples, in their order, and what they pass through."""
        span = self.span(segment)
        digest = hashlib.sha256(json.dumps(self.made_from, sort_keys=True).encode())
        digest.update(split.ids[span.start : span.stop].tobytes())
        for position in span:
            digest.update(_origin(split, position) + b"\n")
        return f"sha256:{digest.hexdigest()}"

    def _read(self, segment: int) -> Part | None:
        """The finished segment, where it is there, whole, and made from what is there now."""
        # Whatever is wrong with it: it is made again.
        with suppress(WrongArtifact, KeyError, ValueError):
            part = self._open(segment)
            return part if part.mark == self.marks[segment] and (self._skip or not part.skipped) else None
        return None

    def _open(self, segment: int) -> Part:
        strings, tensors = header(self.path(segment))
        features = tensors["features"]
        rows, _ = features.shape
        return Part(
            path=self.path(segment),
            rows=rows,
            skipped=len(self.span(segment)) - rows,
            first_skipped=json.loads(strings["first_skipped"]),
            features=features.start,
            positions=tensors["positions"].start,
            mark=strings["made_from"],
        )


def folder_for(path: Path) -> Path:
    """Where the parts of a features file are."""
    return path.with_name(f".{path.stem}.parts")


@contextmanager
def reserved(paths: Iterable[Path]) -> Iterator[None]:
    """For the time of a block, no other run makes the parts of these features files; process 0 holds the locks of a run.

    Raises:
        CannotWrite: another run does.
        WorkerLost: another process has ended.
    """
    with ExitStack() as locks:
        refused: CannotWrite | None = None
        try:
            for path in paths if distributed.rank() == 0 else ():
                locks.enter_context(_locked(folder_for(path)))
        except CannotWrite as error:
            refused = error
        for each in distributed.gathered(refused):
            if each is not None:
                raise each
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The lock of a folder, which the system takes from a process that ends, however that ends.

    A record lock: a flock would live on in loader processes, which outlive a killed run for some seconds. There is none
    where the folder cannot be made, which whoever writes there tells of, or where the system knows no locks.
    """
    path = folder / ".lock"
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with ExitStack() as last:
        # Deepest first, and only those that nobody has used since.
        for each in reversed(made):
            last.callback(_remove_empty, each)
        with suppress(ImportError, OSError):
            import fcntl

            folder.mkdir(parents=True, exist_ok=True)
            file = last.enter_context(path.open("w"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # One that ended just now has taken its file away.
                busy = not _is(file, path)
            except OSError as error:
                busy = error.errno in (errno.EACCES, errno.EAGAIN)
            if busy:
                raise CannotWrite(
                    "another `nsf extract` is writing here", where=folder, do="wait for its end, or name another --out"
                )
            last.callback(_unlink, file, path)
        yield


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _unlink(file: IO[str], path: Path) -> None:
    # It went with the folder where all is done, and the next run may have begun.
    with suppress(OSError):
        if _is(file, path):
            path.unlink()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


class _Making:
    """The segment that is being written; its methods run in one thread, one after the other."""

    def __init__(self, parts: Parts, skipped: Sequence[UserError]):
        self._parts, self._skipped, self._todo = parts, skipped, deque(parts.pending)
        self._seen = 0
        self._positions: list[Tensor] = []
        self._folders: list[Path] = []
        self._file: IO[bytes] | None = None
        self._writer: RowWriter | None = None
        self._failed = False

    def rows(self, features: "Tensor", ready: Any, positions: "Tensor") -> None:
        """Append a batch; a segment is finished once a batch of a later one comes."""
        if self._failed:
            return
        try:
            if ready is not None:
                ready.synchronize()
            with self._writing():
                while self._todo[0] != int(positions[0]) // self._parts.segment:
                    self._finish()
                self._begin().rows(features)
            self._positions.append(positions)
        except BaseException:
            # Rows that wait behind this one must not make a segment look whole.
            self._failed = True
            raise

    def rest(self) -> None:
        with self._writing():
            while self._todo:
                self._finish()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk's error names no file."""
        try:
            yield
        except OSError as error:
            raise CannotWrite(
                f"the parts of the features cannot be written ({error.strerror or error})",
                where=self._parts.folder,
                do="mend that and run the same command again: it goes on from the finished parts",
            ) from error

    def give_up(self) -> None:
        """Leave nothing of the segment that was begun, and no folder that nobody needs."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._temporary().unlink(missing_ok=True)
        for folder in self._folders:
            # Deepest first, and only those that this process made and nobody has used.
            _remove_empty(folder)

    def _temporary(self) -> Path:
        return self._parts.folder / f".{self._todo[0]:05}.{os.getpid()}.tmp"

    def _begin(self) -> RowWriter:
        import torch

        if self._writer is None:
            folder, segment = self._parts.folder, self._todo[0]
            self._folders += [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary().open("w+b")
            notes = {"made_from": self._parts.marks[segment], "first_skipped": "{}"}
            metadata = Metadata(kind="part", parameters=dict(self._parts.made_from), notes=notes).to_strings()
            samples = len(self._parts.span(segment))
            self._writer = RowWriter(self._file, samples, self._parts.width, ["positions"], metadata, self._parts.dtype)
            self._positions = [torch.empty(0, dtype=torch.int64)]
        return self._writer

    def _finish(self) -> None:
        import torch

        writer, segment = self._begin(), self._todo[0]
        positions = torch.cat(self._positions)
        # Errors are met in the order of the samples: the segment's own are the next ones.
        skipped = len(self._parts.span(segment)) - len(positions)
        error = self._skipped[self._seen] if skipped else None
        told = {"what": error.what, "where": error.where and str(error.where), "do": error.do} if error is not None else {}
        writer.finish({"positions": positions}, {"first_skipped": json.dumps(told)})
        self._seen += skipped
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary().replace(self._parts.path(segment))
        self._file = self._writer = None
        self._todo.popleft()
        self._parts.finished[segment] = self._parts._open(segment)
        self._parts.describe()


def _origin(split: Split, position: int) -> bytes:
    """What tells whether a sample has changed."""
    if split.origin is None:
        try:
            sample = split.load(position)
        except UserError as error:
            return _bytes(str(error))
        return _bytes(repr(sample)) if isinstance(sample, str | tuple) else _bytes(repr(sample.size)) + sample.tobytes()
    origin = split.origin(position)
    if isinstance(origin, str):
        return _bytes(origin)
    try:
        found = origin.stat()
    except OSError:
        return _bytes(f"{origin}, which is not there")
    return _bytes(f"{origin} {found.st_size} {found.st_mtime_ns}")


def _bytes(text: str) -> bytes:
    """Of names that are no UTF-8, too."""
    return text.encode(errors="surrogatepass")


def described(thing: Any) -> str:
    """A transform in words that are the same in the next process, and other ones for other settings, nested ones too."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", "; ".join(_said(each) for each in _within(thing)))


def code(*things: Any) -> str:
    """SHA-256 of the source files that define these functions, objects and modules, and all that they hold.

    With them go those of the modules, neither installed nor nsf's own, that their modules import, at any depth.
    """
    files: set[str] = set()
    modules: list[str] = []
    for thing in (each for outer in things for each in _within(outer)):
        modules.append(_module(thing))
        # What is built in, or was typed at a prompt, has no file.
        with suppress(TypeError, OSError):
            files.add(inspect.getsourcefile(_defined(thing)) or "")
    digest = hashlib.sha256()
    for file in sorted((files | _own_files(modules)) - {""}):
        with suppress(OSError):
            digest.update(Path(file).read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _defined(thing: Any) -> Any:
    """What source defines: a function, module or class as it is, and of any other object its class."""
    return thing if inspect.isroutine(thing) or inspect.ismodule(thing) or inspect.isclass(thing) else type(thing)


def _module(thing: Any) -> str:
    """The name of the module that a thing is of; nothing where it says none."""
    known = _defined(thing)
    name = getattr(known, "__name__" if inspect.ismodule(known) else "__module__", None)
    return name if isinstance(name, str) else ""


def _own_files(modules: Sequence[str]) -> set[str]:
    """The files of these modules and of all that they import, but for what is installed and nsf itself."""
    standard, files = Path(sysconfig.get_path("stdlib")), set()
    waiting, seen = list(modules), {""}
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] in ("stages", "nsfcli"):
            continue
        seen.add(name)
        file = _file_of(name)
        # Debian's own are in dist-packages.
        installed = {"site-packages", "dist-packages"} & {*Path(file).parts}
        if not file or installed or Path(file).is_relative_to(standard):
            continue
        files.add(file)
        package = name.rpartition(".")[0]
        # Its package runs before it.
        waiting += [package, *_imported(file, name if Path(file).stem == "__init__" else package)]
        if (loaded := sys.modules.get(name)) is not None:
            waiting += [_module(value) for value in list(vars(loaded).values())]
    return files


def _file_of(name: str) -> str:
    """The file of a module, which is not imported for that; nothing where it has none."""
    if (loaded := sys.modules.get(name)) is not None:
        return getattr(loaded, "__file__", None) or ""
    spec, folders = None, None
    for end in (*(at for at, letter in enumerate(name) if letter == "."), None):
        with suppress(ImportError, ValueError):
            spec = PathFinder.find_spec(name[:end], folders)
        if spec is None or (end is not None and spec.submodule_search_locations is None):
            return ""
        folders = spec.submodule_search_locations
    return spec.origin or "" if spec is not None and spec.has_location else ""


def _imported(file: str, package: str) -> Iterator[str]:
    """The modules that a source file imports, within functions too, and names that may be modules."""
    try:
        nodes = list(ast.walk(ast.parse(Path(file).read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # An import that goes beyond the top package fails when it is run.
            with suppress(ImportError):
                module = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
                yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def _within(thing: Any) -> Iterator[Any]:
    """A thing and, in a fixed order and each once, what its attributes, items, arguments and closure hold."""
    seen: dict[int, Any] = {}
    waiting = deque([thing])
    while waiting:
        each = waiting.popleft()
        if id(each) in seen:
            continue
        # Kept, so that no other object gets its id meanwhile.
        seen[id(each)] = each
        yield each
        if isinstance(each, partial):
            waiting += [each.func, *each.args, *each.keywords.values()]
        elif isinstance(each, Mapping):
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
        elif inspect.isfunction(each):
            waiting += [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
            for cell in each.__closure__ or ():
                # A variable that has no value yet.
                with suppress(ValueError):
                    waiting.append(cell.cell_contents)
        elif inspect.ismethod(each):
            waiting += [each.__func__, each.__self__]
        elif not (inspect.isclass(each) or inspect.ismodule(each)):
            waiting += getattr(each, "__dict__", {}).values()


def _said(thing: Any) -> str:
    """One thing by its settings, without what `_within` tells of it; tensors and arrays by all of their values."""
    import numpy as np
    import torch

    if isinstance(thing, torch.Tensor | np.ndarray):
        held = torch.as_tensor(thing).detach().cpu()
        return f"{thing.dtype} {tuple(thing.shape)} {hashlib.sha256(tensor_bytes(held)).hexdigest()}"
    if isinstance(thing, set | frozenset):
        return f"{type(thing)} {sorted(map(repr, thing))}"
    if isinstance(thing, Mapping | list | tuple):
        return f"{type(thing)} {list(thing) if isinstance(thing, Mapping) else len(thing)}"
    plain: Any = object.__repr__
    names = f" {sorted(vars(thing))}" if type(thing).__repr__ is plain and hasattr(thing, "__dict__") else ""
    return f"{thing!r}{names}"
