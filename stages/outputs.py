"""Atomic writes: all files of one command appear together when it succeeds, none when it fails."""

import csv
import io
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from os.path import realpath
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from stages import distributed
from stages.artifacts import KINDS, Metadata, index_of, shards
from stages.errors import BadValues, CannotWrite, UserError
from stages.tensorfile import Layout, RowWriter, tensor_bytes, type_names

if TYPE_CHECKING:
    from torch import Tensor, dtype


def check_computed(out: Path, tensors: Mapping[str, "Tensor"], *, do: str) -> None:
    """Refuse to write results that are not finite: a learning rate too high, say.

    Raises:
        BadValues: a tensor holds NaN or infinity.
    """
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadValues(f"'{name}' came out as NaN or infinity and is not written", where=out, do=do)


def _is_stream(path: Path) -> bool:
    """Whether a path is one of what a process has open, such as /dev/stdout, or leads there: no file can take its place."""
    for _ in range(40):
        if realpath(path.parent).startswith("/proc/"):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return False


# Seconds after which a temporary file of a process that is not there is no other machine's work.
ABANDONED = 86_400


class Outputs:
    """The files one command writes: all of them appear when it succeeds, none when it fails. Made by `outputs`.

    Attributes:
        written: whether those of the last command are in place; what is said of an interruption depends on it.
    """

    written: ClassVar[bool] = False

    def __init__(self, protected: Sequence[Path]):
        # Not by Path.resolve, which ends in an error where symbolic links lead in a circle.
        self._protected: set[str] = set()
        self.inputs(*protected)
        self._folders: list[Path] = []
        self._pending: list[tuple[Path, Path]] = []
        self._open: list[IO[bytes]] = []
        self._old: list[Path] = []

    def file(self, path: Path) -> IO[bytes]:
        """A temporary file beside `path`, which becomes `path` when the command succeeds.

        Raises:
            CannotWrite: the folder cannot be made or written, `path` is a folder, or an input of the same command.
        """
        path = Path(path)
        if realpath(path) in self._protected:
            raise CannotWrite("is an input of this command and would be overwritten", where=path, do="name another file")
        if realpath(path) in {realpath(other) for _, other in self._pending}:
            raise CannotWrite("is named for two outputs of this command", where=path, do="name two files")
        if path.is_dir():
            raise CannotWrite("is a folder, and a file is to be written there", where=path, do="name a file")
        if (path.exists() and not path.is_file()) or _is_stream(path):
            # A new file would take the place of the device itself.
            raise CannotWrite("is a device or a pipe, and a file is to be written there", where=path, do="name a file")
        temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
        try:
            # Noted first, as the file is: whatever stops this in between, `_discard` finds what there is to take away.
            self._folders += [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            self._pending.append((temporary, path))
            handle = temporary.open("w+b")
        except OSError as error:
            self._pending = [other for other in self._pending if other[1] is not path]
            raise CannotWrite(
                f"cannot be written ({error.strerror})", where=path, do="name a folder you may write to"
            ) from error
        self._open.append(handle)
        return handle

    def inputs(self, *paths: Path) -> None:
        """Name more files that the command reads, folders or indices of them: none of them may be an output."""
        for path in paths:
            with suppress(UserError):
                if parts := shards(path):
                    self._protected |= {realpath(file) for file in (index_of(path), *parts)}
            # A folder that cannot be listed is told of by whoever reads it.
            with suppress(OSError):
                self._protected |= {realpath(file) for file in (path.iterdir() if path.is_dir() else (path,))}

    def check(self, *paths: Path | None) -> None:
        """Raise what `file` would, in the process that writes, before the work that ends in these outputs."""
        if distributed.rank():
            return
        before = len(self._open)
        for path in paths:
            if path is not None:
                self.file(path)
        while len(self._open) > before:
            temporary, _ = self._pending[-1]
            self._open.pop().close()
            temporary.unlink(missing_ok=True)
            self._pending.pop()

    def text(self, path: Path, text: str) -> None:
        if not distributed.rank():
            # A file's name in it need not be UTF-8.
            self.file(path).write(text.encode(errors="backslashreplace"))

    def table(self, path: Path, rows: Iterable[Sequence[Any]]) -> None:
        """A CSV file, its heading the first row."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        self.text(path, lines.getvalue())

    def artifact(self, kind: str, path: Path, tensors: Mapping[str, "Tensor | None"], metadata: Metadata) -> None:
        """One artifact of a fixed kind; a tensor that is None is left out.

        Where several processes work together, each has its own samples' part of the (n,) tensors, and process 0 writes.
        """
        columns = KINDS[kind].columns
        tensors = {
            name: distributed.rows_of_all(tensor) if tensor is not None and columns[name].shape == ("n",) else tensor
            for name, tensor in tensors.items()
        }
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        self.tensors(path, present, _signed(kind, metadata))

    def tensors(self, path: Path, tensors: Mapping[str, "Tensor"], metadata: Metadata) -> None:
        """Any tensors, such as a model's state dict.

        Raises:
            BadValues: a tensor is of a type that safetensors does not know.
        """
        for name, tensor in tensors.items():
            if tensor.dtype not in type_names():
                raise BadValues(f"'{name}' is of type {tensor.dtype}, which safetensors does not know", where=path)
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        layout = Layout({name: (t.dtype, tuple(t.shape)) for name, t in on_cpu.items()}, metadata.to_strings())
        if distributed.rank():
            return
        file = self.file(path)
        file.write(layout.header)
        for name in layout.offsets:
            file.write(tensor_bytes(on_cpu[name]))

    def features(
        self, path: Path, samples: int, width: int, columns: Sequence[str], metadata: Metadata, dtype: "dtype | None" = None
    ) -> RowWriter:
        """A features artifact of at most `samples` rows, to be written one by one; `columns`: its (n,) int64 tensors.

        The features are stored as `dtype`, float32 by default.
        """
        return RowWriter(self.file(path), samples, width, columns, _signed("features", metadata).to_strings(), dtype)

    def index(self, path: Path, shards: Mapping[str, int], metadata: Metadata) -> None:
        """The index of a features artifact in shards, as Hugging Face's: file name -> bytes of its tensors, in order."""
        content = {
            "metadata": {"total_size": sum(shards.values()), **_signed("features", metadata).to_strings()},
            "weight_map": {f"features.{number:05}": name for number, name in enumerate(shards, start=1)},
        }
        self.text(path, json.dumps(content, indent=2) + "\n")

    def _commit(self) -> None:
        for handle in self._open:
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
        with distributed.unstopped():
            self._replace()

    def _replace(self) -> None:
        # Each old file is kept under a second name until all new ones are in place: all of them change, or none.
        kept: list[tuple[Path, Path | None]] = []
        try:
            for temporary, path in self._pending:
                old = temporary.with_name(f"{temporary.name[:-4]}.old.tmp") if path.exists() else None
                # Noted first: whatever stops this in between finds what there is to put back.
                kept.append((path, old))
                if old is not None:
                    _second_name(path, old)
                temporary.replace(path)
        except BaseException:
            for path, old in reversed(kept):
                if old is not None and old.exists():
                    old.replace(path)
                    # Of two names of one file, a rename takes none away.
                    old.unlink(missing_ok=True)
                elif old is None and path.is_file():
                    path.unlink()
            raise
        Outputs.written = bool(self._pending)
        # `_discard` takes them away where this is stopped on the way.
        self._old = [old for _, old in kept if old is not None]
        for old in self._old:
            old.unlink()
        for folder in {path.parent for _, path in self._pending}:
            # What cannot be listed or removed stays.
            with suppress(OSError):
                _remove_abandoned(folder, {path.name for _, path in self._pending if path.parent == folder})

    def _discard(self) -> None:
        with distributed.unstopped():
            self._remove()

    def _remove(self) -> None:
        for handle in self._open:
            # A full disk makes the last flush fail too; the file goes away in the next lines all the same.
            with suppress(OSError):
                handle.close()
        for temporary in (*(temporary for temporary, _ in self._pending), *self._old):
            temporary.unlink(missing_ok=True)
        for folder in sorted(self._folders, key=lambda folder: len(folder.parts), reverse=True):
            # Deepest first, and only those that this command made and nobody has used since.
            with suppress(OSError):
                folder.rmdir()


def _second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:
        if path.is_dir():
            raise
        # Some file systems know no hard links; there the file is gone from its place until the new one comes.
        path.rename(name)


def _remove_abandoned(folder: Path, names: set[str]) -> None:
    """Remove the temporary files for these of processes that were killed on the way.

    Not those of the last day: on a shared folder the process may be another machine's.
    """
    for other in folder.iterdir():
        found = re.fullmatch(r"\.(.+)\.(\d{1,9})(\.old)?\.tmp", other.name)
        if found and found[1] in names and not _alive(int(found[2])) and time.time() - other.stat().st_mtime > ABANDONED:
            other.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        # Anybody else's may not be asked.
        return not isinstance(error, ProcessLookupError)
    return True


def _signed(kind: str, metadata: Metadata) -> Metadata:
    return replace(metadata, kind=kind, stage=KINDS[kind].stage)


def named_in(*sections: Mapping[str, Any]) -> list[Path]:
    """The files and folders that sections `data` and `model` of params.yaml name, for `outputs`."""
    keys = ("file", "weights", "name", "checkpoint")
    return [Path(str(section[key])) for section in sections for key in keys if section.get(key)]


@contextmanager
def outputs(*inputs: Path | None) -> Iterator[Outputs]:
    """All outputs of one command, written atomically: temporary files, fsync, then renamed together.

    Args:
        inputs: the files that the command reads, or folders of them; none of them may be an output.

    Raises:
        CannotWrite: an output cannot be written; nothing is left behind.
    """
    Outputs.written = False
    pending = Outputs([Path(path) for path in inputs if path is not None])
    try:
        yield pending
        # Nothing appears before every process is done.
        distributed.wait()
        pending._commit()
    except UserError:
        pending._discard()
        raise
    except OSError as error:
        pending._discard()
        # A full disk's error names no file.
        where = error.filename or next((path for _, path in reversed(pending._pending)), None)
        raise CannotWrite(f"the outputs cannot be written ({error.strerror or error})", where=where) from error
    except BaseException:
        pending._discard()
        raise
